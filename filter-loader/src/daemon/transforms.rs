//! What sets headers in requests, as the operator configured it.

use std::path::PathBuf;

use filter_inspector::transform::Transformer;
use filter_inspector::transform::ca;

use super::core::Core;
use crate::config::Config;
use crate::error::ControlError;
use crate::protocol::Authority;
use crate::trust::Trust;

/// Reads or makes what it takes.
///
/// # Errors
/// If a file that the configuration names cannot be read, or the authority can be neither read nor made.
pub(super) fn transformer(config: &Config) -> Result<Transformer, ControlError> {
    let failed = |error: &dyn std::fmt::Display| ControlError::failed(error.to_string());
    let authority = ca::Authority::open(&authority_file(config)).map_err(|error| failed(&error))?;
    let transform = &config.transform;
    Transformer::new(authority, transform.upstream_ca.as_deref(), transform.secrets_dir.clone())
        .map_err(|error| failed(&error))
}

/// Has the kernel write none of the daemon's memory down, should it die: it passes on what nobody is to read.
pub(super) fn leave_no_core() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "should the daemon fail, its memory may be written to a file, secrets included");
    }
}

impl Core {
    /// The authority that sandboxes must trust.
    pub fn authority(&self) -> Authority {
        Authority { certificate: self.transformer.authority().pem().to_owned() }
    }

    /// Writes down what sandboxes must trust, for whoever makes them.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn publish_authority(&self) -> Result<(), ControlError> {
        let written = Trust::of(&self.config).write(&self.authority().certificate);
        written.map_err(|error| {
            ControlError::failed(format!("cannot write down what sandboxes must trust: {error}"))
        })
    }

    /// Puts a new authority in the place of the one that sandboxes trust.
    ///
    /// # Errors
    /// If it cannot be made or written down. The old one is used then.
    pub fn rotate_authority(&self) -> Result<Authority, ControlError> {
        let file = authority_file(&self.config);
        self.transformer.rotate(&file).map_err(|error| ControlError::failed(error.to_string()))?;
        self.publish_authority()?;
        Ok(self.authority())
    }
}

fn authority_file(config: &Config) -> PathBuf {
    config.paths.state_dir.join("ca.pem")
}
