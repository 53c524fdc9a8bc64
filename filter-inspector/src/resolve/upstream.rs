//! Whom to ask next, and when.
//!
//! The server that answered last is asked first. If it takes its time the next one is asked too, and
//! whoever is first to give an answer is believed; after the last comes the first again, with a new query. A
//! server that says that it has no answer is not asked again.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{exchange, reading::Question};

/// How often each server is asked before it is over.
const ROUNDS: usize = 3;
/// The longest that a server is waited for before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many lookups may be under way at once, by purpose; each needs a socket, or a few. The others wait their
/// turn.
const FOR_SANDBOXES: usize = 768;
const FOR_DIALLING: usize = 256;
/// All of them.
pub(crate) const LOOKUPS: usize = FOR_SANDBOXES + FOR_DIALLING;

/// What a lookup is for. Sandboxes may ask for whatever they like; connections do not suffer from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// To answer a sandbox's query.
    Sandbox,
    /// To connect to a name.
    Dialling,
}

/// The servers.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    mark: u32,
    timeout: Duration,
    preferred: AtomicUsize,
    for_sandboxes: Semaphore,
    for_dialling: Semaphore,
}

impl Upstream {
    /// `servers` are in the order of preference.
    pub(super) fn new(servers: Vec<SocketAddr>, mark: u32, timeout: Duration) -> Self {
        Self {
            servers,
            mark,
            timeout,
            preferred: AtomicUsize::new(0),
            for_sandboxes: Semaphore::new(FOR_SANDBOXES),
            for_dialling: Semaphore::new(FOR_DIALLING),
        }
    }

    /// The first answer that comes, within the time that there is.
    pub(super) async fn ask(&self, question: &Question, purpose: Purpose) -> Option<Message> {
        let places = match purpose {
            Purpose::Sandbox => &self.for_sandboxes,
            Purpose::Dialling => &self.for_dialling,
        };
        let asked = async {
            let _place = places.acquire().await.ok()?;
            self.ask_in_turn(question).await
        };
        timeout(self.timeout, asked).await.ok().flatten()
    }

    async fn ask_in_turn(&self, question: &Question) -> Option<Message> {
        let patience = (self.timeout / u32::try_from(self.tries().count()).unwrap_or(u32::MAX)).min(PATIENCE);
        let mut tries = self.tries();
        let mut failed = vec![false; self.servers.len()];
        let mut running = JoinSet::new();
        loop {
            let next = tries.find(|(number, _)| !failed.get(*number).is_some_and(|failed| *failed));
            if let Some((number, server)) = next {
                let (mark, question) = (self.mark, question.clone());
                running.spawn(async move { (number, exchange::ask(server, mark, &question).await) });
            }
            let first = async { running.join_next().await };
            let done = match next {
                // Impatient, as long as there is another to ask.
                Some(_) => tokio::select! {
                    done = first => done,
                    () = sleep(patience) => continue,
                },
                None => Some(first.await?),
            };
            match done {
                Some(Ok((number, Ok(answer)))) => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return Some(answer);
                }
                Some(Ok((number, Err(failure)))) => {
                    debug!(server = ?self.servers.get(number), %failure, "no answer");
                    if let Some(failed) = failed.get_mut(number) {
                        *failed = true;
                    }
                }
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Each server with its number, in the order in which they are asked.
    fn tries(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let round = self.servers.iter().copied().enumerate();
        round.cycle().skip(first).take(ROUNDS * self.servers.len())
    }
}
