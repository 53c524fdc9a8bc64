//! The secrets of a sandbox: derived from one seed, so that none has to be stored, and known to whoever reads
//! the seed. Drawing another seed changes all of them at once.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::ControlError;
use crate::protocol::{SandboxId, Tokens};

const LENGTH: usize = 32;

/// What all tokens are derived from, and can be derived anew.
pub struct TokenSeed {
    file: PathBuf,
    /// Counts how often it was drawn since the start.
    current: RwLock<(u64, Seed)>,
}

impl TokenSeed {
    /// The seed of tokens in a state directory, made where there is none.
    ///
    /// # Errors
    /// As [`Seed::open`].
    pub fn open(state_dir: &Path) -> Result<Self, ControlError> {
        let file = state_dir.join("token-seed");
        let seed = Seed::open(&file)?;
        Ok(Self { file, current: RwLock::new((0, seed)) })
    }

    /// Those of a sandbox. A later one of the same id has another number, and so other tokens.
    pub fn tokens(&self, id: &SandboxId, tenant: u32) -> Tokens {
        self.tokens_and_round(id, tenant).0
    }

    /// As [`Self::tokens`], with the number that these are valid for.
    pub fn tokens_and_round(&self, id: &SandboxId, tenant: u32) -> (Tokens, u64) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let (round, seed) = &*current;
        let of =
            |purpose: &str| seed.derive(&[purpose.as_bytes(), id.as_str().as_bytes(), &tenant.to_be_bytes()]);
        (Tokens { traffic_access_token: of("traffic"), envd_access_token: of("envd") }, *round)
    }

    /// The number of the tokens that are valid now.
    pub fn round(&self) -> u64 {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Draws another seed: every token of before is invalid from now on.
    ///
    /// # Errors
    /// `failed` if it cannot be written down; the old ones are valid then.
    pub fn rotate(&self) -> Result<(), ControlError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let seed = Seed::draw(&self.file)?;
        *current = (current.0 + 1, seed);
        Ok(())
    }
}

/// What secrets are derived from.
#[derive(Clone)]
pub struct Seed([u8; LENGTH]);

impl Seed {
    /// That by which owners are known from the keys that they show. It outlives all tokens.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_owners(state_dir: &Path) -> Result<Self, ControlError> {
        Self::open(&state_dir.join("owner-seed"))
    }

    /// Reads a seed, and makes one where there is none.
    ///
    /// # Errors
    /// `failed` if the file system refuses, or the file holds something else.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let failed = |error: io::Error| ControlError::failed(format!("{}: {error}", path.display()));
        match File::open(path) {
            Ok(mut file) => {
                let mut seed = Vec::new();
                file.read_to_end(&mut seed).map_err(failed)?;
                let seed = seed.try_into().map_err(|_| {
                    ControlError::failed(format!(
                        "{} is no seed; remove it, and what is derived from it is made anew",
                        path.display()
                    ))
                })?;
                Ok(Self(seed))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::draw(path),
            Err(error) => Err(failed(error)),
        }
    }

    fn draw(path: &Path) -> Result<Self, ControlError> {
        let seed: [u8; LENGTH] = rand::random();
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&seed)?;
            file.sync_data()?;
            fs::rename(&new, path)
        };
        write().map_err(|error| ControlError::failed(format!("{}: {error}", path.display())))?;
        Ok(Self(seed))
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

    fn id(text: &str) -> SandboxId {
        text.parse().unwrap()
    }

    #[test]
    fn tokens_differ_by_everything_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let seed = TokenSeed::open(dir.path()).unwrap();
        let tokens = seed.tokens(&id("a"), 7);
        assert_eq!(tokens.traffic_access_token.len(), 64);
        assert_ne!(tokens.traffic_access_token, tokens.envd_access_token);
        assert_ne!(tokens, seed.tokens(&id("b"), 7));
        assert_ne!(tokens, seed.tokens(&id("a"), 8));
        assert_eq!(tokens, TokenSeed::open(dir.path()).unwrap().tokens(&id("a"), 7));
        assert_ne!(tokens, TokenSeed::open(tempfile::tempdir().unwrap().path()).unwrap().tokens(&id("a"), 7));
        let mode = fs::metadata(dir.path().join("token-seed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("token-seed"), "short").unwrap();
        assert!(TokenSeed::open(dir.path()).err().unwrap().message.contains("is no seed"));
    }

    #[test]
    fn a_rotation_replaces_tokens_for_good_and_owners_stay() {
        let dir = tempfile::tempdir().unwrap();
        let seed = TokenSeed::open(dir.path()).unwrap();
        let owner = Seed::of_owners(dir.path()).unwrap().fingerprint("key");
        let (before, round) = seed.tokens_and_round(&id("a"), 7);
        seed.rotate().unwrap();
        let after = seed.tokens(&id("a"), 7);
        assert_ne!(after.traffic_access_token, before.traffic_access_token);
        assert_ne!(after.envd_access_token, before.envd_access_token);
        assert_ne!(seed.round(), round);
        assert_eq!(TokenSeed::open(dir.path()).unwrap().tokens(&id("a"), 7), after);
        assert_eq!(Seed::of_owners(dir.path()).unwrap().fingerprint("key"), owner);
        let mode = fs::metadata(dir.path().join("token-seed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
