//! ARP and IPv6 neighbour discovery: a sandbox speaks for its own addresses and nobody else's.

use crate::Addr;
use crate::frame::{ETHERNET_LEN, Ethernet, Mac, Malformed};
use crate::icmp::message;
use crate::ip::{Kind, Packet};
use crate::layout::{MAX_ADDRS, Sandbox, sandbox_flags};
use crate::read::{Read, byte, first_half, second_half};

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    sender_mac: Mac,
    sender: Addr,
    target: Addr,
}

/// The longest frame that an ARP packet comes in: padded to Ethernet's minimum. Behind that it could carry
/// anything.
pub const MAX_ARP_FRAME: u32 = 64;

/// Reads an ARP packet.
///
/// # Errors
/// [`Malformed`] if it is cut short, padded with more than it needs, not about IPv4 over Ethernet, or neither request nor reply.
#[inline(always)]
pub fn parse_arp<R: Read>(read: &R) -> Result<Arp, Malformed> {
    const ETHERNET_IPV4: [u32; 2] = [u32::from_ne_bytes([0, 1, 8, 0]), u32::from_ne_bytes([6, 4, 0, 0])];
    let Some([types, sizes, sender, rest, ip_rest, _, target]) = read.words::<7>(ETHERNET_LEN) else {
        return Err(Malformed);
    };
    if read.len() > MAX_ARP_FRAME {
        return Err(Malformed);
    }
    let operation = u16::from_be(second_half(sizes));
    if types != ETHERNET_IPV4[0]
        || first_half(sizes) != first_half(ETHERNET_IPV4[1])
        || !matches!(operation, 1 | 2)
    {
        return Err(Malformed);
    }
    let (m, r, i) = (sender.to_ne_bytes(), rest.to_ne_bytes(), ip_rest.to_ne_bytes());
    Ok(Arp {
        sender_mac: [m[0], m[1], m[2], m[3], r[0], r[1]],
        sender: Addr::from_v4_word(u32::from_ne_bytes([r[2], r[3], i[0], i[1]])),
        target: Addr::from_v4_word(target),
    })
}

impl Sandbox {
    /// Whether `mac` may be a source of its frames.
    #[inline(always)]
    pub const fn owns_mac(&self, mac: Mac) -> bool {
        self.flags & sandbox_flags::KNOWN_MAC == 0 || in_one(mac) == in_one(self.mac)
    }

    /// Whether `addr` is one of its addresses: those it was attached with, and the link-local one that
    /// follows from its hardware address.
    #[inline(always)]
    pub fn owns(&self, addr: Addr) -> bool {
        if self.flags & sandbox_flags::ANY_ADDR != 0 {
            return true;
        }
        let mut index = 0;
        while index < MAX_ADDRS {
            if index >= self.addr_count as usize {
                break;
            }
            if self.addrs[index] == addr {
                return true;
            }
            index += 1;
        }
        self.flags & sandbox_flags::KNOWN_MAC != 0 && addr == link_local(self.mac)
    }
}

/// A hardware address as one number, which compares faster than its bytes.
#[inline(always)]
const fn in_one(mac: Mac) -> u64 {
    u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// The link-local address that an interface makes of its hardware address (RFC 4291 appendix A).
#[inline(always)]
pub const fn link_local(mac: Mac) -> Addr {
    Addr::from_v6_words([
        u32::from_ne_bytes([0xfe, 0x80, 0, 0]),
        0,
        u32::from_ne_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff]),
        u32::from_ne_bytes([0xfe, mac[3], mac[4], mac[5]]),
    ])
}

/// Whether an IPv6 packet has not been forwarded: neighbour discovery from elsewhere is none (RFC 4861
/// section 7.1), and from here must not go elsewhere.
#[inline(always)]
pub fn is_on_link<R: Read>(read: &R) -> bool {
    const NEVER_FORWARDED: u8 = 255;
    matches!(read.words::<1>(ETHERNET_LEN + 4), Some([word]) if byte(word, 3) == NEVER_FORWARDED)
}

/// Whether `addr` is link-local, unicast or multicast: packets to it go no further than the link.
#[inline(always)]
pub const fn is_link_scope(addr: Addr) -> bool {
    let first = u32::from_be(addr.words()[0]);
    !addr.is_v4() && (first >> 16 == 0xff02 || first >> 22 == 0xfe80 >> 6)
}

/// Whether an ARP packet of `sandbox` speaks for itself: as the owner of its address, or asking whether
/// anybody has the address that it is about to use (RFC 5227).
#[inline(always)]
pub fn arp_is_own(arp: &Arp, ethernet: &Ethernet, sandbox: &Sandbox) -> bool {
    arp.sender_mac == ethernet.source()
        && sandbox.owns_mac(arp.sender_mac)
        && (sandbox.owns(arp.sender) || arp.sender.is_unspecified() && sandbox.owns(arp.target))
}

/// Whether a neighbour discovery packet of `sandbox` speaks for itself. Advertising as a router and
/// redirecting never is (RFC 4861 sections 6.1.2 and 8.1).
///
/// Not inlined: it is rare, and the kernel gives a program little stack.
#[inline(never)]
pub fn discovery_is_own<R: Read>(read: &R, packet: &Packet, ethernet: &Ethernet, sandbox: &Sandbox) -> bool {
    // No host puts extension headers before it, and they could carry anything.
    const PLAIN: u32 = ETHERNET_LEN + 40;
    if !matches!(packet.kind, Kind::Neighbour) || !is_on_link(read) || packet.l4 != PLAIN {
        return false;
    }
    let Some([head]) = read.words_at::<1>(packet.l4) else { return false };
    let end = packet.l4 + packet.l4_len;
    let from_itself = sandbox.owns(packet.src);
    match byte(head, 0) {
        message::ROUTER_SOLICITATION => {
            (from_itself || packet.src.is_unspecified())
                && options_are_own(read, (packet.l4 + 8, end), ethernet)
        }
        message::NEIGHBOUR_SOLICITATION => {
            let Some(target) = read.words_at::<4>(packet.l4 + 8) else { return false };
            let target = Addr::from_v6_words(target);
            let probes = packet.src.is_unspecified() && sandbox.owns(target);
            // To somebody alone it asks whether that one is still there, and nothing else.
            let to_its_target = is_link_scope(packet.dst) || packet.dst == target;
            (from_itself || probes) && to_its_target && options_are_own(read, (packet.l4 + 24, end), ethernet)
        }
        message::NEIGHBOUR_ADVERTISEMENT => {
            let Some(target) = read.words_at::<4>(packet.l4 + 8) else { return false };
            from_itself
                && sandbox.owns(Addr::from_v6_words(target))
                && options_are_own(read, (packet.l4 + 24, end), ethernet)
        }
        _ => false,
    }
}

/// Whether every link-layer address among the options (RFC 4861 section 4.6) is the frame's source, which
/// has been checked already. They fill the packet from `offset` to its `end` exactly; more of them than any
/// host sends are refused unread.
#[inline(always)]
fn options_are_own<R: Read>(read: &R, (mut offset, end): (u32, u32), ethernet: &Ethernet) -> bool {
    const SOURCE_LINK_LAYER: u8 = 1;
    const TARGET_LINK_LAYER: u8 = 2;
    /// RFC 3971 section 5.3.2, used by RFC 7527.
    const NONCE: u8 = 14;
    const MAX_OPTIONS: u32 = 4;
    let mut count = 0;
    while count < MAX_OPTIONS && offset < end {
        let Some([first, second]) = read.words_at::<2>(offset) else { return false };
        let len = u32::from(byte(first, 1)) * 8;
        // None that a host needs is longer, and others could carry anything.
        if len != 8 {
            return false;
        }
        match byte(first, 0) {
            SOURCE_LINK_LAYER | TARGET_LINK_LAYER => {
                let (f, s) = (first.to_ne_bytes(), second.to_ne_bytes());
                if [f[2], f[3], s[0], s[1], s[2], s[3]] != ethernet.source() {
                    return false;
                }
            }
            NONCE => {}
            _ => return false,
        }
        offset += len;
        count += 1;
    }
    offset == end
}

#[cfg(test)]
#[path = "neighbour_tests.rs"]
mod tests;
