//! What the loader sets before the programs are loaded.

use aya_ebpf::Global;

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
