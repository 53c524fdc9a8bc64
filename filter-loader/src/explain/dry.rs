//! The decision of the kernel program without the kernel: its own functions, compiled for this process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use filter_common::{
    Addr, Reason, decide, frame,
    ip::{self, Version},
};
use filter_inspector::host::Transport;
use filter_policy::{Compiled, evaluate};

use super::{
    Judge, Ruling,
    probe::{self, Sender},
};
use crate::{config::sections::InspectedPorts, error::ControlError};

/// Decides by a compiled policy. Budgets and known connections are nobody's here.
pub struct Dry<'a> {
    compiled: &'a Compiled,
    ports: &'a InspectedPorts,
}

impl<'a> Dry<'a> {
    /// Under this policy, on a host that inspects these ports.
    pub fn new(compiled: &'a Compiled, ports: &'a InspectedPorts) -> Self {
        Self { compiled, ports }
    }
}

impl Judge for Dry<'_> {
    fn judge(&mut self, to: SocketAddr, transport: Transport) -> Result<Ruling, ControlError> {
        // Any will do: nobody asks whose it is.
        let address = match to.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        };
        let sender = Sender { mac: [2, 0, 0, 0, 0, 1], gateway: [2, 0, 0, 0, 0, 2], address };
        let version = if to.is_ipv4() { Version::V4 } else { Version::V6 };
        let packet = probe::frame(&sender, to, transport).and_then(|bytes| {
            frame::parse(&bytes.as_slice()).ok()?;
            ip::parse(&bytes.as_slice(), version).ok()
        });
        let Some(packet) = packet else {
            return Err(ControlError::failed(format!("no packet can be for {to}")));
        };
        let rule = evaluate(self.compiled, Addr::from(to.ip()));
        let is_inspected = |port: u16| {
            let port = u16::from_be(port);
            self.ports.http.contains(&port) || self.ports.tls.contains(&port)
        };
        if decide::is_punted(&packet, rule, is_inspected, || self.compiled.watch) {
            let rule = decide::punted_under(&packet, rule);
            let reason = (decide::reason_of(rule) == Reason::Dns).then_some(Reason::Dns);
            return Ok(Ruling { reason, rule });
        }
        Ok(Ruling { reason: Some(decide::judge(&packet, rule)), rule: rule.without_names() })
    }
}
