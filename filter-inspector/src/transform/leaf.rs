//! What the filter shows to a sandbox in a host's stead: leaves, made once and not too many at a time.

use std::{
    num::NonZeroU32,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use filter_policy::Name;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use rustls::{
    ServerConfig, crypto::ring, server::ClientHello, server::ResolvesServerCert, sign::CertifiedKey,
};

use super::ca::{Authority, CaError};
use crate::host::Tenant;

/// Leaves that are kept; for as long as they are far from their end.
const KEPT: u64 = 4096;
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How many a sandbox may have made at once, and how many a second after that.
const BURST: NonZeroU32 = NonZeroU32::new(64).unwrap();
const RATE: NonZeroU32 = NonZeroU32::new(8).unwrap();
/// Sandboxes whose rate is remembered before those are forgotten that have asked for nothing of late.
const REMEMBERED: usize = 1024;

/// Why there is no leaf.
#[derive(Debug)]
pub(crate) enum NoLeaf {
    /// The sandbox wants too many.
    TooMany,
    /// It cannot be made.
    Failed(CaError),
}

/// Leaves by name. What a name's leaf looks like does not depend on who asks.
pub(super) struct Leaves {
    authority: RwLock<Arc<Authority>>,
    made: Cache<Name, Arc<CertifiedKey>>,
    rate: DefaultKeyedRateLimiter<Tenant>,
    base: ServerConfig,
}

impl Leaves {
    pub(super) fn new(authority: Authority) -> Result<Self, rustls::Error> {
        let base = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Always(None)));
        Ok(Self {
            authority: RwLock::new(Arc::new(authority)),
            made: Cache::builder().max_capacity(KEPT).time_to_live(KEPT_FOR).build(),
            rate: RateLimiter::keyed(Quota::per_second(RATE).allow_burst(BURST)),
            base,
        })
    }

    pub(super) fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has leaves made by another authority from now on.
    pub(super) fn replace(&self, authority: Authority) {
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
        self.made.invalidate_all();
    }

    /// The leaf of a name that the sandbox may reach.
    pub(super) fn of(&self, tenant: Tenant, name: &Name) -> Result<Arc<CertifiedKey>, NoLeaf> {
        if let Some(there) = self.made.get(name) {
            return Ok(there);
        }
        if self.rate.len() >= REMEMBERED {
            self.rate.retain_recent();
        }
        self.rate.check_key(&tenant).map_err(|_| NoLeaf::TooMany)?;
        let leaf = Arc::new(self.authority().issue(name).map_err(NoLeaf::Failed)?);
        self.made.insert(name.clone(), leaf.clone());
        Ok(leaf)
    }

    /// How to speak TLS with a leaf; `protocols` are those to agree on (RFC 7301), in the order of preference.
    pub(super) fn config(&self, leaf: Arc<CertifiedKey>, protocols: Vec<Vec<u8>>) -> Arc<ServerConfig> {
        let mut config = self.base.clone();
        config.cert_resolver = Arc::new(Always(Some(leaf)));
        config.alpn_protocols = protocols;
        Arc::new(config)
    }
}

/// The one leaf of a connection.
#[derive(Debug)]
struct Always(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn leaves(what: &str) -> (Leaves, std::path::PathBuf) {
        let dir = std::env::temp_dir().join(format!("leaf-{}-{what}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ca.pem");
        (Leaves::new(Authority::renew(&path).unwrap()).unwrap(), path)
    }

    #[test]
    fn a_sandbox_has_so_many_made_and_others_do_not_suffer() {
        let (leaves, _) = leaves("rate");
        let many = (0..1000).filter(|number| leaves.of(1, &name(&format!("n{number}.test"))).is_ok()).count();
        assert!((64..300).contains(&many), "{many} were made");
        assert!(matches!(leaves.of(1, &name("another.test")), Err(NoLeaf::TooMany)));
        assert!(leaves.of(2, &name("another.test")).is_ok());
        // What is there costs nothing.
        assert!(leaves.of(1, &name("n0.test")).is_ok() && leaves.of(1, &name("another.test")).is_ok());
    }

    #[test]
    fn a_rotation_makes_new_leaves() {
        let (leaves, path) = leaves("rotation");
        let old = leaves.of(1, &name("a.test")).unwrap();
        assert!(Arc::ptr_eq(&old, &leaves.of(2, &name("a.test")).unwrap()));
        leaves.replace(Authority::renew(&path).unwrap());
        let new = leaves.of(1, &name("a.test")).unwrap();
        assert_ne!(old.cert[1], new.cert[1]);
    }
}
