//! A daemon that makes sandboxes, and clients of its API.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::{Daemon, Topology};
use serde_json::json;

use crate::bench::client::Control;

/// Clients that make and end sandboxes at the same time.
pub const CLIENTS: usize = 8;

/// A daemon with sandboxes of its own making.
pub struct Stand {
    pub control: Control,
    pub daemon: Daemon,
    pub topology: Topology,
    ids: Mutex<Vec<String>>,
}

impl Stand {
    pub fn new(binary: &Path) -> Result<Self> {
        let topology = Topology::new()?;
        let daemon = Daemon::on(&topology).binary(binary).start()?;
        Ok(Self { control: Control::new(daemon.socket()), ids: Mutex::default(), daemon, topology })
    }

    /// Makes a sandbox; its id, and how long it took. All of them have one policy.
    pub fn create(&self) -> Result<(String, Duration)> {
        let network = json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] });
        let body = json!({ "templateID": "bench", "timeout": 86_400, "network": network });
        let begun = Instant::now();
        let made = self.control.ask("POST", "/v2/sandboxes", Some(&body))?;
        let took = begun.elapsed();
        Ok((made["sandboxID"].as_str().context("no id")?.to_owned(), took))
    }

    pub fn kill(&self, id: &str) -> Result<Duration> {
        let begun = Instant::now();
        self.control.ask("DELETE", &format!("/sandboxes/{id}"), None)?;
        Ok(begun.elapsed())
    }

    pub fn update(&self, id: &str, number: usize) -> Result<Duration> {
        let [.., high, low] = number.to_be_bytes();
        let network = json!({ "allowOut": [format!("203.0.{high}.{low}")], "denyOut": ["0.0.0.0/0"] });
        let begun = Instant::now();
        self.control.ask("PUT", &format!("/sandboxes/{id}/network"), Some(&network))?;
        Ok(begun.elapsed())
    }

    /// Makes sandboxes until there are so many.
    pub fn grow(&self, to: usize) -> Result<()> {
        let missing = to.saturating_sub(self.ids().len());
        let made = at_once(CLIENTS, missing, |_| Ok(self.create()?.0))?;
        self.ids().extend(made);
        Ok(())
    }

    /// Ends all of them: a clean-up would do it one after another.
    pub fn clear(&self) -> Result<()> {
        let ids = std::mem::take(&mut *self.ids());
        at_once(CLIENTS, ids.len(), |n| self.kill(ids.get(n).context("no sandbox")?)).map(drop)
    }

    pub fn ids(&self) -> MutexGuard<'_, Vec<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something `count` times with so many clients, each as soon as it is done with the last.
pub fn at_once<T: Send>(
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
