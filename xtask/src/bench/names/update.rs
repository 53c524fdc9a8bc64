//! Ten thousand names in the place of ten thousand others: when the new ones decide, and whether the old ones
//! still do.
//!
//! While it happens, somebody in the sandbox asks again and again for a name that only the old policy allows
//! and one that only the new one does.

use std::cell::Cell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::{ApiRequest, Netns};

use super::book::{self, Book};
use super::hello::{self, hello};
use super::lane::{self, Lane};
use super::servers::{Manner, Server, TLS};
use crate::bench::client;
use crate::bench::compare::{Contender, Goal, Ground, Progress, Row, Unit, compare_all};
use crate::bench::latency::milliseconds;

/// Names that are replaced.
const COUNT: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(5);
/// Who asks does so before, and afterwards until nothing was decided by the old policy for so long.
const BEFORE: Duration = Duration::from_millis(30);
const CALM: Duration = Duration::from_millis(250);
/// A policy that still decides after so long has no figure.
const AT_MOST: Duration = Duration::from_secs(10);

/// What is in force in a lane.
struct Turn<'a> {
    lane: &'a Lane,
    current: Cell<bool>,
    /// Connections to names that an update took away, and how many of them it ended.
    taken: Cell<usize>,
    ended: Cell<usize>,
}

impl Ground for Turn<'_> {
    fn contender(&self) -> Contender {
        self.lane.contender()
    }
}

/// Replaces again and again: the rows, and a remark about connections that were open.
pub fn run(lanes: &[&Lane], rounds: usize, progress: &Progress) -> Result<([Row; 3], String)> {
    let books = [Book::new(COUNT, 1), Book::new(COUNT, 2)];
    let lines = books.each_ref().map(|book| client::update(lane::SANDBOX, &book.policy()));
    let mut turns = Vec::new();
    for lane in lanes.iter().filter(|lane| lane.contender() != Contender::Nothing) {
        progress.show(&format!("10k names: {}", lane.contender()));
        // The two that are asked for.
        books.iter().try_for_each(|book| lane.know(&book.first()))?;
        replace(lane, &books[0], &lines[0])?;
        let zero = || Cell::new(0);
        turns.push(Turn { lane, current: Cell::new(false), taken: zero(), ended: zero() });
    }
    let what = |name: &str, goal| (name.to_owned(), Unit::Milliseconds, goal);
    let whats = [
        what("10k names replaced, until the new decide", Goal::at_most(5.0)),
        what("… until the answer", Goal::default()),
        what("… after it, the old still decide for", Goal { at_most: Some(0.0), ..Goal::default() }),
    ];
    let grounds: Vec<_> = turns.iter().collect();
    let rows = compare_all(&grounds, rounds, whats, progress, |turn| {
        let next = usize::from(!turn.current.get());
        turn.current.set(next == 1);
        let change = turn.change(&books[1 - next], &books[next], &lines[next])?;
        Ok([change.decided, change.answered, change.lingered].map(milliseconds))
    })?;
    let mut remarks = Vec::new();
    for turn in &turns {
        // What comes next is about the usual names.
        let usual = Book::new(book::USUAL, 0);
        let line = client::update(lane::SANDBOX, &usual.policy());
        replace(turn.lane, &usual, &line)?;
        let (ended, taken) = (turn.ended.get(), turn.taken.get());
        remarks.push(format!("{} {ended} of {taken}", turn.contender()));
    }
    Ok((
        rows,
        format!(
            "Open connections to names that a replacement took away and that it ended: {}.",
            remarks.join(", ")
        ),
    ))
}

/// Puts a book in force; nothing is measured.
fn replace(lane: &Lane, book: &Book, line: &ApiRequest) -> Result<()> {
    if let Some(control) = lane.control() {
        control.time(line)?;
    }
    if let Some(peer) = lane.peer() {
        peer.prepare(book)?;
        peer.replace(book)?;
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// How a replacement went, counted from when it was asked for.
struct Change {
    answered: Duration,
    decided: Duration,
    lingered: Duration,
}

/// A connection, and whether its verdict was the old policy's.
struct Probe {
    begun: Instant,
    ended: Instant,
    is_old: bool,
}

impl Turn<'_> {
    fn change(&self, old: &Book, new: &Book, line: &ApiRequest) -> Result<Change> {
        let sandbox = self.lane.sandbox();
        let _server = Server::start(self.lane.internet(), Manner::Patient)?;
        self.lane.forget()?;
        let open = connect(sandbox, old.name(0))?.context("the policy in force does not allow its names")?;
        if let Some(peer) = self.lane.peer() {
            peer.prepare(new)?;
        }
        let done = AtomicBool::new(false);
        let (begun, answered, probes) = thread::scope(|scope| {
            let prober = scope.spawn(|| sandbox.run(|| probe(old.name(0), new.name(0), &done)));
            thread::sleep(BEFORE);
            let begun = Instant::now();
            let answered = match (self.lane.control(), self.lane.peer()) {
                (Some(control), _) => control.time(line).map(drop),
                (None, Some(peer)) => peer.replace(new),
                (None, None) => Ok(()),
            };
            let after = Instant::now();
            done.store(true, Ordering::Relaxed);
            let probes = prober.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            answered.map(|()| (begun, after, probes))
        })?;
        let probes = probes?;
        self.taken.set(self.taken.get() + 1);
        self.ended.set(self.ended.get() + usize::from(is_over(open)));
        let old = || probes.iter().filter(|probe| probe.is_old);
        let last_old = old().filter(|probe| probe.ended > begun).map(|probe| probe.ended).max();
        let first_new = probes.iter().find(|probe| !probe.is_old && probe.ended > begun);
        let decided = last_old.or(first_new.map(|probe| probe.ended)).context("nothing was asked for")?;
        let late = old().filter(|probe| probe.begun > answered).map(|probe| probe.ended - answered).max();
        Ok(Change {
            answered: answered - begun,
            decided: decided - begun,
            lingered: late.unwrap_or_default(),
        })
    }
}

/// Asks for both names in turn until the replacement is done and the new policy has decided for a while.
fn probe(old: &str, new: &str, done: &AtomicBool) -> Result<Vec<Probe>> {
    let (mut probes, mut last_old) = (Vec::new(), Instant::now());
    let begun = Instant::now();
    while begun.elapsed() < AT_MOST && !(done.load(Ordering::Relaxed) && last_old.elapsed() > CALM) {
        for name in [old, new] {
            let begun = Instant::now();
            let is_old = greet(name).is_ok_and(|allowed| allowed.is_some()) == (name == old);
            let ended = Instant::now();
            if is_old {
                last_old = ended;
            }
            probes.push(Probe { begun, ended, is_old });
        }
    }
    Ok(probes)
}

/// Says hello; the stream, if a server answers.
fn connect(sandbox: &Netns, name: &str) -> Result<Option<TcpStream>> {
    sandbox.run(|| Ok(greet(name)?))
}

fn greet(name: &str) -> std::io::Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect_timeout(&book::at(0, TLS), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&hello(name))?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    Ok(hello::is_answer(answer.get(..length).unwrap_or_default()).then_some(stream))
}

/// Whether the other side has ended the stream.
fn is_over(mut stream: TcpStream) -> bool {
    let silent = stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .and_then(|()| stream.read(&mut [0; 16]))
        .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    !silent
}
