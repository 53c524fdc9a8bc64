//! Whom to ask next, and when.
//!
//! The server that answered last is asked first. If it takes its time the next one is asked too, and
//! whoever is first to give an answer is believed; after the last comes the first again, with a new query.

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
/// How many lookups may be under way at once; each needs a socket, or a few. The others wait their turn.
pub(crate) const MAX_LOOKUPS: usize = 2048;

/// The servers.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    mark: u32,
    timeout: Duration,
    preferred: AtomicUsize,
    places: Semaphore,
}

impl Upstream {
    /// `servers` are in the order of preference.
    pub(super) fn new(servers: Vec<SocketAddr>, mark: u32, timeout: Duration) -> Self {
        let places = Semaphore::new(MAX_LOOKUPS);
        Self { servers, mark, timeout, preferred: AtomicUsize::new(0), places }
    }

    /// The first answer that comes, within the time that there is.
    pub(super) async fn ask(&self, question: &Question) -> Option<Message> {
        let asked = async {
            let _place = self.places.acquire().await.ok()?;
            self.ask_in_turn(question).await
        };
        timeout(self.timeout, asked).await.ok().flatten()
    }

    async fn ask_in_turn(&self, question: &Question) -> Option<Message> {
        let patience = (self.timeout / u32::try_from(self.tries().count()).unwrap_or(u32::MAX)).min(PATIENCE);
        let mut tries = self.tries();
        let mut running = JoinSet::new();
        loop {
            let next = tries.next();
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
