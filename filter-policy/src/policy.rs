//! The validated policy of one sandbox and what can be asked of it.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, fmt, net::IpAddr};

use filter_common::{Class, RuleWord};
use ipnet::IpNet;

use crate::{
    host::HostPattern,
    name::Name,
    net::{self, ALL_TRAFFIC},
    transform::{Scheme, Transform},
};

/// What one sandbox may reach; only validation makes one.
///
/// Lists keep the order and the duplicates of the document, since rules are named by their index.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// `false` denies everything that nothing allows.
    pub allow_internet_access: bool,
    /// Destinations that are allowed.
    pub allow_out: Vec<AllowEntry>,
    /// Destinations that are denied.
    pub deny_out: Vec<IpNet>,
    /// What is changed in requests to a host.
    pub rules: BTreeMap<HostPattern, Transform>,
    /// Whether the public URL works without the traffic token.
    pub allow_public_traffic: bool,
    /// The `Host` that the sandbox sees on its public URL; `${PORT}` stands for the port.
    pub mask_request_host: Option<String>,
    /// How much the sandbox may have at once.
    pub limits: Limits,
    /// Which resolvers it may ask for what.
    pub dns: Dns,
    /// Whether allowing or denying comes first.
    pub precedence: Precedence,
    /// What becomes of QUIC.
    pub quic: Quic,
}

/// An entry of `allowOut`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AllowEntry {
    /// An address or a CIDR.
    Net(IpNet),
    /// A name or a pattern of names.
    Domain(HostPattern),
}

/// What a sandbox may have at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Concurrent egress connections.
    pub egress_connections: u32,
}

/// How the sandbox resolves names while a domain rule exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dns {
    /// Which names may be asked for.
    pub mode: DnsMode,
    /// The resolvers that are opened.
    pub servers: Vec<IpAddr>,
}

/// Which names may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DnsMode {
    /// Every name.
    Open,
    /// Names that some rule can match.
    Strict,
}

/// What wins where `allowOut` and `denyOut` are both about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precedence {
    /// The allowed CIDR.
    AllowFirst,
    /// The denied CIDR.
    DenyFirst,
}

/// What becomes of QUIC while a domain rule exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quic {
    /// Refused, so that clients fall back to TCP.
    Deny,
}

/// What a field that the document leaves out amounts to, where the operator has a say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defaults {
    /// Of `limits.egressConnections`.
    pub egress_connections: u32,
    /// Of `dns.mode` and `dns.servers`.
    pub dns: Dns,
    /// Of `precedence`.
    pub precedence: Precedence,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            egress_connections: 2500,
            dns: Dns { mode: DnsMode::Open, servers: vec![IpAddr::from([8, 8, 8, 8])] },
            precedence: Precedence::AllowFirst,
        }
    }
}

impl Policy {
    /// The policy of the empty document.
    pub fn of_defaults(defaults: &Defaults) -> Self {
        Self {
            allow_internet_access: true,
            allow_out: Vec::new(),
            deny_out: Vec::new(),
            rules: BTreeMap::new(),
            allow_public_traffic: true,
            mask_request_host: None,
            limits: Limits { egress_connections: defaults.egress_connections },
            dns: defaults.dns.clone(),
            precedence: defaults.precedence,
            quic: Quic::Deny,
        }
    }

    /// This policy as it is while it is being learned what a sandbox does: nothing is denied but what the platform
    /// guards, and names are looked at all the same. No document says that.
    pub fn observing(&self) -> Self {
        Self {
            allow_internet_access: true,
            allow_out: vec![AllowEntry::Domain(HostPattern::Any)],
            deny_out: Vec::new(),
            precedence: Precedence::AllowFirst,
            ..self.clone()
        }
    }

    /// Whether it is such a policy: a document that has names denies everything else.
    pub fn is_observing(&self) -> bool {
        self.has_domains() && self.deny_out.is_empty() && self.allow_internet_access
    }

    /// Whether any entry allows by name, so that connections have to be inspected.
    pub fn has_domains(&self) -> bool {
        self.allow_out.iter().any(AllowEntry::is_domain)
    }

    /// Whether headers are set in requests to any host.
    pub fn has_transforms(&self) -> bool {
        self.rules.values().any(Transform::changes_something)
    }

    /// Whether headers are set in any requests in the clear.
    pub fn has_transforms_in_clear(&self) -> bool {
        self.rules.values().any(|transform| transform.changes_something() && transform.scheme == Scheme::Http)
    }

    /// What is changed in requests to this host: an exact rule before a wildcard, a longer wildcard before a
    /// shorter one, `*` last. Rules are not merged: one that changes nothing keeps a wider one from the host.
    pub fn transform(&self, name: &Name) -> Option<&Transform> {
        let matching = self.rules.iter().filter(|(host, _)| host.matches(name));
        let closest = matching.max_by_key(|(host, _)| host.specificity());
        closest.map(|(_, transform)| transform).filter(|transform| transform.changes_something())
    }

    /// The index in `allowOut` of the entry that allows this name: an exact one before a wildcard, a
    /// longer wildcard before a shorter one, `*` last, and the first of equals.
    pub fn match_name(&self, name: &Name) -> Option<usize> {
        let matching = self.allow_out.iter().enumerate().filter_map(|(index, entry)| match entry {
            AllowEntry::Domain(pattern) if pattern.matches(name) => {
                Some((pattern.specificity(), Reverse(index)))
            }
            AllowEntry::Domain(_) | AllowEntry::Net(_) => None,
        });
        matching.max().map(|(_, Reverse(index))| index)
    }

    /// The JSON pointer of the entry that a verdict names; none where no entry of this policy decided.
    pub fn rule_pointer(&self, word: RuleWord) -> Option<String> {
        let number = word.number() as usize;
        match word.without_names().class() {
            Class::Allowed | Class::Named => {
                (number < self.allow_out.len()).then(|| format!("/allowOut/{number}"))
            }
            Class::Denied if number < self.deny_out.len() => Some(format!("/denyOut/{number}")),
            // The rule that `compile` adds after those of `denyOut`.
            Class::Denied => (!self.allow_internet_access && number == self.deny_out.len())
                .then(|| "/allowInternetAccess".to_owned()),
            Class::Guarded | Class::Unmatched | Class::Inspected | Class::Resolver | Class::Watched => None,
        }
    }

    pub(crate) fn denies_everything(&self) -> bool {
        self.deny_out.contains(&ALL_TRAFFIC)
    }
}

impl AllowEntry {
    pub(crate) fn is_domain(&self) -> bool {
        matches!(self, Self::Domain(_))
    }

    /// The canonical text.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Net(net) => net::canonical(net).into(),
            Self::Domain(HostPattern::Exact(name)) => name.as_str().into(),
            Self::Domain(pattern) => pattern.to_string().into(),
        }
    }
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl DnsMode {
    pub(crate) const WORDS: &[(&str, Self)] = &[("open", Self::Open), ("strict", Self::Strict)];

    /// The word in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Strict => "strict",
        }
    }
}

impl Precedence {
    pub(crate) const WORDS: &[(&str, Self)] =
        &[("allow-first", Self::AllowFirst), ("deny-first", Self::DenyFirst)];

    /// The word in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowFirst => "allow-first",
            Self::DenyFirst => "deny-first",
        }
    }
}

impl Quic {
    pub(crate) const WORDS: &[(&str, Self)] = &[("deny", Self::Deny)];

    /// The word in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
        }
    }
}
