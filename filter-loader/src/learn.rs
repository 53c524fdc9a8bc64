//! From what a sandbox did to the smallest policy that covers it: names where names were seen, addresses otherwise.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use filter_policy::{Defaults, Policy};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::protocol::event::{Event, Told};

/// The port of DNS.
const DNS: u16 = 53;
/// How many resolvers a policy can open.
const MAX_RESOLVERS: usize = 8;

/// What a sandbox did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Learned {
    names: BTreeMap<String, u64>,
    addresses: BTreeMap<IpAddr, Contacts>,
    resolvers: BTreeMap<IpAddr, u64>,
    refused: BTreeMap<String, u64>,
    missing: u64,
}

/// What was done at an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Contacts {
    count: u64,
    services: BTreeSet<String>,
}

/// An entry of the policy, and why it is there.
struct Line {
    entry: String,
    comment: String,
}

impl Learned {
    /// Takes note of something that happened.
    pub fn take(&mut self, told: &Told) {
        match told {
            Told::Event(event) if event.event == "open" && event.reason != "reply" => self.open(event),
            Told::Event(event) if event.event == "deny" => {
                *self.refused.entry(event.reason.to_string()).or_default() += event.count.unwrap_or(1);
            }
            Told::Event(_) => {}
            Told::Dropped(dropped) => self.missing += dropped.dropped,
        }
    }

    fn open(&mut self, event: &Event) {
        let Some(address) = event.dst else { return };
        if let Some(name) = &event.server_name {
            *self.names.entry(name.clone()).or_default() += 1;
        } else if event.dport == Some(DNS) {
            *self.resolvers.entry(address).or_default() += 1;
        } else {
            let contacts = self.addresses.entry(address).or_default();
            contacts.count += 1;
            let port = event.dport.map(|port| format!(" {port}")).unwrap_or_default();
            contacts.services.insert(format!("{}{port}", event.proto));
        }
    }

    /// Resolvers that are opened for the sake of names; the others are addresses like any.
    fn opened(&self) -> Vec<(IpAddr, u64)> {
        let most = if self.names.is_empty() { 0 } else { MAX_RESOLVERS };
        let mut resolvers: Vec<_> =
            self.resolvers.iter().map(|(address, count)| (*address, *count)).collect();
        resolvers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        resolvers.truncate(most);
        resolvers
    }

    fn lines(&self) -> Vec<Line> {
        let names = self
            .names
            .iter()
            .map(|(name, count)| Line { entry: name.clone(), comment: counted(*count, "connection") });
        let opened = self.opened();
        let mut addresses = self.addresses.clone();
        for (resolver, count) in &self.resolvers {
            if !opened.iter().any(|(there, _)| there == resolver) {
                let contacts = addresses.entry(*resolver).or_default();
                contacts.count += count;
                contacts.services.insert(format!("dns {DNS}"));
            }
        }
        let nets: Vec<IpNet> = addresses.keys().map(|address| IpNet::from(*address)).collect();
        let covered = IpNet::aggregate(&nets).into_iter().map(|net| {
            let inside = || addresses.iter().filter(|(address, _)| net.contains(*address));
            let services: BTreeSet<_> =
                inside().flat_map(|(_, contacts)| contacts.services.iter().cloned()).collect();
            let count = inside().map(|(_, contacts)| contacts.count).sum();
            let is_one = net.prefix_len() == net.max_prefix_len();
            Line {
                entry: if is_one { net.addr().to_string() } else { net.to_string() },
                comment: format!("{}: {}", counted(count, "connection"), list(&services)),
            }
        });
        names.chain(covered).collect()
    }

    /// The policy.
    pub fn policy(&self) -> Value {
        let allowed: Vec<_> = self.lines().into_iter().map(|line| line.entry).collect();
        let mut policy = json!({ "allowOut": allowed, "denyOut": ["0.0.0.0/0"] });
        let servers: Vec<_> = self.opened().into_iter().map(|(address, _)| address.to_string()).collect();
        if !servers.is_empty()
            && let Some(fields) = policy.as_object_mut()
        {
            fields.insert("dns".to_owned(), json!({ "servers": servers }));
        }
        policy
    }

    /// What is to be said above the policy.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let all =
            self.names.values().sum::<u64>() + self.addresses.values().map(|one| one.count).sum::<u64>();
        remarks.push(format!(
            "{}, {}.",
            counted(all, "connection"),
            counted(self.resolvers.values().sum(), "query flow")
        ));
        if self.missing > 0 {
            remarks.push(format!("INCOMPLETE: {} came too fast to be seen.", counted(self.missing, "event")));
        }
        for (reason, count) in &self.refused {
            remarks.push(format!("{count} refused even so: {reason}."));
        }
        if Policy::from_value(self.policy(), &Defaults::default()).is_err() {
            remarks.push("It is not valid as it is: it is longer than a policy can be.".to_owned());
        }
        remarks
    }

    /// The policy in TOML, with counts as comments.
    pub fn toml(&self) -> String {
        let mut text = self.head();
        let _ = writeln!(text, "allowOut = [");
        for Line { entry, comment } in self.lines() {
            let _ = writeln!(text, "    {entry:?}, # {comment}");
        }
        let _ = writeln!(text, "]\ndenyOut = [\"0.0.0.0/0\"]");
        let opened = self.opened();
        if !opened.is_empty() {
            let _ = writeln!(text, "\n[dns]\nservers = [");
            for (address, count) in opened {
                let _ = writeln!(text, "    \"{address}\", # {}", counted(count, "query flow"));
            }
            let _ = writeln!(text, "]");
        }
        text
    }

    /// The policy in YAML, with counts as comments.
    pub fn yaml(&self) -> String {
        let mut text = self.head();
        let lines = self.lines();
        let _ = writeln!(text, "allowOut:{}", if lines.is_empty() { " []" } else { "" });
        for Line { entry, comment } in lines {
            let _ = writeln!(text, "  - {entry:?} # {comment}");
        }
        let _ = writeln!(text, "denyOut: [\"0.0.0.0/0\"]");
        let opened = self.opened();
        if !opened.is_empty() {
            let _ = writeln!(text, "dns:\n  servers:");
            for (address, count) in opened {
                let _ = writeln!(text, "    - \"{address}\" # {}", counted(count, "query flow"));
            }
        }
        text
    }

    fn head(&self) -> String {
        self.remarks().into_iter().map(|remark| format!("# {remark}\n")).collect()
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Some of them: who scans ports does not need a list of these.
fn list(services: &BTreeSet<String>) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = services.iter().take(SHOWN).map(String::as_str).collect();
    let more = services.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use filter_policy::Format;

    use super::*;
    use crate::protocol::event::Dropped;

    fn open(proto: &'static str, to: &str, port: u16, name: Option<&str>) -> Told {
        Told::Event(Event {
            ts: SystemTime::now(),
            schema: 1,
            event: "open".into(),
            sandbox: "a".parse().unwrap(),
            generation: 2,
            decision: "allow".into(),
            reason: "default".into(),
            rule: None,
            proto: proto.into(),
            src: Some([10, 0, 0, 2].into()),
            sport: Some(40_000),
            dst: Some(to.parse().unwrap()),
            dport: Some(port),
            server_name: name.map(ToOwned::to_owned),
            resolved_ip: None,
            bytes_out: 0,
            bytes_in: 0,
            duration_ms: None,
            count: None,
        })
    }

    fn learned(what: &[Told]) -> Learned {
        let mut learned = Learned::default();
        what.iter().for_each(|told| learned.take(told));
        learned
    }

    fn typical() -> Learned {
        learned(&[
            open("udp", "8.8.8.8", 53, None),
            open("tcp", "203.0.113.1", 443, Some("a.test")),
            open("tcp", "203.0.113.2", 80, Some("a.test")),
            open("tcp", "198.51.100.6", 22, None),
            open("tcp", "198.51.100.7", 22, None),
            open("udp", "198.51.100.7", 123, None),
            open("icmp", "2001:db8::1", 0, None),
        ])
    }

    #[test]
    fn names_where_names_were_seen_and_the_fewest_prefixes_otherwise() {
        assert_eq!(
            typical().policy(),
            json!({
                "allowOut": ["a.test", "198.51.100.6/31", "2001:db8::1"],
                "denyOut": ["0.0.0.0/0"],
                "dns": { "servers": ["8.8.8.8"] },
            })
        );
        let toml = typical().toml();
        for part in
            ["\"a.test\", # 2 connections\n", "\"198.51.100.6/31\", # 3 connections: tcp 22, udp 123\n"]
        {
            assert!(toml.contains(part), "{toml}");
        }
    }

    #[test]
    fn without_names_a_resolver_is_an_address() {
        let policy = learned(&[open("udp", "8.8.8.8", 53, None)]).policy();
        assert_eq!(policy, json!({ "allowOut": ["8.8.8.8"], "denyOut": ["0.0.0.0/0"] }));
    }

    #[test]
    fn both_ways_of_writing_it_mean_the_same_valid_policy() {
        for learned in [typical(), Learned::default()] {
            let wanted = Policy::from_value(learned.policy(), &Defaults::default()).unwrap();
            for (text, format) in [(learned.toml(), Format::Toml), (learned.yaml(), Format::Yaml)] {
                let read = Policy::parse(&text, format, &Defaults::default());
                assert_eq!(read.unwrap_or_else(|error| panic!("{error}: {text}")), wanted, "{text}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_was_refused_is_said() {
        let mut learned = typical();
        learned.take(&Told::Dropped(Dropped::now(None, 7)));
        let Told::Event(event) = open("tcp", "10.0.0.1", 80, None) else { panic!() };
        let denied =
            Event { event: "deny".into(), reason: "guarded".into(), count: Some(3), ..event.clone() };
        learned.take(&Told::Event(denied));
        learned.take(&Told::Event(Event { reason: "reply".into(), ..event }));
        assert_eq!(learned.policy(), typical().policy());
        let head = learned.toml();
        assert!(
            head.contains("# INCOMPLETE: 7 events") && head.contains("# 3 refused even so: guarded."),
            "{head}"
        );
    }
}
