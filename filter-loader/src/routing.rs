//! The host's routing, as far as the inspector depends on it: packets with its mark are delivered locally,
//! whatever their destination.
//!
//! For each family one rule and one route, for all sandboxes. A second rule before it keeps what the host
//! itself sends, and its look at the way back (`rp_filter` with `src_valid_mark`), on the main table: with
//! some settings (`tcp_fwmark_accept`) the answers of the inspector carry the mark too.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's messages have many more attributes than are looked for here"
)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::config::sections::Inspector;
use crate::netlink::Netlink;

const MAIN_TABLE: u32 = 254;
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

    async fn open_one(
        &self,
        handle: &Handle,
        version: IpVersion,
        route: rtnetlink::packet_route::route::RouteMessage,
    ) -> io::Result<()> {
        // The route first: a rule without it would lead on to the main table.
        there(handle.route().add(route).replace().execute().await)?;
        for rule in self.rules() {
            if self.has(handle, version.clone(), &rule).await? {
                continue;
            }
            let request = handle.rule().add().priority(rule.priority).table_id(rule.table);
            let request = request.action(RuleAction::ToTable).fw_mark(self.mark);
            let mut request = match rule.from_host {
                true => request.input_interface(LOOPBACK),
                false => request,
            };
            request.message_mut().attributes.push(RuleAttribute::FwMask(self.mask));
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
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            };
            let routes: Vec<_> =
                handle.route().get(any).execute().try_collect().await.map_err(io::Error::other)?;
            for route in routes {
                let in_table = route.attributes.iter().any(|attribute| match attribute {
                    rtnetlink::packet_route::route::RouteAttribute::Table(table) => *table == self.table,
                    _ => false,
                });
                if in_table || u32::from(route.header.table) == self.table {
                    handle.route().del(route).execute().await.map_err(io::Error::other)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn rules(&self) -> [Rule; 2] {
        [
            Rule { priority: self.priority, table: MAIN_TABLE, from_host: true },
            Rule { priority: self.priority + 1, table: self.table, from_host: false },
        ]
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
        let loopback = rule.from_host.then_some(LOOPBACK);
        (priority, mark, mask, table, iface)
            == (Some(rule.priority), Some(self.mark), Some(self.mask), rule.table, loopback)
    }
}

/// A routing rule for packets that carry the inspector's mark.
struct Rule {
    priority: u32,
    table: u32,
    /// Only for what this host sends itself.
    from_host: bool,
}

fn families() -> Vec<IpVersion> {
    let mut families = vec![IpVersion::V4];
    if has_ipv6() {
        families.push(IpVersion::V6);
    }
    families
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// What exists already need not be made.
fn there(made: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match made {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        made => made.map_err(io::Error::other),
    }
}
