//! scratch
use anyhow::Result;
use filter_tests::*;
use serde_json::json;
use std::time::Duration;
const P: Duration = Duration::from_secs(3);

#[test]
fn v6_first() -> Result<()> {
    for filter in [false, true] {
        let t = Topology::new()?;
        let s = t.sandbox(2)?;
        let _e = t.serve(Service::TcpEcho, 7)?;
        let d = if filter {
            let d = Daemon::start_on(&t)?;
            d.attach("beta", &s, &json!({"denyOut":["198.51.100.0/24"]}))?;
            Some(d)
        } else {
            None
        };
        let c = Capture::start(&s, "eth0")?;
        let a = s.tcp_connect(("2001:db8:113::10".parse::<std::net::IpAddr>()?, 7), P);
        println!("filter {filter}: v6 {:?} {:?}", a.took, a.result.is_ok());
        if let Some(d) = &d {
            println!("{}", d.show("beta")?["counters"]);
        }
        for f in c.flows()? {
            println!("  {f:?}");
        }
    }
    Ok(())
}

#[test]
fn many() -> Result<()> {
    let t = Topology::new()?;
    let s = t.sandbox(1)?;
    let _e = t.serve(Service::TcpEcho, 7)?;
    let d = Daemon::start_on(&t)?;
    d.attach("alpha", &s, &json!({"allowOut":["203.0.113.0/24"],"denyOut":["0.0.0.0/0"]}))?;
    let mut held = vec![];
    for n in 1..=2500 {
        let a = s.tcp_connect(([203, 0, 113, 10], 7), P);
        match a.result {
            Ok(x) => held.push(x),
            Err(e) => {
                {
                    let s = d.show("alpha")?;
                    println!("{n}: {e}");
                    for (k, v) in s["counters"].as_object().unwrap() {
                        if v["packets"] != 0 {
                            println!("  {k} {v}");
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1500));
                }
                for e in d.events()?.iter().rev().take(3) {
                    println!("{e}");
                }
                break;
            }
        }
    }
    println!("{}", d.show("alpha")?["connections"]);
    println!("{}", d.log());
    Ok(())
}

#[test]
fn v6_demo() -> Result<()> {
    let t = Topology::new()?;
    let (a, s) = (t.sandbox(1)?, t.sandbox(2)?);
    let _e = t.serve(Service::TcpEcho, 7)?;
    let d = Daemon::start_on(&t)?;
    d.attach("alpha", &a, &json!({"allowOut":["203.0.113.0/24"],"denyOut":["0.0.0.0/0"]}))?;
    d.attach("beta", &s, &json!({"denyOut":["198.51.100.0/24"]}))?;
    let c = Capture::start(&s, "eth0")?;
    let i = t.capture()?;
    let x = a.tcp_exchange(("2001:db8:113::10".parse::<std::net::IpAddr>()?, 7), b"hello", P);
    println!("alpha {:?}", x);
    std::thread::sleep(Duration::from_millis(20));
    let x = s.tcp_exchange(("2001:db8:113::10".parse::<std::net::IpAddr>()?, 7), b"hello", P);
    println!("beta: v6 {:?} {:?}", x.took, x.result.is_ok());
    {
        let s = d.show("beta")?;
        for (k, v) in s["counters"].as_object().unwrap() {
            if v["packets"] != 0 {
                println!("  {k} {v}");
            }
        }
    }
    for f in c.flows()? {
        println!("  {f:?}");
    }
    for f in i.flows()? {
        println!(" i {f:?}");
    }
    Ok(())
}
