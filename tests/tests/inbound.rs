//! Connections that come to a sandbox: the host's pass and cost nothing, anybody else's pass where the operator
//! says so, and neither is a way out.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::wire::{self, ICMP, ICMP_V6, MARKER, Segment, TCP, UDP};
use common::{ALLOWED, Before, Ground, ID, PATIENCE, Told, counted, eventually, ip, usual_policy};
use filter_tests::{FrameSender, Netns, Recording, Server, Service};
use nix::errno::Errno;
use serde_json::{Value, json};

/// For what never comes.
const A_MOMENT: Duration = Duration::from_millis(250);

fn deny_all() -> Value {
    json!({"denyOut": ["0.0.0.0/0"]})
}

/// TCP and UDP echo inside the sandbox.
fn inside(ground: &Ground) -> Result<[Server; 2]> {
    let sandbox: &Netns = &ground.sandbox;
    Ok([Server::start(sandbox, Service::TcpEcho, 7)?, Server::start(sandbox, Service::UdpEcho, 7)?])
}

fn own(ground: &Ground) -> [IpAddr; 2] {
    [ground.sandbox.v4().into(), ground.sandbox.v6().into()]
}

#[test]
fn the_host_reaches_a_sandbox_that_reaches_nothing() -> Result<()> {
    let ground = Ground::new(&deny_all())?;
    let (servers, before) = (inside(&ground)?, ground.before()?);
    let host = ground.topology.host();
    for to in own(&ground) {
        for _ in 0..3 {
            ensure!(host.tcp_exchange((to, 7), b"hello", PATIENCE).result.context("TCP")? == b"hello");
            ensure!(host.udp_exchange((to, 7), b"hello", PATIENCE).result.context("UDP")? == b"hello");
            host.ping(to, PATIENCE).result.context("ping")?;
        }
        // What the sandbox's kernel says of a closed port is an answer, too.
        let attempt = host.tcp_connect((to, 8), PATIENCE);
        ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "{:?}", attempt.result);
        let attempt = host.udp_exchange((to, 8), b"?", PATIENCE);
        ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "{:?}", attempt.result);
    }
    ensure!(servers[0].connections() == 6 && servers[1].datagrams() == 6);
    let show = ground.daemon.show(ID)?;
    ensure!(
        show["connections"]["active"] == 0 && show["connections"]["peak"] == 0,
        "{}",
        show["connections"]
    );
    ensure!(counted(&show, "reply") > 0 && ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    // It still reaches nothing.
    for to in ALLOWED {
        ground.is_denied(to, "denied_cidr", Some("/denyOut/0"))?;
    }
    Ok(())
}

#[test]
fn a_long_transfer_in_either_direction_goes_on() -> Result<()> {
    let ground = Ground::new(&deny_all())?;
    let _servers = inside(&ground)?;
    for to in own(&ground) {
        let mut stream = ground.topology.host().tcp_connect((to, 7), PATIENCE).result?;
        let (sent, mut got) = (vec![b'x'; 200_000], vec![0; 200_000]);
        let mut writer = stream.try_clone()?;
        let writing = std::thread::spawn(move || writer.write_all(&sent));
        stream.read_exact(&mut got)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    }
    Ok(())
}

/// The internet asks; nothing of it comes to the sandbox, and that is counted and told.
fn is_kept_out(ground: &Ground, told: &Told, asking: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = ground.before()?;
    asking()?;
    let more = |before: &Before| -> Result<u64> {
        Ok(counted(&ground.daemon.show(ID)?, "inbound") - counted(before.show(), "inbound"))
    };
    eventually(|| Ok(more(&before)? > 0)).with_context(|| format!("not counted: {told:?}"))?;
    eventually(|| Ok(ground.times_told(&before, told)? > 0))
        .with_context(|| format!("not told: {told:?}"))?;
    ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    let came = ground.answers_since(&before)?;
    ensure!(!came.iter().any(|seen| Some(seen.from) == told.src), "it came through: {came:?}");
    Ok(())
}

#[test]
fn the_internet_does_not_reach_a_sandbox() -> Result<()> {
    let ground = Ground::usual()?;
    let servers = inside(&ground)?;
    let internet = ground.topology.internet();
    for (to, from) in own(&ground).into_iter().zip(ALLOWED) {
        // Also not those that the sandbox itself may reach.
        let (from, to) = (SocketAddr::new(ip(from), ground.port()), SocketAddr::new(to, 7));
        is_kept_out(&ground, &Told::flow("inbound", None, "tcp", from, to), || {
            let attempt = internet.run(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
                socket.bind(&from.into())?;
                Ok(socket.connect_timeout(&to.into(), A_MOMENT).is_err())
            })?;
            ensure!(attempt, "it connects");
            Ok(())
        })?;
        is_kept_out(&ground, &Told::flow("inbound", None, "udp", from, to), || {
            internet.run(|| Ok(UdpSocket::bind(from)?.send_to(b"hello", to)?)).map(|_| ())
        })?;
        let proto = if to.is_ipv4() { "icmp" } else { "icmpv6" };
        is_kept_out(&ground, &Told::packet("inbound", None, proto, uplink(&to), to.ip()), || {
            ensure!(internet.ping(to.ip(), A_MOMENT).timed_out());
            Ok(())
        })?;
    }
    ensure!(servers[0].connections() == 0 && servers[1].datagrams() == 0);
    ensure!(ground.daemon.show(ID)?["connections"]["peak"] == 0);
    Ok(())
}

/// Where the internet's own questions come from.
fn uplink(to: &SocketAddr) -> IpAddr {
    ip(if to.is_ipv4() { "192.0.2.2" } else { "2001:db8::2" })
}

#[test]
fn stray_answers_and_errors_are_kept_out() -> Result<()> {
    let ground = Ground::usual()?;
    let internet = FrameSender::open(ground.topology.internet(), "eth0")?;
    let (router, card) = ([0x02, 0xff, 0, 0, 0, 0x01], [0x02, 0xff, 0, 0, 0, 0x02]);
    let send = |from: IpAddr, to: IpAddr, protocol, body| {
        let (ethertype, packet) = wire::ip(from, to, protocol, body);
        internet.send(&wire::ethernet(router, card, ethertype, &packet))
    };
    for (to, from) in own(&ground).into_iter().zip(ALLOWED.map(ip)) {
        let (v4, ports) = (to.is_ipv4(), (ground.port(), ground.port()));
        let ends = (SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1));
        let stray = Segment { sport: ports.0, dport: ports.1, seq: 1, ack: 1, flags: wire::SYN | wire::ACK };
        is_kept_out(&ground, &Told::flow("inbound", None, "tcp", ends.0, ends.1), || {
            send(from, to, TCP, stray.bytes(from, to, MARKER))
        })?;
        is_kept_out(&ground, &Told::flow("inbound", None, "udp", ends.0, ends.1), || {
            send(from, to, UDP, wire::udp(from, to, ports.0, ports.1, MARKER))
        })?;
        let (protocol, proto) = if v4 { (ICMP, "icmp") } else { (ICMP_V6, "icmpv6") };
        let (echo_reply, unreachable) = if v4 { (0, 3) } else { (129, 1) };
        is_kept_out(&ground, &Told::packet("inbound", None, proto, from, to), || {
            send(from, to, protocol, wire::icmp(from, to, echo_reply, 0, &[&[0, 9, 0, 1], MARKER].concat()))
        })?;
        // An error about a datagram that the sandbox never sent; its sender is another one each time, since
        // denials of one flow are told together.
        let other = ip(if v4 { "203.0.113.99" } else { "2001:db8:113::99" });
        let (_, quoted) = wire::ip(to, from, UDP, wire::udp(to, from, 4000, 80, MARKER));
        is_kept_out(&ground, &Told::packet("inbound", None, proto, other, to), || {
            send(other, to, protocol, wire::icmp(other, to, unreachable, 3, &[&[0; 4][..], &quoted].concat()))
        })?;
    }
    Ok(())
}

#[test]
fn where_the_operator_says_so_anybody_may_come() -> Result<()> {
    let ground = Ground::with_config(&deny_all(), "[defaults]\ninbound = \"any\"")?;
    let (servers, before) = (inside(&ground)?, ground.before()?);
    let internet = ground.topology.internet();
    for to in own(&ground) {
        ensure!(internet.tcp_exchange((to, 7), b"hello", PATIENCE).result.context("TCP")? == b"hello");
        ensure!(internet.udp_exchange((to, 7), b"hello", PATIENCE).result.context("UDP")? == b"hello");
        internet.ping(to, PATIENCE).result.context("ping")?;
    }
    ensure!(servers[0].connections() == 2);
    ensure!(ground.daemon.show(ID)?["connections"]["peak"] == 0);
    ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    for to in ALLOWED {
        ground.is_denied(to, "denied_cidr", Some("/denyOut/0"))?;
    }
    Ok(())
}

#[test]
fn an_inbound_exchange_opens_nothing_else() -> Result<()> {
    let ground = Ground::new(&usual_policy())?;
    let _servers = ground.echo()?;
    let at_host = Recording::start(ground.topology.host(), ground.sandbox.host_interface())?;
    let host = ground.topology.host();
    for (own, gateway) in own(&ground).into_iter().zip(["10.200.1.1".to_owned(), "fd00:200:1::1".to_owned()])
    {
        let gateway = ip(&gateway);
        let (asker, own_port) = (ground.port(), ground.port());
        // The host asks, the sandbox answers, as often as it likes.
        let socket = host.run(|| Ok(UdpSocket::bind((gateway, asker))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let answering = ground.sandbox.run(|| Ok(UdpSocket::bind((own, own_port))?))?;
        answering.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"hello", (own, own_port))?;
        let mut buffer = [0; 64];
        let (_, from) = answering.recv_from(&mut buffer)?;
        ensure!(from == SocketAddr::new(gateway, asker));
        for _ in 0..3 {
            answering.send_to(b"answer", from)?;
            let (length, _) = socket.recv_from(&mut buffer)?;
            ensure!(&buffer[..length] == b"answer");
        }
        // From the same port it reaches neither another port of the asker, nor anybody else whom the policy
        // does not allow.
        let elsewhere = ["198.51.100.9", "2001:db8:198::9"][usize::from(gateway.is_ipv6())];
        for (to, reason, rule) in [
            (SocketAddr::new(gateway, asker + 1000), "guarded", None),
            (SocketAddr::new(ip(elsewhere), asker), "denied_cidr", Some("/denyOut/0")),
        ] {
            let before = ground.before()?;
            answering.send_to(MARKER, to)?;
            let told = Told::flow(reason, rule, "udp", SocketAddr::new(own, own_port), to);
            eventually(|| Ok(ground.daemon.packets(ID, reason)? > counted(before.show(), reason)))
                .with_context(|| format!("{told:?}"))?;
            ground.ensure_denied(&before, &[told])?;
            ensure!(ground.answers_since(&before)?.iter().any(wire::Seen::is_prohibited));
        }
        // Nor does TCP from there.
        let before = ground.before()?;
        let (from, to) = (SocketAddr::new(own, own_port), SocketAddr::new(gateway, asker));
        let attempt = common::connect(&ground.sandbox, from, to);
        common::ensure_refused(&attempt, Errno::ECONNREFUSED)?;
        ground.ensure_denied(&before, &[Told::flow("guarded", None, "tcp", from, to)])?;
    }
    // The recording sees what the host's interface receives before the filter does: it did leave the sandbox.
    ensure!(at_host.frames()?.iter().any(|frame| common::contains(frame, MARKER)));
    ensure!(ground.daemon.show(ID)?["connections"]["peak"] == 0);
    Ok(())
}
