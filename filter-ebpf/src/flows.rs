//! The connections that are being followed: those that the sandbox began, and those that began with it.
//!
//! A table of our own rather than a hash map of the kernel's: a packet of a known connection then costs three
//! cache lines, most often of one page, and no call. A connection lies in one of the sixteen places of its set,
//! which begins with a line or two of tags, by which a lookup finds the place.
//!
//! The table of egress connections *is* the count: a place in the budget is taken before an entry is made
//! and given back by whoever succeeds in removing it. Two CPUs, the timer and a sweep may all want to end
//! the same connection; the tag lets only one of them. An entry is written before its tag, and never read for
//! another connection than the tag's without comparing the key.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    helpers::{bpf_ktime_get_ns, bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
};
use filter_common::ip::{Kind, Packet, protocol};
use filter_common::layout::{
    FLOW_LOCKS as LOCKS, FLOW_SETS as SETS, FLOW_WAYS, Flow, FlowEntry, FlowKey, FlowLock, FlowSeed, FlowSet,
    event_kind,
};
use filter_common::tcp::{self, Side, state};
use filter_common::{Reason, RuleWord, decide};

use crate::control::{ticks, timeout, to_nanoseconds};
use crate::{atomic, budget, closed, events, punt};

/// In pages of its own, so that a set begins with a cache line.
#[btf_map]
static FLOWS: Array<FlowSet, { SETS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Whoever makes an entry holds the lock of its set, so that no two CPUs make the same one.
#[btf_map]
static FLOW_LOCKS: Array<FlowLock, { LOCKS as usize }> = Array::new();

/// Written by userspace before the first packet, and never again while there are connections.
#[btf_map]
static FLOW_SEED: Array<FlowSeed, 1> = Array::new();

/// A connection that is about to be followed: too large for the stack, beside everything else.
#[btf_map]
static FRESH: PerCpuArray<Flow, 1> = PerCpuArray::new();

/// Who began a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Egress,
    Inbound,
}

impl Direction {
    #[inline(always)]
    fn opener(self) -> Side {
        match self {
            Self::Egress => Side::Sandbox,
            Self::Inbound => Side::Remote,
        }
    }
}

/// How far ahead of what is known a segment may be, in bytes: more than any receive window in use.
const MOST_AHEAD: u32 = 1 << 26;

/// How far a reset's number may be from the expected one: segments may have been lost behind this point.
const RESET_WINDOW: u32 = 1 << 16;

/// A followed connection. The pointers stay readable; should another CPU end the connection meanwhile, what
/// is written is lost or lands in another connection's statistics, never in a count or a verdict.
#[derive(Clone, Copy)]
pub struct Tracked {
    /// Its tag's place, and the tag that was found there.
    place: *mut u64,
    tag: u64,
    entry: *mut FlowEntry,
}

#[inline(always)]
pub fn find(key: &FlowKey) -> Option<Tracked> {
    let spot = key.spot(FLOW_SEED.get(0)?);
    let set = FLOWS.get_ptr_mut(spot.set)?;
    let tags = tags_of(set);
    // What is left of a tag that agrees with the key is the number of its way. Read from the tag rather than
    // counted: the verifier would go through the rest of the program once for each number that it knows.
    let mut left = NONE;
    let mut way = 0;
    while way < FLOW_WAYS {
        // SAFETY: the element lives as long as the map, and has as many words.
        left = unsafe { atomic::load(tags.add(way)) } ^ spot.tag;
        if left < NONE {
            break;
        }
        way += 1;
    }
    if left >= NONE {
        return None;
    }
    // SAFETY: as above.
    unsafe {
        let (place, entry) = at(set, left);
        if is_of(entry, key) { Some(Tracked { place, tag: spot.tag | left, entry }) } else { None }
    }
}

/// Whether an entry has this key: as comparing the two, but in fewer steps.
///
/// # Safety
/// `entry` must be an entry of the table, which is aligned for pairs.
#[inline(always)]
unsafe fn is_of(entry: *const FlowEntry, key: &FlowKey) -> bool {
    let wanted = key.pairs();
    let mut index = 0;
    while index < wanted.len() {
        // SAFETY: the caller's promise; the key comes first in the entry.
        if unsafe { *entry.cast::<u64>().add(index) } != wanted[index] {
            return false;
        }
        index += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { (*entry).key.protocol() == key.protocol() }
}

/// The number of no way.
const NONE: u64 = FLOW_WAYS as u64;

/// The tags of a set.
#[inline(always)]
fn tags_of(set: *mut FlowSet) -> *mut u64 {
    set.cast()
}

/// A set's place with the number `way`: its tag and its entry.
///
/// # Safety
/// `set` must be an element of the table.
#[inline(always)]
unsafe fn at(set: *mut FlowSet, way: u64) -> (*mut u64, *mut FlowEntry) {
    let way = atomic::within::<NONE>(way) as usize;
    // SAFETY: the caller's promise.
    unsafe { (tags_of(set).add(way), (&raw mut (*set).entries).cast::<FlowEntry>().add(way)) }
}

/// What became of an entry that was to be made.
enum Made {
    Yes,
    /// Another CPU was quicker.
    IsThere,
    NoRoom,
}

/// Makes an entry.
#[inline(always)]
fn insert(key: &FlowKey, direction: Direction, flow: &Flow) -> Made {
    let Some(seed) = FLOW_SEED.get(0) else { return Made::NoRoom };
    let spot = key.spot(seed);
    let (Some(lock), Some(set)) =
        (FLOW_LOCKS.get_ptr_mut(spot.set & (LOCKS - 1)), FLOWS.get_ptr_mut(spot.set))
    else {
        return Made::NoRoom;
    };
    // SAFETY: the elements live as long as their maps; between the two calls nothing is called.
    unsafe {
        bpf_spin_lock((&raw mut (*lock).lock).cast());
        let (known, free) = scan(tags_of(set), spot.tag);
        let made = if known < NONE {
            // Another connection with this tag is one chance in many thousand millions: then this one has no
            // room.
            if (*at(set, known).1).key == *key { Made::IsThere } else { Made::NoRoom }
        } else if free < NONE {
            let (place, entry) = at(set, free);
            (*entry).key = *key;
            (*entry).inbound = u32::from(matches!(direction, Direction::Inbound));
            (*entry).flow = *flow;
            // Its tag last; a plain write would not keep the order on all machines.
            atomic::replace_word(place, 0, spot.tag | free);
            Made::Yes
        } else {
            Made::NoRoom
        };
        bpf_spin_unlock((&raw mut (*lock).lock).cast());
        made
    }
}

/// Which way of a set has the tag, and which is free; [`NONE`] if none.
///
/// # Safety
/// `tags` must be a set's.
#[inline(always)]
unsafe fn scan(tags: *mut u64, wanted: u64) -> (u64, u64) {
    let (mut known, mut free) = (NONE, NONE);
    let mut way = FLOW_WAYS;
    while way > 0 {
        way -= 1;
        // SAFETY: the caller's promise.
        let tag = unsafe { atomic::load(tags.add(way)) };
        if tag == 0 {
            free = way as u64;
        }
        if tag ^ wanted < NONE {
            known = way as u64;
        }
    }
    (known, free)
}

impl Tracked {
    /// Who began it.
    #[inline(always)]
    pub fn direction(&self) -> Direction {
        // SAFETY: see the type.
        if unsafe { (*self.entry).inbound } == 0 { Direction::Egress } else { Direction::Inbound }
    }

    #[inline(always)]
    fn flow(&self) -> *mut Flow {
        // SAFETY: see the type.
        unsafe { &raw mut (*self.entry).flow }
    }

    #[inline(always)]
    pub fn generation(&self) -> u32 {
        // SAFETY: see the type.
        unsafe { (*self.flow()).generation }
    }

    #[inline(always)]
    pub fn rule(&self) -> RuleWord {
        // SAFETY: see the type.
        RuleWord::from_bits(unsafe { (*self.flow()).rule })
    }

    /// Notes that the connection was judged anew, unless another CPU did meanwhile.
    #[inline(always)]
    pub fn set_judged(&self, rule: RuleWord, generation: u32) {
        // SAFETY: see the type.
        unsafe { judged(self.flow(), rule, generation) };
    }

    /// Follows the connection through one more packet.
    #[inline(always)]
    pub fn advance(&self, packet: &Packet, from: Side, bytes: u32) {
        self.note(packet, from, bytes);
        if matches!(packet.kind, Kind::Tcp) {
            self.advance_tcp(packet, from);
        }
    }

    /// As [`Self::advance`], for a packet that [`tcp::goes_on`].
    #[inline(always)]
    pub fn go_on(&self, packet: &Packet, from: Side, bytes: u32) {
        self.note(packet, from, bytes);
        if matches!(packet.kind, Kind::Tcp) {
            // SAFETY: see the type.
            unsafe {
                self.expect(packet, from, false);
                let bits = (*self.flow()).state;
                let added = tcp::observe(bits, self.direction().opener(), from, packet.flags) & !bits;
                if added != 0 {
                    atomic::set_bits(&raw mut (*self.flow()).state, added);
                }
            }
        }
    }

    /// Notes that there was one more packet.
    #[inline(always)]
    fn note(&self, packet: &Packet, from: Side, bytes: u32) {
        let flow = self.flow();
        // SAFETY: see the type; what two CPUs may write at once is written atomically.
        unsafe {
            let way = match from {
                Side::Sandbox => &raw mut (*flow).bytes_out,
                Side::Remote => &raw mut (*flow).bytes_in,
            };
            atomic::add(way, u64::from(bytes));
            // Nothing that the sandbox says keeps a UDP or ICMP exchange alive that somebody else began:
            // the port at the other end may have changed hands.
            if matches!(packet.kind, Kind::Tcp)
                || matches!(self.direction(), Direction::Egress)
                || from == Side::Remote
            {
                (*flow).last_seen = ticks();
            }
        }
    }

    /// Notes the number that the segment's sender will use next. Something sent again lies before what is
    /// known already; what lies far ahead is not the other end's, unless it `begins` the connection.
    ///
    /// # Safety
    /// As of the type.
    #[inline(always)]
    unsafe fn expect(&self, packet: &Packet, from: Side, begins: bool) {
        let flow = self.flow();
        // SAFETY: the caller's promise.
        unsafe {
            let known = match from {
                Side::Sandbox => &raw mut (*flow).next_of_sandbox,
                Side::Remote => &raw mut (*flow).next_of_remote,
            };
            let next = packet.next_seq();
            let ahead = next.wrapping_sub(*known);
            if begins || (ahead != 0 && ahead <= MOST_AHEAD) {
                *known = next;
            }
        }
    }

    #[inline(always)]
    fn advance_tcp(&self, packet: &Packet, from: Side) {
        let flow = self.flow();
        let opener = self.direction().opener();
        // SAFETY: see the type.
        unsafe {
            if packet.is_reset() {
                // Whoever guesses the ports but not the number ends nothing (RFC 5961 section 3.2).
                let answered = (*flow).state & state::ANSWERED != 0;
                let off = u32::from_be(packet.seq).wrapping_sub((*flow).next_of_remote) as i32;
                if from == Side::Sandbox || !answered || off.unsigned_abs() <= RESET_WINDOW {
                    self.end();
                }
                return;
            }
            // What begins anew what was answered is not the other end's.
            let begins = packet.flags & tcp::SYN != 0
                && (from == Side::Sandbox || (*flow).state & state::ANSWERED == 0);
            self.expect(packet, from, begins);
            let bits = (*flow).state;
            // The same ports again, before the old connection was seen to end.
            if packet.is_syn() && from == opener && bits & state::FIN_BOTH != 0 {
                (*flow).state = 0;
                return;
            }
            let added = tcp::observe(bits, opener, from, packet.flags) & !bits;
            if added == 0 {
                return;
            }
            let bits = atomic::set_bits(&raw mut (*flow).state, added) | added;
            if bits & state::FIN_BOTH == state::FIN_BOTH {
                closed::remember(&(*self.entry).key, (*flow).generation, self.rule());
                self.end();
            }
        }
    }

    /// Ends the connection. `false` if somebody else did.
    #[inline(always)]
    pub fn end(&self) -> bool {
        // SAFETY: see the type.
        unsafe { end(self.place, self.tag, self.entry) }
    }

    /// Ends a connection that the policy in force does not permit, and has both its ends told.
    #[inline(always)]
    pub fn revoke(&self, ifindex: u32) {
        // SAFETY: see the type.
        unsafe { revoke(self.place, self.tag, self.entry, ifindex) };
    }
}

/// # Safety
/// `place` must be where `tag` was found, and `entry` be what it is the tag of.
#[inline(never)]
pub unsafe fn end(place: *mut u64, tag: u64, entry: *mut FlowEntry) -> bool {
    // SAFETY: the caller's promise. What is needed afterwards is read first: once the tag is gone the entry
    // may be another connection's.
    unsafe {
        let (slot, rule) = ((*entry).flow.slot, RuleWord::from_bits((*entry).flow.rule));
        let inbound = (*entry).inbound != 0;
        let (direction, reason) = if inbound {
            (Direction::Inbound, Reason::Reply)
        } else {
            (Direction::Egress, decide::reason_of(rule))
        };
        let told = events::connection(
            event_kind::CLOSE,
            &raw const (*entry).key,
            &raw const (*entry).flow,
            reason,
            inbound,
        );
        let noted = punt::noted(&(*entry).key);
        if decide::belongs_to_inspector(rule) {
            punt::forget_verdict(&(*entry).key);
        }
        if !atomic::replace_word(place, tag, 0) {
            told.discard();
            return false;
        }
        if decide::belongs_to_inspector(rule) {
            punt::forget(&noted);
        }
        give_back(slot, direction);
        told.submit();
    }
    true
}

/// # Safety
/// As of [`end`]; the connection must be one that the sandbox began.
#[inline(always)]
pub unsafe fn revoke(place: *mut u64, tag: u64, entry: *mut FlowEntry, ifindex: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*entry).key.protocol() != protocol::TCP {
            end(place, tag, entry);
            return;
        }
        // Without room to say so the ends find out by themselves: nothing of theirs passes any more.
        let cut = events::cut(&raw const (*entry).key, &raw const (*entry).flow, ifindex);
        if end(place, tag, entry) {
            cut.submit();
        } else {
            cut.discard();
        }
    }
}

/// Writes rule and generation, in one piece and only if they are what was read a moment ago: another CPU may
/// have judged the connection too, or ended it and begun another in its place.
///
/// # Safety
/// `flow` must be an entry's.
#[inline(always)]
pub unsafe fn judged(flow: *mut Flow, rule: RuleWord, generation: u32) {
    // SAFETY: the caller's promise; the word is aligned, as `layout` asserts.
    unsafe {
        let word = (&raw mut (*flow).generation).cast::<u64>();
        let before = atomic::load(word);
        let after = u64::from(rule.bits()) << 32 | u64::from(generation);
        if before != after {
            atomic::replace_word(word, before, after);
        }
    }
}

/// The tag and the entry at a place, by its number; `None` if it is free.
#[inline(always)]
pub fn nth(number: u32) -> Option<(*mut u64, u64, *mut FlowEntry)> {
    let set = FLOWS.get_ptr_mut(number / FLOW_WAYS as u32)?;
    // SAFETY: the element lives as long as the map.
    unsafe {
        let (place, entry) = at(set, u64::from(number));
        let tag = atomic::load(place);
        if tag == 0 { None } else { Some((place, tag, entry)) }
    }
}

#[inline(always)]
fn give_back(slot: u32, direction: Direction) {
    match direction {
        Direction::Egress => budget::give_back(slot),
        Direction::Inbound => budget::give_back_inbound(slot),
    }
}

/// Begins to follow a connection. The caller has taken a place for it; that is given back if there turns
/// out to be no need for it.
///
/// # Errors
/// `capacity` if there is no room for it.
#[inline(always)]
pub fn open(key: &FlowKey, slot: u32, direction: Direction, flow: &Flow) -> Result<(), Reason> {
    match insert(key, direction, flow) {
        Made::Yes => {}
        Made::IsThere => {
            give_back(slot, direction);
            return Ok(());
        }
        Made::NoRoom => {
            give_back(slot, direction);
            if decide::belongs_to_inspector(RuleWord::from_bits(flow.rule)) {
                punt::forget(&punt::noted(key));
            }
            return Err(Reason::Capacity);
        }
    }
    if matches!(direction, Direction::Egress) {
        budget::note_peak(slot);
    }
    let (reason, inbound) = match direction {
        Direction::Egress => (decide::reason_of(RuleWord::from_bits(flow.rule)), false),
        Direction::Inbound => (Reason::Reply, true),
    };
    // SAFETY: both are references.
    unsafe { events::connection(event_kind::OPEN, key, flow, reason, inbound) }.submit();
    Ok(())
}

/// A connection's entry as `packet`, its first, makes it.
#[inline(always)]
pub fn fresh(
    slot: u32,
    packet: &Packet,
    macs: [u32; 3],
    rule: RuleWord,
    generation: u32,
) -> Option<&'static mut Flow> {
    // SAFETY: the element lives as long as the map, and this CPU alone uses it, once at a time.
    let flow = unsafe { &mut *FRESH.get_ptr_mut(0)? };
    *flow = Flow {
        // SAFETY: the helper has no preconditions.
        opened: unsafe { bpf_ktime_get_ns() },
        last_seen: ticks(),
        bytes_out: 0,
        bytes_in: 0,
        generation,
        rule: rule.bits(),
        state: 0,
        next_of_sandbox: packet.next_seq(),
        next_of_remote: u32::from_be(packet.ack),
        slot,
        macs,
        zero: 0,
    };
    Some(flow)
}

/// Ends a connection that has been idle for longer than it may.
///
/// # Safety
/// As of [`end`].
#[inline(always)]
pub unsafe fn expire(place: *mut u64, tag: u64, entry: *mut FlowEntry) {
    // SAFETY: the caller's promise.
    unsafe {
        let limit = timeout::of((*entry).key.protocol(), (*entry).flow.state);
        if to_nanoseconds(ticks().saturating_sub((*entry).flow.last_seen)) >= limit {
            end(place, tag, entry);
        }
    }
}
