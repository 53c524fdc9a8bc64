//! Ways to have a filter forgotten, or a connection uncounted.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder};
use filter_tests::{Daemon, Service, Topology};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(2);
const ALLOWED: ([u8; 4], u16) = ([203, 0, 113, 10], 7);
const DENIED: ([u8; 4], u16) = ([198, 51, 100, 7], 7);

#[test]
fn leaving_a_bridge_is_not_the_end_of_an_interface() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let sandbox = topology.bridge_sandbox(1)?;
    daemon.attach("s1", &sandbox, &json!({ "denyOut": ["0.0.0.0/0"] }))?;
    let left = topology
        .host()
        .command("ip")?
        .args(["link", "set", sandbox.host_interface(), "nomaster"])
        .status()?;
    ensure!(left.success(), "the port does not leave the bridge");
    thread::sleep(Duration::from_millis(500));
    ensure!(daemon.show("s1")?["enforced"] == json!(true), "still filtered");
    Ok(())
}

/// The reset dies on the way (TTL 1), the connection does not.
#[test]
fn a_reset_that_never_arrives_buys_no_connection() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let sandbox = topology.sandbox(1)?;
    let server = topology.serve(Service::TcpSink, ALLOWED.1)?;
    daemon.attach("s1", &sandbox, &json!({ "limits": { "egressConnections": 1 } }))?;
    let mut connection = sandbox.tcp_connect(ALLOWED, PATIENCE).result?;
    let local = connection.local_addr()?;

    let header = etherparse_header(sandbox.v4(), 1, ALLOWED.0)?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(sandbox.mac(), sandbox.gateway_mac())
        .ip(header)
        .tcp(local.port(), ALLOWED.1, 1, 0)
        .rst()
        .write(&mut frame, &[])?;
    sandbox.frames()?.send(&frame)?;
    thread::sleep(Duration::from_millis(100));

    // Its place is free, and so it must be of no more use.
    let before = server.bytes_in();
    let _ = connection.write_all(b"uncounted");
    thread::sleep(Duration::from_millis(200));
    ensure!(server.bytes_in() == before, "data passed on a connection that nobody counts");
    ensure!(daemon.packets("s1", "protocol")? >= 1);
    ensure!(sandbox.tcp_connect(ALLOWED, PATIENCE).is_ok(), "and another may take it");
    Ok(())
}

fn etherparse_header(from: Ipv4Addr, ttl: u8, to: [u8; 4]) -> Result<IpHeaders> {
    let header = Ipv4Header::new(0, ttl, IpNumber::TCP, from.octets(), to).context("no IPv4 header")?;
    Ok(IpHeaders::Ipv4(header, Default::default()))
}

#[test]
fn the_host_is_not_reached_by_its_broadcast_address() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let sandbox = topology.sandbox(1)?;
    topology.host().add_address("up0", "198.18.250.1/24".parse()?)?;
    topology.host().add_address("up0", "192.0.3.1/24".parse()?)?;
    daemon.attach("s1", &sandbox, &json!({}))?;
    for to in ["192.0.3.1:9999", "192.0.3.255:9999"] {
        let before = daemon.packets("s1", "guarded")?;
        let _ = sandbox.udp_exchange(to.parse::<SocketAddr>()?, b"x", Duration::from_millis(200));
        ensure!(daemon.packets("s1", "guarded")? > before, "{to} is the host's");
    }
    Ok(())
}

#[test]
fn a_detach_ends_once_however_many_ask() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let sandbox = topology.sandbox(1)?;
    let policy = json!({ "denyOut": ["0.0.0.0/0"] });
    for round in 0..15 {
        daemon.attach("s1", &sandbox, &policy)?;
        let ended: Vec<i32> = thread::scope(|scope| {
            let asked: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| daemon.cli(&["detach", "s1"]).map_or(-1, |output| output.code)))
                .collect();
            asked.into_iter().map(|one| one.join().unwrap_or(-1)).collect()
        });
        ensure!(ended.iter().filter(|code| **code == 0).count() == 1, "round {round}: {ended:?}");
        ensure!(daemon.cli(&["show", "s1"])?.code == 3, "gone");
    }
    daemon.attach("s1", &sandbox, &policy)?;
    ensure!(daemon.show("s1")?["enforced"] == json!(true));
    ensure!(!sandbox.tcp_connect(DENIED, PATIENCE).is_ok());
    Ok(())
}
