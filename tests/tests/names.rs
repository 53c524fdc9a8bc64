//! Connections by name: what a sandbox with domain rules reaches, and what it does not whatever it sends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

use std::time::Duration;

use anyhow::Result;
use filter_tests::{Daemon, Service, Topology, Zone};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn smoke() -> Result<()> {
    let topology = Topology::new()?;
    let zone = Zone::serve(topology.internet(), &[("allowed.test", &["203.0.113.10"]), ("denied.test", &["203.0.113.11"])])?;
    let tls = topology.serve(Service::TcpEcho, 443)?;
    let daemon = Daemon::on(&topology).start()?;
    let sandbox = topology.sandbox(1)?;
    daemon.attach("s1", &sandbox, &json!({"allowOut": ["allowed.test", "*.wild.test"], "denyOut": ["0.0.0.0/0"]}))?;
    let dns = sandbox.udp_exchange("8.8.8.8:53".parse::<std::net::SocketAddr>()?, &[0x12,0x34,1,0,0,1,0,0,0,0,0,0,7,b'a',b'l',b'l',b'o',b'w',b'e',b'd',4,b't',b'e',b's',b't',0,0,1,0,1], PATIENCE);
    eprintln!("dns {dns:?}");
    let curl = |args: &[&str]| -> Result<String> {
        let mut command = sandbox.command("curl")?;
        command.args(["-sv", "--max-time", "5"]).args(args);
        let output = command.output()?;
        Ok(format!("{} {}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    for name in ["allowed.test", "denied.test"] {
        eprintln!("{}", curl(&["--resolve", &format!("{name}:443:198.51.100.9"), &format!("https://{name}/")])?);
    }
    eprintln!("{:?} {:?}", tls.connections(), tls.accepted());
    eprintln!("{}", serde_json::to_string_pretty(&daemon.show("s1")?["counters"])?);
    std::thread::sleep(Duration::from_millis(300));
    for event in daemon.events()? { eprintln!("{event}"); }
    eprintln!("{}", daemon.log());
    eprintln!("{:?}", zone.asked());
    Ok(())
}
