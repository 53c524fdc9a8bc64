//! The verdict on a packet, in the order in which it is reached. The first that decides wins:
//!
//! 1. Shape: [`crate::frame`] and [`crate::ip`] refuse what cannot be read (`malformed`).
//! 2. Identity: [`identity`] (`spoofed`, `neighbour_claim`, `neighbour`).
//! 3. A known connection, judged under the policy in force, passes (`reply` or its own reason).
//! 4. Guard, 5. protocol, 6. allowed CIDR, 9. denied CIDR, 10. default: [`judge`]. The compiler has
//!    flattened 4, 6 and 9 into one trie, so the rule word arrives here already settled among them.
//!    (7 and 8, names, are decided in userspace and have no place yet.)
//! 11. A new connection takes its place in the budget, or is refused (`connection_limit`, `capacity`).
//!
//! [`refusal`] says what the sandbox is told.

use crate::ip::{Kind, Packet, protocol};
use crate::layout::Sandbox;
use crate::{Class, Reason, RuleWord};

/// What the sandbox is told of a denial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Nothing.
    Silence,
    /// A TCP reset.
    Reset,
    /// ICMP: administratively prohibited.
    Unreachable,
}

/// Whether a packet of `sandbox` comes from where it says. Neighbour discovery is judged by
/// [`crate::neighbour`] instead.
///
/// # Errors
/// `spoofed`, or `neighbour_claim` for the part of a DHCP server (RFC 2131 section 4.1, RFC 9915 section
/// 7.2), or `protocol` for multicast listener reports, which need no answer and no connection.
#[inline(always)]
pub fn identity(packet: &Packet, sandbox: &Sandbox) -> Result<(), Reason> {
    // Server and client. A client takes answers on its own port, wherever they come from.
    const DHCP: [u16; 2] = [67_u16.to_be(), 68_u16.to_be()];
    const DHCP_V6: [u16; 2] = [547_u16.to_be(), 546_u16.to_be()];
    if matches!(packet.kind, Kind::MulticastListener) {
        return Err(Reason::Protocol);
    }
    if !sandbox.owns(packet.src) || packet.src.is_unspecified() || packet.src.is_multicast_or_broadcast() {
        return Err(Reason::Spoofed);
    }
    if matches!(packet.kind, Kind::Udp) {
        let [server, client] = if packet.src.is_v4() { DHCP } else { DHCP_V6 };
        if packet.src_port == server || packet.dst_port == client {
            return Err(Reason::NeighbourClaim);
        }
    }
    Ok(())
}

/// The verdict on a packet of the sandbox that belongs to no known connection.
#[inline(always)]
pub const fn judge(packet: &Packet, rule: RuleWord) -> Reason {
    if packet.mapped_destination {
        return Reason::Guarded;
    }
    match (rule.class(), packet.kind) {
        (Class::Guarded, _) => Reason::Guarded,
        // An error or an answer that belongs to nothing, and whatever is not TCP, UDP or echo.
        (_, Kind::EchoReply | Kind::IcmpError | Kind::Neighbour | Kind::MulticastListener | Kind::Other) => {
            Reason::Protocol
        }
        (_, Kind::LaterFragment) if !carries_connections(packet) => Reason::Protocol,
        (Class::Allowed, _) => Reason::AllowedCidr,
        (_, Kind::LaterFragment) => Reason::Fragment,
        (Class::Denied | Class::Inspected | Class::Resolver, _) => Reason::DeniedCidr,
        // No trie has it.
        (Class::Named, _) => Reason::Guarded,
        (Class::Unmatched | Class::Observed, _) => Reason::Default,
    }
}

/// Whether a packet's protocol is one that connections are made of.
#[inline(always)]
const fn carries_connections(packet: &Packet) -> bool {
    match packet.protocol {
        protocol::TCP | protocol::UDP => true,
        protocol::ICMP => packet.src.is_v4(),
        protocol::ICMP_V6 => !packet.src.is_v4(),
        _ => false,
    }
}

/// The port of DNS (RFC 1035 section 4.2), as it lies in a packet.
const DNS: u16 = 53_u16.to_be();

/// Whether a packet goes to the inspector, who judges it by name, whatever [`judge`] would say:
/// queries to a resolver that the policy opens, and TCP to a port where connections say whom they mean.
/// `is_inspected` knows those ports, as they lie in a packet.
#[inline(always)]
pub fn is_punted(packet: &Packet, rule: RuleWord, is_inspected: impl Fn(u16) -> bool) -> bool {
    if packet.mapped_destination {
        return false;
    }
    match (rule.class(), packet.kind) {
        (Class::Resolver, Kind::Udp) => packet.dst_port == DNS,
        (Class::Resolver, Kind::Tcp) => packet.dst_port == DNS || is_inspected(packet.dst_port),
        (Class::Inspected | Class::Observed, Kind::Tcp) => is_inspected(packet.dst_port),
        _ => false,
    }
}

/// The rule that a punted connection begins under: only DNS is a resolver's.
#[inline(always)]
pub const fn punted_under(packet: &Packet, rule: RuleWord) -> RuleWord {
    if packet.dst_port == DNS { rule } else { RuleWord::new(Class::Inspected, rule.number()) }
}

/// Whether `rule`, that of a followed connection, says that its packets go to the inspector.
#[inline(always)]
pub const fn belongs_to_inspector(rule: RuleWord) -> bool {
    matches!(rule.class(), Class::Inspected | Class::Resolver | Class::Named)
}

/// Whether a connection that is already open under `held` may stay open now that `rule` is about its
/// destination. What the inspector has, it judges again itself, by name.
#[inline(always)]
pub const fn permits(held: RuleWord, rule: RuleWord) -> bool {
    match rule.class() {
        Class::Allowed | Class::Unmatched | Class::Observed => true,
        Class::Resolver => belongs_to_inspector(held),
        Class::Inspected => matches!(held.class(), Class::Inspected | Class::Named),
        Class::Denied | Class::Guarded | Class::Named => false,
    }
}

/// The rule that a connection is followed under from now on, having stood the test of [`permits`]: what
/// the inspector has stays with it.
#[inline(always)]
pub const fn held_under(held: RuleWord, rule: RuleWord) -> RuleWord {
    if belongs_to_inspector(held) { held } else { rule }
}

/// Why packets of a connection pass that `rule` let through.
#[inline(always)]
pub const fn reason_of(rule: RuleWord) -> Reason {
    match rule.class() {
        Class::Allowed => Reason::AllowedCidr,
        Class::Unmatched | Class::Observed => Reason::Default,
        Class::Named => Reason::AllowedName,
        Class::Resolver => Reason::Dns,
        Class::Denied | Class::Inspected => Reason::DeniedCidr,
        Class::Guarded => Reason::Guarded,
    }
}

/// What the sandbox is told of `packet`, refused for `reason`.
///
/// A reset is never answered (RFC 9293 section 3.5.2), nor is an ICMP error, a later fragment, or
/// anything to a multicast address (RFC 1122 section 3.2.2, RFC 4443 section 2.4). Who lies about who it
/// is gets no answer either.
#[inline(always)]
pub const fn refusal(packet: &Packet, reason: Reason) -> Refusal {
    if matches!(reason, Reason::Malformed | Reason::Spoofed | Reason::NeighbourClaim | Reason::Inbound)
        || packet.dst.is_multicast_or_broadcast()
        || packet.mapped_destination
    {
        return Refusal::Silence;
    }
    match packet.kind {
        Kind::Tcp => {
            if packet.is_reset() {
                Refusal::Silence
            } else {
                Refusal::Reset
            }
        }
        Kind::Udp | Kind::EchoRequest | Kind::EchoReply => Refusal::Unreachable,
        // ICMP that is no echo is not answered; other protocols are.
        Kind::Other => match packet.protocol {
            protocol::ICMP | protocol::ICMP_V6 => Refusal::Silence,
            _ => Refusal::Unreachable,
        },
        Kind::IcmpError | Kind::Neighbour | Kind::MulticastListener | Kind::LaterFragment => Refusal::Silence,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
