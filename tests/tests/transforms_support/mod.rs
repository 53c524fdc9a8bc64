//! What the tests of set headers share: a sandbox whose policy has rules, servers that the filter has reason to
//! believe, and a look at everything that the daemon says.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test says that something is wrong")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use filter_tests::{
    Ca, Capture, Daemon, Netns, Sandbox, SecureServer, TlsClient, Topology, WebServer, Zone, connect,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::names_support::timed::Control;
use crate::names_support::{self, EVIL, GOOD, ID, PATIENCE, at};

/// What nobody but the server may learn.
pub const KEY: &str = "sk-4fJ7wQ9zK2xV8mT1bN6cR3";

/// A sandbox, attached as [`ID`], with an HTTPS server and a plain one behind the names of the zone.
pub struct Stage {
    // Dropped first: it cleans up after itself with the others still there.
    pub daemon: Daemon,
    pub control: Control,
    pub sandbox: Sandbox,
    pub zone: Zone,
    pub web: WebServer,
    pub secure: SecureServer,
    /// The authority that the filter trusts.
    pub ca: Ca,
    pub arrived: Capture,
    pub topology: Topology,
    trusted: Scratch,
    secrets: PathBuf,
}

/// A rule that sets headers.
pub fn rule(headers: Value) -> Value {
    json!([{ "transform": { "headers": headers } }])
}

/// A policy of rules alone.
pub fn rules(rules: &[(&str, Value)]) -> Value {
    let rules: Map<String, Value> =
        rules.iter().map(|(host, rule)| ((*host).to_owned(), rule.clone())).collect();
    json!({ "rules": rules })
}

/// A policy that allows these names alone, with rules.
pub fn allowing(names: &[&str], rules: &[(&str, Value)]) -> Value {
    let mut policy = self::rules(rules);
    policy["allowOut"] = json!(names);
    policy["denyOut"] = json!(["0.0.0.0/0"]);
    policy
}

impl Stage {
    pub fn with(policy: &Value) -> Result<Self> {
        let topology = Topology::new()?;
        let sandbox = topology.sandbox(1)?;
        let zone = names_support::usual_zone(&topology)?;
        for (name, addresses) in
            [("other.test", &EVIL), ("expired.test", &GOOD), ("wrong.test", &GOOD), ("stranger.test", &GOOD)]
        {
            zone.set(name, addresses)?;
        }
        let ca = Ca::new()?;
        let secure = SecureServer::start(topology.internet(), &ca, 443)?;
        let web = WebServer::start(topology.internet(), 80)?;
        let trusted = file(ca.pem().as_bytes())?;
        let secrets = trusted.path().with_extension("secrets").join("in");
        fs::create_dir_all(&secrets)?;
        let config = format!(
            "[timeouts]\ntcp_closing = \"1s\"\n[transform]\nupstream_ca = {:?}\nsecrets_dir = {:?}\n",
            trusted.path(),
            secrets.as_path()
        );
        let daemon = Daemon::on(&topology).config(&config).start()?;
        daemon.attach(ID, &sandbox, policy)?;
        let arrived = topology.capture()?;
        let control = Control::of(&daemon);
        Ok(Self { daemon, control, sandbox, zone, web, secure, ca, arrived, topology, trusted, secrets })
    }

    pub fn update(&self, policy: &Value) -> Result<()> {
        self.control.update(ID, policy).map(drop)
    }

    pub fn show(&self) -> Result<Value> {
        self.control.show(ID)
    }

    /// The directory of secrets.
    pub fn secrets(&self) -> &Path {
        &self.secrets
    }

    /// What sandboxes must trust.
    pub fn authority(&self) -> Result<String> {
        Ok(self.daemon.cli(&["ca", "export"])?.success()?.stdout)
    }

    /// That, and what the servers' own certificates are from.
    pub fn both_authorities(&self) -> Result<String> {
        Ok(self.authority()? + &self.ca.pem())
    }

    /// A TLS client in the sandbox that trusts the filter's authority alone.
    pub fn connect(&self, name: &str) -> Result<TlsClient> {
        connect(&self.sandbox, at(GOOD[0], 443), name, &self.authority()?, PATIENCE)
    }

    /// Says something to a host and gives all that it answers.
    pub fn tell(&self, name: &str, request: &str) -> Result<String> {
        let mut client = self.connect(name)?;
        std::io::Write::write_all(&mut client, request.as_bytes())?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).context("no end")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// What curl prints in the sandbox, trusting the filter's authority alone.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        self.curl_trusting(&self.authority()?, args)
    }

    /// The same, as bytes.
    pub fn curl_bytes(&self, args: &[&str]) -> Result<Vec<u8>> {
        let pem = file(self.authority()?.as_bytes())?;
        let output = curl(&self.sandbox, pem.path(), args)?.output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// What curl prints in the sandbox, trusting these.
    pub fn curl_trusting(&self, pem: &str, args: &[&str]) -> Result<String> {
        let (code, out, complaint) = self.try_curl(pem, args)?;
        ensure!(code == 0, "{args:?}: {code}, {complaint}{}", self.daemon.log());
        Ok(out)
    }

    /// curl's exit code, what it printed and what it complained of.
    pub fn try_curl(&self, pem: &str, args: &[&str]) -> Result<(i32, String, String)> {
        let pem = file(pem.as_bytes())?;
        let output = curl(&self.sandbox, pem.path(), args)?.output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// The first event that `wanted` picks.
    pub fn event(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.daemon.wait_event(wanted, PATIENCE)
    }

    /// Nothing that the daemon says has the secret in it: neither commands nor log, nor any file of its own but the
    /// policy that it was given.
    pub fn keeps_the_secret(&self) -> Result<()> {
        let mut said = vec![("the log".to_owned(), self.daemon.log())];
        for args in [&["show", ID][..], &["list"], &["stats"], &["doctor"], &["show", ID, "--tokens"]] {
            for format in ["table", "json"] {
                let output = self.daemon.cli(&[args, &["-o", format]].concat())?;
                said.push((format!("{args:?}"), output.stdout + &output.stderr));
            }
        }
        let directory = self.daemon.state_dir();
        let directory = directory.parent().context("no directory")?;
        let given = self.daemon.state_dir().join("sandboxes");
        for path in files(directory)? {
            if path.parent() != Some(&given) {
                said.push((
                    path.display().to_string(),
                    String::from_utf8_lossy(&fs::read(&path)?).into_owned(),
                ));
            }
        }
        ensure!(
            said.iter().any(|(what, text)| what.ends_with("jsonl") && text.contains("serverName")),
            "no events"
        );
        for (what, text) in said {
            ensure!(!text.contains(KEY), "{what} has the secret: {text}");
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(parent) = self.secrets.parent() {
            let _ = fs::remove_dir_all(parent);
        }
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn curl(netns: &Netns, pem: &Path, args: &[&str]) -> Result<Command> {
    let mut command = netns.command("curl")?;
    command.args(["-sS", "--max-time", "8", "--noproxy", "*", "--cacert"]).arg(pem).args(args);
    for port in [80, 443] {
        command.args(["--resolve", &format!("*:{port}:{}", GOOD[0])]);
    }
    Ok(command)
}

/// A file that goes with whoever holds it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // One that is gone already need not go.
        let _ = fs::remove_file(&self.0);
    }
}

/// A file with this in it.
pub fn file(content: &[u8]) -> Result<Scratch> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("filter-transforms-{}-{number}", std::process::id()));
    fs::write(&path, content)?;
    Ok(Scratch(path))
}

/// Everything that is said up to these bytes.
pub fn until(client: &mut impl Read, end: &[u8]) -> Result<String> {
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(end) {
        match client.read(&mut byte) {
            Ok(0) => bail!("it ended: {}", String::from_utf8_lossy(&heard)),
            Ok(_) => heard.extend(byte),
            Err(error) => bail!("{error}: {}", String::from_utf8_lossy(&heard)),
        }
    }
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// Kills the daemon so that the kernel would write its memory down, and makes sure that it does not.
pub fn dies_without_a_core(stage: Stage) -> Result<()> {
    // Whoever lets a core be written gets one, or this would prove nothing.
    let mut other = Command::new("sleep");
    let limits = || setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX).map_err(std::io::Error::from);
    // SAFETY: a system call, which is fine between fork and exec.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut other, limits) };
    let directory = stage.secrets().parent().context("no directory")?.to_owned();
    let other = other.arg("60").current_dir(&directory).spawn()?;
    ensure!(
        dumps_core(i32::try_from(other.id())?)?,
        "this host writes no core at all: see kernel.core_pattern"
    );
    let daemon = i32::try_from(stage.daemon.id().context("no daemon")?)?;
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limits are read, and nothing is written.
    let raised =
        unsafe { libc::prlimit(daemon, libc::RLIMIT_CORE, &raw const unlimited, std::ptr::null_mut()) };
    ensure!(raised == 0, "cannot raise the limit");
    ensure!(!dumps_core(daemon)?, "the daemon left a core");
    Ok(())
}

fn dumps_core(pid: i32) -> Result<bool> {
    kill(Pid::from_raw(pid), Signal::SIGABRT)?;
    let ended = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let WaitStatus::Signaled(_, Signal::SIGABRT, core) = ended else {
        bail!("it ended otherwise: {ended:?}")
    };
    Ok(core)
}
