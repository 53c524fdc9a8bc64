//! The host's routing, as far as the inspector depends on it: packets with its mark are delivered locally,
//! whatever their destination.
//!
//! For each family one rule and one route, for all sandboxes. A rule before it has what the host itself sends,
//! and its look at the way back (`rp_filter` with `src_valid_mark`), skip that rule: with some settings
//! (`tcp_fwmark_accept`) the answers of the inspector carry the mark too. A rule can only skip to another one,
//! so there is one behind that does nothing.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's messages have many more attributes than are looked for here"
)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::config::sections::Inspector;
use crate::netlink::Netlink;

const LOOPBACK: &str = "lo";

/// Whose rules and routes these are, and where.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    mark: u32,
    mask: u32,
    table: u32,
    priority: u32,
}

impl Way {
    /// As the configuration has it.
    pub fn new(config: &Inspector) -> Self {
        let (marks, priority) = (config.marks, config.rule_priority);
        Self { mark: marks.punted, mask: marks.mask, table: config.table, priority }
    }

    /// Makes what is missing.
    ///
    /// # Errors
    /// If the kernel refuses. A host without IPv6 need not have the way for it.
    pub async fn open(&self, netlink: &Netlink) -> io::Result<()> {
        let loopback = netlink.link(LOOPBACK).await?.ok_or_else(|| {
            io::Error::other("there is no interface lo, over which packets would reach the inspector")
        })?;
        let handle = netlink.handle().await;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(self.table)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(loopback.index)
            .build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(self.table)
            .kind(RouteType::Local)
            .output_interface(loopback.index)
            .build();
        for (version, route) in [(IpVersion::V4, v4), (IpVersion::V6, v6)] {
            let made = self.open_one(&handle, version.clone(), route).await;
            match made {
                // Compiled without it, or switched off. Without the way such packets have no hop left.
                Err(error) if matches!(version, IpVersion::V6) => {
                    tracing::warn!(%error, "connections by name over IPv6 are refused");
                }
                made => made?,
            }
        }
        Ok(())
    }

    async fn open_one(&self, handle: &Handle, version: IpVersion, route: RouteMessage) -> io::Result<()> {
        // The route first: a rule without it would lead on to the main table.
        there(handle.route().add(route).replace().execute().await)?;
        // The last first, since the first leads there.
        for rule in self.rules().into_iter().rev() {
            if self.has(handle, version.clone(), &rule).await? {
                continue;
            }
            let mut request = handle.rule().add().priority(rule.priority);
            let attributes = &mut request.message_mut().attributes;
            match rule.does {
                Does::SkipFromHost => {
                    attributes.push(RuleAttribute::Iifname(LOOPBACK.to_owned()));
                    attributes.push(RuleAttribute::Goto(self.priority + BEHIND));
                }
                Does::Deliver | Does::Nothing => {}
            }
            if rule.is_for_mark() {
                attributes.push(RuleAttribute::FwMark(self.mark));
                attributes.push(RuleAttribute::FwMask(self.mask));
            }
            let request = request.action(rule.action()).table_id(self.table_of(&rule));
            there(match version {
                IpVersion::V4 => request.v4().execute().await,
                IpVersion::V6 => request.v6().execute().await,
            })?;
        }
        Ok(())
    }

    /// Whether everything is there, for both families.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn is_open(&self, netlink: &Netlink) -> io::Result<bool> {
        let handle = netlink.handle().await;
        for version in families() {
            for rule in self.rules() {
                if !self.has(&handle, version.clone(), &rule).await? {
                    return Ok(false);
                }
            }
            if self.routes(&handle, version).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the rules, and the routes with them.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn close(&self, netlink: &Netlink) -> io::Result<usize> {
        let handle = netlink.handle().await;
        let mut removed = 0;
        for version in families() {
            for rule in self.list(&handle, version.clone()).await? {
                if self.rules().iter().any(|ours| self.is(&rule, ours)) {
                    handle.rule().del(rule).execute().await.map_err(io::Error::other)?;
                    removed += 1;
                }
            }
            for route in self.routes(&handle, version).await? {
                handle.route().del(route).execute().await.map_err(io::Error::other)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn rules(&self) -> [Rule; 3] {
        [
            Rule { priority: self.priority, does: Does::SkipFromHost },
            Rule { priority: self.priority + 1, does: Does::Deliver },
            Rule { priority: self.priority + BEHIND, does: Does::Nothing },
        ]
    }

    fn table_of(&self, rule: &Rule) -> u32 {
        match rule.does {
            Does::Deliver => self.table,
            Does::SkipFromHost | Does::Nothing => 0,
        }
    }

    /// What is in our table.
    async fn routes(&self, handle: &Handle, version: IpVersion) -> io::Result<Vec<RouteMessage>> {
        let any = match version {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes: Vec<RouteMessage> =
            handle.route().get(any).execute().try_collect().await.map_err(io::Error::other)?;
        routes.retain(|route| {
            let named = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
            named.unwrap_or(u32::from(route.header.table)) == self.table
        });
        Ok(routes)
    }

    async fn has(&self, handle: &Handle, version: IpVersion, rule: &Rule) -> io::Result<bool> {
        Ok(self.list(handle, version).await?.iter().any(|there| self.is(there, rule)))
    }

    async fn list(&self, handle: &Handle, version: IpVersion) -> io::Result<Vec<RuleMessage>> {
        handle.rule().get(version).execute().try_collect().await.map_err(io::Error::other)
    }

    fn is(&self, there: &RuleMessage, rule: &Rule) -> bool {
        let mut priority = None;
        let mut mark = None;
        let mut mask = None;
        let mut table = u32::from(there.header.table);
        let mut iface = None;
        for attribute in &there.attributes {
            match attribute {
                RuleAttribute::Priority(found) => priority = Some(*found),
                RuleAttribute::FwMark(found) => mark = Some(*found),
                RuleAttribute::FwMask(found) => mask = Some(*found),
                RuleAttribute::Table(found) => table = *found,
                RuleAttribute::Iifname(found) => iface = Some(found.as_str()),
                _ => {}
            }
        }
        let loopback = matches!(rule.does, Does::SkipFromHost).then_some(LOOPBACK);
        let marks = if rule.is_for_mark() { (Some(self.mark), Some(self.mask)) } else { (None, None) };
        there.header.action == rule.action()
            && (priority, (mark, mask), table, iface)
                == (Some(rule.priority), marks, self.table_of(rule), loopback)
    }
}

/// How many places the last rule is behind the first.
const BEHIND: u32 = 2;

/// A routing rule.
struct Rule {
    priority: u32,
    does: Does,
}

/// What it does with packets that carry the mark; the last one, with all.
#[derive(Clone, Copy)]
enum Does {
    /// Skips the next rule, for what this host sends itself.
    SkipFromHost,
    /// Delivers locally.
    Deliver,
    /// Nothing: it is there to be skipped to.
    Nothing,
}

impl Rule {
    const fn action(&self) -> RuleAction {
        match self.does {
            Does::SkipFromHost => RuleAction::Goto,
            Does::Deliver => RuleAction::ToTable,
            Does::Nothing => RuleAction::Nop,
        }
    }

    const fn is_for_mark(&self) -> bool {
        !matches!(self.does, Does::Nothing)
    }
}

fn families() -> Vec<IpVersion> {
    let mut families = vec![IpVersion::V4];
    if has_ipv6() {
        families.push(IpVersion::V6);
    }
    families
}

/// Whether loopback has its IPv6 address: not so where IPv6 is not built in, or switched off.
fn has_ipv6() -> bool {
    const LOCALHOST: &str = "00000000000000000000000000000001";
    let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    addresses.lines().any(|line| line.starts_with(LOCALHOST))
}

/// What exists already need not be made.
fn there(made: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match made {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        made => made.map_err(io::Error::other),
    }
}
