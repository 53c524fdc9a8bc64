//! The binary under test: the daemon, and its command line.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::janitor;
use crate::netns::Netns;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::topology::Topology;

/// Names the binary, where it is not the newest of `target/{debug,release}/sandbox-filter`.
const BINARY: &str = "SANDBOX_FILTER_BIN";
/// No command may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon on a topology's host, with paths of its own. Dropping it stops it and cleans up after it.
#[derive(Debug)]
pub struct Daemon {
    host: Netns,
    binary: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

/// What a daemon is started with.
#[derive(Debug)]
pub struct DaemonBuilder {
    host: Netns,
    binary: Option<PathBuf>,
    config: Vec<String>,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl DaemonBuilder {
    /// Adds to the configuration, TOML; what it names replaces what is there.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push(toml.to_owned());
        self
    }

    /// Runs this binary.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(self) -> Result<Daemon> {
        let binary = self.binary.map_or_else(find_binary, Ok)?;
        let name = janitor::fresh_name("daemon");
        let daemon = Daemon {
            host: self.host,
            binary,
            directory: Path::new(janitor::RUN).join(&name),
            pins: Path::new(janitor::BPFFS).join(&name),
            process: None,
        };
        janitor::note(&daemon.directory);
        janitor::note(&daemon.pins);
        let mut daemon = daemon;
        fs::create_dir_all(&daemon.directory)
            .with_context(|| format!("cannot create {}", daemon.directory.display()))?;
        daemon.write_config(&self.config)?;
        daemon.start()?;
        Ok(daemon)
    }
}

impl Daemon {
    /// A daemon with the default configuration.
    pub fn start_on(topology: &Topology) -> Result<Self> {
        Self::on(topology).start()
    }

    /// A daemon with more.
    pub fn on(topology: &Topology) -> DaemonBuilder {
        DaemonBuilder { host: topology.host().clone(), binary: None, config: Vec::new() }
    }

    /// Attaches a sandbox with its addresses; the policy is enforced when this returns.
    pub fn attach(&self, id: &str, sandbox: &Sandbox, policy: &Value) -> Result<Value> {
        self.attach_interface(
            id,
            sandbox.host_interface(),
            &[sandbox.v4().into(), sandbox.v6().into()],
            &sandbox.mac_text(),
            policy,
        )
    }

    /// Attaches an interface.
    pub fn attach_interface(
        &self,
        id: &str,
        interface: &str,
        addresses: &[IpAddr],
        mac: &str,
        policy: &Value,
    ) -> Result<Value> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut args = vec!["attach", id, "--iface", interface, "--mac", mac, "--policy", "-", "--json"];
        args.extend(addresses.iter().flat_map(|address| ["--addr", address]));
        self.cli_with_input(&args, &policy.to_string())?.json()
    }

    /// Replaces the policy of a sandbox; it is enforced when this returns.
    pub fn update(&self, id: &str, policy: &Value) -> Result<()> {
        self.cli_with_input(&["update", id, "--policy", "-"], &policy.to_string())?.success().map(drop)
    }

    /// What `show ID --json` prints.
    pub fn show(&self, id: &str) -> Result<Value> {
        self.cli_json(&["show", id])
    }

    /// Packets that `show` counts for a reason; 0 where it is not named.
    pub fn packets(&self, id: &str, reason: &str) -> Result<u64> {
        let show = self.show(id)?;
        Ok(show.pointer(&format!("/counters/{reason}/packets")).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Runs a command against this daemon, on the host.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        self.cli_with_input(args, "")
    }

    /// Runs a command with `--json` and parses what it prints; it must succeed.
    pub fn cli_json(&self, args: &[&str]) -> Result<Value> {
        self.cli(&[args, &["--json"]].concat())?.json()
    }

    /// Runs a command that reads `input`.
    pub fn cli_with_input(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(args)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::start(command)?;
        let child = process.child();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            // Both pipes at once, so that neither fills up.
            let stdout = scope.spawn(|| stdout.map(std::io::read_to_string));
            let stderr = scope.spawn(|| stderr.map(std::io::read_to_string));
            if let Some(mut stdin) = stdin {
                // A command that does not read its input may be gone already.
                let _ = stdin.write_all(input.as_bytes());
            }
            let status = process.wait(PATIENCE);
            // Ends a command that ran out of time, and with it the pipes that are being read.
            drop(process);
            let text = |reader: thread::ScopedJoinHandle<'_, Option<std::io::Result<String>>>| {
                reader.join().ok().flatten().and_then(Result::ok).unwrap_or_default()
            };
            let (stdout, stderr) = (text(stdout), text(stderr));
            let status = status.with_context(|| format!("sandbox-filter {}: {stderr}", args.join(" ")))?;
            Ok(Output { code: status.code().unwrap_or(-1), stdout, stderr })
        })
    }

    /// A command against this daemon that goes on, such as `observe --follow`.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.host.command(&self.binary)?;
        command.arg("--config").arg(self.config()).args(args).env("SANDBOX_FILTER_SOCKET", self.socket());
        Ok(command)
    }

    /// The events so far, oldest first.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(self.directory.join("events.jsonl")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.context("cannot read the events")?,
        };
        // The last line may be half written.
        let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("an event is no JSON: {line}")))
            .collect()
    }

    /// The first event that `wanted` picks, past or within `timeout`.
    pub fn wait_event(&self, wanted: impl Fn(&Value) -> bool, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let events = self.events()?;
            if let Some(event) = events.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() >= deadline {
                let last = events.iter().rev().take(5).rev().map(Value::to_string).collect::<Vec<_>>();
                bail!("no such event within {timeout:?}; the last of {}:\n{}", events.len(), last.join("\n"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the daemon said on stderr, in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.toml")
    }

    /// The API on the control socket.
    pub fn api(&self) -> crate::Api {
        crate::Api::on(self.socket())
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Where state is kept.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where programs and maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The daemon's process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Starts the daemon (again), and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the daemon is running");
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&["run"])?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C is for the one who started it, who then stops the daemon in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = Process::start(command)?;

        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = process.ended()? {
                bail!("the daemon ended at once ({status}):\n{}", self.log());
            }
            if Instant::now() >= deadline {
                bail!("the daemon does not answer within {PATIENCE:?}:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Stops the daemon in order (SIGTERM). It is an error when it has to be killed.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE).with_context(|| format!("the daemon does not stop:\n{}", self.log()))?;
        Ok(())
    }

    /// Kills the daemon, as a crash would.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.take().context("the daemon is not running")?.kill().context("cannot kill the daemon")
    }

    /// Stops and starts.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("daemon.log")
    }

    fn write_config(&self, more: &[String]) -> Result<()> {
        let own = format!(
            "[paths]\nstate_dir = {:?}\nbpffs_dir = {:?}\nsocket = {:?}\n\
             [events]\njsonl = {:?}\n\
             [dns]\nupstream = [\"8.8.8.8:53\"]\n",
            self.state_dir(),
            self.pins,
            self.socket(),
            self.directory.join("events.jsonl"),
        );
        let mut config: toml::Table = own.parse().context("the own configuration")?;
        for more in more {
            merge(&mut config, more.parse().context("the test's configuration")?);
        }
        fs::write(self.config(), config.to_string()).context("cannot write the configuration")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("warning: {error:#}");
        }
        // Rules and routes go with the namespace, pins with their directory: nothing is left if this fails.
        match self.cli(&["cleanup", "--force"]) {
            Ok(output) if output.code != 0 => eprintln!("warning: cleanup: {}", output.stderr.trim()),
            Err(error) => eprintln!("warning: cleanup: {error:#}"),
            Ok(_) => {}
        }
        for path in [&self.pins, &self.directory] {
            if let Err(error) = janitor::remove(path) {
                eprintln!("warning: cannot remove {}: {error}", path.display());
            }
        }
    }
}

impl Output {
    /// This, if the command succeeded.
    pub fn success(self) -> Result<Self> {
        ensure!(self.code == 0, "the command ended with {}: {}{}", self.code, self.stderr, self.stdout);
        Ok(self)
    }

    /// What a command that succeeded printed.
    pub fn json(self) -> Result<Value> {
        let output = self.success()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("that is no JSON: {}", output.stdout))
    }
}

/// The newest build, unless the environment names one.
fn find_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY) {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["debug", "release"].map(|profile| target.join(profile).join("sandbox-filter"));
    built
        .into_iter()
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("no sandbox-filter is built: run `cargo xtask test`, or set {BINARY}"))
}

/// Lays `more` over `base`, table by table.
fn merge(base: &mut toml::Table, more: toml::Table) {
    for (key, value) in more {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(more)) => merge(base, more),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}
