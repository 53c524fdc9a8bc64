//! What userspace is told: a ring of events, a ring of connections to cut.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP},
    btf_maps::{Array, RingBuf},
    helpers::{bpf_ktime_get_ns, bpf_ringbuf_query},
    macros::btf_map,
    maps::ring_buf::RingBufEntry,
};
use filter_common::layout::{Cut, Event, Flow, FlowKey, Sandbox, event_kind};
use filter_common::{Addr, Class, Reason, RuleWord};

use crate::skb::Skb;
use crate::verdict::Subject;
use crate::{atomic, throttle};

/// Read a few times a second. Waking the reader for every event would cost more than the packets.
#[btf_map]
static EVENTS: RingBuf<Event, { 4 << 20 }> = RingBuf::new();

/// How many events found the ring full, and how many of those userspace has told of.
#[btf_map]
static EVENTS_LOST: Array<u64, 2> = Array::new();

/// Its reader is woken: connections are waiting to be told that they are over.
#[btf_map]
static CUTS: RingBuf<Cut, CUTS_BYTES> = RingBuf::new();

const CUTS_BYTES: usize = 256 << 10;

/// Reserves a place in the ring, or notes that there was none.
#[inline(always)]
fn reserve() -> Option<RingBufEntry<Event>> {
    let entry = EVENTS.reserve(0);
    if entry.is_none()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the array's one element lives as long as the map.
        unsafe { atomic::add(lost, 1) };
    }
    entry
}

/// A packet was refused. Not inlined, for the sake of the stack.
#[inline(never)]
pub fn denied(skb: &Skb, sandbox: &Sandbox, subject: &Subject, reason: Reason) {
    let Some(mut entry) = reserve() else { return };
    let bytes = u64::from(skb.frame_len());
    let (local, remote, local_port, remote_port, protocol) = match &subject.packet {
        Some(packet) if subject.inbound => {
            (packet.dst, packet.src, packet.dst_port, packet.src_port, packet.protocol)
        }
        Some(packet) => (packet.src, packet.dst, packet.src_port, packet.dst_port, packet.protocol),
        None => (Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0, 0, 0),
    };
    entry.write(Event {
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        opened: 0,
        bytes_out: if subject.inbound { 0 } else { bytes },
        bytes_in: if subject.inbound { bytes } else { 0 },
        local,
        remote,
        tenant: sandbox.tenant,
        generation: subject.policy.generation(),
        rule: subject.rule.bits(),
        local_port,
        remote_port,
        kind: event_kind::DENY,
        reason: reason as u8,
        protocol,
        inbound: u8::from(subject.inbound),
        zero: 0,
    });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// What is told of a connection that begins or ends, if there is room to tell.
pub struct Told(Option<RingBufEntry<Event>>);

impl Told {
    /// Makes it known.
    #[inline(always)]
    pub fn submit(self) {
        if let Some(entry) = self.0 {
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
    }

    /// It did not happen.
    #[inline(always)]
    pub fn discard(self) {
        if let Some(entry) = self.0 {
            entry.discard(u64::from(BPF_RB_NO_WAKEUP));
        }
    }
}

/// Prepares to tell that a connection began or ended. Written before it happens, because then the entry
/// that it is read from may be gone.
///
/// # Safety
/// `key` and `flow` must be readable.
#[inline(always)]
pub unsafe fn connection(
    kind: u8,
    key: *const FlowKey,
    flow: *const Flow,
    reason: Reason,
    inbound: bool,
) -> Told {
    // The inspector tells of its own connections, with their names.
    // SAFETY: the caller's promise.
    let class = RuleWord::from_bits(unsafe { (*flow).rule }).class();
    if matches!(class, Class::Inspected | Class::Named | Class::Watched) {
        return Told(None);
    }
    // SAFETY: the caller's promise.
    if !throttle::may_tell_connection(unsafe { (*flow).slot }) {
        return Told(None);
    }
    let Some(mut entry) = reserve() else { return Told(None) };
    // SAFETY: the caller's promise; the helper has no preconditions. Field by field: nothing but the
    // kernel may read the flow's timer.
    unsafe {
        entry.write(Event {
            at: bpf_ktime_get_ns(),
            opened: (*flow).opened,
            bytes_out: (*flow).bytes_out,
            bytes_in: (*flow).bytes_in,
            local: (*key).local(),
            remote: (*key).remote(),
            tenant: (*key).tenant(),
            generation: (*flow).generation,
            rule: (*flow).rule,
            local_port: (*key).local_port(),
            remote_port: (*key).remote_port(),
            kind,
            reason: reason as u8,
            protocol: (*key).protocol(),
            inbound: u8::from(inbound),
            zero: 0,
        });
    }
    Told(Some(entry))
}

/// A connection is to be reset at both ends, if there is room to say so.
pub struct Cutting(Option<RingBufEntry<Cut>>);

impl Cutting {
    /// Wakes the reader.
    #[inline(always)]
    pub fn submit(self) {
        if let Some(entry) = self.0 {
            entry.submit(0);
        }
    }

    /// Somebody else ended the connection.
    #[inline(always)]
    pub fn discard(self) {
        if let Some(entry) = self.0 {
            entry.discard(u64::from(BPF_RB_NO_WAKEUP));
        }
    }
}

/// Prepares to have a connection cut.
///
/// # Safety
/// `key` and `flow` must be readable.
#[inline(always)]
pub unsafe fn cut(key: *const FlowKey, flow: *const Flow, ifindex: u32) -> Cutting {
    let Some(mut entry) = CUTS.reserve(0) else { return Cutting(None) };
    // SAFETY: the caller's promise.
    unsafe {
        entry.write(Cut {
            key: *key,
            ifindex,
            next_of_sandbox: (*flow).next_of_sandbox,
            next_of_remote: (*flow).next_of_remote,
            macs: (*flow).macs,
            rule: (*flow).rule,
        });
    }
    Cutting(Some(entry))
}

/// Whether the ring of cuts is so full that the next one might not fit.
#[inline(always)]
pub fn cuts_waiting() -> bool {
    const ROOM_TO_KEEP: u64 = 4096;
    // SAFETY: the map is a ring buffer.
    let waiting =
        unsafe { bpf_ringbuf_query((&raw const CUTS).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    waiting > CUTS_BYTES as u64 - ROOM_TO_KEEP
}
