//! Requests that headers are set in, such as the key of an API that the sandbox uses and never holds.
//!
//! Where a policy has a rule for a host, and allows it, the filter takes the host's part towards the sandbox: `tls`
//! speaks TLS with both ends, by a `leaf` that [`ca`] vouches for on one side and as a client that knows whom to
//! `trust` on the other. `session` takes each request, judges it by the rules in force, has its `headers` changed, and
//! hands it to the upstream; `secrets` are read where a header names one. All other connections go by untouched.
//!
//! What a header holds is for the host of the rule and for nobody else. So it is sent only to a server that proved to
//! be that host, or, if the rule says so, in the clear to an address that the filter resolved itself.

mod body;
pub mod ca;
mod headers;
mod leaf;
mod nursery;
mod protocol;
mod secrets;
mod session;
pub(crate) mod tls;
pub mod trust;
mod upstream;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use self::{
    ca::{Authority, CaError},
    leaf::Leaves,
    secrets::Secrets,
    trust::{Trust, TrustError},
};

pub(crate) use self::session::serve_clear;

/// What all connections need that headers are set on.
pub struct Transformer {
    leaves: Leaves,
    trust: Trust,
    secrets: Secrets,
    count: AtomicU64,
}

/// Without what is secret, which is nearly all of it.
impl fmt::Debug for Transformer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transformer").finish_non_exhaustive()
    }
}

impl Transformer {
    /// Trusts `upstream_ca`, a PEM file, besides the system's certificates, and reads secrets from `secrets_dir`.
    ///
    /// # Errors
    /// If the file cannot be read, or the system cannot do cryptography.
    pub fn new(
        authority: Authority,
        upstream_ca: Option<&Path>,
        secrets_dir: Option<PathBuf>,
    ) -> Result<Self, TrustError> {
        Ok(Self {
            leaves: Leaves::new(authority)?,
            trust: Trust::new(upstream_ca)?,
            secrets: Secrets::new(secrets_dir),
            count: AtomicU64::new(0),
        })
    }

    /// The certificate that sandboxes must trust.
    pub fn authority(&self) -> Arc<Authority> {
        self.leaves.authority()
    }

    /// Replaces the authority in a file, and goes on with the new one. Sandboxes that trust the old one no longer
    /// trust the filter.
    ///
    /// # Errors
    /// If it cannot be made or written. Nothing has changed then.
    pub fn rotate(&self, path: &Path) -> Result<(), CaError> {
        self.leaves.replace(Authority::renew(path)?);
        Ok(())
    }

    fn count_one(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that headers were set in so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
