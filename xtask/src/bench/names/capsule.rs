//! A program in a namespace of processes and with a `/run` of its own: whatever it starts and writes is gone
//! when it is, even if nobody is left to clean up.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use filter_tests::{Netns, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(10);

/// Mounts `/run`, and becomes the program once its files are there.
const SCRIPT: &str =
    "mount -t tmpfs -o mode=0755 capsule /run && echo ready && read -r go && exec \"$@\" </dev/null";

/// The program.
#[derive(Debug)]
pub struct Capsule {
    /// Ends everything inside when it is dropped.
    _process: Process,
    first: u32,
}

impl Capsule {
    /// Starts `program` with its arguments in the network of `host`; `files` are what it finds in its `/run`.
    pub fn start(host: &Netns, files: &[(&str, &str)], program: &[&str]) -> Result<Self> {
        let mut command = host.command("unshare")?;
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", SCRIPT, "sh"])
            .args(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command)?;
        let (stdin, stdout) = (process.child().stdin.take(), process.child().stdout.take());
        let mut line = String::new();
        BufReader::new(stdout.context("no pipe")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("cannot make a namespace for {}; the lines above say why", program.join(" "));
        }
        let first = *children(process.id())?.first().context("it has no process")?;
        let capsule = Self { _process: process, first };
        for (name, text) in files {
            capsule.put(name, text)?;
        }
        stdin.context("no pipe")?.write_all(b"go\n")?;
        Ok(capsule)
    }

    /// Writes one of its files.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path(name), text).with_context(|| format!("cannot write {name}"))
    }

    /// Where this side finds a file of its `/run`.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.first.to_string()).join("root/run").join(name)
    }

    /// Waits until something listens at a port of `host`.
    pub fn wait_for(&self, host: &Netns, port: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !host.tcp_connect(([127, 0, 0, 1], port), PATIENCE).is_ok() {
            if !Path::new("/proc").join(self.first.to_string()).exists() {
                bail!("the program has ended; the lines above say why");
            }
            if Instant::now() > deadline {
                bail!("nothing listens at port {port} within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends its first process a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.first)?), signal)?)
    }

    /// Its processes.
    pub fn processes(&self) -> Result<Vec<u32>> {
        Ok([vec![self.first], children(self.first)?].concat())
    }
}

fn children(process: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))
        .context("cannot see which processes a program has")?;
    Ok(text.split_whitespace().map_while(|number| number.parse().ok()).collect())
}
