//! The contender that every host has: an nftables set of intervals, and connection tracking.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use filter_tests::{Netns, Process};

use super::prefixes::Prefixes;
use crate::tool;

/// A set that takes longer to load counts as not loadable.
const PATIENCE: Duration = Duration::from_secs(60);

/// nftables on a lane's host.
#[derive(Debug)]
pub struct Nft {
    host: Netns,
    interface: String,
}

impl Nft {
    /// nftables in `host`, about the sandbox behind `interface`.
    pub fn new(host: Netns, interface: &str) -> Self {
        Self { host, interface: interface.to_owned() }
    }

    /// Allows `prefixes` and what belongs to connections to them; drops everything else. `false` if that takes
    /// too long; then nothing is installed.
    pub fn install(&self, prefixes: &Prefixes) -> Result<bool> {
        self.run("add table inet bench\ndelete table inet bench\n")?;
        let loaded = self.run(&format!(
            "table inet bench {{
                 set allowed {{ type ipv4_addr; flags interval; elements = {{ {} }} }}
                 chain forward {{
                     type filter hook forward priority filter; policy drop;
                     ct state established,related accept
                     iif {} ip daddr @allowed accept
                 }}
             }}\n",
            prefixes.texts().join(","),
            self.interface
        ))?;
        Ok(loaded.is_some())
    }

    /// What replaces the prefixes, in one transaction.
    pub fn replacement(prefixes: &Prefixes) -> String {
        format!(
            "flush set inet bench allowed\nadd element inet bench allowed {{ {} }}\n",
            prefixes.texts().join(",")
        )
    }

    /// Has `nft` read `script`; how long that took from its start to its end, nothing if it was too long.
    pub fn run(&self, script: &str) -> Result<Option<Duration>> {
        let mut command = self.host.command("nft")?;
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut process = Process::start(command)?;
        let (stdin, stderr) = (process.child().stdin.take(), process.child().stderr.take());
        thread::scope(|scope| {
            scope.spawn(move || {
                // An nft that gives up says why on stderr.
                let _ = stdin.map(|mut stdin| stdin.write_all(script.as_bytes()));
            });
            let stderr = scope.spawn(|| stderr.map(std::io::read_to_string));
            // Its standard error ends when it does: no time is lost by looking now and then.
            while !stderr.is_finished() && begun.elapsed() < PATIENCE {
                thread::sleep(Duration::from_micros(200));
            }
            if !stderr.is_finished() {
                // Ends it, and with it the pipes that the threads wait for.
                drop(process);
                return Ok(None);
            }
            let status = process.child().wait()?;
            let took = begun.elapsed();
            if !status.success() {
                let why = stderr.join().ok().flatten().and_then(Result::ok).unwrap_or_default();
                bail!("nft failed: {}", why.lines().take(3).collect::<Vec<_>>().join(" "));
            }
            Ok(Some(took))
        })
    }
}

/// The version of nft; installs it where it is missing and apt-get is there.
pub fn version() -> Result<String> {
    let ask = || tool::output(Command::new("nft").arg("--version"));
    if let Some(version) = ask()? {
        return Ok(version);
    }
    tool::ensure(&[("nft", "nftables")], "the comparison")?;
    ask()?.context("nft does not say its version")
}

/// Name and number, out of what nft says.
pub fn short_version(text: &str) -> String {
    let number = text.split_whitespace().find(|word| word.starts_with('v'));
    format!("nftables {}", number.unwrap_or_default())
}
