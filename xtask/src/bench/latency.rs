//! How long it takes from asking until it is enforced: policies replaced, sandboxes attached and detached,
//! many updates at once.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use filter_tests::{ApiRequest, Sandbox};
use serde_json::{Value, json};

use super::client::{self, ATTACHMENTS, Control};
use super::compare::{Contender, Goal, Progress, Row, Unit};
use super::lane::{self, Lane};
use super::nft::Nft;
use super::prefixes::Prefixes;
use super::report;

/// Sandboxes that are updated at the same time.
const CROWD: u16 = 100;
/// The number of the sandbox that attaches and detaches; the crowd follows. The lane's own is 1.
const VISITOR: u16 = 2;

/// Replaces all of `count` prefixes by as many others, again and again.
pub fn replace(lanes: &[Lane], count: usize, rounds: usize, goal: Goal, progress: &Progress) -> Result<Row> {
    let sets = [Prefixes::with_seed(count, 11), Prefixes::with_seed(count, 12)];
    let policies = sets.each_ref().map(lane::policy);
    let scripts = sets.each_ref().map(Nft::replacement);
    let name = format!("replace {} prefixes", report::count(count));

    let mut filter = Vec::new();
    let mut nftables = Vec::new();
    // The first time another number of prefixes is replaced; that does not count.
    for (round, (policy, script)) in (0..=rounds).zip(policies.iter().zip(&scripts).cycle()) {
        progress.show(&format!("{name}: round {round} of {rounds}"));
        for lane in lanes {
            if let Some(control) = lane.control() {
                filter.push(milliseconds(control.time(&client::update(lane::SANDBOX, policy))?));
            }
            if let Some(took) = lane.nft().map(|nft| nft.run(script)).transpose()?.flatten() {
                nftables.push(milliseconds(took));
            }
        }
    }
    let samples = [(Contender::Filter, filter), (Contender::Nftables, nftables)];
    let counted = samples.map(|(who, times)| (who, times.into_iter().skip(1).collect()));
    Ok(Row::new(name, Unit::Milliseconds, goal, counted.into()))
}

/// How long `nft` takes to start, read nothing, and end: a part of each of its replacements.
pub fn nft_start(lanes: &[Lane], rounds: usize) -> Result<Option<f64>> {
    let Some(nft) = lanes.iter().find_map(Lane::nft) else { return Ok(None) };
    let times: Result<Vec<_>> = (0..rounds).map(|_| nft.run("")).collect();
    let times = times?.into_iter().flatten().map(milliseconds).collect();
    let row = Row::new("", Unit::Milliseconds, Goal::default(), vec![(Contender::Nftables, times)]);
    Ok(row.median(Contender::Nftables))
}

/// Attaches a sandbox and detaches it, in turns: a row for each.
pub fn attach(lane: &Lane, control: &Control, rounds: usize, progress: &Progress) -> Result<Vec<Row>> {
    let visitor = lane.topology().sandbox(VISITOR)?;
    let prefixes = Prefixes::random(1_000);
    let come = client::prepare("POST", ATTACHMENTS, Some(&attachment("visitor", &visitor, &prefixes)));
    let go = client::prepare("DELETE", &format!("{ATTACHMENTS}/visitor"), None);
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        progress.show(&format!("attach and detach: round {round} of {rounds}"));
        attached.push(milliseconds(control.time(&come)?));
        detached.push(milliseconds(control.time(&go)?));
    }
    let row =
        |name, times| Row::new(name, Unit::Milliseconds, Goal::default(), vec![(Contender::Filter, times)]);
    Ok(vec![row("attach, 1k prefixes", attached), row("detach", detached)])
}

/// A hundred sandboxes, each with a policy of its own, which are all updated in the same moment.
pub fn crowd(lane: &Lane, control: &Control, rounds: usize, progress: &Progress) -> Result<Row> {
    progress.show("100 updates at once: making the sandboxes");
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        let sandbox = lane.topology().sandbox(VISITOR + 1 + n)?;
        let prefixes = Prefixes::with_seed(10, u64::from(n) << 32);
        control.ask("POST", ATTACHMENTS, Some(&attachment(&member(n), &sandbox, &prefixes)))?;
        crowd.push(sandbox);
    }
    let mut times = Vec::new();
    for round in 1..=rounds {
        progress.show(&format!("100 updates at once: round {round} of {rounds}"));
        let requests: Vec<_> = (0..CROWD)
            .map(|n| {
                let seed = u64::from(n) << 32 | round as u64;
                client::update(&member(n), &lane::policy(&Prefixes::with_seed(10, seed)))
            })
            .collect();
        times.extend(at_once(control, &requests)?);
    }
    for n in 0..CROWD {
        control.ask("DELETE", &format!("{ATTACHMENTS}/{}", member(n)), None)?;
    }
    Ok(Row::new(
        "100 updates at once, each",
        Unit::Milliseconds,
        Goal::default(),
        vec![(Contender::Filter, times)],
    ))
}

fn at_once(control: &Control, requests: &[ApiRequest]) -> Result<Vec<f64>> {
    let start = Barrier::new(requests.len());
    thread::scope(|scope| {
        let clients: Vec<_> = requests
            .iter()
            .map(|request| {
                scope.spawn(|| {
                    start.wait();
                    control.time(request)
                })
            })
            .collect();
        let times = clients.into_iter().map(|client| {
            let took = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(milliseconds(took))
        });
        times.collect::<Result<_>>().context("100 updates at once")
    })
}

fn member(n: u16) -> String {
    format!("crowd-{n}")
}

fn attachment(id: &str, sandbox: &Sandbox, prefixes: &Prefixes) -> Value {
    json!({
        "id": id,
        "iface": sandbox.host_interface(),
        "addrs": { "list": [sandbox.v4(), sandbox.v6()] },
        "mac": sandbox.mac_text(),
        "policy": lane::policy(prefixes),
    })
}

/// As the rows have it.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
