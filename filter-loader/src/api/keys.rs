//! Who holds which key, and how fast they may ask.
//!
//! Keys are held as digests, compared in constant time, and appear in no log. A key file is read again when it
//! changes; who held its old key keeps their sandboxes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::StatusCode;
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Caller,
    body::Room,
    error::{ApiError, rate_headers},
};
use crate::{
    config::{Config, api_keys::ApiKey},
    daemon::tokens::Seed,
    limits::Limiter,
    sandboxes::{Allowance, Owner},
};

/// The header that a key comes in.
pub const HEADER: &str = "x-api-key";

type KeyDigest = [u8; 32];

/// All keys.
pub struct Keys(Vec<Holder>);

struct Holder {
    key: Key,
    caller: Caller,
    requests: Option<Limiter>,
}

enum Key {
    Known(KeyDigest),
    InFile(KeyFile),
}

/// A key in a file, and which state of the file that was.
struct KeyFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Option<KeyDigest>)>>,
}

/// What changes with a file's content.
type Stamp = (u64, i64, i64, u64);

impl Keys {
    /// The keys of a configuration.
    pub fn new(config: &Config, seed: &Seed) -> Self {
        Self(config.api_keys.iter().map(|entry| Holder::new(entry, config, seed)).collect())
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who holds this key. All are compared, so that the time it takes tells nothing.
    fn find(&self, presented: &[u8]) -> Option<&Holder> {
        let presented: KeyDigest = Sha256::digest(presented).into();
        let mut found = None;
        for holder in &self.0 {
            let is_theirs = holder.key.digest().is_some_and(|digest| digest.ct_eq(&presented).into());
            if is_theirs {
                found = Some(holder);
            }
        }
        found
    }
}

impl Holder {
    fn new(entry: &ApiKey, config: &Config, seed: &Seed) -> Self {
        let (key, name) = match (&entry.key, &entry.key_file) {
            (Some(key), _) => {
                (Key::Known(Sha256::digest(key.expose()).into()), seed.fingerprint(key.expose()))
            }
            (None, path) => {
                let path = path.clone().unwrap_or_default();
                let name = format!("file:{}", path.display());
                (Key::InFile(KeyFile { path, read: Mutex::default() }), name)
            }
        };
        let allowance = Allowance {
            concurrent: entry.concurrent_sandboxes().filter(|limit| *limit > 0),
            rate: entry.create_rate().and_then(Limiter::new).map(Arc::new),
        };
        Self {
            key,
            caller: Caller { owner: Owner::Key(name), allowance, room: Some(Room::default()) },
            requests: Limiter::new(config.limits.management_api),
        }
    }
}

impl Key {
    fn digest(&self) -> Option<KeyDigest> {
        match self {
            Self::Known(digest) => Some(*digest),
            Self::InFile(file) => file.digest(),
        }
    }
}

impl KeyFile {
    /// Of what the file holds now. A file that is missing or empty is nobody's key.
    fn digest(&self) -> Option<KeyDigest> {
        let stamp = stamp(&self.path)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, digest)) = *read
            && known == stamp
        {
            return digest;
        }
        let text = fs::read_to_string(&self.path)
            .inspect_err(|error| tracing::warn!(file = %self.path.display(), %error, "cannot read a key"))
            .ok()?;
        let key = text.trim();
        let digest = (!key.is_empty()).then(|| Sha256::digest(key).into());
        *read = Some((stamp, digest));
        digest
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// Lets a request through if it has a key and is not too many, and tells it whose it is.
pub async fn authenticate(State(keys): State<Arc<Keys>>, mut request: Request, next: Next) -> Response {
    let unauthorized = |message| ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    let Some(presented) = request.headers().get(HEADER) else {
        return unauthorized("Invalid API key format: the X-API-Key header is missing");
    };
    let Some(holder) = keys.find(presented.as_bytes()) else {
        return unauthorized("Invalid API key");
    };
    let standing = match &holder.requests {
        Some(limiter) => match limiter.check() {
            Ok(standing) => Some(standing),
            Err(refused) => return ApiError::rate_limited(refused).into_response(),
        },
        None => None,
    };
    request.extensions_mut().insert(holder.caller.clone());
    let mut response = next.run(request).await;
    if let Some(standing) = standing {
        for (name, value) in rate_headers(standing) {
            // A refusal may say how another limit stands.
            response.headers_mut().entry(name).or_insert(value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn keys(toml: &str) -> (tempfile::TempDir, Keys) {
        let dir = tempfile::tempdir().unwrap();
        let toml = toml.replace("DIR", &dir.path().display().to_string());
        let config = Config::parse(Path::new("test"), &toml).unwrap();
        let seed = Seed::of_owners(dir.path()).unwrap();
        (dir, Keys::new(&config, &seed))
    }

    #[test]
    fn holders_are_told_apart_and_strangers_are_none() {
        let (_dir, keys) = keys(
            "[[api_keys]]\nkey = 'e2b_a'\ntier = 'hobby'\n[[api_keys]]\nkey = 'e2b_b'\ntier = 'pro'\nconcurrent_sandboxes = 7\n",
        );
        let a = keys.find(b"e2b_a").unwrap();
        let b = keys.find(b"e2b_b").unwrap();
        assert_ne!(a.caller.owner, b.caller.owner);
        assert_eq!((a.caller.allowance.concurrent, b.caller.allowance.concurrent), (Some(20), Some(7)));
        for stranger in [&b""[..], b"e2b_", b"e2b_ab", b"E2B_A", b"e2b_a ", b"\xff"] {
            assert!(keys.find(stranger).is_none());
        }
        assert!(!format!("{:?}", a.caller).contains("e2b_a"));
    }

    #[test]
    fn a_key_file_is_read_again_and_its_holder_stays_who_they_are() {
        let (dir, keys) = keys("[[api_keys]]\nkey_file = 'DIR/key'\ntier = 'pro'\n");
        let path = dir.path().join("key");
        assert!(keys.find(b"").is_none() && keys.find(b"one").is_none());
        fs::write(&path, "one\n").unwrap();
        let owner = keys.find(b"one").unwrap().caller.owner.clone();
        fs::write(dir.path().join("new"), "two\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(keys.find(b"one").is_none());
        assert_eq!(keys.find(b"two").unwrap().caller.owner, owner);
        fs::write(&path, "\n").unwrap();
        assert!(keys.find(b"two").is_none() && keys.find(b"").is_none());
    }
}
