use proptest::prelude::*;

use super::*;
use crate::fixtures::*;
use crate::ip::Version;

const ACK: u8 = tcp::ACK;

fn read_at_once(frame: &[u8]) -> Option<Plain> {
    parse(&frame, Some)
}

/// What is read at once is what the other parsers read, or nothing.
fn assert_agrees(bytes: &[u8]) -> bool {
    let Some(plain) = read_at_once(bytes) else { return false };
    let (ethernet, packet) = read_both(bytes).expect("what is not malformed");
    assert_eq!(plain.source, ethernet.source());
    assert_eq!(format!("{:?}", plain.packet), format!("{packet:?}"));
    true
}

#[test]
fn the_usual_packets_are_read_at_once() {
    for version in [Version::V4, Version::V6] {
        for l4 in [tcp(4000, 443, ACK, b""), tcp(4000, 443, ACK | 8, b"data")] {
            assert!(assert_agrees(&outward(version, protocol::TCP, &l4)), "{version:?}");
        }
        for l4 in [udp(4000, 53, b""), udp(4000, 53, b"query")] {
            assert!(assert_agrees(&inward(version, protocol::UDP, &l4)), "{version:?}");
        }
    }
}

#[test]
fn what_opens_closes_or_resets_is_left_to_others() {
    for version in [Version::V4, Version::V6] {
        for flags in 0..=0xff {
            let frame = outward(version, protocol::TCP, &tcp(4000, 443, flags, b""));
            assert_eq!(assert_agrees(&frame), flags & 0x17 == ACK, "{flags:#x}");
        }
    }
}

#[test]
fn options_fragments_and_extensions_are_left_to_others() {
    let (segment, datagram) = (tcp(4000, 443, ACK, b""), udp(4000, 53, b"query"));
    for (number, l4) in [(protocol::TCP, &segment), (protocol::UDP, &datagram)] {
        let with_options = v4_with(&[1; 4], 0, number, l4);
        assert!(read_both(&with_options).is_ok() && read_at_once(&with_options).is_none());
        for fragment in [0x2000, 0x2001, 1, 0x1fff] {
            assert!(read_at_once(&v4_with(&[], fragment, number, l4)).is_none(), "{fragment:#x}");
        }
        assert!(assert_agrees(&v4_with(&[], 0x4000, number, l4)), "\"don't fragment\" is usual");
        let extended = v6_with(&[extension(60, 1)], number, l4);
        assert!(read_both(&extended).is_ok() && read_at_once(&extended).is_none());
        assert!(read_at_once(&v6_with(&[fragment(0, true)], number, l4)).is_none());
    }
}

#[test]
fn every_other_kind_is_left_to_others() {
    for (name, frame) in valid_frames() {
        let usual = assert_agrees(&frame);
        let packet = read_both(&frame).map(|(_, packet)| packet);
        let may_be = packet.is_ok_and(|packet| matches!(packet.kind, Kind::Tcp | Kind::Udp));
        assert!(may_be || !usual, "{name}");
    }
}

#[test]
fn what_is_cut_short_is_left_to_others() {
    for version in [Version::V4, Version::V6] {
        for (number, l4) in [(protocol::TCP, tcp(1, 2, ACK, b"")), (protocol::UDP, udp(1, 2, b""))] {
            let whole = outward(version, number, &l4);
            for len in 0..whole.len() {
                assert!(read_at_once(&whole[..len]).is_none(), "{version:?} {number}, {len} bytes");
            }
        }
    }
}

proptest! {
    #[test]
    fn it_agrees_about_whatever_it_reads(
        which in 0..4_usize,
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        changes in proptest::collection::vec((0..80_usize, any::<u8>()), 0..4),
    ) {
        let mut frame = match which {
            0 => outward(Version::V4, protocol::TCP, &tcp(4000, 443, ACK, &payload)),
            1 => outward(Version::V6, protocol::TCP, &tcp(4000, 443, ACK, &payload)),
            2 => outward(Version::V4, protocol::UDP, &udp(4000, 53, &payload)),
            _ => outward(Version::V6, protocol::UDP, &udp(4000, 53, &payload)),
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        assert_agrees(&frame);
    }
}
