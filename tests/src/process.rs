//! Programs that a test starts: they end with it, whatever happens to it.

use std::panic::resume_unwind;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sys;

/// A running program. It is killed when this is dropped, and by the kernel when this process dies.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Result<Self> {
        sys::die_with_parent(&mut command);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = on_spawner(move || command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its pipes, where the command asked for them.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The child is not yet waited for (that needs `&mut`), so the number is still its own.
        let id = i32::try_from(self.0.id()).context("process id out of range")?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// Waits until it has ended; after `timeout` that is an error and the program goes on.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} has not ended within {timeout:?}", self.id());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.kill();
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `work` on a thread that never ends. A child that dies with its parent dies with the *thread* that
/// started it (prctl(2), PR_SET_PDEATHSIG), and a test's thread may well end before the daemon's owner does.
fn on_spawner<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        // Without the thread the channel is closed and the send below fails.
        let _ =
            thread::Builder::new().name("spawner".into()).spawn(move || queue.iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let (answer, result) = mpsc::channel();
    let job: Job = Box::new(move || {
        let _ = answer.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
    });
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .map_err(|_| anyhow::anyhow!("no thread to start programs from"))?;
    result
        .recv()
        .context("the thread that starts programs is gone")?
        .map_or_else(|panic| resume_unwind(panic), Ok)
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.id())
    }
}
