//! Threads that serve connections, each from its first packet to its end.
//!
//! A connection's ends are on one thread, and what it waits for wakes that thread alone. A runtime that shares
//! its tasks among threads has them wake each other up for every other connection, which costs as much as a
//! third of what there is to do.

use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
    time,
};
use tracing::error;

use crate::listen::{Listeners, Pair};

/// How many connections get their turn before those that wait are looked at again. Bulk is always ready for
/// another turn.
const EVENT_INTERVAL: u32 = 32;
/// Shorter than the deadlines of connections.
const TICK: Duration = Duration::from_secs(1);

/// Running threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    stop: watch::Sender<bool>,
    running: Vec<(oneshot::Receiver<()>, JoinHandle<()>)>,
}

impl Workers {
    /// A thread for each pair of listeners, which does what `serve` makes of it. That is called within the
    /// thread's runtime.
    ///
    /// # Errors
    /// Its own, or that there can be no more threads.
    pub(crate) fn start<S, F>(listeners: Listeners, serve: S) -> io::Result<Self>
    where
        S: Fn(Pair) -> io::Result<F>,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut workers = Self { stop: watch::Sender::new(false), running: Vec::new() };
        for (number, pair) in listeners.into_pairs().enumerate() {
            let runtime =
                Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
            let serving = {
                let _within = runtime.enter();
                serve(pair)?
            };
            let mut stop = workers.stop.subscribe();
            let (ended, over) = oneshot::channel();
            let work = move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serving => {}
                        () = tick() => {}
                        // Gone or told: both mean to stop.
                        _ = stop.wait_for(|stop| *stop) => {}
                    }
                });
                // With it go the connections that are left.
                drop(runtime);
                let _ = ended.send(());
            };
            let thread = thread::Builder::new().name(format!("inspector-{number}")).spawn(work)?;
            workers.running.push((over, thread));
        }
        Ok(workers)
    }

    /// Ends them; ready when they are over.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for (over, thread) in self.running {
            // Told or gone: it is over, and joined at once.
            let _ = over.await;
            if thread.join().is_err() {
                error!("a thread that serves connections by name has failed");
            }
        }
    }
}

/// Has a timer due soon, always. A runtime without one wakes itself up for each deadline that is set, which is
/// a call for each connection.
async fn tick() {
    loop {
        time::sleep(TICK).await;
    }
}
