//! TLS: a certification authority of the test's own, a server that knows every name, and a client.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::netns::Netns;
use crate::server::Accepted;
use crate::workers::{Client, Workers, lock, pattern};

/// A certification authority.
#[derive(Clone, Debug)]
pub struct Ca(Arc<CertifiedIssuer<'static, KeyPair>>);

/// What a TLS server does once the handshake is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsService {
    /// Sends back what it gets.
    Echo,
    /// Answers each request with 200, naming the server name and the address that it was asked at.
    Http,
    /// Swallows what it gets.
    Sink,
    /// Sends so many bytes of [`pattern`], and ends.
    Download(u64),
}

/// A handshake that a server completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSession {
    /// Both ends.
    pub ends: Accepted,
    /// Whom the client asked for.
    pub server_name: Option<String>,
    /// Bytes of the client, decrypted.
    pub bytes_in: u64,
}

/// A TLS server with a certificate for every name, at every address of its namespace.
#[derive(Debug)]
pub struct TlsServer {
    tally: Arc<Tally>,
    _workers: Workers,
}

#[derive(Debug, Default)]
struct Tally {
    accepted: Mutex<Vec<Accepted>>,
    sessions: Mutex<Vec<TlsSession>>,
}

/// A client's end, after the handshake.
pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

impl Ca {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        // Otherwise the leaves, which have the same default, look self-signed.
        params.distinguished_name.push(rcgen::DnType::CommonName, "Test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)))
    }

    /// The certificate that clients must trust.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The chain and the key, both as PEM, of a server called `name` that is a program of its own.
    pub fn issue(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &*self.0)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    /// What a server has that answers for every name.
    pub fn server_config(&self) -> Result<ServerConfig> {
        let resolver = Arc::new(EveryName { ca: self.clone(), keys: Mutex::default() });
        Ok(ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver))
    }

    pub(crate) fn key_for(&self, name: &str) -> Result<CertifiedKey> {
        self.sign(CertificateParams::new(vec![name.to_owned()])?)
    }

    /// A key whose certificate has expired.
    pub(crate) fn old_key_for(&self, name: &str) -> Result<CertifiedKey> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<CertifiedKey> {
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &*self.0)?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(CertifiedKey::from_der(vec![leaf.der().clone()], private, &ring::default_provider())?)
    }

    /// Connects from `netns`, asks for `name` and checks that it is who answers.
    pub fn connect(
        &self,
        netns: &Netns,
        to: impl Into<SocketAddr>,
        name: &str,
        timeout: Duration,
    ) -> Result<TlsClient> {
        connect(netns, to, name, &self.pem(), timeout)
    }
}

/// Connects from `netns`, asks for `name`, and checks that it is who answers, as a client that trusts the
/// certificate `pem` alone.
pub fn connect(
    netns: &Netns,
    to: impl Into<SocketAddr>,
    name: &str,
    pem: &str,
    timeout: Duration,
) -> Result<TlsClient> {
    let config = client_config(pem)?;
    let mut stream = netns.tcp_connect(to, timeout).result.context("no connection")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    let name = ServerName::try_from(name.to_owned()).context("that is no server name")?;
    let mut tls = ClientConnection::new(config, name)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).context("no handshake")?;
    }
    Ok(StreamOwned::new(tls, stream))
}

/// How a client speaks TLS that trusts the certificate `pem` alone.
pub fn client_config(pem: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes())?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl TlsServer {
    /// Starts a server whose certificates are `ca`'s.
    pub fn start(netns: &Netns, ca: &Ca, service: TlsService, port: u16) -> Result<Self> {
        let (config, tally) = (Arc::new(ca.server_config()?), Arc::new(Tally::default()));
        let counts = Arc::clone(&tally);
        let workers = Workers::everywhere(netns, port, move |client| {
            // How a client ends is its own affair.
            let _ = serve(service, &config, client, &counts);
        })?;
        Ok(Self { tally, _workers: workers })
    }

    /// TCP connections that were accepted.
    pub fn connections(&self) -> usize {
        lock(&self.tally.accepted).len()
    }

    /// Both ends of each.
    pub fn accepted(&self) -> Vec<Accepted> {
        lock(&self.tally.accepted).clone()
    }

    /// The handshakes that were completed.
    pub fn sessions(&self) -> Vec<TlsSession> {
        lock(&self.tally.sessions).clone()
    }
}

fn serve(
    service: TlsService,
    config: &Arc<ServerConfig>,
    client: Client,
    tally: &Tally,
) -> Result<(), io::Error> {
    let ends = Accepted { peer: client.peer, local: client.local };
    lock(&tally.accepted).push(ends);
    let mut stream = client.stream;
    let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let server_name = tls.server_name().map(str::to_owned);
    let session = {
        let mut sessions = lock(&tally.sessions);
        sessions.push(TlsSession { ends, server_name: server_name.clone(), bytes_in: 0 });
        sessions.len() - 1
    };
    let count = |bytes: usize| {
        if let Some(session) = lock(&tally.sessions).get_mut(session) {
            session.bytes_in += bytes as u64;
        }
    };
    let mut tls = StreamOwned::new(tls, stream);
    let mut buffer = vec![0; 64 * 1024];
    let mut request = Vec::new();
    if let TlsService::Download(length) = service {
        let mut sent = 0;
        while sent < length {
            let piece = usize::try_from(length - sent).unwrap_or(usize::MAX).min(buffer.len());
            tls.write_all(&pattern(sent, piece))?;
            sent += piece as u64;
        }
        return end(tls);
    }
    loop {
        let length = match tls.read(&mut buffer)? {
            0 => return end(tls),
            length => length,
        };
        count(length);
        let got = buffer.get(..length).unwrap_or_default();
        match service {
            TlsService::Echo => tls.write_all(got)?,
            TlsService::Sink | TlsService::Download(_) => {}
            TlsService::Http => {
                request.extend_from_slice(got);
                while let Some(at) = request.windows(4).position(|window| window == b"\r\n\r\n") {
                    request.drain(..at + 4);
                    let name = server_name.as_deref().unwrap_or("nobody");
                    let body = format!("hello from {} as {name}\n", ends.local);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    tls.write_all((head + &body).as_bytes())?;
                }
            }
        }
    }
}

/// Ends a session as TLS does.
fn end(mut tls: StreamOwned<ServerConnection, TcpStream>) -> Result<(), io::Error> {
    tls.conn.send_close_notify();
    tls.conn.complete_io(&mut tls.sock)?;
    tls.sock.shutdown(std::net::Shutdown::Write)
}

/// A certificate for whoever is asked for.
#[derive(Debug)]
struct EveryName {
    ca: Ca,
    keys: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for EveryName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("nobody.test").to_owned();
        let mut keys = lock(&self.keys);
        if let Some(key) = keys.get(&name) {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(self.ca.key_for(&name).ok()?);
        keys.insert(name, Arc::clone(&key));
        Some(key)
    }
}
