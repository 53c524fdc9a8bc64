//! The types that lie in maps and ring buffers.
//!
//! Integers only, every byte named, so that no padding can carry stale memory into a key or out to
//! userspace. A change to any of them changes [`ABI`].

use core::mem::offset_of;

use crate::frame::Mac;
use crate::ip::{Kind, Packet};
use crate::tcp::Side;
use crate::{Addr, Reason};

/// Number of this set of layouts. Pinned maps carry it in their path; a daemon that finds another one
/// does not touch them.
pub const ABI: u32 = 3;

/// Sandboxes that one host can have.
pub const MAX_SANDBOXES: u32 = 16_384;
/// Distinct policies that can be in force or in preparation at once.
pub const MAX_POLICIES: u32 = 32_768;
/// Places side by side that a connection may lie in.
pub const FLOW_WAYS: usize = 16;
/// Sets of so many places. A power of two.
pub const FLOW_SETS: u32 = 1 << 14;
/// Locks that the sets share. A power of two.
pub const FLOW_LOCKS: u32 = 1 << 10;
/// Places for connections, of all sandboxes and in both directions.
pub const FLOW_PLACES: u32 = FLOW_SETS * FLOW_WAYS as u32;
/// Parts that the places are gone through in, so that going through one keeps a CPU for some microseconds
/// only.
pub const FLOW_SHARDS: u32 = 64;
/// Egress connections that one sandbox can have at once, unless the operator says otherwise: an eighth of the
/// room for all.
pub const EGRESS_LIMIT: u32 = FLOW_PLACES / 8;
/// Inbound connections that one sandbox can have at once.
pub const INBOUND_LIMIT: u32 = FLOW_PLACES / 32;
/// Addresses that one sandbox can have.
pub const MAX_ADDRS: usize = 8;
/// Counter places a sandbox: one for each reason, with room for the list to grow.
pub const COUNTERS: usize = 32;
const _: () = assert!(Reason::COUNT <= COUNTERS);

/// What a packet says of the connection that it belongs to. Ports as in [`Packet`].
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Where it comes from.
    pub src: Addr,
    /// Where it goes.
    pub dst: Addr,
    /// What it is.
    pub kind: Kind,
    /// The protocol number.
    pub protocol: u8,
    /// Source port or echo identifier.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// Which connection a packet belongs to, as seen from the sandbox.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    local: Addr,
    remote: Addr,
    tenant: u32,
    ports: [u16; 2],
    protocol: u32,
}
const _: () = assert!(size_of::<FlowKey>() == 44);

/// Words of a key.
pub const KEY_WORDS: usize = size_of::<FlowKey>() / 4;

/// Where a connection is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// The set of places that it has one of.
    pub set: u32,
    /// Its tag, in the first of them.
    pub tag: u64,
}

/// What a place's tag is made of besides bits of the key's hash. 0 is the tag of a place that is free.
pub mod tag {
    /// Bits that are not the hash's: the number of the way, and [`USED`].
    pub const OWN: u64 = super::FLOW_WAYS as u64 * 2 - 1;
    /// Set in every tag but that of a free place.
    pub const USED: u64 = super::FLOW_WAYS as u64;
}

/// Stands in the place of the remote port of an echo that the sandbox began, so that a reply cannot pass
/// for a request.
const SANDBOX_ASKS: u16 = 1;

impl FlowKey {
    /// The key of the connection that `packet`, sent by `from`, belongs to; `None` for kinds that have no
    /// connections.
    #[inline(always)]
    pub fn of(tenant: u32, packet: &Packet, from: Side) -> Option<Self> {
        let ends = Ends {
            src: packet.src,
            dst: packet.dst,
            kind: packet.kind,
            protocol: packet.protocol,
            src_port: packet.src_port,
            dst_port: packet.dst_port,
        };
        Self::between(tenant, &ends, from)
    }

    /// As [`Self::of`], of the ends alone.
    #[inline(always)]
    pub fn between(tenant: u32, ends: &Ends, from: Side) -> Option<Self> {
        let (local, remote) = match from {
            Side::Sandbox => (ends.src, ends.dst),
            Side::Remote => (ends.dst, ends.src),
        };
        let ports = match ends.kind {
            Kind::Tcp | Kind::Udp => match from {
                Side::Sandbox => [ends.src_port, ends.dst_port],
                Side::Remote => [ends.dst_port, ends.src_port],
            },
            Kind::EchoRequest | Kind::EchoReply => {
                let sandbox_asks = matches!(ends.kind, Kind::EchoRequest) == matches!(from, Side::Sandbox);
                [ends.src_port, if sandbox_asks { SANDBOX_ASKS } else { 0 }]
            }
            Kind::IcmpError
            | Kind::Neighbour
            | Kind::MulticastListener
            | Kind::LaterFragment
            | Kind::Other => return None,
        };
        Some(Self { local, remote, tenant, ports, protocol: ends.protocol as u32 })
    }

    /// Where it is to be found.
    ///
    /// A sum of products with secret odd numbers, of which the top bits count: whoever does not know the seed
    /// cannot choose connections that all come to lie in one place, and fill it.
    #[inline(always)]
    pub const fn spot(&self, seed: &FlowSeed) -> Spot {
        // SAFETY: as many bytes, without padding, and any of them are numbers.
        let words: [u32; KEY_WORDS] = unsafe { core::mem::transmute(*self) };
        let mut mixed = 0_u64;
        let mut index = 0;
        while index < KEY_WORDS {
            mixed = mixed.wrapping_add((words[index] as u64).wrapping_mul(seed.odd[index]));
            index += 1;
        }
        Spot { set: (mixed >> (64 - FLOW_SETS.trailing_zeros())) as u32, tag: mixed & !tag::OWN | tag::USED }
    }

    /// All of it but the protocol, eight bytes at a time.
    #[inline(always)]
    pub const fn pairs(&self) -> [u64; KEY_WORDS / 2] {
        // SAFETY: as in `spot`.
        let words: [u32; KEY_WORDS] = unsafe { core::mem::transmute(*self) };
        let mut pairs = [0; KEY_WORDS / 2];
        let mut index = 0;
        while index < KEY_WORDS / 2 {
            let (first, second) = (words[2 * index] as u64, words[2 * index + 1] as u64);
            pairs[index] =
                if cfg!(target_endian = "little") { second << 32 | first } else { first << 32 | second };
            index += 1;
        }
        pairs
    }

    /// The sandbox's address.
    #[inline(always)]
    pub const fn local(&self) -> Addr {
        self.local
    }

    /// The other end's address.
    #[inline(always)]
    pub const fn remote(&self) -> Addr {
        self.remote
    }

    /// Whose connection it is: [`Sandbox::tenant`].
    #[inline(always)]
    pub const fn tenant(&self) -> u32 {
        self.tenant
    }

    /// The sandbox's port or an echo's identifier, in network byte order.
    #[inline(always)]
    pub const fn local_port(&self) -> u16 {
        self.ports[0]
    }

    /// The other end's port, in network byte order.
    #[inline(always)]
    pub const fn remote_port(&self) -> u16 {
        self.ports[1]
    }

    /// The protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        (self.protocol & 0xff) as u8
    }
}

/// The kernel's `struct bpf_timer`: it finds the timer in a map's value by this name.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L7268-L7270>
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct bpf_timer {
    /// The kernel's own.
    pub opaque: [u64; 2],
}

/// A connection that is being followed. Nothing in it is the kernel's own, so userspace may read it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    // What every packet reads or writes comes first, to lie in one cache line with the key's end.
    /// When its last packet was seen, in ticks of the kernel's timer.
    pub last_seen: u64,
    /// Frame bytes that the sandbox sent.
    pub bytes_out: u64,
    /// Frame bytes that came for it.
    pub bytes_in: u64,
    /// The policy generation that it was last judged under.
    pub generation: u32,
    /// The rule that lets it pass, as [`crate::RuleWord`] bits.
    pub rule: u32,
    /// TCP: bits of [`crate::tcp::state`].
    pub state: u32,
    /// TCP: the sequence number that the sandbox will use next, which is the one that the other end
    /// expects.
    pub next_of_sandbox: u32,
    /// TCP: the same the other way round.
    pub next_of_remote: u32,
    /// The sandbox's slot.
    pub slot: u32,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub opened: u64,
    /// Hardware addresses of a frame that the sandbox sends: destination, then its own.
    pub macs: [u32; 3],
    /// Always 0.
    pub zero: u32,
}
const _: () = assert!(size_of::<Flow>() == 72);
// Generation and rule are written in one piece.
const _: () = assert!(offset_of!(Flow, generation).is_multiple_of(8));
const _: () = assert!(offset_of!(Flow, rule) == offset_of!(Flow, generation) + 4);

/// The one timer, and where it has got to: it ends idle connections, a part of their places at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Expiry {
    /// The kernel's own.
    pub timer: bpf_timer,
    /// How many parts it has been through.
    pub cursor: u32,
    /// 1 once the timer runs.
    pub running: u32,
}
const _: () = assert!(size_of::<Expiry>() == 24);

/// Punted connections that can be open at once.
pub const MAX_PUNTED: u32 = FLOW_PLACES;
/// Verdicts of the inspector that the next packet of their connection has yet to pick up.
pub const MAX_VERDICTS: u32 = 16_384;
/// Ports whose TCP connections may be inspected.
pub const MAX_INSPECTED_PORTS: usize = 8;

/// A punted connection as the host's stack sees it: whoever's it is, there can be one only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PuntKey {
    src: Addr,
    dst: Addr,
    ports: [u16; 2],
    protocol: u32,
}
const _: () = assert!(size_of::<PuntKey>() == 40);

impl PuntKey {
    /// From the sandbox's end and the one that it wants to reach; ports as they lie in a packet.
    #[inline(always)]
    pub const fn new(src: Addr, dst: Addr, ports: [u16; 2], protocol: u8) -> Self {
        Self { src, dst, ports, protocol: protocol as u32 }
    }

    /// Of a followed connection.
    #[inline(always)]
    pub const fn of(key: &FlowKey) -> Self {
        Self::new(key.local(), key.remote(), [key.local_port(), key.remote_port()], key.protocol())
    }
}

/// Whose a punted connection is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Punt {
    /// [`Sandbox::tenant`].
    pub tenant: u32,
}

/// Places of the inspector's sockets.
pub mod socket {
    /// TCP over IPv4.
    pub const TCP_V4: u32 = 0;
    /// TCP over IPv6.
    pub const TCP_V6: u32 = 1;
    /// UDP over IPv4.
    pub const UDP_V4: u32 = 2;
    /// UDP over IPv6.
    pub const UDP_V6: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;

    /// The place for a packet of this family and transport.
    #[inline(always)]
    pub const fn place(v4: bool, udp: bool) -> u32 {
        match (v4, udp) {
            (true, false) => TCP_V4,
            (false, false) => TCP_V6,
            (true, true) => UDP_V4,
            (false, true) => UDP_V6,
        }
    }
}

/// What decides where a connection lies. Drawn once, when the maps are made.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSeed {
    /// One for each word of the key.
    pub odd: [u64; KEY_WORDS],
}

/// A connection's place.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowEntry {
    /// Whose it is.
    pub key: FlowKey,
    /// 1 if it began with a packet to the sandbox.
    pub inbound: u32,
    /// What is known of it.
    pub flow: Flow,
    /// Always 0.
    pub zero: u64,
}
const _: () = assert!(size_of::<FlowEntry>() == 128);

/// The places of a set. Tags and entries lie together, because a packet that finds memory cold waits for the
/// page as well as for the line; and no set is a power of two long, or the tags of all would share a few lines of
/// the CPU's cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowSet {
    /// Two cache lines, of which the second is read only if the first is full.
    pub tags: [u64; FLOW_WAYS],
    /// Each is somebody's if its tag is not 0.
    pub entries: [FlowEntry; FLOW_WAYS],
}
const _: () = assert!(size_of::<FlowSet>() == 128 + FLOW_WAYS * size_of::<FlowEntry>());

/// The kernel's `struct bpf_spin_lock`: it finds the lock in a map's value by this name.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L7264-L7266>
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct bpf_spin_lock {
    /// The kernel's own.
    pub val: u32,
}

/// Held while a place is taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowLock {
    /// The kernel's own.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub zero: u32,
}

/// What stays of a TCP connection behind its end, for the last acknowledgements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Until when, in ticks of the kernel's timer.
    pub until: u64,
    /// The policy generation that it was closed under; under another it is over at once.
    pub generation: u32,
    /// The rule that let it pass, as [`crate::RuleWord`] bits.
    pub rule: u32,
}

/// A sandbox, as long as it is attached. Written before the first packet is judged; never changed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    /// Number of this attachment, never used again.
    pub tenant: u32,
    /// Its index in every map that has an entry a sandbox.
    pub slot: u32,
    /// Bits of [`sandbox_flags`].
    pub flags: u32,
    /// The index of its interface.
    pub ifindex: u32,
    /// How many of `addrs` count.
    pub addr_count: u32,
    /// Its hardware address, if [`sandbox_flags::KNOWN_MAC`].
    pub mac: Mac,
    /// The hardware address of the interface itself.
    pub iface_mac: Mac,
    /// Its addresses.
    pub addrs: [Addr; MAX_ADDRS],
}
const _: () = assert!(size_of::<Sandbox>() == 160);

/// Where the sandbox on an interface is looked for first.
#[inline(always)]
pub const fn sandbox_place(ifindex: u32) -> u32 {
    const { assert!(MAX_SANDBOXES.is_power_of_two()) };
    ifindex & (MAX_SANDBOXES - 1)
}

/// Bits of [`Sandbox::flags`].
pub mod sandbox_flags {
    /// The hardware address is known: frames from another one are spoofed.
    pub const KNOWN_MAC: u32 = 1;
    /// Source addresses are not checked.
    pub const ANY_ADDR: u32 = 2;
    /// Anybody, not just the host, may start connections to it.
    pub const INBOUND_ANY: u32 = 4;
}

/// Bits of [`Policy::flags`].
pub mod policy_flags {
    /// Connections to the inspected ports go to the inspector even where their address is allowed: the policy sets
    /// headers in requests to hosts, which are known by name only.
    pub const WATCHED: u32 = 1;
}

/// The policy in force: one aligned word, so that one store replaces it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyWord(u64);

impl PolicyWord {
    /// Joins a policy's slot and the generation under which it is in force.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | slot as u64)
    }

    /// From the raw word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The raw word.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Which trie, and which entry of [`Policy`].
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Which generation. 0 stands for none.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What a policy says besides its trie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Connections that a sandbox may have at once.
    pub egress_connections: u32,
    /// [`policy_flags`].
    pub flags: u32,
    /// Hash of the compiled policy's content, guard included.
    pub hash: [u8; 32],
}
const _: () = assert!(size_of::<Policy>() == 40);

/// A sandbox's connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Open now.
    pub active: u32,
    /// The most that were open at once.
    pub peak: u32,
    /// How many were refused for want of budget.
    pub refused: u64,
    /// Connections that began with it, open now. They cost no budget, but one sandbox's callers must not
    /// take all the room there is for everybody's.
    pub inbound: u32,
    /// Always 0.
    pub zero: u32,
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Frame bytes.
    pub bytes: u64,
}

/// A sandbox's packets by [`Reason`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Indexed by the reason's number.
    pub by_reason: [Count; COUNTERS],
}

impl Default for Counters {
    fn default() -> Self {
        Self { by_reason: [Count::default(); COUNTERS] }
    }
}

/// How much a sandbox has made the host say of late, in a window of 100 ms.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    /// The window that the two counts are of.
    pub window: u32,
    /// Refusals sent.
    pub refusals: u32,
    /// Denials told.
    pub denials: u32,
    /// Beginnings and ends of connections told.
    pub connections: u32,
    /// Events that were not told, ever.
    pub untold: u64,
}

/// What happened.
pub mod event_kind {
    /// A connection began.
    pub const OPEN: u8 = 1;
    /// A connection ended.
    pub const CLOSE: u8 = 2;
    /// A packet was refused.
    pub const DENY: u8 = 3;
}

/// Something that happened to a sandbox's traffic. Ports are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// When the connection began; 0 where there is none.
    pub opened: u64,
    /// Bytes that the sandbox sent on the connection, or in the refused packet.
    pub bytes_out: u64,
    /// Bytes that came for it.
    pub bytes_in: u64,
    /// The sandbox's address.
    pub local: Addr,
    /// The other end's.
    pub remote: Addr,
    /// [`Sandbox::tenant`].
    pub tenant: u32,
    /// The policy generation that decided.
    pub generation: u32,
    /// The rule that decided, as [`crate::RuleWord`] bits.
    pub rule: u32,
    /// The sandbox's port.
    pub local_port: u16,
    /// The other end's.
    pub remote_port: u16,
    /// A number of [`event_kind`].
    pub kind: u8,
    /// [`Reason`].
    pub reason: u8,
    /// The protocol number; 0 where the packet could not be read that far.
    pub protocol: u8,
    /// 1 when the packet, or the connection's first packet, was on its way to the sandbox.
    pub inbound: u8,
    /// Always 0.
    pub zero: u32,
}
const _: () = assert!(size_of::<Event>() == 88);

/// A TCP connection that lost its permission: what it takes to reset both ends.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The connection.
    pub key: FlowKey,
    /// The sandbox's interface.
    pub ifindex: u32,
    /// As [`Flow::next_of_sandbox`].
    pub next_of_sandbox: u32,
    /// As [`Flow::next_of_remote`].
    pub next_of_remote: u32,
    /// As [`Flow::macs`].
    pub macs: [u32; 3],
    /// As [`Flow::rule`].
    pub rule: u32,
}
const _: () = assert!(size_of::<Cut>() == 72);

/// What the sweep program is asked, in the control fields of its context.
pub mod sweep {
    /// Judge a sandbox's connections under its present policy and cut those that lost their permission.
    pub const REJUDGE: u32 = 1;
    /// Forget all connections of a sandbox.
    pub const FORGET: u32 = 2;
    /// End idle connections, whosesoever they are.
    pub const EXPIRE: u32 = 3;
    /// Start the timer that does that by itself.
    pub const START: u32 = 4;
    /// Return value: all done.
    pub const DONE: u32 = 0;
    /// Return value: the ring of cuts is full, or the kernel has no memory for the timer just now; ask
    /// again.
    pub const AGAIN: u32 = 1;
}

#[cfg(feature = "aya")]
mod pod {
    use super::{
        Budget, Closed, Counters, Expiry, Flow, FlowEntry, FlowKey, FlowLock, FlowSeed, FlowSet, Policy,
        Punt, PuntKey, Sandbox, Throttle,
    };

    macro_rules! pod {
        ($($name:ty),+) => {$(
            // SAFETY: `repr(C)`, integers only and, as the size assertions show, no padding.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    pod!(FlowKey, Flow, FlowEntry, FlowSet, FlowLock, FlowSeed, Closed, Expiry);
    pod!(Sandbox, Policy, Budget, Counters, Throttle, PuntKey, Punt);
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
