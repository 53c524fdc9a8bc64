use proptest::prelude::*;

use super::*;
use crate::decide;
use crate::fixtures::*;
use crate::icmp;
use crate::layout::FlowKey;
use crate::neighbour;
use crate::tcp::Side;

const SYN: u8 = tcp::SYN;
const ACK: u8 = tcp::ACK;

fn kind(frame: &[u8]) -> Result<Kind, Malformed> {
    read(frame).map(|packet| packet.kind)
}

fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn small_tcp() -> Vec<u8> {
    tcp(4000, 443, SYN, b"")
}

// What a packet is.

#[test]
fn every_kind_is_recognised_in_both_families() {
    use Kind::*;
    let (v4, v6) = (Version::V4, Version::V6);
    let table = [
        (v4, protocol::TCP, small_tcp(), Tcp),
        (v6, protocol::TCP, small_tcp(), Tcp),
        (v4, protocol::UDP, udp(1, 2, b""), Udp),
        (v6, protocol::UDP, udp(1, 2, b""), Udp),
        (v4, protocol::ICMP, echo(8, 1), EchoRequest),
        (v6, protocol::ICMP_V6, echo(128, 1), EchoRequest),
        (v4, protocol::ICMP, echo(0, 1), EchoReply),
        (v6, protocol::ICMP_V6, echo(129, 1), EchoReply),
    ];
    for (version, protocol, l4, expected) in table {
        assert_eq!(kind(&outward(version, protocol, &l4)), Ok(expected), "{version:?} {protocol}");
    }
}

#[test]
fn every_icmp_type_has_its_kind() {
    for number in 0..=255 {
        let v4 = match number {
            0 => Kind::EchoReply,
            8 => Kind::EchoRequest,
            3 | 11 | 12 => Kind::IcmpError,
            _ => Kind::Other,
        };
        let v6 = match number {
            1..=4 => Kind::IcmpError,
            128 => Kind::EchoRequest,
            129 => Kind::EchoReply,
            130..=132 | 143 => Kind::MulticastListener,
            133..=137 => Kind::Neighbour,
            _ => Kind::Other,
        };
        let message = icmp(number, &[0; 24]);
        assert_eq!(kind(&outward(Version::V4, protocol::ICMP, &message)), Ok(v4), "ICMP {number}");
        assert_eq!(kind(&outward(Version::V6, protocol::ICMP_V6, &message)), Ok(v6), "ICMPv6 {number}");
    }
}

#[test]
fn icmp_of_the_other_family_is_other() {
    for number in [0, 3, 8, 128, 129, 133, 134, 135, 136, 137] {
        assert_eq!(kind(&outward(Version::V6, protocol::ICMP, &icmp(number, &[0; 24]))), Ok(Kind::Other));
        assert_eq!(kind(&outward(Version::V4, protocol::ICMP_V6, &icmp(number, &[0; 24]))), Ok(Kind::Other));
    }
}

#[test]
fn every_other_protocol_is_other() {
    let in_v4 = |number| !matches!(number, protocol::ICMP | protocol::TCP | protocol::UDP);
    for number in (0..=255).filter(|number| in_v4(*number)) {
        let packet = read(&outward(Version::V4, number, &[0; 24])).unwrap();
        assert_eq!((packet.kind, packet.protocol), (Kind::Other, number));
        assert_eq!((packet.src_port, packet.dst_port, packet.flags), (0, 0, 0));
    }
    // AH, ESP, mobility, HIP, shim6 and "no next header" are headers that nobody looks behind.
    for number in [4, 41, 47, 50, 51, 59, 132, 135, 136, 139, 140, 253] {
        let packet = read(&outward(Version::V6, number, &[0; 24])).unwrap();
        assert_eq!((packet.kind, packet.protocol), (Kind::Other, number));
    }
}

#[test]
fn a_segment_is_read_in_full() {
    for (version, l4) in [(Version::V4, V4_L4), (Version::V6, V6_L4)] {
        let (src, dst) = ends(version);
        let packet = read(&outward(version, protocol::TCP, &tcp(0x1234, 443, SYN | 0xc0, b"early"))).unwrap();
        assert_eq!((packet.src, packet.dst), (src.into(), dst.into()));
        assert_eq!((u16::from_be(packet.src_port), u16::from_be(packet.dst_port)), (0x1234, 443));
        assert_eq!((u32::from_be(packet.seq), u32::from_be(packet.ack)), (0x0102_0304, 0x0506_0708));
        assert_eq!((packet.flags, packet.payload), (SYN | 0xc0, 5));
        assert_eq!((packet.l4 as usize, packet.l4_len), (l4, 25));
        assert!(packet.is_syn() && !packet.is_reset() && !packet.mapped_destination);
    }
}

#[test]
fn syn_fin_and_data_take_sequence_numbers() {
    for (flags, data, taken) in [(ACK, 0, 0), (SYN, 0, 1), (SYN, 3, 4), (ACK, 3, 3), (tcp::FIN | ACK, 3, 4)] {
        let frame = outward(Version::V4, protocol::TCP, &tcp(1, 2, flags, &vec![0; data]));
        let packet = read(&frame).unwrap();
        assert_eq!(packet.next_seq(), 0x0102_0304 + taken, "{flags:#x} and {data} bytes");
        let last = Packet { seq: u32::MAX, ..packet };
        assert_eq!(last.next_seq(), taken.wrapping_sub(1), "{flags:#x} and {data} bytes");
    }
}

#[test]
fn an_echo_has_its_identifier_for_a_port() {
    for (version, number) in [(Version::V4, 8), (Version::V4, 0), (Version::V6, 128), (Version::V6, 129)] {
        let packet = read(&outward(version, icmp_of(version), &echo(number, 0xbeef))).unwrap();
        assert_eq!((u16::from_be(packet.src_port), packet.dst_port), (0xbeef, 0));
    }
}

#[test]
fn the_version_must_be_that_of_the_ethertype() {
    for version in [Version::V4, Version::V6] {
        let whole = outward(version, protocol::TCP, &small_tcp());
        let right = whole[IP] >> 4;
        for nibble in (0..16).filter(|nibble| *nibble != right) {
            let lie = with(whole.clone(), IP, &[nibble << 4 | whole[IP] & 0x0f]);
            assert_eq!(kind(&lie), Err(Malformed), "{version:?} {nibble}");
        }
    }
}

// Lengths.

#[test]
fn every_truncation_is_malformed() {
    for (name, whole) in valid_frames() {
        assert!(read(&whole).is_ok(), "{name}");
        for len in 0..whole.len() {
            assert_eq!(kind(&whole[..len]), Err(Malformed), "{name} cut to {len}");
        }
    }
}

#[test]
fn ethernet_padding_changes_nothing() {
    for (name, whole) in valid_frames() {
        let expected = format!("{:?}", read(&whole));
        for padding in [1, 2, 3, 4, 7, 46] {
            let padded = [&whole[..], &vec![0xff; padding]].concat();
            assert_eq!(format!("{:?}", read(&padded)), expected, "{name} and {padding}");
        }
    }
}

#[test]
fn an_ihl_that_lies_is_malformed() {
    let whole = v4_with(&[], 0, protocol::TCP, &small_tcp());
    for ihl in (0..16).filter(|ihl| *ihl != 5) {
        assert_eq!(kind(&with(whole.clone(), IP, &[0x40 | ihl])), Err(Malformed), "{ihl}");
    }
}

#[test]
fn an_ihl_that_hides_the_ports_is_followed() {
    // Twelve bytes of options that look like the ports of an allowed connection.
    let options = [1, 1, 7, 7, 4, 0, 0, 0, 0, 0, 0, 0];
    let packet = read(&v4_with(&options, 0, protocol::UDP, &udp(4000, 53, b"q"))).unwrap();
    assert_eq!((packet.l4 as usize, packet.l4_len), (V4_L4 + 12, 9));
    assert_eq!((u16::from_be(packet.src_port), u16::from_be(packet.dst_port)), (4000, 53));
}

#[test]
fn a_total_length_that_lies_is_malformed() {
    let whole = v4_with(&[], 0, protocol::TCP, &tcp(1, 2, ACK, b"data"));
    let longer = u16::try_from(whole.len() - IP + 1).unwrap();
    for total in [0, 1, 19, 20, 39, longer, u16::MAX] {
        assert_eq!(kind(&with(whole.clone(), IP + 2, &total.to_be_bytes())), Err(Malformed), "{total}");
    }
    let shorter = read(&with(whole, IP + 2, &40_u16.to_be_bytes())).unwrap();
    assert_eq!((shorter.l4_len, shorter.payload), (20, 0));
}

#[test]
fn a_payload_length_that_lies_is_malformed() {
    let whole = outward(Version::V6, protocol::TCP, &tcp(1, 2, ACK, b"data"));
    for len in [0, 1, 19, 25, u16::MAX] {
        assert_eq!(kind(&with(whole.clone(), IP + 4, &len.to_be_bytes())), Err(Malformed), "{len}");
    }
    let shorter = read(&with(whole, IP + 4, &20_u16.to_be_bytes())).unwrap();
    assert_eq!((shorter.l4_len, shorter.payload), (20, 0));
}

#[test]
fn a_length_of_zero_stands_only_for_more_than_64_kib() {
    let sized = |version, size: usize| {
        let whole = outward(version, protocol::TCP, &tcp(1, 2, ACK, &vec![0; size - 20]));
        let field = if version == Version::V4 { IP + 2 } else { IP + 4 };
        with(whole, field, &[0, 0])
    };
    // The transport's size from which on the length does not fit its field.
    for (version, first) in [(Version::V4, 0x1_0000 - 20), (Version::V6, 0x1_0000)] {
        assert_eq!(kind(&sized(version, first - 1)), Err(Malformed), "{version:?}");
        for size in [first, 200_000] {
            let packet = read(&sized(version, size)).unwrap();
            assert_eq!((packet.l4_len as usize, packet.payload as usize), (size, size - 20), "{version:?}");
        }
    }
    let (src, dst) = ends(Version::V6);
    let jumbo = packet(src, dst, HOP_BY_HOP, &[&[6, 0, 0xc2, 4, 0, 3, 0, 0][..], &small_tcp()].concat());
    assert_eq!(kind(&with(frame(&jumbo), IP + 4, &[0, 0])), Err(Malformed), "a small jumbogram");
}

#[test]
fn a_packet_may_end_with_its_headers() {
    const NO_NEXT_HEADER: u8 = 59;
    let frames = [
        v4_with(&[], 0, 47, b""),
        v6_with(&[], NO_NEXT_HEADER, b""),
        v6_with(&[extension(DESTINATION_OPTIONS, 1)], NO_NEXT_HEADER, b""),
    ];
    for frame in frames {
        assert_eq!(read(&frame).map(|packet| (packet.kind, packet.l4_len)), Ok((Kind::Other, 0)));
    }
}

// IPv4 options.

#[test]
fn source_routes_are_malformed() {
    for number in [131, 137] {
        let route = [number, 7, 4, 198, 51, 100, 7, 0];
        let hidden = [1, 7, 7, 4, 0, 0, 0, 0, number, 7, 4, 198, 51, 100, 7, 0];
        for options in [&route[..], &hidden, &[1, 1, 1, number]] {
            let frame = v4_with(options, 0, protocol::TCP, &small_tcp());
            assert_eq!(kind(&frame), Err(Malformed), "{options:?}");
        }
    }
}

#[test]
fn other_options_are_followed() {
    let record_route = [&[7, 39, 4][..], &[0; 37]].concat();
    let timestamp = [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let router_alert = [148, 4, 0, 0];
    // What stands behind the end is padding, whatever it looks like.
    let behind_the_end = [0, 131, 7, 4];
    for options in [&record_route[..], &timestamp, &router_alert, &behind_the_end, &[1; 16]] {
        let packet = read(&v4_with(options, 0, protocol::TCP, &small_tcp())).unwrap();
        assert_eq!(packet.l4 as usize, V4_L4 + options.len());
        assert_eq!((packet.kind, u16::from_be(packet.dst_port)), (Kind::Tcp, 443), "{options:?}");
    }
}

#[test]
fn options_that_lie_are_malformed() {
    for options in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 4, 0], [7, 255, 4, 0], [1, 1, 7, 3], [1, 1, 1, 7]] {
        assert_eq!(kind(&v4_with(&options, 0, protocol::TCP, &small_tcp())), Err(Malformed), "{options:?}");
    }
}

#[test]
fn more_options_than_anybody_sends_are_malformed() {
    assert_eq!(kind(&v4_with(&[1; 16], 0, protocol::TCP, &small_tcp())), Ok(Kind::Tcp));
    let end_behind = [[1; 16].as_slice(), &[0; 4]].concat();
    assert_eq!(kind(&v4_with(&end_behind, 0, protocol::TCP, &small_tcp())), Err(Malformed));
    assert_eq!(kind(&v4_with(&[1; 20], 0, protocol::TCP, &small_tcp())), Err(Malformed));
    assert_eq!(kind(&v4_with(&[1; 40], 0, protocol::TCP, &small_tcp())), Err(Malformed));
}

// Fragments.

#[test]
fn a_first_fragment_is_judged_by_its_ports() {
    let datagram = udp(4000, 53, &[0; 1000]);
    for frame in [
        v4_with(&[], MORE_FRAGMENTS, protocol::UDP, &datagram[..16]),
        v6_with(&[fragment(0, true)], protocol::UDP, &datagram[..16]),
    ] {
        let packet = read(&frame).unwrap();
        assert_eq!((packet.kind, u16::from_be(packet.dst_port), packet.l4_len), (Kind::Udp, 53, 16));
    }
}

#[test]
fn a_first_fragment_without_its_transport_header_is_malformed() {
    let icmp_v4 = echo(8, 1);
    let icmp_v6 = echo(128, 1);
    let (segment, datagram) = (tcp(1, 443, SYN, &[0; 40]), udp(1, 53, &[0; 40]));
    let wanted = [(protocol::TCP, &segment, 20), (protocol::UDP, &datagram, 8)];
    let v4 = wanted.iter().copied().chain([(protocol::ICMP, &icmp_v4, 8)]);
    for (number, l4, header) in v4 {
        for len in 0..header {
            let frame = v4_with(&[], MORE_FRAGMENTS, number, &l4[..len]);
            assert_eq!(kind(&frame), Err(Malformed), "{number} with {len} bytes");
            let padded = [&frame[..], &[0; 40]].concat();
            assert_eq!(kind(&padded), Err(Malformed), "{number} with {len} bytes, padded");
        }
    }
    for (number, l4, header) in wanted.into_iter().chain([(protocol::ICMP_V6, &icmp_v6, 8)]) {
        for len in 0..header {
            let frame = v6_with(&[fragment(0, true)], number, &l4[..len]);
            assert_eq!(kind(&[&frame[..], &[0; 40]].concat()), Err(Malformed), "{number} with {len} bytes");
        }
    }
}

#[test]
fn a_first_fragment_shorter_than_its_tcp_options_is_malformed() {
    let mut segment = tcp(1, 443, SYN, &[1; 12]);
    segment[12] = 8 << 4;
    assert_eq!(kind(&v4_with(&[], 0, protocol::TCP, &segment)), Ok(Kind::Tcp));
    assert_eq!(kind(&v4_with(&[], MORE_FRAGMENTS, protocol::TCP, &segment[..24])), Err(Malformed));
}

#[test]
fn a_first_fragment_of_icmp_is_an_echo_or_malformed() {
    for number in 0..=255 {
        let message = icmp(number, &[0; 24]);
        let v4 = kind(&v4_with(&[], MORE_FRAGMENTS, protocol::ICMP, &message));
        let v6 = kind(&v6_with(&[fragment(0, true)], protocol::ICMP_V6, &message));
        assert_eq!(v4.is_ok(), matches!(number, 0 | 8), "ICMP {number}");
        assert_eq!(v6.is_ok(), matches!(number, 128 | 129), "ICMPv6 {number}");
    }
}

#[test]
fn a_later_fragment_has_no_ports() {
    // Its bytes look like a segment to an allowed port.
    for number in [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::ICMP_V6, 47] {
        for offset in [1, 2, 0x1000, 0x1fff] {
            for more in [false, true] {
                let flags = if more { MORE_FRAGMENTS } else { 0 };
                for frame in [
                    v4_with(&[], offset | flags, number, &small_tcp()),
                    v6_with(&[fragment(offset, more)], number, &small_tcp()),
                ] {
                    let packet = read(&frame).unwrap();
                    assert_eq!((packet.kind, packet.protocol), (Kind::LaterFragment, number));
                    assert_eq!((packet.src_port, packet.dst_port, packet.flags), (0, 0, 0));
                }
            }
        }
    }
}

#[test]
fn do_not_fragment_and_the_reserved_bit_are_no_fragment() {
    for flags in [0x4000, 0x8000, 0xc000] {
        assert_eq!(kind(&v4_with(&[], flags, protocol::TCP, &small_tcp())), Ok(Kind::Tcp), "{flags:#x}");
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let lie = |len: u16| {
        with(v6_with(&[fragment(0, false)], protocol::UDP, &udp(1, 53, b"q")), V6_L4 + 12, &len.to_be_bytes())
    };
    assert_eq!(kind(&lie(9)), Ok(Kind::Udp));
    assert_eq!(kind(&lie(10)), Err(Malformed), "no other fragment will bring the rest");
}

// IPv6 extension headers.

#[test]
fn extension_headers_are_followed() {
    let chains = [
        vec![extension(HOP_BY_HOP, 1)],
        vec![extension(DESTINATION_OPTIONS, 1)],
        vec![extension(HOP_BY_HOP, 2), extension(DESTINATION_OPTIONS, 3)],
        vec![extension(DESTINATION_OPTIONS, 1), extension(DESTINATION_OPTIONS, 1)],
        vec![
            extension(HOP_BY_HOP, 1),
            extension(DESTINATION_OPTIONS, 1),
            fragment(0, false),
            extension(DESTINATION_OPTIONS, 1),
        ],
        vec![extension(DESTINATION_OPTIONS, 1); 6],
    ];
    for chain in chains {
        let packet = read(&v6_with(&chain, protocol::TCP, &small_tcp())).unwrap();
        let len: usize = chain.iter().map(|(_, header)| header.len()).sum();
        assert_eq!((packet.l4 as usize, packet.l4_len), (V6_L4 + len, 20));
        assert_eq!((packet.kind, u16::from_be(packet.dst_port)), (Kind::Tcp, 443), "{chain:?}");
    }
}

#[test]
fn chains_that_cannot_be_judged_are_malformed() {
    let destination = || extension(DESTINATION_OPTIONS, 1);
    let chains = [
        ("hop-by-hop not first", vec![destination(), extension(HOP_BY_HOP, 1)]),
        ("hop-by-hop twice", vec![extension(HOP_BY_HOP, 1), extension(HOP_BY_HOP, 1)]),
        ("routing", vec![extension(ROUTING, 1)]),
        ("routing with a route", vec![extension(ROUTING, 3)]),
        ("routing behind others", vec![extension(HOP_BY_HOP, 1), destination(), extension(ROUTING, 1)]),
        ("routing behind a fragment header", vec![fragment(0, true), extension(ROUTING, 1)]),
        ("fragment twice", vec![fragment(0, false), fragment(0, false)]),
        ("first fragment within a first fragment", vec![fragment(0, true), fragment(0, true)]),
        ("later fragment within a first fragment", vec![fragment(0, true), fragment(9, false)]),
        ("hop-by-hop within a fragment", vec![fragment(0, true), extension(HOP_BY_HOP, 1)]),
        ("seven headers", vec![destination(); 7]),
        ("forty headers", vec![destination(); 40]),
    ];
    for (name, chain) in chains {
        assert_eq!(kind(&v6_with(&chain, protocol::TCP, &small_tcp())), Err(Malformed), "{name}");
    }
}

#[test]
fn a_transport_header_too_far_into_the_frame_is_malformed() {
    let at = |units: &[u8]| {
        let chain: Vec<_> = units.iter().map(|units| extension(DESTINATION_OPTIONS, *units)).collect();
        kind(&v6_with(&chain, protocol::TCP, &small_tcp()))
    };
    // 54 bytes of Ethernet and IPv6 leave 57 units of eight up to MAX_L4_OFFSET.
    assert_eq!(at(&[57]), Ok(Kind::Tcp));
    assert_eq!(at(&[58]), Err(Malformed));
    assert_eq!(at(&[255]), Err(Malformed));
    assert_eq!(at(&[28, 29]), Ok(Kind::Tcp));
    assert_eq!(at(&[28, 30]), Err(Malformed));
}

#[test]
fn extension_lengths_that_lie_are_malformed() {
    for number in [HOP_BY_HOP, DESTINATION_OPTIONS] {
        let whole = v6_with(&[extension(number, 1)], protocol::TCP, &small_tcp());
        // One unit more leaves too little for the segment; four leave nothing; the rest is past the end.
        for units in [1, 2, 3, 4, 255] {
            assert_eq!(kind(&with(whole.clone(), V6_L4 + 1, &[units])), Err(Malformed), "{number} {units}");
        }
        // Ethernet padding is no place for an extension header.
        let cut = with(whole.clone(), IP + 4, &4_u16.to_be_bytes());
        assert_eq!(kind(&cut), Err(Malformed));
    }
    assert_eq!(kind(&v6_with(&[], FRAGMENT, &[0; 7])), Err(Malformed));
    assert_eq!(kind(&v6_with(&[], HOP_BY_HOP, &[])), Err(Malformed));
}

#[test]
fn a_first_fragment_holds_the_whole_chain() {
    // RFC 7112: otherwise the transport header would come with a fragment that nobody judges.
    let first = v6_with(&[fragment(0, true), extension(DESTINATION_OPTIONS, 1)], protocol::TCP, b"");
    assert_eq!(kind(&first), Err(Malformed));
    let cut = with(
        v6_with(&[fragment(0, true), extension(DESTINATION_OPTIONS, 1)], protocol::TCP, &small_tcp()),
        V6_L4 + 9,
        &[20],
    );
    assert_eq!(kind(&cut), Err(Malformed));
}

// Addresses.

#[test]
fn a_mapped_source_is_malformed_and_a_mapped_destination_is_flagged() {
    let send = |src: &str, dst: &str| {
        read(&frame(&packet(src.parse().unwrap(), dst.parse().unwrap(), protocol::TCP, &small_tcp())))
    };
    assert_eq!(send("::ffff:10.11.0.2", "2001:db8::9").map(|p| p.kind), Err(Malformed));
    assert!(send("2001:db8::2", "::ffff:203.0.113.9").unwrap().mapped_destination);
    // Its neighbours are ordinary addresses.
    for other in ["::203.0.113.9", "::fffe:203.0.113.9", "::1:ffff:203.0.113.9", "64:ff9b::203.0.113.9"] {
        assert!(!send("2001:db8::2", other).unwrap().mapped_destination, "{other}");
        assert!(send(other, "2001:db8::2").is_ok(), "{other}");
    }
    assert!(!send("10.11.0.2", "203.0.113.9").unwrap().mapped_destination);
}

// Transport headers.

#[test]
fn a_udp_length_that_lies_is_malformed() {
    for (version, l4) in [(Version::V4, V4_L4), (Version::V6, V6_L4)] {
        let whole = outward(version, protocol::UDP, &udp(4000, 53, b"query"));
        for len in [0, 7, 14, u16::MAX] {
            let lie = with(whole.clone(), l4 + 4, &u16::to_be_bytes(len));
            assert_eq!(kind(&lie), Err(Malformed), "{version:?} {len}");
            let padded = [&lie[..], &[0; 20]].concat();
            assert_eq!(kind(&padded), Err(Malformed), "{version:?} {len}, padded");
        }
        // Bytes behind the datagram are UDP options (RFC 9868).
        for len in [8, 12] {
            assert_eq!(kind(&with(whole.clone(), l4 + 4, &u16::to_be_bytes(len))), Ok(Kind::Udp));
        }
    }
}

#[test]
fn a_tcp_offset_that_lies_is_malformed() {
    for (version, l4) in [(Version::V4, V4_L4), (Version::V6, V6_L4)] {
        let whole = outward(version, protocol::TCP, &tcp(1, 2, ACK, &[1; 12]));
        for words in 0..16_u8 {
            let packet = read(&with(whole.clone(), l4 + 12, &[words << 4]));
            match words {
                5..=8 => assert_eq!(packet.unwrap().payload, 32 - 4 * u32::from(words)),
                _ => assert!(packet.is_err(), "{version:?} {words}"),
            }
        }
    }
}

#[test]
fn nonsense_flags_are_malformed() {
    for version in [Version::V4, Version::V6] {
        for flags in 0..=255 {
            let found = kind(&outward(version, protocol::TCP, &tcp(1, 2, flags, b"")));
            assert_eq!(found.is_err(), tcp::nonsense(flags), "{version:?} {flags:#x}");
        }
    }
}

#[test]
fn a_transport_header_that_is_cut_short_is_malformed() {
    for version in [Version::V4, Version::V6] {
        for (number, header) in [(protocol::TCP, 20), (protocol::UDP, 8), (icmp_of(version), 8)] {
            for len in 0..header {
                let cut = outward(version, number, &small_tcp()[..len]);
                assert_eq!(kind(&cut), Err(Malformed), "{version:?} {number} with {len} bytes");
                let padded = [&cut[..], &[0; 40]].concat();
                assert_eq!(kind(&padded), Err(Malformed), "{version:?} {number} with {len} bytes, padded");
            }
        }
    }
}

// Properties.

/// Everything that is done to a packet without a look at a map.
fn pipeline(bytes: &[u8]) -> Result<Packet, Malformed> {
    let sandbox = sandbox();
    if let Ok(arp) = neighbour::parse_arp(&bytes) {
        let _ = crate::frame::parse(&bytes).map(|ethernet| neighbour::arp_is_own(&arp, &ethernet, &sandbox));
    }
    let (ethernet, packet) = read_both(bytes)?;
    let _ = neighbour::discovery_is_own(&bytes, &packet, &ethernet, &sandbox);
    for side in [Side::Sandbox, Side::Remote] {
        let _ = FlowKey::of(1, &packet, side);
        let _ = icmp::quoted_flow(&bytes, &packet, side, 1);
    }
    let _ = decide::identity(&packet, &sandbox);
    let _ = decide::refusal(&packet, decide::judge(&packet, crate::RuleWord::UNMATCHED));
    Ok(packet)
}

fn lies_within(packet: &Packet, frame: &[u8]) -> bool {
    packet.l4 as usize + packet.l4_len as usize <= frame.len() && packet.payload <= packet.l4_len
}

fn any_version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V4), Just(Version::V6)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        ethertype in prop_oneof![Just(0x0800_u16), Just(0x86dd), Just(0x0806), any::<u16>()],
        right_version in any::<bool>(),
        mut payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if right_version && let Some(first) = payload.first_mut() {
            *first = if ethertype == 0x0800 { 0x45 + *first % 11 } else { 0x60 };
        }
        let bytes = ethernet(MAC, ethertype, &payload);
        if let Ok(packet) = pipeline(&bytes) {
            prop_assert!(lies_within(&packet, &bytes));
        }
    }

    #[test]
    fn damaged_frames_never_panic(
        (_, mut bytes) in prop::sample::select(valid_frames()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (at, value) in damage {
            // The hardware addresses and the ethertype stay.
            let at = IP + at.index(bytes.len() - IP);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(packet) = pipeline(&bytes) {
            prop_assert!(lies_within(&packet, &bytes));
        }
    }

    #[test]
    fn arbitrary_extension_chains_never_panic(
        chain in prop::collection::vec(
            (prop::sample::select(vec![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS]), 0..4_u8, any::<u16>()),
            0..9,
        ),
        number in any::<u8>(),
        l4 in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let chain: Vec<_> = chain
            .into_iter()
            .map(|(number, units, field)| match number {
                FRAGMENT => fragment(field % 3, field & 8 != 0),
                number => extension(number, units + 1),
            })
            .collect();
        let bytes = v6_with(&chain, number, &l4);
        if let Ok(packet) = pipeline(&bytes) {
            prop_assert!(lies_within(&packet, &bytes));
            prop_assert!(packet.l4 <= MAX_L4_OFFSET);
            prop_assert!(chain.iter().take(6).all(|(number, _)| *number != ROUTING) || packet.kind == Kind::LaterFragment);
        }
    }

    #[test]
    fn a_segment_parses_to_its_own_fields(
        version in any_version(),
        ports in any::<(u16, u16)>(),
        flags in prop::sample::select((0..=255).filter(|flags| !tcp::nonsense(*flags)).collect::<Vec<u8>>()),
        payload in prop::collection::vec(any::<u8>(), 0..100),
        padding in 0..50_usize,
    ) {
        let mut bytes = outward(version, protocol::TCP, &tcp(ports.0, ports.1, flags, &payload));
        bytes.resize(bytes.len() + padding, 0);
        let packet = read(&bytes).unwrap();
        let (src, dst) = ends(version);
        prop_assert_eq!((packet.kind, packet.src, packet.dst), (Kind::Tcp, src.into(), dst.into()));
        prop_assert_eq!((u16::from_be(packet.src_port), u16::from_be(packet.dst_port)), ports);
        prop_assert_eq!((packet.flags, packet.payload as usize), (flags, payload.len()));
    }

    #[test]
    fn a_datagram_parses_to_its_own_fields(
        src in any::<[u8; 16]>(),
        dst in any::<[u8; 16]>(),
        version in any_version(),
        ports in any::<(u16, u16)>(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
        let address = |bytes: [u8; 16]| match version {
            Version::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
            Version::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
        };
        let (src, dst) = (address(src), address(dst));
        let bytes = frame(&packet(src, dst, protocol::UDP, &udp(ports.0, ports.1, &payload)));
        let packet = read(&bytes).unwrap();
        prop_assert_eq!((packet.kind, packet.src, packet.dst), (Kind::Udp, src.into(), dst.into()));
        prop_assert_eq!((u16::from_be(packet.src_port), u16::from_be(packet.dst_port)), ports);
        prop_assert_eq!(packet.l4_len as usize, 8 + payload.len());
    }
}
