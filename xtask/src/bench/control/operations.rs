//! Making, updating and ending sandboxes, by how many there are.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::percentile;
use super::stand::{CLIENTS, Stand, at_once};

/// Sandboxes that are updated at the same time.
const CROWD: usize = 100;
/// What the p99 of these may be, in milliseconds.
const SLOWEST_OF_CROWD: f64 = 60.0;

/// The figures of one operation among so many sandboxes.
struct Figures {
    times: Vec<f64>,
    per_second: f64,
}

impl Figures {
    fn cells(&self) -> String {
        let [p50, p99] = [50, 99].map(|percent| percentile(&self.times, percent));
        format!("{p50:.1} | {p99:.1} | {:.0}", self.per_second)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What each operation takes, and how many there are a second.
pub fn by_number_of_sandboxes(levels: &[u32], rounds: usize, binary: &Path) -> Result<String> {
    let stand = Stand::new(binary)?;
    let mut table = format!(
        "Milliseconds of {rounds} one after another, p50 and p99; and how many a second with {CLIENTS} clients. *At once* \
         is the p99 of {CROWD} updates that begin in the same moment.\n\n\
         | sandboxes | create | p99 | /s | update | p99 | /s | at once | to reach |  | end | p99 | /s |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---|---|---:|---:|---:|\n"
    );
    for level in levels {
        eprintln!("{level} sandboxes …");
        stand.grow(*level as usize)?;
        let (create, kill) = come_and_go(&stand, rounds)?;
        let (update, crowd) = updates(&stand, rounds)?;
        let verdict = if crowd <= SLOWEST_OF_CROWD { '✓' } else { '✗' };
        table.push_str(&format!(
            "| {level} | {} | {} | {crowd:.1} | ≤ {SLOWEST_OF_CROWD} | {verdict} | {} |\n",
            create.cells(),
            update.cells(),
            kill.cells()
        ));
    }
    stand.clear()?;
    Ok(table)
}

/// Sandboxes besides those that there are.
fn come_and_go(stand: &Stand, rounds: usize) -> Result<(Figures, Figures)> {
    let (mut created, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (id, took) = stand.create()?;
        created.push(milliseconds(took));
        killed.push(milliseconds(stand.kill(&id)?));
    }
    let count = rounds * 2;
    let begun = Instant::now();
    let ids = at_once(CLIENTS, count, |_| Ok(stand.create()?.0))?;
    let creation = count as f64 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    at_once(CLIENTS, count, |number| stand.kill(ids.get(number).context("no sandbox")?))?;
    let end = count as f64 / begun.elapsed().as_secs_f64();
    Ok((Figures { times: created, per_second: creation }, Figures { times: killed, per_second: end }))
}

/// Replacements of policies, each by one that nobody else has.
fn updates(stand: &Stand, rounds: usize) -> Result<(Figures, f64)> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = || NUMBER.fetch_add(1, Ordering::Relaxed);
    let ids = stand.ids().clone();
    let of = |n: usize| ids.get(n % ids.len()).context("no sandbox");
    let times: Result<Vec<f64>> =
        (0..rounds).map(|n| Ok(milliseconds(stand.update(of(n * 7)?, number())?))).collect();
    let count = rounds * 10;
    let begun = Instant::now();
    at_once(CLIENTS, count, |n| stand.update(of(n)?, number()))?;
    let per_second = count as f64 / begun.elapsed().as_secs_f64();

    let mut crowd = Vec::new();
    for _ in 0..4 {
        // Two of one sandbox would wait for one another.
        let count = CROWD.min(ids.len());
        let start = Barrier::new(count);
        let took: Vec<Result<Duration>> = thread::scope(|scope| {
            let clients: Vec<_> = (0..count)
                .map(|n| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        stand.update(of(n)?, number())
                    })
                })
                .collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for time in took {
            crowd.push(milliseconds(time?));
        }
    }
    // They share a policy again.
    let shared = json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] });
    let touched = ids.len().min(count.max(rounds * 7).max(CROWD));
    at_once(CLIENTS, touched, |n| {
        stand.control.ask("PUT", &format!("/sandboxes/{}/network", of(n)?), Some(&shared)).map(drop)
    })?;
    Ok((Figures { times: times?, per_second }, percentile(&crowd, 99)))
}
