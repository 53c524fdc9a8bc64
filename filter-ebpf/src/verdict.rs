//! The verdict on a packet: the steps of `filter_common::decide`, with the maps that they need.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use filter_common::decide::{self, Refusal};
use filter_common::frame::{self, Payload};
use filter_common::ip::{self, Kind, Packet, Version};
use filter_common::layout::{FlowKey, PolicyWord, Sandbox, sandbox_flags};
use filter_common::plain::{self, Plain};
use filter_common::tcp::Side;
use filter_common::{Addr, Class, Decision, Reason, RuleWord, icmp, neighbour};

use crate::control::{is_inspectors, ports};
use crate::flows::{self, Direction, Tracked};
use crate::skb::Skb;
use crate::{budget, closed, policy, punt};

/// What becomes of a packet.
pub enum Outcome {
    Pass(Reason),
    /// To the inspector. Counted once that has said what it is.
    Punt(Option<Reason>),
    Deny(Reason, Refusal),
}

impl Outcome {
    /// What becomes of a packet that passes for `reason` under `rule`.
    #[inline(always)]
    fn goes(rule: RuleWord, reason: Reason) -> Self {
        match rule.class() {
            Class::Inspected => Self::Punt(None),
            Class::Named | Class::Resolver | Class::Watched => Self::Punt(Some(reason)),
            Class::Unmatched | Class::Allowed | Class::Denied | Class::Guarded => Self::Pass(reason),
        }
    }
}

/// What is known of the packet that is being judged, for refusals and events.
pub struct Subject {
    pub macs: [u32; 3],
    pub packet: Option<Packet>,
    pub policy: PolicyWord,
    pub rule: RuleWord,
    pub inbound: bool,
}

/// The subject does not fit on the stack beside everything else. A program at TC is not interrupted by
/// another one on its CPU, so one for each CPU is enough.
#[btf_map]
static SUBJECT: PerCpuArray<Subject, 1> = PerCpuArray::new();

impl Subject {
    /// Writes down what is being judged. Packets of known connections, which are nearly all, never get
    /// here.
    #[inline(always)]
    fn note(
        way: Way,
        policy: PolicyWord,
        macs: [u32; 3],
        packet: Option<Packet>,
    ) -> Option<&'static mut Self> {
        let subject = Self::noted()?;
        *subject =
            Self { macs, packet, policy, rule: RuleWord::UNMATCHED, inbound: matches!(way, Way::ToSandbox) };
        Some(subject)
    }

    /// What was written down last.
    #[inline(always)]
    pub fn noted() -> Option<&'static mut Self> {
        // SAFETY: the element lives as long as the map, and this CPU alone uses it, once at a time.
        Some(unsafe { &mut *SUBJECT.get_ptr_mut(0)? })
    }

    #[inline(always)]
    fn refused(&self, reason: Reason) -> Outcome {
        match &self.packet {
            Some(packet) => Outcome::Deny(reason, decide::refusal(packet, reason)),
            None => Outcome::Deny(reason, Refusal::Silence),
        }
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy)]
enum Way {
    FromSandbox,
    ToSandbox,
}

/// Denies a packet without a word to the sandbox.
#[inline(always)]
fn silently(way: Way, policy: PolicyWord, packet: Option<Packet>, reason: Reason) -> Outcome {
    Subject::note(way, policy, [0; 3], packet);
    Outcome::Deny(reason, Refusal::Silence)
}

/// Judges a packet of the usual shape, sent by `from`, that goes on with a known connection which has been
/// judged by the policy in force: nearly all are that. `None` for any other, with nothing done to it.
#[inline(always)]
fn at_once(skb: &Skb, sandbox: &Sandbox, policy: PolicyWord, from: Side) -> Option<Outcome> {
    if skb.has_vlan_tag() {
        return None;
    }
    plain::parse(
        skb,
        #[inline(always)]
        |plain| goes_on(skb, sandbox, policy, from, &plain),
    )
}

#[inline(always)]
fn goes_on(skb: &Skb, sandbox: &Sandbox, policy: PolicyWord, from: Side, plain: &Plain) -> Option<Outcome> {
    let Plain { source, packet } = plain;
    if let Side::Sandbox = from
        && !sandbox.owns_mac(*source)
    {
        return None;
    }
    let key = FlowKey::of(sandbox.tenant, packet, from)?;
    let flow = flows::find(&key)?;
    if flow.generation() != policy.generation() {
        return None;
    }
    let reason = match (flow.rule().class(), from) {
        (Class::Allowed | Class::Unmatched, Side::Remote) => Reason::Reply,
        // The packet that it began with stood the test of `decide::identity`, and the key is all that this
        // looks at. What began with the sandbox did not.
        (_, Side::Sandbox) if matches!(flow.direction(), Direction::Inbound) => return None,
        (Class::Allowed, Side::Sandbox) => Reason::AllowedCidr,
        (Class::Unmatched, Side::Sandbox) => Reason::Default,
        _ => return None,
    };
    flow.go_on(packet, from, skb.frame_len());
    Some(Outcome::Pass(reason))
}

/// Judges what the sandbox sends.
#[inline(always)]
pub fn from_sandbox(skb: &Skb, sandbox: &Sandbox) -> Outcome {
    let policy = policy::in_force(sandbox.slot);
    if let Some(outcome) = at_once(skb, sandbox, policy, Side::Sandbox) {
        return outcome;
    }
    let deny = |packet, reason| silently(Way::FromSandbox, policy, packet, reason);
    let Ok(ethernet) = frame::parse(skb) else { return deny(None, Reason::Malformed) };
    if skb.has_vlan_tag() {
        return deny(None, Reason::Malformed);
    }
    if !sandbox.owns_mac(ethernet.source()) {
        return deny(None, Reason::Spoofed);
    }
    let version = match ethernet.payload {
        Payload::Arp => {
            return match neighbour::parse_arp(skb) {
                Ok(arp) if neighbour::arp_is_own(&arp, &ethernet, sandbox) => {
                    Outcome::Pass(Reason::Neighbour)
                }
                Ok(_) => deny(None, Reason::NeighbourClaim),
                Err(frame::Malformed) => deny(None, Reason::Malformed),
            };
        }
        Payload::Ipv4 => Version::V4,
        Payload::Ipv6 => Version::V6,
    };
    let Ok(packet) = ip::parse(skb, version) else { return deny(None, Reason::Malformed) };
    if matches!(packet.kind, Kind::Neighbour) {
        // The host's own addresses are guarded and its to solicit; what is denied is not, even so.
        let reachable = neighbour::is_link_scope(packet.dst)
            || !matches!(policy::rule(policy, packet.dst).without_names().class(), Class::Denied);
        return if reachable && neighbour::discovery_is_own(skb, &packet, &ethernet, sandbox) {
            Outcome::Pass(Reason::Neighbour)
        } else {
            deny(Some(packet), Reason::NeighbourClaim)
        };
    }
    if let Err(reason) = decide::identity(&packet, sandbox) {
        return deny(Some(packet), reason);
    }
    let key = FlowKey::of(sandbox.tenant, &packet, Side::Sandbox);
    if let Some(key) = &key
        && let Some(outcome) = known(skb, &packet, key, policy)
    {
        return outcome;
    }
    match Subject::note(Way::FromSandbox, policy, ethernet.macs, Some(packet)) {
        Some(subject) => unknown(skb, sandbox, subject, key.as_ref()),
        None => Outcome::Deny(Reason::Malformed, Refusal::Silence),
    }
}

/// Judges a packet of the sandbox by its destination.
#[inline(always)]
fn unknown(skb: &Skb, sandbox: &Sandbox, subject: &mut Subject, key: Option<&FlowKey>) -> Outcome {
    let Some(packet) = &subject.packet else { return subject.refused(Reason::Malformed) };
    if matches!(packet.kind, Kind::IcmpError)
        && let Some(rule) = quoted(skb, sandbox, packet, Side::Sandbox)
    {
        return Outcome::goes(rule, Reason::Reply);
    }
    let rule = policy::rule(subject.policy, packet.dst);
    if decide::is_punted(packet, rule, ports::is_inspected, || policy::is_watched(subject.policy)) {
        subject.rule = decide::punted_under(packet, rule);
        return match key {
            Some(key) => hand_over(skb, sandbox, subject, key),
            None => subject.refused(Reason::Malformed),
        };
    }
    let reason = decide::judge(packet, rule);
    subject.rule = rule.without_names();
    if let Decision::Deny = reason.decision() {
        // It was allowed before the policy was replaced.
        if let Some(key) = key
            && let Some(flow) = flows::find(key)
            && matches!(flow.direction(), Direction::Egress)
        {
            flow.revoke(sandbox.ifindex);
            return subject.refused(Reason::Revoked);
        }
        return subject.refused(reason);
    }
    let Some(key) = key else {
        // A later fragment to an allowed destination: there is no connection to speak of.
        return Outcome::Pass(reason);
    };
    // Only a SYN opens a connection. Whatever else comes without one belongs to a connection that is over,
    // or that the sandbox would rather not have counted.
    if matches!(packet.kind, Kind::Tcp) && !packet.is_syn() {
        return subject.refused(Reason::Protocol);
    }
    match open_egress(sandbox.slot, subject, key, skb.frame_len()) {
        Ok(()) => Outcome::Pass(reason),
        Err(reason) => subject.refused(reason),
    }
}

/// Begins a connection with the inspector.
#[inline(always)]
fn hand_over(skb: &Skb, sandbox: &Sandbox, subject: &mut Subject, key: &FlowKey) -> Outcome {
    let Some(packet) = &subject.packet else { return subject.refused(Reason::Malformed) };
    // It was allowed by its address, or was a query, before the policy was replaced.
    if let Some(flow) = flows::find(key)
        && matches!(flow.direction(), Direction::Egress)
    {
        flow.revoke(sandbox.ifindex);
        return subject.refused(Reason::Revoked);
    }
    if matches!(packet.kind, Kind::Tcp) && !packet.is_syn() {
        return subject.refused(Reason::Protocol);
    }
    if !punt::is_served(packet) {
        return subject.refused(Reason::InspectorDown);
    }
    match open_egress(sandbox.slot, subject, key, skb.frame_len()) {
        Ok(()) => Outcome::goes(subject.rule, decide::reason_of(subject.rule)),
        Err(reason) => subject.refused(reason),
    }
}

/// Follows a packet of the sandbox along the connection that it belongs to. `None` if it belongs to none, or to
/// one that may not go on.
#[inline(always)]
fn known(skb: &Skb, packet: &Packet, key: &FlowKey, policy: PolicyWord) -> Option<Outcome> {
    if let Some(flow) = flows::find(key) {
        let outcome = match flow.direction() {
            Direction::Egress => {
                if flow.generation() != policy.generation() && !still_permitted(&flow, policy, packet.dst) {
                    return None;
                }
                let mut rule = flow.rule();
                if let Class::Inspected | Class::Watched = rule.class()
                    && let Some(verdict) = punt::verdict(key)
                    // Whatever it says, the connection stays with the inspector.
                    && let Class::Named = verdict.class()
                {
                    rule = verdict;
                    flow.set_judged(rule, policy.generation());
                }
                Outcome::goes(rule, decide::reason_of(rule))
            }
            Direction::Inbound => {
                flow.set_judged(RuleWord::UNMATCHED, policy.generation());
                Outcome::Pass(Reason::Reply)
            }
        };
        flow.advance(packet, Side::Sandbox, skb.frame_len());
        return Some(outcome);
    }
    closed::lingers(key, packet, policy.generation()).map(|rule| Outcome::goes(rule, Reason::Reply))
}

/// Judges a connection of an earlier policy under the one in force.
#[inline(always)]
fn still_permitted(flow: &Tracked, policy: PolicyWord, remote: Addr) -> bool {
    let (held, rule) = (flow.rule(), policy::rule(policy, remote));
    if decide::permits(held, rule) {
        flow.set_judged(decide::held_under(held, rule), policy.generation());
        return true;
    }
    false
}

/// The rule of the known connection that an ICMP error is about.
#[inline(never)]
fn quoted(skb: &Skb, sandbox: &Sandbox, packet: &Packet, from: Side) -> Option<RuleWord> {
    let key = icmp::quoted_flow(skb, packet, from, sandbox.tenant)?;
    flows::find(&key).map(|flow| flow.rule())
}

/// Begins to follow the connection that the sandbox's packet opens. Not inlined, for the sake of the stack.
#[inline(never)]
fn open_egress(slot: u32, subject: &Subject, key: &FlowKey, bytes: u32) -> Result<(), Reason> {
    let Some(packet) = &subject.packet else { return Err(Reason::Malformed) };
    let policy = subject.policy;
    let fresh = flows::fresh(slot, packet, subject.macs, subject.rule, policy.generation());
    let Some(flow) = fresh else { return Err(Reason::Malformed) };
    flow.bytes_out = u64::from(bytes);
    budget::take(slot, policy::egress_connections(policy))?;
    if decide::belongs_to_inspector(subject.rule)
        && let Err(reason) = punt::note(key)
    {
        budget::give_back(slot);
        return Err(reason);
    }
    flows::open(key, slot, Direction::Egress, flow)
}

/// Begins to follow the connection that a packet to the sandbox opens.
#[inline(never)]
fn open_inbound(slot: u32, subject: &Subject, key: &FlowKey, bytes: u32) -> Result<(), Reason> {
    let Some(packet) = &subject.packet else { return Err(Reason::Malformed) };
    let macs = swap_macs(subject.macs);
    let fresh = flows::fresh(slot, packet, macs, RuleWord::UNMATCHED, subject.policy.generation());
    let Some(flow) = fresh else { return Err(Reason::Malformed) };
    flow.bytes_in = u64::from(bytes);
    if !budget::take_inbound(slot) {
        return Err(Reason::Capacity);
    }
    flows::open(key, slot, Direction::Inbound, flow)
}

/// Judges what is sent to the sandbox.
#[inline(always)]
pub fn to_sandbox(skb: &Skb, sandbox: &Sandbox) -> Outcome {
    let policy = policy::in_force(sandbox.slot);
    if let Some(outcome) = at_once(skb, sandbox, policy, Side::Remote) {
        return outcome;
    }
    let deny = |packet, reason| silently(Way::ToSandbox, policy, packet, reason);
    let Ok(ethernet) = frame::parse(skb) else { return deny(None, Reason::Malformed) };
    if skb.has_vlan_tag() {
        return deny(None, Reason::Malformed);
    }
    let version = match ethernet.payload {
        // What others claim is the host's to believe or not: their own claims were judged where they
        // came in.
        Payload::Arp if skb.frame_len() <= neighbour::MAX_ARP_FRAME => {
            return Outcome::Pass(Reason::Neighbour);
        }
        Payload::Arp => return deny(None, Reason::Malformed),
        Payload::Ipv4 => Version::V4,
        Payload::Ipv6 => Version::V6,
    };
    let Ok(packet) = ip::parse(skb, version) else { return deny(None, Reason::Malformed) };
    if packet.mapped_destination {
        return deny(Some(packet), Reason::Malformed);
    }
    if matches!(packet.kind, Kind::Neighbour) {
        return if neighbour::is_on_link(skb) {
            Outcome::Pass(Reason::Neighbour)
        } else {
            deny(Some(packet), Reason::NeighbourClaim)
        };
    }
    let by_host = is_by_host(skb);
    let Some(key) = FlowKey::of(sandbox.tenant, &packet, Side::Remote) else {
        return match without_connection(skb, sandbox, &packet, policy) {
            Ok(reason) => Outcome::Pass(reason),
            Err(reason) => deny(Some(packet), reason),
        };
    };
    if let Some(flow) = flows::find(&key) {
        match flow.direction() {
            Direction::Egress => {
                // The other end of a punted connection is the inspector, whatever its address says.
                if decide::belongs_to_inspector(flow.rule()) && !is_from_here(skb) {
                    return deny(Some(packet), Reason::Inbound);
                }
                if flow.generation() != policy.generation() && !still_permitted(&flow, policy, packet.src) {
                    if let Some(subject) = Subject::note(Way::ToSandbox, policy, [0; 3], Some(packet)) {
                        subject.rule = policy::rule(policy, packet.src);
                    }
                    flow.revoke(sandbox.ifindex);
                    return Outcome::Deny(Reason::Revoked, Refusal::Silence);
                }
            }
            Direction::Inbound => flow.set_judged(RuleWord::UNMATCHED, policy.generation()),
        }
        flow.advance(&packet, Side::Remote, skb.frame_len());
        return Outcome::Pass(Reason::Reply);
    }
    if closed::lingers(&key, &packet, policy.generation()).is_some() {
        return Outcome::Pass(Reason::Reply);
    }
    if !(by_host || sandbox.flags & sandbox_flags::INBOUND_ANY != 0) || !sandbox.owns(packet.dst) {
        return deny(Some(packet), Reason::Inbound);
    }
    match packet.kind {
        // An answer to nothing starts nothing; a reset opens nothing, but may have something to end.
        Kind::EchoReply => return deny(Some(packet), Reason::Inbound),
        Kind::Tcp if packet.is_reset() => return Outcome::Pass(Reason::Reply),
        // What the inspector still has to say of a connection that is over begins no other one.
        Kind::Tcp if !packet.is_syn() => return deny(Some(packet), Reason::Inbound),
        Kind::Tcp
        | Kind::Udp
        | Kind::EchoRequest
        | Kind::IcmpError
        | Kind::Neighbour
        | Kind::MulticastListener
        | Kind::LaterFragment
        | Kind::Other => {}
    }
    let Some(subject) = Subject::note(Way::ToSandbox, policy, ethernet.macs, Some(packet)) else {
        return Outcome::Deny(Reason::Malformed, Refusal::Silence);
    };
    match open_inbound(sandbox.slot, subject, &key, skb.frame_len()) {
        Ok(()) => Outcome::Pass(Reason::Reply),
        Err(reason) => Outcome::Deny(reason, Refusal::Silence),
    }
}

/// Whether a packet to a sandbox was made on this host rather than forwarded.
#[inline(always)]
fn is_from_here(skb: &Skb) -> bool {
    skb.ingress_ifindex() == 0
}

/// Whether it is the host's own. What the inspector sends is not: neither to a sandbox in another one's name, nor
/// in the name of a destination, should the connection be over that it belongs to.
#[inline(always)]
fn is_by_host(skb: &Skb) -> bool {
    is_from_here(skb) && !is_inspectors(skb)
}

/// The verdict on what is sent to the sandbox and cannot belong to a connection.
#[inline(always)]
fn without_connection(
    skb: &Skb,
    sandbox: &Sandbox,
    packet: &Packet,
    policy: PolicyWord,
) -> Result<Reason, Reason> {
    let by_host = is_by_host(skb);
    match packet.kind {
        Kind::IcmpError => match quoted(skb, sandbox, packet, Side::Remote) {
            // Nobody but this host has seen anything of a punted connection.
            Some(rule) if is_from_here(skb) || !decide::belongs_to_inspector(rule) => Ok(Reason::Reply),
            Some(_) | None => Err(Reason::Inbound),
        },
        Kind::LaterFragment if !sandbox.owns(packet.dst) => Err(Reason::Inbound),
        // Worth nothing without its first fragment, which does belong to a connection.
        Kind::LaterFragment => match policy::rule(policy, packet.src).class() {
            Class::Allowed | Class::Unmatched => Ok(Reason::Reply),
            _ if by_host => Ok(Reason::Reply),
            Class::Denied
            | Class::Guarded
            | Class::Inspected
            | Class::Resolver
            | Class::Named
            | Class::Watched => Err(Reason::Fragment),
        },
        Kind::MulticastListener if by_host => Ok(Reason::Neighbour),
        Kind::Other => Err(Reason::Protocol),
        Kind::Tcp
        | Kind::Udp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::Neighbour
        | Kind::MulticastListener => Err(Reason::Inbound),
    }
}

/// The addresses of a frame in the other direction.
#[inline(always)]
pub fn swap_macs(macs: [u32; 3]) -> [u32; 3] {
    let (a, b, c) = (macs[0].to_ne_bytes(), macs[1].to_ne_bytes(), macs[2].to_ne_bytes());
    [
        u32::from_ne_bytes([b[2], b[3], c[0], c[1]]),
        u32::from_ne_bytes([c[2], c[3], a[0], a[1]]),
        u32::from_ne_bytes([a[2], a[3], b[0], b[1]]),
    ]
}
