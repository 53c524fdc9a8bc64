//! Whom the filter believes to be the host that headers are for.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use filter_policy::Name;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use thiserror::Error;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::protocol::{H1, H2, Offer};
use crate::stream::Stream;

/// Why nobody can be believed.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The operator's file cannot be read.
    #[error("{path} ([transform].upstream_ca): {what}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The library has no means.
    #[error("cannot speak TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The certificates that are trusted, ready to use: the system's and the operator's.
pub(super) struct Trust {
    both: Arc<ClientConfig>,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    none: Arc<ClientConfig>,
}

impl Trust {
    pub(super) fn new(upstream_ca: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "cannot read all certificates that the system trusts");
        }
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = upstream_ca {
            let wrong = |what: String| TrustError::File { path: path.to_owned(), what };
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
            let mut count = 0;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                count += 1;
            }
            if count == 0 {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
        }
        if roots.is_empty() {
            tracing::warn!(
                "this host trusts no certificate; requests that headers are set in fail until it does, or until \
                 [transform].upstream_ca names some"
            );
        }
        let base = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let offering = |protocols: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self { both: offering(&[H2, H1]), h1: offering(&[H1]), h2: offering(&[H2]), none: offering(&[]) })
    }

    /// Speaks TLS with who says to be `name`, and makes sure.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote the client.
    pub(super) async fn connect(
        &self,
        name: &Name,
        offer: Offer,
        stream: Stream,
    ) -> Result<TlsStream<Stream>, &'static str> {
        let server = ServerName::try_from(name.as_str().to_owned()).map_err(|_| NO_TLS)?;
        let config = match offer {
            Offer::Both => &self.both,
            Offer::H1 => &self.h1,
            Offer::H2 => &self.h2,
            Offer::None => &self.none,
        };
        TlsConnector::from(config.clone()).connect(server, stream).await.map_err(|error| explain(&error))
    }
}

const NO_TLS: &str = "The server does not speak TLS as it should.";

/// What became of a handshake, in a sentence.
fn explain(error: &io::Error) -> &'static str {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match error {
        Some(rustls::Error::InvalidCertificate(error)) => explain_certificate(error),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            "The server speaks none of the HTTP versions that the client does."
        }
        _ => NO_TLS,
    }
}

fn explain_certificate(error: &CertificateError) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is for specialists, and the list may grow")]
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "The server's certificate has expired."
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "The server's certificate is not valid yet."
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "The server's certificate is for another name."
        }
        // The latter is an issuer that calls itself like one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "The server's certificate is of an issuer that the host does not trust; the operator can add one with \
             [transform].upstream_ca."
        }
        CertificateError::Revoked => "The server's certificate was revoked.",
        _ => "The server's certificate is not valid.",
    }
}
