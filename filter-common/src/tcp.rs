//! Where a TCP connection stands, seen from between its two ends (RFC 9293 section 3.3.2).

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;
const FLAGS: u8 = 0x3f;

/// Bytes of a TCP header without options.
pub const HEADER_LEN: u32 = 20;

/// Which end a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The sandbox.
    Sandbox,
    /// Whoever it talks to.
    Remote,
}

/// Bits of a connection's state. Bits are only ever added, so two CPUs may add theirs at once.
pub mod state {
    /// The end that did not open the connection has answered.
    pub const ANSWERED: u32 = 1;
    /// The end that opened it has acknowledged the answer.
    pub const CONFIRMED: u32 = 2;
    /// The sandbox sent its last byte.
    pub const FIN_SANDBOX: u32 = 4;
    /// The remote end sent its last byte.
    pub const FIN_REMOTE: u32 = 8;
    /// Both ends are done.
    pub const FIN_BOTH: u32 = FIN_SANDBOX | FIN_REMOTE;
}

/// Which idle timeout applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not yet confirmed by both ends.
    HalfOpen,
    /// Open.
    Established,
    /// At least one end has closed.
    Closing,
}

/// The phase that a state's bits amount to.
#[inline(always)]
pub const fn phase(bits: u32) -> Phase {
    if bits & state::FIN_BOTH != 0 {
        Phase::Closing
    } else if bits & state::CONFIRMED != 0 {
        Phase::Established
    } else {
        Phase::HalfOpen
    }
}

/// Whether a set of flags occurs in no legitimate segment: none at all, or SYN together with FIN or RST.
/// Stacks disagree on what these mean, so they are not judged but refused.
#[inline(always)]
pub const fn nonsense(flags: u8) -> bool {
    let flags = flags & FLAGS;
    flags & (SYN | FIN | RST | ACK) == 0 || (flags & SYN != 0 && flags & (FIN | RST) != 0)
}

/// Whether a segment goes on with a connection: it neither opens, closes nor resets anything.
#[inline(always)]
pub const fn goes_on(flags: u8) -> bool {
    flags & (SYN | FIN | RST | ACK) == ACK
}

/// The bits that a segment with `flags` from `from` adds to a connection that stood at `bits` and that
/// `opener` began.
#[inline(always)]
pub const fn observe(bits: u32, opener: Side, from: Side, flags: u8) -> u32 {
    let mut added = 0;
    if from as u8 != opener as u8 {
        added |= state::ANSWERED;
    } else if bits & state::ANSWERED != 0 && flags & ACK != 0 {
        added |= state::CONFIRMED;
    }
    if flags & FIN != 0 {
        added |= match from {
            Side::Sandbox => state::FIN_SANDBOX,
            Side::Remote => state::FIN_REMOTE,
        };
    }
    added
}

/// Whether a segment may still pass behind a connection that both ends have closed: the last
/// acknowledgement, or a FIN sent again. Data would be a connection that nobody counts.
#[inline(always)]
pub const fn lingers(flags: u8, payload: u32) -> bool {
    flags & SYN == 0 && payload == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(opener: Side, segments: &[(Side, u8)]) -> u32 {
        segments.iter().fold(0, |bits, (from, flags)| bits | observe(bits, opener, *from, *flags))
    }

    #[test]
    fn a_handshake_is_half_open_until_its_third_segment() {
        use Side::{Remote, Sandbox};
        let handshake = [(Sandbox, SYN), (Remote, SYN | ACK), (Sandbox, ACK)];
        assert_eq!(phase(run(Sandbox, &handshake[..1])), Phase::HalfOpen);
        assert_eq!(phase(run(Sandbox, &handshake[..2])), Phase::HalfOpen);
        assert_eq!(phase(run(Sandbox, &handshake)), Phase::Established);
    }

    #[test]
    fn simultaneous_open_is_established_too() {
        use Side::{Remote, Sandbox};
        let bits = run(Sandbox, &[(Sandbox, SYN), (Remote, SYN), (Sandbox, SYN | ACK), (Remote, SYN | ACK)]);
        assert_eq!(phase(bits), Phase::Established);
    }

    #[test]
    fn a_repeated_syn_confirms_nothing() {
        use Side::Sandbox;
        assert_eq!(phase(run(Sandbox, &[(Sandbox, SYN), (Sandbox, SYN), (Sandbox, ACK)])), Phase::HalfOpen);
    }

    #[test]
    fn one_fin_is_closing_and_two_are_the_end() {
        use Side::{Remote, Sandbox};
        let open = [(Remote, SYN), (Sandbox, SYN | ACK), (Remote, ACK)];
        let half = run(Remote, &[&open[..], &[(Sandbox, FIN | ACK)]].concat());
        assert_eq!(phase(half), Phase::Closing);
        assert_ne!(half & state::FIN_BOTH, state::FIN_BOTH);
        let both = run(Remote, &[&open[..], &[(Sandbox, FIN | ACK), (Remote, FIN | ACK)]].concat());
        assert_eq!(both & state::FIN_BOTH, state::FIN_BOTH);
    }

    #[test]
    fn impossible_flags_are_nonsense() {
        for flags in [0, SYN | FIN, SYN | RST, 0x3f, 0x29 & !FIN, SYN | FIN | ACK, 0x08, 0x20] {
            assert!(nonsense(flags), "{flags:#x}");
        }
        for flags in [SYN, SYN | ACK, ACK, FIN | ACK, FIN, RST, RST | ACK, 0x18, 0x38, SYN | 0xc0] {
            assert!(!nonsense(flags), "{flags:#x}");
        }
    }

    #[test]
    fn only_control_segments_linger() {
        assert!(lingers(ACK, 0) && lingers(FIN | ACK, 0) && lingers(RST, 0));
        assert!(!lingers(FIN | ACK, 700) && !lingers(ACK, 1) && !lingers(SYN, 0) && !lingers(SYN | ACK, 0));
    }
}
