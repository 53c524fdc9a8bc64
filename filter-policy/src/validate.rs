//! From a JSON value to a policy, or to everything that is wrong with it.

use std::net::IpAddr;

use filter_common::Addr;
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    format::Format,
    host::HostPattern,
    mask,
    net::{self, ALL_TRAFFIC},
    policy::{AllowEntry, Defaults, Dns, DnsMode, Limits, Policy, Precedence, Quic},
    problem::{Invalid, code},
    read::{At, Node, Problems},
    transform::read_rules,
};

const FIELDS: &[&str] = &[
    "allowInternetAccess",
    "allowOut",
    "denyOut",
    "rules",
    "allowPublicTraffic",
    "maskRequestHost",
    "limits",
    "dns",
    "precedence",
    "quic",
];
const MAX_CONNECTIONS: u32 = 1_000_000;
const MAX_DNS_SERVERS: usize = 8;
/// E2B's sentence, which clients compare.
const DOMAIN_WITHOUT_DENY_ALL: &str = "When specifying allowed domains in allow out, you must include \
    'ALL_TRAFFIC' in deny out to block all other traffic.";

impl Policy {
    /// Reads a document; see [`Self::from_value`].
    pub fn parse(text: &str, format: Format, defaults: &Defaults) -> Result<Self, Invalid> {
        Self::from_value(format.read(text)?, defaults)
    }

    /// Validates a document. Every field may be left out, each may be written in camelCase or
    /// snake_case, and no other member may be there; `null` is not the same as leaving out.
    pub fn from_value(value: Value, defaults: &Defaults) -> Result<Self, Invalid> {
        let mut problems = Problems::default();
        let root = Node { value: &value, at: At::Root };
        let policy = read_policy(&root, defaults, &mut problems);
        match policy {
            Some(policy) if problems.0.is_empty() => Ok(policy),
            Some(_) | None => Err(Invalid { errors: problems.0 }),
        }
    }
}

fn read_policy(root: &Node<'_>, defaults: &Defaults, problems: &mut Problems) -> Option<Policy> {
    let fields = root.fields(FIELDS, problems)?;
    let mut policy = Policy::of_defaults(defaults);
    // An entry that is no valid one leaves a gap, so that the others keep their indices.
    let mut allow_out: Vec<Option<AllowEntry>> = Vec::new();

    fields.read("allowInternetAccess", &mut policy.allow_internet_access, problems, |node, problems| {
        node.bool(problems)
    });
    fields.read("allowOut", &mut allow_out, problems, read_allow_out);
    fields.read("denyOut", &mut policy.deny_out, problems, read_deny_out);
    let first_domain = allow_out.iter().position(|entry| entry.as_ref().is_some_and(AllowEntry::is_domain));
    if let Some(index) = first_domain
        && !policy.denies_everything()
    {
        let at = At::Index(&At::Key(&At::Root, "allowOut"), index);
        problems.add(&at, code::DOMAIN_WITHOUT_DENY_ALL, DOMAIN_WITHOUT_DENY_ALL);
    }
    policy.allow_out = allow_out.into_iter().flatten().collect();

    fields.read("rules", &mut policy.rules, problems, read_rules);
    fields.read("allowPublicTraffic", &mut policy.allow_public_traffic, problems, |node, problems| {
        node.bool(problems)
    });
    fields.read("maskRequestHost", &mut policy.mask_request_host, problems, read_mask);
    if let Some(limits) = fields.find("limits") {
        read_limits(&limits, &mut policy.limits, problems);
    }
    if let Some(dns) = fields.find("dns") {
        read_dns(&dns, &mut policy.dns, problems);
    }
    fields.read("precedence", &mut policy.precedence, problems, |node, problems| {
        node.choice(Precedence::WORDS, problems)
    });
    fields.read("quic", &mut policy.quic, problems, read_quic);
    Some(policy)
}

fn read_allow_out(node: &Node<'_>, problems: &mut Problems) -> Option<Vec<Option<AllowEntry>>> {
    let read = |entry: Node<'_>, problems: &mut Problems| {
        let allowed = entry.value.as_str().and_then(parse_allowed);
        if allowed.is_none() {
            let message = format!("invalid allowed address {}", shown(entry.value));
            problems.add(&entry.at, code::INVALID_ALLOWED_ADDRESS, message);
        }
        allowed
    };
    Some(node.items(problems)?.map(|entry| read(entry, problems)).collect())
}

fn parse_allowed(text: &str) -> Option<AllowEntry> {
    match net::parse(text) {
        Some(net) => (!is_unspecified(&net)).then_some(AllowEntry::Net(net)),
        None => HostPattern::parse(text).ok().map(AllowEntry::Domain),
    }
}

fn read_deny_out(node: &Node<'_>, problems: &mut Problems) -> Option<Vec<IpNet>> {
    let mut list = Vec::new();
    for entry in node.items(problems)? {
        match entry.value.as_str().and_then(net::parse) {
            Some(net) if !is_unspecified(&net) => list.push(net),
            refused => {
                let mut message = format!("invalid denied CIDR {}", shown(entry.value));
                if refused.is_some_and(|net| net.prefix_len() == 0) {
                    message.push_str(": 0.0.0.0/0 covers IPv6 too");
                }
                problems.add(&entry.at, code::INVALID_DENIED_CIDR, message);
            }
        }
    }
    Some(list)
}

fn is_unspecified(net: &IpNet) -> bool {
    net.addr().is_unspecified() && *net != ALL_TRAFFIC
}

/// An entry as its writer would recognise it.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn read_mask(node: &Node<'_>, problems: &mut Problems) -> Option<Option<String>> {
    let text = node.str(problems)?;
    if mask::is_valid(text) {
        return Some(Some(text.to_owned()));
    }
    let message = "expected `host` or `host:port`, where `${PORT}` may stand for the port";
    problems.add(&node.at, code::INVALID_MASK, message);
    None
}

fn read_limits(node: &Node<'_>, limits: &mut Limits, problems: &mut Problems) {
    let Some(fields) = node.fields(&["egressConnections"], problems) else { return };
    fields.read("egressConnections", &mut limits.egress_connections, problems, |node, problems| {
        let number = node.value.as_u64().and_then(|number| u32::try_from(number).ok());
        let found = number.filter(|number| (1..=MAX_CONNECTIONS).contains(number));
        if found.is_none() {
            let message = format!("expected an integer from 1 to {MAX_CONNECTIONS}, found {}", node.value);
            problems.add(&node.at, code::OUT_OF_RANGE, message);
        }
        found
    });
}

fn read_dns(node: &Node<'_>, dns: &mut Dns, problems: &mut Problems) {
    let Some(fields) = node.fields(&["mode", "servers"], problems) else { return };
    fields.read("mode", &mut dns.mode, problems, |node, problems| node.choice(DnsMode::WORDS, problems));
    fields.read("servers", &mut dns.servers, problems, read_servers);
}

fn read_servers(node: &Node<'_>, problems: &mut Problems) -> Option<Vec<IpAddr>> {
    let mut servers = Vec::new();
    for entry in node.items(problems)? {
        match entry.value.as_str().and_then(parse_server) {
            Some(server) => servers.push(server),
            None => {
                let message = format!("invalid DNS server {}", shown(entry.value));
                problems.add(&entry.at, code::INVALID_DNS_SERVER, message);
            }
        }
    }
    if servers.len() > MAX_DNS_SERVERS {
        problems.add(&node.at, code::OUT_OF_RANGE, format!("at most {MAX_DNS_SERVERS} DNS servers"));
    }
    Some(servers)
}

fn parse_server(text: &str) -> Option<IpAddr> {
    // `net::parse` would also take a CIDR; what it refuses of single addresses is refused here too.
    let server: IpAddr = text.parse().ok()?;
    let addr = Addr::from(net::parse(text)?.addr());
    (!addr.is_unspecified() && !addr.is_multicast_or_broadcast()).then_some(server)
}

fn read_quic(node: &Node<'_>, problems: &mut Problems) -> Option<Quic> {
    if node.value == "inspect" {
        problems.add(&node.at, code::NOT_SUPPORTED, "`quic: inspect` is not supported yet");
        return None;
    }
    node.choice(Quic::WORDS, problems)
}
