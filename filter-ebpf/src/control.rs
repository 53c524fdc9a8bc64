//! What the loader sets before the programs are loaded.

use aya_ebpf::{Global, helpers::bpf_jiffies64};

use crate::skb::Skb;

const SECOND: u64 = 1_000_000_000;

/// The mark of frames that userspace puts onto an interface. Random for each start of the daemon.
#[unsafe(no_mangle)]
static INJECT_MARK: Global<u32> = Global::new(0);
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

/// Whether userspace made this frame. A sandbox cannot set a mark: it is taken off on the way between
/// namespaces, and a tap has none.
#[inline(always)]
pub fn is_injected(skb: &Skb) -> bool {
    let mark = skb.mark();
    mark != 0 && mark == INJECT_MARK.load()
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
