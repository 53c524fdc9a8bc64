//! The secrets of a sandbox: derived from one seed, so that none has to be stored, and known to whoever reads
//! the seed.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::ControlError;
use crate::protocol::{SandboxId, Tokens};

const LENGTH: usize = 32;

/// What everything is derived from.
#[derive(Clone)]
pub struct Seed([u8; LENGTH]);

impl Seed {
    /// Reads the seed of a state directory, and makes one where there is none.
    ///
    /// # Errors
    /// `failed` if the file system refuses, or the file holds something else.
    pub fn open(state_dir: &Path) -> Result<Self, ControlError> {
        let path = state_dir.join("token-seed");
        let failed = |error: io::Error| ControlError::failed(format!("{}: {error}", path.display()));
        match File::open(&path) {
            Ok(mut file) => {
                let mut seed = Vec::new();
                file.read_to_end(&mut seed).map_err(failed)?;
                let seed = seed.try_into().map_err(|_| {
                    ControlError::failed(format!(
                        "{} is no seed; remove it, and every sandbox gets new tokens",
                        path.display()
                    ))
                })?;
                Ok(Self(seed))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seed: [u8; LENGTH] = rand::random();
                let new = path.with_extension("new");
                let write = || -> io::Result<()> {
                    let mut file =
                        File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
                    file.write_all(&seed)?;
                    file.sync_data()?;
                    fs::rename(&new, &path)
                };
                write().map_err(failed)?;
                Ok(Self(seed))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Those of a sandbox. A later one of the same id has another number, and so other tokens.
    pub fn tokens(&self, id: &SandboxId, tenant: u32) -> Tokens {
        let of =
            |purpose: &str| self.derive(&[purpose.as_bytes(), id.as_str().as_bytes(), &tenant.to_be_bytes()]);
        Tokens { traffic_access_token: of("traffic"), envd_access_token: of("envd") }
    }

    /// A stand-in for a secret that tells it from others and does not give it away.
    pub fn fingerprint(&self, secret: &str) -> String {
        self.derive(&[b"fingerprint", secret.as_bytes()])
    }

    /// Each part goes in behind its length, so that no two lists of parts are the same bytes.
    fn derive(&self, parts: &[&[u8]]) -> String {
        // A key shorter than a block of the hash is filled up with zeros (RFC 2104).
        let mut key = [0; 64];
        key[..LENGTH].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&key.into());
        for part in parts {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_differ_by_everything_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let seed = Seed::open(dir.path()).unwrap();
        let id = |text: &str| text.parse::<SandboxId>().unwrap();
        let tokens = seed.tokens(&id("a"), 7);
        assert_eq!(tokens.traffic_access_token.len(), 64);
        assert_ne!(tokens.traffic_access_token, tokens.envd_access_token);
        assert_ne!(tokens, seed.tokens(&id("b"), 7));
        assert_ne!(tokens, seed.tokens(&id("a"), 8));
        assert_eq!(tokens, Seed::open(dir.path()).unwrap().tokens(&id("a"), 7));
        assert_ne!(tokens, Seed::open(tempfile::tempdir().unwrap().path()).unwrap().tokens(&id("a"), 7));
        let mode = fs::metadata(dir.path().join("token-seed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("token-seed"), "short").unwrap();
        assert!(Seed::open(dir.path()).unwrap_err().message.contains("is no seed"));
    }
}
