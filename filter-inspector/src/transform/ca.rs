//! The certification authority by which sandboxes take the filter for the hosts that it sets headers for.
//!
//! It is one file, certificate and key together, that only its owner reads. Whoever has the key can pass for every
//! host before the sandboxes that trust it, and before nobody else.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use filter_policy::Name;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SigningKey},
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

/// How long an authority is good for.
const YEARS: i64 = 10;
/// How long a leaf is. A sandbox's clock may be some days off either way.
pub(super) const LEAF_DAYS: i64 = 30;
const SKEW: Duration = Duration::days(2);

/// Why there is no authority.
#[derive(Debug, Error)]
pub enum CaError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not one that this program wrote.
    #[error("{path}: {what}; remove it and a new authority is made, which sandboxes then have to be given")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Keys or signatures cannot be made.
    #[error("cannot make an authority: {0}")]
    Crypto(String),
}

/// An authority, and the one key that all of its leaves have.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    leaf_key: KeyPair,
    leaf_signer: std::sync::Arc<dyn SigningKey>,
}

/// Without its keys.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority in a file, or a new one if there is none.
    ///
    /// # Errors
    /// If the file is there and is none of these, or cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, CaError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::renew(path),
            Err(source) => Err(CaError::File { path: path.to_owned(), source }),
        }
    }

    /// A new authority, in the place of the one in the file.
    ///
    /// # Errors
    /// If it cannot be made or written. The file is as it was then.
    pub fn renew(path: &Path) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(crypto)?;
        let certificate = params(&key).self_signed(&key).map_err(crypto)?;
        let text = certificate.pem() + &key.serialize_pem();
        replace(path, &text).map_err(|source| CaError::File { path: path.to_owned(), source })?;
        Self::new(key, certificate.der().clone(), certificate.pem())
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CaError> {
        let wrong = |what: String| CaError::Content { path: path.to_owned(), what };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| wrong(format!("there is no certificate in it ({error})")))?;
        // Its errors say nothing of what they read.
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| wrong("there is no key in it".to_owned()))?;
        let key = KeyPair::try_from(&key).map_err(|_| wrong("its key is of no known kind".to_owned()))?;
        let spki = key.subject_public_key_info();
        if !certificate.windows(spki.len()).any(|window| window == spki) {
            return Err(wrong("certificate and key do not belong together".to_owned()));
        }
        let end = text.find(CERTIFICATE_END).map_or(0, |at| at + CERTIFICATE_END.len());
        let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap_or(0);
        let pem = text.get(begin..end).unwrap_or_default().to_owned() + "\n";
        Self::new(key, certificate, pem)
    }

    fn new(key: KeyPair, certificate: CertificateDer<'static>, pem: String) -> Result<Self, CaError> {
        let leaf_key = KeyPair::generate().map_err(crypto)?;
        let private = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
        let leaf_signer = ring::sign::any_supported_type(&private).map_err(crypto)?;
        Ok(Self { issuer: Issuer::new(params(&key), key), certificate, pem, leaf_key, leaf_signer })
    }

    /// The certificate that sandboxes must trust, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate by which the filter passes for a host.
    pub(super) fn issue(&self, name: &Name) -> Result<CertifiedKey, CaError> {
        let mut params = CertificateParams::new([name.as_str().to_owned()]).map_err(crypto)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "sandbox-filter");
        // All leaves have one key, from which it would otherwise be made.
        params.serial_number = Some(serial()?);
        (params.not_before, params.not_after) = validity(Duration::days(LEAF_DAYS));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.leaf_key, &self.issuer).map_err(crypto)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        Ok(CertifiedKey::new(chain, self.leaf_signer.clone()))
    }
}

const CERTIFICATE_END: &str = "-----END CERTIFICATE-----";

/// What an authority says of itself, which follows from its key alone, so that it can be said again. Each has a name
/// of its own, or clients would take the new one for the old after a rotation.
fn params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("sandbox-filter CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(Duration::days(365 * YEARS));
    params
}

fn validity(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - SKEW, now + length)
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| CaError::Crypto("the system gives no random numbers".to_owned()))?;
    // A positive number (RFC 5280 section 4.1.2.2).
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Writes a file in one piece or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&new, path)
}

fn crypto(error: impl fmt::Display) -> CaError {
    CaError::Crypto(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ca-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir.join("ca.pem")
    }

    #[test]
    fn an_authority_is_made_once_and_only_its_owner_reads_it() {
        let path = place("once");
        let made = Authority::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Authority::open(&path).unwrap();
        assert_eq!((made.pem(), &made.certificate), (read.pem(), &read.certificate));
        assert!(!made.pem().contains("KEY"));
        let renewed = Authority::renew(&path).unwrap();
        assert_ne!(renewed.pem(), made.pem());
        assert_eq!(Authority::open(&path).unwrap().pem(), renewed.pem());
    }

    #[test]
    fn what_is_no_authority_is_not_replaced_unasked() {
        let path = place("other");
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let certificate = params(&key).self_signed(&key).unwrap().pem();
        for text in [
            "",
            "nonsense",
            &certificate,
            &other.serialize_pem(),
            &(certificate.clone() + &other.serialize_pem()),
        ] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Authority::open(&path), Err(CaError::Content { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn its_leaves_are_believed_by_whoever_trusts_it() {
        use rustls::client::danger::ServerCertVerifier;
        use rustls::{
            RootCertStore,
            client::WebPkiServerVerifier,
            pki_types::{ServerName, UnixTime},
        };
        let path = place("leaves");
        Authority::open(&path).unwrap();
        // By its own words, as they are read again.
        let authority = Authority::open(&path).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = std::sync::Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let leaf = authority.issue(&Name::parse("a_b.api.test").unwrap()).unwrap();
        let verify = |name: &'static str| {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&leaf.cert[0], &leaf.cert[1..], &name, &[], UnixTime::now())
        };
        assert!(verify("a_b.api.test").is_ok());
        assert!(verify("other.test").is_err());
        let again = authority.issue(&Name::parse("a_b.api.test").unwrap()).unwrap();
        assert_ne!(leaf.cert[0], again.cert[0], "serial numbers are not used twice");
    }
}
