//! Handing connections over to the inspector: which of its sockets they go to, whose they are, what it said.
//!
//! A punted packet carries a mark by which the host's routing rules deliver it locally, whatever its
//! destination; [`select_socket`] then finds the inspector's socket for it. Nothing but what is in [`PUNTED`]
//! gets to that socket, and nothing that is in it gets to any other.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sk_lookup},
    btf_maps::{HashMap, LruHashMap},
    helpers::{
        bpf_l3_csum_replace, bpf_map_lookup_elem, bpf_sk_release, bpf_skb_change_type, bpf_skb_store_bytes,
    },
    macros::{btf_map, map},
    maps::SockMap,
    programs::SkLookupContext,
};
use filter_common::frame::{self, ETHERNET_LEN};
use filter_common::ip::{Kind, Packet, protocol};
use filter_common::layout::{FlowKey, MAX_PUNTED, MAX_VERDICTS, Punt, PuntKey, Sandbox, socket};
use filter_common::read::{Read as _, byte};
use filter_common::{Addr, Reason, RuleWord};

use crate::control::ports;
use crate::skb::Skb;

/// Whose the open punted connections are.
#[btf_map]
static PUNTED: HashMap<PuntKey, Punt, { MAX_PUNTED as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// What the inspector said of a connection, until its next packet. Losing one loses a count, no more.
#[btf_map]
static VERDICTS: LruHashMap<FlowKey, u32, { MAX_VERDICTS as usize }> = LruHashMap::new();

/// The inspector's sockets. One that is closed, as when the daemon dies, is no longer in it.
#[map]
static SOCKETS: SockMap = SockMap::with_max_entries(socket::COUNT, 0);

/// Whether there is an inspector to hand the packet to.
#[inline(always)]
pub fn is_served(packet: &Packet) -> bool {
    let place = socket::place(packet.src.is_v4(), matches!(packet.kind, Kind::Udp));
    // SAFETY: the map is one of sockets; what the lookup returns is referenced and released.
    unsafe {
        let socket = bpf_map_lookup_elem((&raw const SOCKETS).cast_mut().cast(), (&raw const place).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// Notes whose connection it is.
///
/// # Errors
/// `capacity` if there is no room; `spoofed` if another sandbox has a connection with the very same ends,
/// which can only be where addresses are not checked: the host's stack could not tell the two apart.
#[inline(always)]
pub fn note(key: &FlowKey) -> Result<(), Reason> {
    let (key, tenant) = (PuntKey::of(key), key.tenant());
    if PUNTED.insert(key, Punt { tenant }, u64::from(BPF_NOEXIST)).is_ok() {
        return Ok(());
    }
    // SAFETY: plain numbers, valid whoever wrote them.
    match unsafe { PUNTED.get(key) } {
        Some(punt) if punt.tenant == tenant => Ok(()),
        Some(_) => Err(Reason::Spoofed),
        None => Err(Reason::Capacity),
    }
}

/// Under what a connection is noted.
#[inline(always)]
pub fn noted(key: &FlowKey) -> PuntKey {
    PuntKey::of(key)
}

/// The connection that was noted so is over.
#[inline(always)]
pub fn forget(noted: &PuntKey) {
    // What is not there need not be removed.
    let _ = PUNTED.remove(noted);
}

/// No packet of the connection comes for its verdict any more.
#[inline(always)]
pub fn forget_verdict(key: &FlowKey) {
    let _ = VERDICTS.remove(key);
}

/// What the inspector has said of the connection since this was last asked.
#[inline(always)]
pub fn verdict(key: &FlowKey) -> Option<RuleWord> {
    // SAFETY: plain numbers, valid whoever wrote them.
    let rule = RuleWord::from_bits(*unsafe { VERDICTS.get(key) }?);
    let _ = VERDICTS.remove(key);
    Some(rule)
}

/// Marks the packet for local delivery, and sees to it that it cannot go anywhere else: should the routing
/// rule that the mark is for be gone, it has no hop left to be forwarded. On a port of a bridge it is also
/// addressed to the port itself, or the bridge would forward it to whom it is addressed. `false` if that
/// cannot be done.
#[inline(always)]
pub fn deliver(skb: &Skb, sandbox: &Sandbox) -> bool {
    const PACKET_HOST: u32 = 0;
    if frame::destination(skb) != Some(sandbox.iface_mac) {
        // SAFETY: the buffer is ours and as long as we say.
        let addressed = unsafe {
            bpf_skb_store_bytes(skb.raw().cast(), 0, sandbox.iface_mac.as_ptr().cast(), 6, 0) == 0
                && bpf_skb_change_type(skb.raw(), PACKET_HOST) == 0
        };
        if !addressed {
            return false;
        }
    }
    if !take_hops(skb) {
        return false;
    }
    skb.set_mark(skb.mark() & !ports::MASK.load() | ports::MARK.load());
    true
}

/// Sets the TTL or hop limit to 1.
#[inline(always)]
fn take_hops(skb: &Skb) -> bool {
    const V4_TTL: u32 = ETHERNET_LEN + 8;
    const V4_CHECKSUM: u32 = ETHERNET_LEN + 10;
    const V6_HOP_LIMIT: u32 = ETHERNET_LEN + 7;
    const ONE: u8 = 1;
    let Some([version, _, third]) = skb.words::<3>(ETHERNET_LEN) else { return false };
    let at = if byte(version, 0) >> 4 == 4 {
        let (ttl, protocol) = (byte(third, 0), byte(third, 1));
        let halves = [u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([ONE, protocol])];
        // SAFETY: the helper checks what it is given.
        let corrected = unsafe {
            bpf_l3_csum_replace(skb.raw().cast(), V4_CHECKSUM, halves[0].into(), halves[1].into(), 2) == 0
        };
        if !corrected {
            return false;
        }
        V4_TTL
    } else {
        V6_HOP_LIMIT
    };
    let one = ONE;
    // SAFETY: the buffer is ours and as long as we say.
    unsafe { bpf_skb_store_bytes(skb.raw().cast(), at, (&raw const one).cast(), 1, 0) == 0 }
}

/// What becomes of a packet that the host looks a socket up for.
pub enum Selection {
    /// It is for a port that is none of ours: as if this program were not there.
    Elsewhere,
    /// It was not punted. Where it came in.
    NotPunted(u32),
    /// It has its socket.
    Selected,
    /// It was punted, and there is no inspector.
    Nobody,
}

/// Finds the inspector's socket for a punted packet.
#[inline(always)]
pub fn select_socket(ctx: &SkLookupContext) -> Selection {
    let lookup = ctx.as_ptr().cast::<bpf_sk_lookup>();
    // SAFETY: the kernel hands every program a valid context.
    let (family, number, local_port) =
        unsafe { ((*lookup).family, (*lookup).protocol as u8, (*lookup).local_port as u16) };
    // The host's own connections come by here too; most end with this.
    if !(local_port == ports::DNS || ports::is_inspected(local_port.to_be())) {
        return Selection::Elsewhere;
    }
    const AF_INET: u32 = 2;
    let v4 = family == AF_INET;
    // Each field at its own place: the verifier takes no pointer into the context that was computed, which
    // is what becomes of a choice between two fields.
    // SAFETY: as above.
    let (remote_v4, local_v4, remote_port) = unsafe {
        let remote_port = (&raw const (*lookup).remote_port).read_volatile();
        let remote = (&raw const (*lookup).remote_ip4).read_volatile();
        (remote, (&raw const (*lookup).local_ip4).read_volatile(), remote_port)
    };
    // SAFETY: as above.
    let (remote_v6, local_v6) =
        unsafe { (words(&raw const (*lookup).remote_ip6), words(&raw const (*lookup).local_ip6)) };
    let src = if v4 { Addr::from_v4_word(remote_v4) } else { Addr::from_v6_words(remote_v6) };
    let dst = if v4 { Addr::from_v4_word(local_v4) } else { Addr::from_v6_words(local_v6) };
    let key = PuntKey::new(src, dst, [remote_port, local_port.to_be()], number);
    // SAFETY: nothing of the value is read.
    if unsafe { PUNTED.get(key) }.is_none() {
        // SAFETY: as above.
        return Selection::NotPunted(unsafe { (*lookup).ingress_ifindex });
    }
    let place = socket::place(v4, number == protocol::UDP);
    match SOCKETS.redirect_sk_lookup(ctx, place, 0) {
        Ok(()) => Selection::Selected,
        Err(_) => Selection::Nobody,
    }
}

/// # Safety
/// `place` must be readable.
#[inline(always)]
unsafe fn words(place: *const [u32; 4]) -> [u32; 4] {
    let word = place.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}
