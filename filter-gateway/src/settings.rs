//! What the operator decides.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

/// How the gateway is to work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients come.
    pub listen: Vec<SocketAddr>,
    /// What public URLs end with, in lower case and without a dot at either end.
    pub domain: String,
    /// PEM files of certificate chain and key; without them every listener is cleartext.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The port of a sandbox's controller, which has rules of its own.
    pub controller_port: u16,
    /// Proxies whose word about the client's address and protocol is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// How fast one client address may ask; no limit where there is none.
    pub client_rate: Option<Rate>,
    /// Requests of one sandbox that are under way at the same time.
    pub sandbox_requests: u32,
    /// Connections of clients at the same time; more wait to be accepted.
    pub connections: usize,
    /// How long a handshake and the head of a request may take to arrive, also of the next one of a kept connection.
    pub head_timeout: Duration,
    /// How long a sandbox may take to accept a connection.
    pub dial_timeout: Duration,
    /// How long nothing may move: until the head of an answer comes, and on a connection of a client.
    pub idle_timeout: Duration,
}

/// So many requests in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least one.
    pub requests: u32,
    /// In which time.
    pub per: Duration,
}

/// Bytes that the head of a request may have.
pub(crate) const REQUEST_HEAD: usize = 64 << 10;
/// Bytes that the head of a sandbox's answer may have; also how much is read of its body at once.
pub(crate) const RESPONSE_HEAD: usize = 256 << 10;
