//! The certificate: read from files, and read again when they change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use thiserror::Error;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM form", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// They do not fit, or are of a kind that is not known.
    #[error("{} and {} cannot be used together: {source}", .cert.display(), .key.display())]
    Unusable {
        /// The file of the chain.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What changes with the content of both files.
type Stamp = [(u64, u64, i64, i64); 2];

/// The certificate as of now.
#[derive(Debug)]
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
    /// Of the files that were tried last.
    tried: Mutex<Option<Stamp>>,
}

impl Certificate {
    pub(crate) fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let tried = stamp(cert, key);
        let current = read(cert, key, &provider)?;
        Ok(Arc::new(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            provider,
            current: RwLock::new(Arc::new(current)),
            tried: Mutex::new(tried),
        }))
    }

    /// Reads the files again if they have changed. What cannot be used does not replace what can.
    pub(crate) fn follow(&self) {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.cert, &self.key);
        if now == *tried {
            return;
        }
        *tried = now;
        match read(&self.cert, &self.key, &self.provider) {
            Ok(fresh) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                tracing::info!(cert = %self.cert.display(), "the new certificate is in use");
            }
            // One file is replaced before the other.
            Err(error) => tracing::warn!(%error, "the certificate has changed and the old one stays in use"),
        }
    }

    /// A server with this certificate.
    pub(crate) fn server(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let unusable = |source| TlsError::Unusable { cert: self.cert.clone(), key: self.key.clone(), source };
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).to_vec();
        Ok(config)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn read(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let text =
        |path: &Path| fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source });
    let not_pem = |path: &Path, what| TlsError::NotPem { path: path.to_owned(), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| not_pem(cert, "certificate"))?;
    if chain.is_empty() {
        return Err(not_pem(cert, "certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&text(key)?).map_err(|_| not_pem(key, "private key"))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|source| TlsError::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    })
}

fn stamp(cert: &Path, key: &Path) -> Option<Stamp> {
    let of = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    Some([of(cert)?, of(key)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    #[test]
    fn files_that_change_are_read_again_and_bad_ones_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let first = write(dir.path(), "*.a.test");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let certificate = Certificate::load(&cert, &key).unwrap();
        let current = || certificate.current.read().unwrap().cert[0].clone();
        assert_eq!(current(), first);
        let second = write(dir.path(), "*.b.test");
        assert_eq!(current(), first);
        certificate.follow();
        assert_eq!(current(), second);
        // A key that is another's, nothing at all, and then a good pair.
        let other = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
        fs::write(&key, other.signing_key.serialize_pem()).unwrap();
        certificate.follow();
        assert_eq!(current(), second);
        fs::remove_file(&cert).unwrap();
        certificate.follow();
        assert_eq!(current(), second);
        let third = write(dir.path(), "*.c.test");
        certificate.follow();
        assert_eq!(current(), third);
        assert!(certificate.server().is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let none = dir.path().join("none.pem");
        let said = |cert: &Path, key: &Path| Certificate::load(cert, key).unwrap_err().to_string();
        assert!(said(&none, &key).contains("none.pem"));
        assert!(said(&key, &key).contains("holds no certificate"));
        assert!(said(&cert, &cert).contains("holds no private key"));
    }
}
