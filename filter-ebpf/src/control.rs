//! What the loader sets before the programs are loaded.

use aya_ebpf::{Global, helpers::bpf_jiffies64};
use filter_common::layout::EGRESS_LIMIT;

use crate::skb::Skb;

const SECOND: u64 = 1_000_000_000;

/// The mark of frames that userspace puts onto an interface: even, and random for each start of the daemon.
/// The odd number behind it is for frames that are to go to the inspector.
#[unsafe(no_mangle)]
static INJECT_MARK: Global<u32> = Global::new(0);
/// Egress connections that no sandbox has more of, whatever its policy says.
#[unsafe(no_mangle)]
static EGRESS_CEILING: Global<u32> = Global::new(EGRESS_LIMIT);
#[unsafe(no_mangle)]
static TCP_HALF_OPEN: Global<u64> = Global::new(30 * SECOND);
#[unsafe(no_mangle)]
static TCP_CLOSING: Global<u64> = Global::new(30 * SECOND);
#[unsafe(no_mangle)]
static TCP_ESTABLISHED: Global<u64> = Global::new(7200 * SECOND);
#[unsafe(no_mangle)]
static UDP: Global<u64> = Global::new(30 * SECOND);
#[unsafe(no_mangle)]
static ICMP: Global<u64> = Global::new(10 * SECOND);

/// Length of a tick.
#[unsafe(no_mangle)]
static NANOSECONDS_PER_TICK: Global<u64> = Global::new(4_000_000);

/// Now, in ticks. Reading it is one load, where the kernel's clocks cost a tenth of all that a packet
/// of a known connection costs.
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() }
}

/// How many ticks a time is.
#[inline(always)]
pub fn to_ticks(nanoseconds: u64) -> u64 {
    nanoseconds.checked_div(NANOSECONDS_PER_TICK.load()).unwrap_or(0)
}

/// How long so many ticks are.
#[inline(always)]
pub fn to_nanoseconds(ticks: u64) -> u64 {
    ticks.wrapping_mul(NANOSECONDS_PER_TICK.load())
}

/// What a sandbox may take of the room that all share.
#[inline(always)]
pub fn egress_ceiling() -> u32 {
    EGRESS_CEILING.load()
}

/// A frame that userspace made.
pub enum Injected {
    /// It goes where it is addressed to.
    Plain,
    /// It belongs to a punted connection.
    Punted,
}

/// Whether userspace made this frame. A sandbox cannot set a mark: it is taken off on the way between
/// namespaces, and a tap has none.
#[inline(always)]
pub fn injected(skb: &Skb) -> Option<Injected> {
    let mark = skb.mark();
    if mark == 0 || mark & !1 != INJECT_MARK.load() {
        return None;
    }
    Some(if mark & 1 == 0 { Injected::Plain } else { Injected::Punted })
}

/// Whether the packet carries a mark of ours: the inspector sent it, or it answers one that was punted.
#[inline(always)]
pub fn is_inspectors(skb: &Skb) -> bool {
    skb.mark() & ports::MASK.load() != 0
}

/// Marks and ports of punted connections.
pub mod ports {
    use aya_ebpf::Global;
    use filter_common::layout::MAX_INSPECTED_PORTS;

    /// The port of DNS (RFC 1035 section 4.2).
    pub const DNS: u16 = 53;

    /// The bits of the mark that are ours.
    #[unsafe(export_name = "PUNT_MASK")]
    pub static MASK: Global<u32> = Global::new(0);
    /// What they are on a punted packet.
    #[unsafe(export_name = "PUNT_MARK")]
    pub static MARK: Global<u32> = Global::new(0);
    /// Ports that are inspected, as they lie in a packet; 0 where there are fewer.
    #[unsafe(no_mangle)]
    static INSPECTED_PORTS: Global<[u16; MAX_INSPECTED_PORTS]> = Global::new([0; MAX_INSPECTED_PORTS]);

    /// Whether TCP connections to this port, as it lies in a packet, are inspected.
    #[inline(always)]
    pub fn is_inspected(port: u16) -> bool {
        let ports = INSPECTED_PORTS.load();
        let mut index = 0;
        let mut found = false;
        while index < MAX_INSPECTED_PORTS {
            found |= ports[index] == port;
            index += 1;
        }
        found && port != 0
    }
}

/// Idle timeouts, in nanoseconds.
pub mod timeout {
    use filter_common::ip::protocol;
    use filter_common::tcp::{Phase, phase};

    /// For a connection of this protocol whose TCP state is `bits`.
    #[inline(always)]
    pub fn of(number: u8, bits: u32) -> u64 {
        match number {
            protocol::TCP => match phase(bits) {
                Phase::HalfOpen => super::TCP_HALF_OPEN.load(),
                Phase::Established => super::TCP_ESTABLISHED.load(),
                Phase::Closing => closing(),
            },
            protocol::UDP => super::UDP.load(),
            _ => super::ICMP.load(),
        }
    }

    /// For a TCP connection that is closing, or just closed.
    #[inline(always)]
    pub fn closing() -> u64 {
        super::TCP_CLOSING.load()
    }
}
