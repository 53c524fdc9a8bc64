//! The ground itself: without a filter everything reaches everything, everything is counted, and nothing stays.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::etherparse::PacketBuilder;
use filter_tests::{Netns, Offload, Sandbox, Service, Topology};

const PATIENCE: Duration = Duration::from_secs(3);
const SERVERS: [[&str; 2]; 2] = [["203.0.113.10", "198.51.100.7"], ["2001:db8:113::10", "2001:db8:198::7"]];

fn servers() -> Result<Vec<IpAddr>> {
    SERVERS.concat().into_iter().map(|text| Ok(text.parse()?)).collect()
}

#[test]
fn everything_reaches_everything() -> Result<()> {
    let topology = Topology::new()?;
    let (one, two) = (topology.sandbox(1)?, topology.sandbox(2)?);
    let (three, four) = (topology.bridge_sandbox(1)?, topology.bridge_sandbox(2)?);
    let echo = topology.serve(Service::TcpEcho, 7)?;
    let http = topology.serve(Service::Http, 80)?;
    let udp = topology.serve(Service::UdpEcho, 53)?;
    let capture = topology.capture()?;

    let mut asked = 0;
    for sandbox in [&one, &two, &three, &four] {
        for server in servers()? {
            reaches(sandbox, server).with_context(|| format!("{} to {server}", sandbox.name()))?;
            asked += 1;
        }
    }
    assert_eq!((echo.connections(), echo.bytes_in(), echo.bytes_out()), (asked, asked * 5, asked * 5));
    assert_eq!((udp.datagrams(), udp.bytes_out()), (asked, asked * 5));
    assert_eq!(http.connections(), asked);
    assert_eq!(http.requests().len() as u64, asked);
    let accepted = http.accepted();
    assert_eq!(accepted.first().context("nothing accepted")?.local, "203.0.113.10:80".parse::<SocketAddr>()?);
    assert_eq!(accepted.first().context("nothing accepted")?.peer.ip(), IpAddr::from(one.v4()));

    for server in servers()? {
        assert!(capture.tcp_frames_to((server, 7))? >= 4 * 4, "handshake, data, end: {:?}", capture.flows()?);
        assert_eq!(capture.udp_frames_to((server, 53))?, 4);
    }
    assert!(capture.frames_from(two.v6())? > 0);
    assert_eq!(capture.frames_to([203, 0, 113, 11])?, 0);

    // The host and the neighbours are reachable as well: keeping them apart is the filter's task.
    assert!(one.ping(two.v4(), PATIENCE).is_ok());
    assert!(three.ping(four.v6(), PATIENCE).is_ok());
    assert!(one.ping(one.gateway_v6(), PATIENCE).is_ok());
    Ok(())
}

fn reaches(sandbox: &Sandbox, server: IpAddr) -> Result<()> {
    let answer = sandbox.tcp_exchange((server, 7), b"hello", PATIENCE).result.context("tcp")?;
    assert_eq!(answer, b"hello");
    let answer = sandbox.udp_exchange((server, 53), b"hello", PATIENCE).result.context("udp")?;
    assert_eq!(answer, b"hello");
    let answer = sandbox.http_get((server, 80), "server.test", PATIENCE).result.context("http")?;
    assert_eq!(
        (answer.status, answer.body),
        (200, format!("hello from {}\n", SocketAddr::from((server, 80))))
    );
    sandbox.ping(server, PATIENCE).result.context("ping")
}

#[test]
fn refusals_and_silence_are_told_apart() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(300)?;
    let refused = sandbox.tcp_connect(([203, 0, 113, 10], 81), PATIENCE);
    assert_eq!(refused.errno(), Some(nix::errno::Errno::ECONNREFUSED));
    let refused = sandbox.udp_exchange(([203, 0, 113, 10], 81), b"?", PATIENCE);
    assert_eq!(refused.errno(), Some(nix::errno::Errno::ECONNREFUSED));

    let moment = Duration::from_millis(200);
    assert!(sandbox.tcp_connect(([203, 0, 113, 250], 80), moment).timed_out());
    assert!(sandbox.udp_exchange(([203, 0, 113, 250], 80), b"?", moment).timed_out());
    assert!(sandbox.ping([203, 0, 113, 250], moment).timed_out());
    Ok(())
}

#[test]
fn raw_frames_arrive_as_sent() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let capture = topology.capture()?;

    sandbox.send_syns(([203, 0, 113, 250], 80), 2000..2010)?;
    sandbox.send_syns(("2001:db8:113:0:dead::1".parse::<IpAddr>()?, 80), 2000..2010)?;
    // Another's address: without a filter it goes through.
    let mut spoofed = Vec::new();
    PacketBuilder::ethernet2(sandbox.mac(), sandbox.gateway_mac())
        .ipv4([10, 200, 9, 9], [203, 0, 113, 250], 64)
        .udp(1, 2)
        .write(&mut spoofed, b"not mine")?;
    sandbox.frames()?.send(&spoofed)?;

    eventually(|| Ok(capture.tcp_frames_to(([203, 0, 113, 250], 80))? == 10))?;
    eventually(|| Ok(capture.frames_to("2001:db8:113:0:dead::1".parse::<IpAddr>()?)? == 10))?;
    eventually(|| Ok(capture.frames_from([10, 200, 9, 9])? == 1))?;
    Ok(())
}

#[test]
fn a_tap_guest_pings() -> Result<()> {
    for vnet_header in [false, true] {
        let topology = Topology::new()?;
        let tap = topology.tap(3, vnet_header)?;
        let capture = topology.capture()?;
        let mut frame = vec![0; if vnet_header { filter_tests::Tap::VNET_HEADER } else { 0 }];
        PacketBuilder::ethernet2(tap.mac(), tap.gateway_mac())
            .ipv4(tap.v4().octets(), [203, 0, 113, 10], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut frame, b"ping")?;
        tap.send(&frame)?;
        eventually(|| Ok(capture.frames_to([203, 0, 113, 10])? == 1))?;
        // The host asks who has the guest's address before it can answer.
        let arp = [0x08, 0x06];
        eventually(|| {
            let frame = tap.receive(PATIENCE)?.context("nothing came back")?;
            Ok(frame.windows(2).any(|bytes| bytes == arp))
        })?;
    }
    Ok(())
}

#[test]
fn streams_keep_their_pace() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    sandbox.set_offloads(Sandbox::INTERFACE, Offload::SEGMENTATION, false)?;
    topology.host().set_offloads(sandbox.host_interface(), Offload::SEGMENTATION, false)?;
    let _server = topology.serve(Service::TcpStream { bytes_per_second: Some(1_000_000) }, 9)?;
    let sink = topology.serve(Service::TcpSink, 10)?;

    let mut stream = sandbox.tcp_connect(([203, 0, 113, 10], 9), PATIENCE).result?;
    let (start, mut got, mut buffer) = (Instant::now(), 0, vec![0; 65_536]);
    while got < 500_000 {
        got += stream.read(&mut buffer)?;
    }
    let took = start.elapsed();
    assert!(took > Duration::from_millis(300), "{got} bytes at a million a second in {took:?}");

    let mut stream = sandbox.tcp_connect(([203, 0, 113, 10], 10), PATIENCE).result?;
    stream.write_all(&buffer)?;
    drop(stream);
    eventually(|| Ok(sink.bytes_in() == 65_536 && sink.open() == 0))
}

#[test]
fn nothing_stays() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let server = topology.serve(Service::TcpEcho, 7)?;
    let held = sandbox.tcp_connect(([203, 0, 113, 10], 7), PATIENCE).result?;
    let names =
        [topology.host(), topology.internet(), &*sandbox].map(|netns: &Netns| netns.name().to_owned());
    for name in &names {
        assert!(fs::exists(format!("/run/netns/{name}"))?);
    }
    drop(sandbox);
    assert!(!topology.host().links()?.iter().any(|link| link == "sbx1"));
    // The same name can be used again at once.
    drop(topology.sandbox(1)?);
    drop((held, server, topology));
    for name in &names {
        assert!(!fs::exists(format!("/run/netns/{name}"))?, "{name} stays");
    }
    Ok(())
}

#[test]
#[expect(clippy::panic, reason = "the panic is what is tested")]
fn a_panic_inside_comes_out() {
    let caught = std::panic::catch_unwind(|| {
        let netns = Netns::new("panics")?;
        let result: Result<()> = netns.run(|| std::panic::panic_any("as it should"));
        result
    });
    assert_eq!(caught.err().and_then(|panic| panic.downcast_ref::<&str>().copied()), Some("as it should"));
}

fn eventually(holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        anyhow::ensure!(Instant::now() < deadline, "it did not happen within {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
