//! A sandbox that begins a thousand hellos and finishes none, and what its neighbour notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use filter_tests::Sandbox;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::book;
use super::hello::hello;
use super::lane::Lane;
use super::load;
use super::servers::{Manner, Server, TLS};

/// Connections that the attacker has at a time.
const CONNECTIONS: usize = 1_000;
/// Between two bytes of each.
const PAUSE: Duration = Duration::from_secs(1);
/// An attack lasts no longer.
const AT_MOST: Duration = Duration::from_secs(60);
/// Connections that the neighbour has at a time.
const NEIGHBOURS: usize = 16;

/// The neighbour's p99 in microseconds without the attack, and with it as many times as much.
pub fn run(lane: &Lane, attacker: &Sandbox, count: usize) -> Result<[f64; 2]> {
    let _server = Server::start(lane.internet(), Manner::Brief)?;
    lane.forget()?;
    let p99 = || anyhow::Ok(load::connections(lane.sandbox(), NEIGHBOURS, count)?.microseconds(0.99));
    // Warm, and as the second half finds it.
    p99()?;
    let without = p99()?;
    let stop = Arc::new(AtomicBool::new(false));
    let open = Arc::new(AtomicUsize::new(0));
    let attack = attacker.spawn({
        let (stop, open) = (Arc::clone(&stop), Arc::clone(&open));
        move || attack(&stop, &open)
    })?;
    let with = wait_for(&open).and_then(|()| p99());
    stop.store(true, Ordering::Relaxed);
    attack.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok([without, with? / without])
}

fn wait_for(open: &AtomicUsize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while open.load(Ordering::Relaxed) < CONNECTIONS * 9 / 10 {
        if Instant::now() > deadline {
            bail!("the attacker has only {} connections", open.load(Ordering::Relaxed));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn attack(stop: &Arc<AtomicBool>, open: &Arc<AtomicUsize>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for number in 0..CONNECTIONS {
            tokio::spawn(dribble(number, Arc::clone(stop), Arc::clone(open)));
            // Not all in the same moment, now and later.
            tokio::time::sleep(PAUSE / CONNECTIONS as u32).await;
        }
        let begun = Instant::now();
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < AT_MOST {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // Whatever is open closes with the runtime.
    Ok(())
}

/// A byte a second, again from the start whenever the other side has had enough.
async fn dribble(number: usize, stop: Arc<AtomicBool>, open: Arc<AtomicUsize>) {
    let hello = hello("host-0.test");
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect(book::at(number, TLS)).await {
            open.fetch_add(1, Ordering::Relaxed);
            // Less than the whole.
            for byte in hello.chunks(1).take(hello.len() / 2) {
                if stream.write_all(byte).await.is_err() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            open.fetch_sub(1, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE / 10).await;
    }
}

/// A sandbox for the attack.
pub fn attacker(lane: &Lane) -> Result<Sandbox> {
    lane.join(ATTACKER)
}

/// Its number among those that join.
const ATTACKER: u16 = 1;
