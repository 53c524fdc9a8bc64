//! `bench control`: what it takes to make sandboxes, change what they may reach and end them, by how many there are
//! already; and how much memory one takes that does nothing.
//!
//! Everything goes through the API, from connecting to the last byte of the answer, which comes when the policy is
//! enforced. Sandboxes are network namespaces of the daemon's own making; making the namespace and its wire is part
//! of the figures. For memory, interfaces that are there already are attached, so that it is the filter's alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::{Daemon, Topology};
use serde_json::{Value, json};

use super::client::{ATTACHMENTS, Control};
use super::{Options, machine};

/// Clients that make and end sandboxes at the same time.
const CLIENTS: usize = 8;
/// Sandboxes that are updated at the same time.
const CROWD: usize = 100;
/// Interfaces that are attached for the figure of memory: behind the first ones, which fill pools.
const IDLE: [usize; 2] = [100, 1_100];

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// How many sandboxes there are meanwhile
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100, 1_100])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000))]
    sandboxes: Vec<u32>,
    /// Make and end so many sandboxes before anything is measured, to see that nothing is left of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    churn: u32,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Making, updating, ending
    Operations,
    /// An idle sandbox
    Memory,
}

impl Args {
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures and prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    machine::warn_if_busy()?;
    println!("{}\n", machine::describe(&[])?);
    if args.churn > 0 {
        churn(args.churn, binary)?;
    }
    // First, while the kernel is not still clearing up behind others.
    if args.wants(Part::Memory) {
        memory(binary)?;
    }
    if args.wants(Part::Operations) {
        operations(args, binary)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A daemon with sandboxes of its own making.
struct Stand {
    control: Control,
    ids: Mutex<Vec<String>>,
    daemon: Daemon,
    topology: Topology,
}

impl Stand {
    fn new(binary: &Path) -> Result<Self> {
        let topology = Topology::new()?;
        let daemon = Daemon::on(&topology).binary(binary).start()?;
        Ok(Self { control: Control::new(daemon.socket()), ids: Mutex::default(), daemon, topology })
    }

    /// Makes a sandbox; its id, and how long it took. All of them have one policy.
    fn create(&self) -> Result<(String, Duration)> {
        let network = json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] });
        let body = json!({ "templateID": "bench", "timeout": 86_400, "network": network });
        let begun = Instant::now();
        let made = self.control.ask("POST", "/v2/sandboxes", Some(&body))?;
        let took = begun.elapsed();
        Ok((made["sandboxID"].as_str().context("no id")?.to_owned(), took))
    }

    fn kill(&self, id: &str) -> Result<Duration> {
        let begun = Instant::now();
        self.control.ask("DELETE", &format!("/sandboxes/{id}"), None)?;
        Ok(begun.elapsed())
    }

    fn update(&self, id: &str, number: usize) -> Result<Duration> {
        let [.., high, low] = number.to_be_bytes();
        let network = json!({ "allowOut": [format!("203.0.{high}.{low}")], "denyOut": ["0.0.0.0/0"] });
        let begun = Instant::now();
        self.control.ask("PUT", &format!("/sandboxes/{id}/network"), Some(&network))?;
        Ok(begun.elapsed())
    }

    /// Makes sandboxes until there are so many.
    fn grow(&self, to: usize) -> Result<()> {
        let missing = to.saturating_sub(self.ids().len());
        let made = at_once(CLIENTS, missing, |_| Ok(self.create()?.0))?;
        self.ids().extend(made);
        Ok(())
    }

    /// Ends all of them: a clean-up would do it one after another.
    fn clear(&self) -> Result<()> {
        let ids = std::mem::take(&mut *self.ids());
        at_once(CLIENTS, ids.len(), |n| self.kill(ids.get(n).context("no sandbox")?)).map(drop)
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something `count` times with so many clients, each as soon as it is done with the last.
fn at_once<T: Send>(
    clients: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..clients.min(count))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(());
                        }
                        let result = work(number)?;
                        done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The figures of one operation among so many sandboxes.
struct Figures {
    times: Vec<f64>,
    per_second: f64,
}

impl Figures {
    fn cells(&self) -> String {
        let [p50, p99] = [50, 99].map(|percent| percentile(&self.times, percent));
        format!("{p50:>7.1} {p99:>7.1} {:>6.0}/s", self.per_second)
    }
}

fn percentile(times: &[f64], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn operations(args: &Args, binary: &Path) -> Result<()> {
    let stand = Stand::new(binary)?;
    let rounds = args.options.rounds(40);
    println!(
        "Milliseconds, p50 and p99 of {rounds} one after another; and how many a second with {CLIENTS} clients."
    );
    println!(
        "{:>9}  {:^25}  {:^25}  {:^25}  {:^16}",
        "sandboxes", "create", "update", "kill", "100 at once, p99"
    );
    for level in &args.sandboxes {
        let level = *level as usize;
        stand.grow(level)?;
        let (create, kill) = come_and_go(&stand, rounds)?;
        let (update, crowd) = updates(&stand, rounds)?;
        println!(
            "{level:>9}  {:>25}  {:>25}  {:>25}  {crowd:>13.1} ms",
            create.cells(),
            update.cells(),
            kill.cells()
        );
    }
    stand.clear()
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

/// Makes and ends sandboxes, and looks what is left of them.
fn churn(rounds: u32, binary: &Path) -> Result<()> {
    let stand = Stand::new(binary)?;
    let round = |count: usize| -> Result<()> {
        at_once(CLIENTS, count, |_| stand.kill(&stand.create()?.0)).map(drop)
    };
    round(200)?;
    let before = Holdings::of(&stand)?;
    let begun = Instant::now();
    round(rounds as usize)?;
    let took = begun.elapsed();
    // The kernel clears namespaces and tries a little later.
    thread::sleep(Duration::from_secs(3));
    let after = Holdings::of(&stand)?;
    println!("{rounds} sandboxes made and ended in {took:.1?}; before and after:\n{before:#?}\n{after:#?}\n");
    Ok(())
}

/// What a daemon and its host have in use.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed")]
struct Holdings {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
    links: usize,
    namespaces: usize,
    pins: usize,
    files: usize,
    slab_kib: u64,
}

impl Holdings {
    fn of(stand: &Stand) -> Result<Self> {
        let process = process(&stand.daemon)?;
        let count = |path: PathBuf| fs::read_dir(path).map(Iterator::count).unwrap_or(0);
        let namespaces = fs::read_dir("/run/netns")?.flatten();
        let ours = namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with("sbx-i"));
        Ok(Self {
            resident_kib: resident(&process)?,
            descriptors: count(process.join("fd")),
            threads: count(process.join("task")),
            links: stand.topology.host().links()?.len(),
            namespaces: ours.count(),
            pins: count(stand.daemon.pins().join("links")),
            files: count(stand.daemon.state_dir().join("made"))
                + count(stand.daemon.state_dir().join("sandboxes")),
            slab_kib: kernel(&["Slab"])?,
        })
    }
}

/// What attached interfaces take that share a policy and are silent.
fn memory(binary: &Path) -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::on(&topology).binary(binary).start()?;
    let control = Control::new(daemon.socket());
    let [first, all] = IDLE;
    topology.host().add_pairs("idle", all)?;
    let policy = json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] });
    let attach = |n: usize| -> Result<Value> {
        let [.., high, low] = n.to_be_bytes();
        control.ask(
            "POST",
            ATTACHMENTS,
            Some(&json!({
                "id": format!("idle-{n}"), "iface": format!("idle{n}"), "policy": policy,
                "addrs": { "list": [format!("10.9.{high}.{low}")] }, "mac": format!("02:00:00:00:{high:02x}:{low:02x}"),
            })),
        )
    };
    let detach = |n: usize| control.ask("DELETE", &format!("{ATTACHMENTS}/idle-{n}"), None);
    let usage = || -> Result<[f64; 2]> {
        // What the kernel frees in time is freed by then.
        thread::sleep(Duration::from_secs(2));
        Ok([
            resident(&process(&daemon)?)? as f64,
            slab()? + kernel(&["Percpu", "PageTables", "KernelStack"])? as f64,
        ])
    };
    at_once(CLIENTS, first, |n| attach(n + 1))?;
    let count = all - first;
    let mut each = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        let before = usage()?;
        at_once(CLIENTS, count, |n| attach(n + first + 1))?;
        let there = usage()?;
        at_once(CLIENTS, count, |n| detach(n + first + 1))?;
        let after = usage()?;
        for place in 0..2 {
            each[place].push((there[place] - before[place]) / count as f64);
            // Nothing of the daemon's own is given back to the system, but the kernel's is.
            if place == 1 {
                each[place].push((there[place] - after[place]) / count as f64);
            }
        }
    }
    println!(
        "An idle sandbox under a policy that others have too: {:.1} KiB of the daemon's memory, {:.1} KiB of the \
         kernel's (medians; everything on this machine counts in).\n",
        percentile(&each[0], 50),
        percentile(&each[1], 50)
    );
    Ok(())
}

fn process(daemon: &Daemon) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}", daemon.id().context("the daemon does not run")?)))
}

fn resident(process: &Path) -> Result<u64> {
    field(&fs::read_to_string(process.join("status"))?, "VmRSS")
}

fn kernel(names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    names.iter().map(|name| field(&text, name)).sum()
}

/// Objects that the kernel has in use, in KiB; not the pages that they lie in, of which others of their kind keep
/// whole ones.
fn slab() -> Result<f64> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    // name <active_objs> <num_objs> <objsize> … (slabinfo(5)), behind two lines of headings.
    let bytes = text.lines().skip(2).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let active: f64 = fields.next()?.parse().ok()?;
        let size: f64 = fields.nth(1)?.parse().ok()?;
        Some(active * size)
    });
    Ok(bytes.sum::<f64>() / 1024.0)
}

/// A line such as `VmRSS:   123 kB`.
fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {name}"))
}
