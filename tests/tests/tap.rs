//! Guests behind a tap device: a whole TCP/IP stack in user space, and frames as a virtual machine's card makes
//! them, large and with their checksums still to do.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use common::wire::{self, ACK, PSH, RST, Seen, Segment, TCP};
use common::{ALLOWED, DENIED, ID, PATIENCE, Told, counted, eventually, ip, usual_policy};
use filter_tests::{Daemon, Offload, Recording, Service, Tap, Topology, WebServer, Zone, finish_checksum};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as StackTime;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// A host with a daemon, and a tap device attached as [`ID`].
struct Ground {
    daemon: Daemon,
    tap: Tap,
    arrived: Recording,
    topology: Topology,
}

impl Ground {
    fn new(vnet_header: bool) -> Result<Self> {
        let topology = Topology::new()?;
        let daemon = Daemon::start_on(&topology)?;
        let tap = topology.tap(1, vnet_header)?;
        let mac = tap.mac().map(|byte| format!("{byte:02x}")).join(":");
        let addresses = [tap.v4().into(), tap.v6().into()];
        daemon.attach_interface(ID, &tap.host_interface(), &addresses, &mac, &usual_policy())?;
        let arrived = Recording::start(topology.internet(), "eth0")?;
        Ok(Self { daemon, tap, arrived, topology })
    }

    fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.tap.v4().into() } else { self.tap.v6().into() }
    }

    /// Counted, told, and not arrived.
    fn ensure_denied(&self, told: &Told) -> Result<()> {
        ensure!(self.daemon.packets(ID, told.reason)? > 0, "{} is not counted", told.reason);
        let generation = self.daemon.show(ID)?["generation"].clone();
        let event = self.daemon.wait_event(|event| told.is(event), PATIENCE)?;
        ensure!(event["generation"] == generation && event["sandbox"] == ID);
        let arrived: Vec<_> = self.arrived.frames()?.iter().filter_map(|frame| Seen::parse(frame)).collect();
        ensure!(!arrived.iter().any(|seen| Some(seen.to) == told.dst), "it arrived");
        Ok(())
    }
}

/// The tap device, to the stack.
struct Card<'a>(&'a Tap);

struct Received(Vec<u8>);

struct Sending<'a>(&'a Tap);

impl Device for Card<'_> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: StackTime) -> Option<(Received, Sending<'_>)> {
        let frame = self.0.receive(Duration::ZERO).unwrap_or_default()?;
        Some((Received(frame), Sending(self.0)))
    }

    fn transmit(&mut self, _: StackTime) -> Option<Sending<'_>> {
        Some(Sending(self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        // A frame that is not sent is lost, as frames are.
        let _ = self.0.send(&frame);
        result
    }
}

/// The guest: a stack and its sockets.
struct Guest<'a> {
    card: Card<'a>,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl<'a> Guest<'a> {
    fn new(tap: &'a Tap) -> Result<Self> {
        let mut card = Card(tap);
        let config = Config::new(EthernetAddress(tap.mac()).into());
        let mut interface = Interface::new(config, &mut card, now());
        let mut full = Ok(());
        interface.update_ip_addrs(|addresses| {
            for address in [IpCidr::new(tap.v4().into(), 30), IpCidr::new(tap.v6().into(), 64)] {
                full = full.and(addresses.push(address));
            }
        });
        full.map_err(|_| anyhow::anyhow!("no room for addresses"))?;
        interface.routes_mut().add_default_ipv4_route(tap.gateway_v4())?;
        interface.routes_mut().add_default_ipv6_route(tap.gateway_v6())?;
        Ok(Self { card, interface, sockets: SocketSet::new(Vec::new()) })
    }

    /// Lets the stack run until `done` has an answer.
    fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.interface.poll(now(), &mut self.card, &mut self.sockets);
            if let Some(answer) = done(&mut self.sockets) {
                self.interface.poll(now(), &mut self.card, &mut self.sockets);
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                bail!("{what}: not within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn connect(&mut self, to: SocketAddr, port: u16) -> Result<SocketHandle> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(self.interface.context(), to, port)?;
        Ok(handle)
    }
}

/// The stack's clock.
fn now() -> StackTime {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    static LAST: AtomicI64 = AtomicI64::new(0);
    let micros = ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as i64;
    StackTime::from_micros(LAST.fetch_max(micros, Ordering::Relaxed).max(micros))
}

#[test]
fn a_guest_in_user_space_talks_to_whom_it_may() -> Result<()> {
    let ground = Ground::new(false)?;
    let _tcp = ground.topology.serve(Service::TcpEcho, 7)?;
    let _udp = ground.topology.serve(Service::UdpEcho, 7)?;
    let mut guest = Guest::new(&ground.tap)?;
    let text: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    for (n, to) in ALLOWED.map(ip).into_iter().enumerate() {
        let to = SocketAddr::new(to, 7);
        let handle = guest.connect(to, 30_000 + n as u16)?;
        let (mut sent, mut got) = (0, Vec::new());
        guest.until("TCP echo", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            sent += socket.send_slice(&text[sent..]).unwrap_or(0);
            let _ = socket.recv(|data| {
                got.extend_from_slice(data);
                (data.len(), ())
            });
            (got.len() == text.len()).then_some(())
        })?;
        ensure!(got == text);

        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(30_100 + n as u16)?;
        socket.send_slice(b"hello", to)?;
        let handle = guest.sockets.add(socket);
        let answer = guest.until("UDP echo", |sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(data, from)| (data.to_vec(), from.endpoint.port))
        })?;
        ensure!(answer == (b"hello".to_vec(), 7));
    }
    // And no further: the refusal is there before a second attempt would be.
    for (n, to) in DENIED.map(ip).into_iter().enumerate() {
        let (to, port) = (SocketAddr::new(to, 7), 30_200 + n as u16);
        let handle = guest.connect(to, port)?;
        let start = Instant::now();
        guest.until("a refusal", |sockets| {
            let state = sockets.get_mut::<tcp::Socket<'_>>(handle).state();
            (state == tcp::State::Closed).then_some(())
        })?;
        ensure!(start.elapsed() < common::AT_ONCE, "refused after {:?}", start.elapsed());
        let from = SocketAddr::new(ground.address_like(to.ip()), port);
        ground.ensure_denied(&Told::flow("denied_cidr", Some("/denyOut/0"), "tcp", from, to))?;
    }
    Ok(())
}

/// What a `virtio_net_hdr` says (linux/virtio_net.h).
#[derive(Clone, Copy, Default)]
struct Header {
    needs_checksum: bool,
    gso: u8,
    header: u16,
    segment: u16,
    start: u16,
    offset: u16,
}

const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
/// Where TCP has its checksum.
const TCP_CHECKSUM: u16 = 16;

impl Header {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.needs_checksum), self.gso];
        for half in [self.header, self.segment, self.start, self.offset] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes
    }
}

/// A guest that does everything by hand.
struct ByHand<'a> {
    tap: &'a Tap,
    from: SocketAddr,
    to: SocketAddr,
}

impl ByHand<'_> {
    /// Sends a segment whose checksum the card is to finish, cut into pieces of `piece` bytes if that is not 0.
    fn send(&self, segment: Segment, payload: &[u8], piece: u16) -> Result<()> {
        let (from, to) = (self.from.ip(), self.to.ip());
        let mut body = segment.bytes(from, to, payload);
        // What is left for the card: the pseudo header's sum, not inverted.
        let sum = !wire::checksum(&wire::pseudo(from, to, TCP, body.len()));
        body.splice(16..18, sum.to_be_bytes());
        let (ethertype, packet) = wire::ip(from, to, TCP, body);
        let start = if from.is_ipv4() { 34 } else { 54 };
        let gso = match (piece, from.is_ipv4()) {
            (0, _) => 0,
            (_, true) => GSO_TCP_V4,
            (_, false) => GSO_TCP_V6,
        };
        let header = Header {
            needs_checksum: true,
            gso,
            header: if gso == 0 { 0 } else { start + 20 },
            segment: piece,
            start,
            offset: TCP_CHECKSUM,
        };
        let frame = wire::ethernet(self.tap.gateway_mac(), self.tap.mac(), ethertype, &packet);
        Ok(self.tap.send(&[header.bytes(), frame].concat())?)
    }

    /// The next segment of the connection. Questions about the guest's hardware address are answered meanwhile.
    fn receive(&self) -> Result<Seen> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.tap.receive(left)?.context("nothing came")?;
            let frame = finish_checksum(&frame).context("a frame without its header")?;
            self.answer_question(&frame)?;
            let Some(seen) = Seen::parse(&frame) else { continue };
            if seen.is_tcp() && seen.dport() == self.from.port() && seen.from == self.to.ip() {
                ensure!(seen.checksums_right, "a wrong checksum: {seen:02x?}");
                return Ok(seen);
            }
        }
    }

    fn answer_question(&self, frame: &[u8]) -> Result<()> {
        let (tap, header) = (self.tap, Header::default().bytes());
        if frame[12..14] == [8, 6] && frame[21] == 1 {
            let head = [0, 1, 8, 0, 6, 4, 0, 2];
            let sender = [&tap.mac()[..], &tap.v4().octets()].concat();
            let arp = [&head[..], &sender, &tap.gateway_mac(), &tap.gateway_v4().octets()].concat();
            let frame = wire::ethernet(tap.gateway_mac(), tap.mac(), 0x0806, &arp);
            return Ok(tap.send(&[header, frame].concat())?);
        }
        if let Some(seen) = Seen::parse(frame)
            && seen.icmp() == Some((135, 0))
        {
            let option = [&[2, 1][..], &tap.mac()].concat();
            let body = [&[0x60, 0, 0, 0][..], &tap.v6().octets(), &option].concat();
            let IpAddr::V6(asker) = seen.from else { bail!("an IPv6 question from {}", seen.from) };
            let body = wire::icmp(tap.v6().into(), asker.into(), 136, 0, &body);
            let packet = wire::V6 { hops: 255, ..wire::V6::new(tap.v6(), asker, wire::ICMP_V6, body) };
            let frame = wire::ethernet(tap.gateway_mac(), tap.mac(), 0x86dd, &packet.bytes());
            tap.send(&[header, frame].concat())?;
        }
        Ok(())
    }
}

#[test]
fn large_frames_with_checksums_to_do_arrive_whole() -> Result<()> {
    const BYTES: u32 = 8_000;
    let ground = Ground::new(true)?;
    let server = ground.topology.serve(Service::TcpEcho, 7)?;
    // Past the host nothing may be left to do: then the internet sees what really goes over the wire.
    let offloads = [Offload::SEGMENTATION, &[Offload::TxChecksum]].concat();
    ground.topology.host().set_offloads(Topology::UPLINK, &offloads, false)?;
    ground.topology.internet().set_offloads("eth0", &[Offload::Gro], false)?;
    let data: Vec<u8> = (0..BYTES).map(|n| (n * 7 / 3) as u8).collect();

    for (n, to) in ALLOWED.map(ip).into_iter().enumerate() {
        let to = SocketAddr::new(to, 7);
        let from = SocketAddr::new(ground.address_like(to.ip()), 31_000 + n as u16);
        let guest = ByHand { tap: &ground.tap, from, to };
        let segment = |seq, ack, flags| Segment { sport: from.port(), dport: 7, seq, ack, flags };
        guest.send(segment(100, 0, wire::SYN), b"", 0)?;
        let answer = guest.receive().context("SYN+ACK")?;
        ensure!(answer.tcp_flags() & (wire::SYN | ACK | RST) == wire::SYN | ACK && answer.word(8) == 101);
        let first = answer.word(4).wrapping_add(1);
        guest.send(segment(101, first, ACK), b"", 0)?;

        let skip = ground.arrived.count()?;
        guest.send(segment(101, first, ACK | PSH), &data, 1000)?;
        let mut got = Vec::new();
        while got.len() < data.len() {
            let seen = guest.receive().context("the echo")?;
            ensure!(seen.tcp_flags() & RST == 0, "a reset");
            let header = usize::from(seen.body[12] >> 4) * 4;
            // What comes twice or out of order does not count.
            if seen.word(4) == first.wrapping_add(got.len() as u32) {
                got.extend_from_slice(&seen.body[header..]);
            }
            guest.send(segment(101 + BYTES, first.wrapping_add(got.len() as u32), ACK), b"", 0)?;
        }
        ensure!(got == data, "other data came back");

        let arrived: Vec<_> =
            ground.arrived.since(skip)?.iter().filter_map(|frame| Seen::parse(frame)).collect();
        let pieces: Vec<_> =
            arrived.iter().filter(|seen| seen.from == from.ip() && seen.body.len() > 20).collect();
        ensure!(pieces.len() == 8, "{} pieces", pieces.len());
        ensure!(pieces.iter().all(|seen| seen.checksums_right && seen.body.len() == 1020));
        guest.send(segment(101 + BYTES, 0, RST), b"", 0)?;
    }
    ensure!(server.bytes_in() == u64::from(2 * BYTES));
    let show = ground.daemon.show(ID)?;
    ensure!(counted(&show, "malformed") == 0 && counted(&show, "denied_cidr") == 0);
    eventually(|| Ok(ground.daemon.show(ID)?["connections"]["active"] == 0)).context("connections stay")
}

#[test]
fn a_refusal_of_a_frame_with_its_checksum_to_do_is_right() -> Result<()> {
    let ground = Ground::new(true)?;
    for (n, to) in DENIED.map(ip).into_iter().enumerate() {
        let to = SocketAddr::new(to, 80);
        let from = SocketAddr::new(ground.address_like(to.ip()), 32_000 + n as u16);
        let guest = ByHand { tap: &ground.tap, from, to };
        let segment = |flags| Segment { sport: from.port(), dport: 80, seq: 100, ack: 7, flags };
        let start = Instant::now();
        guest.send(segment(wire::SYN), b"", 0)?;
        // `receive` checks the checksums.
        let answer = guest.receive().context("a reset")?;
        ensure!(start.elapsed() < common::AT_ONCE, "refused after {:?}", start.elapsed());
        ensure!(answer.tcp_flags() == RST | ACK && answer.word(8) == 101, "{answer:02x?}");
        ground.ensure_denied(&Told::flow("denied_cidr", Some("/denyOut/0"), "tcp", from, to))?;

        // A large one out of nowhere as well.
        guest.send(segment(ACK | PSH), &[b'x'; 8_000], 1000)?;
        let answer = guest.receive().context("a reset for a large frame")?;
        ensure!(answer.tcp_flags() == RST && answer.word(4) == 7 && answer.body.len() == 20, "{answer:02x?}");
    }
    Ok(())
}

#[test]
fn a_guest_in_user_space_reaches_what_its_names_allow() -> Result<()> {
    // The filter's own address of the name; the guest goes to another.
    const NAMED: [&str; 2] = ["198.51.100.10", "2001:db8:198::10"];
    let ground = Ground::new(false)?;
    let _zone =
        Zone::serve(ground.topology.internet(), &[("allowed.test", &NAMED), ("denied.test", &DENIED)])?;
    let web = WebServer::start(ground.topology.internet(), 80)?;
    let policy = serde_json::json!({"allowOut": ["allowed.test"], "denyOut": ["0.0.0.0/0"]});
    ground.daemon.update(ID, &policy)?;
    let mut guest = Guest::new(&ground.tap)?;
    for (n, to) in DENIED.map(ip).into_iter().enumerate() {
        for (m, host) in ["allowed.test", "denied.test"].into_iter().enumerate() {
            let port = 33_000 + (n * 2 + m) as u16;
            let handle = guest.connect(SocketAddr::new(to, 80), port)?;
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let (mut sent, mut got) = (0, Vec::new());
            guest.until(host, |sockets| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
                sent += socket.send_slice(&request.as_bytes()[sent..]).unwrap_or(0);
                let _ = socket.recv(|data| {
                    got.extend_from_slice(data);
                    (data.len(), ())
                });
                if socket.state() == tcp::State::CloseWait {
                    socket.close();
                    return Some(());
                }
                None
            })?;
            let text = String::from_utf8_lossy(&got);
            let named = SocketAddr::new(ip(NAMED[n]), 80);
            let right = match host {
                "allowed.test" => text.contains(&format!("hello from {named} as {host}\n")),
                _ => text.starts_with("HTTP/1.1 403 ") && text.contains("name_not_allowed"),
            };
            ensure!(right, "{host} by way of {to}: {text}");
        }
    }
    ensure!(web.connections() == 2 && counted(&ground.daemon.show(ID)?, "name_not_allowed") == 2);
    let told = ground.daemon.wait_event(|event| event["reason"] == "name_not_allowed", PATIENCE)?;
    ensure!(told["serverName"] == "denied.test" && told["dport"] == 80 && told["sandbox"] == ID, "{told}");
    let arrived: Vec<_> = ground.arrived.frames()?.iter().filter_map(|frame| Seen::parse(frame)).collect();
    ensure!(!arrived.iter().any(|seen| DENIED.map(ip).contains(&seen.to)), "it arrived");

    // So does its resolver.
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(33_100)?;
    // An id, recursion, one question: allowed.test, A, IN.
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07allowed\x04test\0\0\x01\0\x01";
    socket.send_slice(query, SocketAddr::new(ip("8.8.8.8"), 53))?;
    let handle = guest.sockets.add(socket);
    let answer = guest.until("DNS", |sockets| {
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(data, _)| data.to_vec())
    })?;
    ensure!(answer.starts_with(b"\x12\x34") && answer.ends_with(&[198, 51, 100, 10]), "{answer:02x?}");
    Ok(())
}
