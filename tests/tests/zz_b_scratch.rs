mod support_b;
use anyhow::Result;
use filter_tests::*;
use serde_json::json;
use std::time::Duration;
use support_b::*;
#[test]
fn scratch() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let mut daemon = Daemon::start_on(&topology)?;
    let host = topology.host();
    let _echo = topology.serve(Service::TcpEcho, 8000)?;
    let late = std::net::SocketAddr::new([198, 51, 100, 99].into(), 8000);
    daemon.attach("one", &sandbox, &json!({}))?;
    daemon.stop()?;
    println!("{:?}", daemon.cli(&["cleanup", "--force"])?);
    for _ in 0..8 {
        let a = sandbox.tcp_connect(late, Duration::from_secs(3));
        println!("{a:?} {}", programs_on(host, "sbx1")?);
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{}", tool(host, "ip", &["neigh"])?);
    println!("{}", tool(host, "ip", &["addr"])?);
    println!("{}", tool(&sandbox, "ip", &["neigh"])?);
    println!("{}", tool(&sandbox, "ip", &["addr"])?);
    Ok(())
}
