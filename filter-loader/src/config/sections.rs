//! The tables of the file.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use filter_common::layout::EGRESS_LIMIT;
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::values;

/// `[paths]`: where the daemon keeps what.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// Desired state, one file a sandbox.
    pub state_dir: PathBuf,
    /// Pinned programs, links and maps; on a BPF file system.
    pub bpffs_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/sandbox-filter".into(),
            bpffs_dir: "/sys/fs/bpf/sandbox-filter".into(),
            socket: "/run/sandbox-filter/control.sock".into(),
        }
    }
}

/// `[guard]`: what the operator changes about the addresses that no policy can open.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardList {
    /// Parts of the built-in list that policies may decide about.
    #[serde(deserialize_with = "values::nets")]
    pub open: Vec<IpNet>,
    /// Ranges added to it.
    #[serde(deserialize_with = "values::nets")]
    pub deny: Vec<IpNet>,
}

/// `[limits]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Concurrent egress connections of a sandbox whose policy says nothing else.
    pub egress_connections: u32,
    /// Concurrent egress connections that no sandbox has more of, whatever its policy says.
    pub egress_ceiling: u32,
    /// Sandboxes at the same time; 0 is no limit.
    pub concurrent_sandboxes: u32,
    /// How fast sandboxes may be created.
    pub create_rate: Rate,
    /// How fast the control API may be called.
    pub management_api: Rate,
    /// How fast one client address may call sandboxes.
    pub sandbox_traffic: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            egress_connections: 2500,
            egress_ceiling: EGRESS_LIMIT,
            concurrent_sandboxes: 0,
            create_rate: Rate { requests: 0, per: Duration::from_secs(1) },
            management_api: Rate { requests: 20_000, per: Duration::from_secs(30) },
            sandbox_traffic: Rate { requests: 40_000, per: Duration::from_secs(60) },
        }
    }
}

/// So many requests in such a time; no requests is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many; 0 is no limit.
    pub requests: u32,
    /// In which time.
    #[serde(with = "humantime_serde")]
    pub per: Duration,
}

/// `[timeouts]`: after what silence a flow is over.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// TCP before both sides have answered.
    #[serde(with = "humantime_serde")]
    pub tcp_half_open: Duration,
    /// TCP after the first FIN.
    #[serde(with = "humantime_serde")]
    pub tcp_closing: Duration,
    /// TCP in between.
    #[serde(with = "humantime_serde")]
    pub tcp_established: Duration,
    /// UDP.
    #[serde(with = "humantime_serde")]
    pub udp: Duration,
    /// ICMP echo.
    #[serde(with = "humantime_serde")]
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_half_open: Duration::from_secs(30),
            tcp_closing: Duration::from_secs(30),
            tcp_established: Duration::from_secs(2 * 60 * 60),
            udp: Duration::from_secs(30),
            icmp: Duration::from_secs(10),
        }
    }
}

/// `[kernel]`
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// How programs are put on an interface.
    pub attach: Attach,
}

/// How programs are put on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// TCX where the kernel has it, else a classifier.
    #[default]
    Auto,
    /// TCX links, Linux 6.6 and later.
    Tcx,
    /// Classifiers on a clsact qdisc.
    Clsact,
}

/// `[dns]`
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Whom to ask; empty is the host's resolv.conf.
    pub upstream: Vec<SocketAddr>,
}

/// `[inspector]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inspector {
    /// Which ports speak what.
    pub ports: InspectedPorts,
    /// How long a connection may take to name its destination.
    #[serde(with = "humantime_serde")]
    pub peek_timeout: Duration,
    /// How long a destination may take to answer.
    #[serde(with = "humantime_serde")]
    pub dial_timeout: Duration,
    /// How its packets are told from others.
    pub marks: Marks,
    /// The routing table by which packets reach it.
    pub table: u32,
    /// The place of its routing rules among others; the two behind it are used too.
    pub rule_priority: u32,
}

impl Default for Inspector {
    fn default() -> Self {
        Self {
            ports: InspectedPorts::default(),
            peek_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(10),
            marks: Marks::default(),
            table: 5380,
            rule_priority: 90,
        }
    }
}

/// Bits of packet marks that are the filter's on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Marks {
    /// Which bits.
    pub mask: u32,
    /// What they are on packets for the inspector.
    pub punted: u32,
    /// What they are on packets that the inspector sends in a sandbox's name.
    pub upstream: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self { mask: 0x3000_0000, punted: 0x1000_0000, upstream: 0x2000_0000 }
    }
}

/// Which TCP ports are judged by name.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InspectedPorts {
    /// By the host of each HTTP request.
    pub http: Vec<u16>,
    /// By the server name of the TLS handshake.
    pub tls: Vec<u16>,
}

impl Default for InspectedPorts {
    fn default() -> Self {
        Self { http: vec![80], tls: vec![443] }
    }
}

/// `[transform]`
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transform {
    /// PEM file that is trusted besides the system's roots.
    #[serde(deserialize_with = "values::optional")]
    pub upstream_ca: Option<PathBuf>,
    /// Directory with one file a secret.
    #[serde(deserialize_with = "values::optional")]
    pub secrets_dir: Option<PathBuf>,
}

/// `[ingress]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingress {
    /// Where public URLs are served.
    pub listen: Vec<SocketAddr>,
    /// The domain that they lie below.
    pub domain: String,
    /// The certificate; without one the listeners speak plain HTTP.
    pub tls: Tls,
    /// The port of the controller inside a sandbox.
    pub controller_port: u16,
    /// Proxies whose word about the client's address and protocol is taken.
    #[serde(deserialize_with = "values::nets")]
    pub trusted_proxies: Vec<IpNet>,
    /// Requests of one sandbox that are under way at the same time.
    pub sandbox_requests: u32,
    /// Connections of clients at the same time.
    pub connections: u32,
    /// How long a handshake and the head of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long a sandbox may take to accept a connection.
    #[serde(with = "humantime_serde")]
    pub dial_timeout: Duration,
    /// How long nothing may move on a connection.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)],
            domain: "sandbox.localhost".to_owned(),
            tls: Tls::default(),
            controller_port: 49983,
            trusted_proxies: Vec::new(),
            sandbox_requests: 2500,
            connections: 32_768,
            head_timeout: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10 * 60),
        }
    }
}

/// A certificate and its key, both or neither.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the chain.
    #[serde(deserialize_with = "values::optional")]
    pub cert: Option<PathBuf>,
    /// PEM file of the key.
    #[serde(deserialize_with = "values::optional")]
    pub key: Option<PathBuf>,
}

/// `[api]`
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// TCP address besides the unix socket.
    #[serde(deserialize_with = "values::optional")]
    pub listen: Option<SocketAddr>,
}

/// `[metrics]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where they are served; nowhere when empty.
    #[serde(deserialize_with = "values::optional")]
    pub listen: Option<SocketAddr>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464)) }
    }
}

/// `[events]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// File that events are appended to.
    #[serde(deserialize_with = "values::optional")]
    pub jsonl: Option<PathBuf>,
    /// Bytes after which the file is set aside and a new one begun; 0 is never.
    pub max_bytes: u64,
    /// How many files that were set aside are kept.
    pub keep: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self { jsonl: None, max_bytes: 64 << 20, keep: 4 }
    }
}

/// `[provider]`: what makes a sandbox when the API is asked for one.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Which one.
    pub kind: ProviderKind,
    /// Where network namespaces get their addresses from.
    pub subnet: Ipv4Net,
    /// The operator's program.
    #[serde(deserialize_with = "values::optional")]
    pub command: Option<PathBuf>,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            kind: ProviderKind::Netns,
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 16),
            command: None,
        }
    }
}

/// What makes a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A network namespace with a veth pair.
    Netns,
    /// The operator's program.
    Exec,
}
