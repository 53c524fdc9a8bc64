//! The Ethernet header: who sent the frame and what it carries.

use crate::read::{Read, first_half};

/// Bytes of an Ethernet header without a tag (IEEE 802.3).
pub const ETHERNET_LEN: u32 = 14;

/// An Ethernet hardware address, in the order of the wire.
pub type Mac = [u8; 6];

/// A frame, packet or option that cannot be read in full and in one way only. It has no detail: all
/// such packets get the same treatment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// What follows the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Address resolution, RFC 826.
    Arp,
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// The first twelve bytes: destination, then source.
    pub macs: [u32; 3],
    /// What follows.
    pub payload: Payload,
}

impl Ethernet {
    /// The sender's hardware address.
    #[inline(always)]
    pub const fn source(&self) -> Mac {
        let (middle, last) = (self.macs[1].to_ne_bytes(), self.macs[2].to_ne_bytes());
        [middle[2], middle[3], last[0], last[1], last[2], last[3]]
    }
}

/// The address that a frame goes to; `None` for a truncated header.
#[inline(always)]
pub fn destination<R: Read>(read: &R) -> Option<Mac> {
    let [first, second] = read.words::<2>(0)?;
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    Some([first[0], first[1], first[2], first[3], second[0], second[1]])
}

/// Reads the Ethernet header.
///
/// # Errors
/// [`Malformed`] for a truncated header, a VLAN tag, LLC and every ethertype but ARP, IPv4 and IPv6:
/// what is not known cannot be judged.
#[inline(always)]
pub fn parse<R: Read>(read: &R) -> Result<Ethernet, Malformed> {
    let Some(macs) = read.words::<3>(0) else { return Err(Malformed) };
    // The word behind the addresses holds the ethertype and the payload's first two bytes.
    let Some([kind]) = read.words::<1>(12) else { return Err(Malformed) };
    let payload = match u16::from_be(first_half(kind)) {
        0x0806 => Payload::Arp,
        0x0800 => Payload::Ipv4,
        0x86dd => Payload::Ipv6,
        _ => return Err(Malformed),
    };
    Ok(Ethernet { macs, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ethertype: [u8; 2]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype, &[0; 2]].concat()
    }

    #[test]
    fn known_payloads_are_told_apart() {
        let payload = |ethertype| parse(&frame(ethertype).as_slice()).map(|e| e.payload);
        assert_eq!(payload([0x08, 0x06]), Ok(Payload::Arp));
        assert_eq!(payload([0x08, 0x00]), Ok(Payload::Ipv4));
        assert_eq!(payload([0x86, 0xdd]), Ok(Payload::Ipv6));
    }

    #[test]
    fn tags_llc_and_the_unknown_are_malformed() {
        for ethertype in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00], [0x00, 0x26], [0x88, 0xcc], [0x88, 0x64]]
        {
            assert_eq!(parse(&frame(ethertype).as_slice()), Err(Malformed));
        }
    }

    #[test]
    fn every_truncation_is_malformed() {
        let whole = frame([0x08, 0x00]);
        for len in 0..whole.len() {
            assert_eq!(parse(&&whole[..len]), Err(Malformed), "{len} bytes");
        }
    }

    #[test]
    fn the_source_is_the_second_address() {
        let ethernet = parse(&frame([0x08, 0x00]).as_slice()).unwrap();
        assert_eq!(ethernet.source(), [2, 0, 0, 0, 0, 2]);
    }
}
