//! The operator's program: how microVMs and containers are plugged in.
//!
//! `COMMAND create` gets `{sandboxID, templateID, metadata, envVars, caCertificate, caBundle}` on standard input and prints
//! `{iface, addrs}` (and `mac`, where it knows it); `COMMAND destroy` gets `{sandboxID, iface}`. It ends with 0, or
//! with its message on standard error. Whatever takes too long is killed, its children too.

use std::{io, net::IpAddr, path::PathBuf, process::Stdio, time::Duration};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use super::{Order, Provider};
use crate::{
    control::Answer,
    error::ControlError,
    netlink::Netlink,
    protocol::{Addrs, Mac, SandboxId},
    sandboxes::record::Port,
    trust::Trust,
};

/// How long the program has.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long its output is waited for once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// The most that is read of what it prints.
const MAX_OUTPUT: u64 = 64 << 10;
/// The most of its message that is passed on.
const MAX_MESSAGE: usize = 1_000;

/// The provider that runs a program.
#[derive(Clone)]
pub struct Exec {
    command: PathBuf,
    /// To put interfaces up; none where interfaces are nobody's business.
    netlink: Option<Netlink>,
    patience: Duration,
    trust: Trust,
}

impl Exec {
    /// A provider that runs `command`.
    pub fn new(command: PathBuf, netlink: Option<Netlink>, trust: Trust) -> Self {
        Self { command, netlink, patience: PATIENCE, trust }
    }

    async fn make(&self, order: &Order) -> Result<Port, ControlError> {
        let input = json!({
            "sandboxID": order.id,
            "templateID": order.template_id,
            "metadata": order.metadata,
            "envVars": order.env_vars,
            "caCertificate": self.trust.certificate(),
            "caBundle": self.trust.bundle(),
        });
        let printed = self.run("create", &input).await?;
        let made: Made = serde_json::from_slice(&printed).map_err(|error| {
            ControlError::failed(format!(
                "the provider did not print {{\"iface\": …, \"addrs\": […]}} at `create`: {error}"
            ))
        })?;
        let refused =
            |why: String| ControlError::failed(format!("the provider made no usable sandbox: {why}"));
        let Addrs::List(addrs) = Addrs::list(made.addrs).map_err(refused)? else {
            return Err(refused("its addresses are not known".to_owned()));
        };
        Ok(Port { iface: made.iface, addrs, mac: made.mac })
    }

    /// Runs the program; gives what it printed.
    async fn run(&self, verb: &str, input: &Value) -> Result<Vec<u8>, ControlError> {
        let program = self.command.display();
        let failed =
            |error: io::Error| ControlError::failed(format!("cannot run the provider {program}: {error}"));
        let mut command = Command::new(&self.command);
        command
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        // It ends with the daemon: what it made after that would be nobody's, since the next one has it destroyed
        // at once. The signal comes with the end of this thread, which is the runtime's and lasts.
        // SAFETY: between fork and exec this is one system call, which is safe there (signal-safety(7)).
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut running = Running(command.spawn().map_err(failed)?);
        let input = input.to_string();
        match timeout(self.patience, running.converse(input.as_bytes())).await {
            Err(_) => {
                running.kill().await;
                let patience = humantime::format_duration(self.patience);
                Err(ControlError::failed(format!("the provider did not finish `{verb}` within {patience}")))
            }
            Ok(Err(error)) => {
                running.kill().await;
                Err(failed(error))
            }
            Ok(Ok(said)) if said.succeeded => Ok(said.stdout),
            Ok(Ok(said)) => {
                let message = String::from_utf8_lossy(&said.stderr);
                let message: String = message.trim().chars().take(MAX_MESSAGE).collect();
                let message = if message.is_empty() { "it gave no reason".to_owned() } else { message };
                Err(ControlError::failed(format!("the provider failed at `{verb}`: {message}")))
            }
        }
    }
}

impl Provider for Exec {
    fn reserve(&self, _id: &SandboxId) -> Result<Option<Port>, ControlError> {
        Ok(None)
    }

    fn adopt(&self, _port: &Port) {}

    fn release(&self, _port: &Port) {}

    fn create(&self, order: Order, _reserved: Option<Port>) -> Answer<'_, Port> {
        Box::pin(async move { self.make(&order).await })
    }

    fn start(&self, port: Port) -> Answer<'_, ()> {
        Box::pin(async move {
            let Some(netlink) = &self.netlink else { return Ok(()) };
            netlink.set_up(&port.iface).await.map_err(|error| {
                ControlError::failed(format!("cannot switch interface {} on: {error}", port.iface))
            })
        })
    }

    fn destroy(&self, id: SandboxId, port: Option<Port>) -> Answer<'_, ()> {
        Box::pin(async move {
            let input = json!({ "sandboxID": id, "iface": port.map(|port| port.iface) });
            self.run("destroy", &input).await.map(drop)
        })
    }
}

/// What the program prints at `create`; it may print more.
#[derive(Deserialize)]
struct Made {
    iface: String,
    addrs: Vec<IpAddr>,
    #[serde(default)]
    mac: Option<Mac>,
}

struct Said {
    succeeded: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

struct Running(Child);

impl Running {
    /// Writes the input and reads what comes back, both at once, until the program ends.
    async fn converse(&mut self, input: &[u8]) -> io::Result<Said> {
        let (stdin, stdout, stderr) = (self.0.stdin.take(), self.0.stdout.take(), self.0.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input may be gone already.
                let _ = stdin.write_all(input).await;
            }
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = {
            let talk = async {
                let ((), read) = tokio::join!(write, async {
                    tokio::try_join!(read_all(stdout, &mut out), read_all(stderr, &mut err))
                });
                read
            };
            let mut talk = std::pin::pin!(talk);
            tokio::select! {
                status = self.0.wait() => {
                    // What it has left running may hold its input and output open; its own end is what counts.
                    let _ = timeout(LAST_WORDS, &mut talk).await;
                    status?
                }
                result = &mut talk => {
                    result?;
                    self.0.wait().await?
                }
            }
        };
        Ok(Said { succeeded: status.success(), stdout: out, stderr: err })
    }

    async fn kill(&mut self) {
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It leads a group of its own; gone already is as good.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.wait().await;
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> io::Result<()> {
    match stream {
        Some(mut stream) => {
            (&mut stream).take(MAX_OUTPUT).read_to_end(into).await?;
            // Who writes more than is of interest shall not fail for it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;
    use crate::config::Config;

    fn provider(script: &str) -> (tempfile::TempDir, Exec) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("provider");
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let exec = Exec {
            patience: Duration::from_millis(800),
            ..Exec::new(path, None, Trust::of(&Config::default()))
        };
        (dir, exec)
    }

    fn order() -> Order {
        Order {
            id: "abc".parse().unwrap(),
            template_id: "base".to_owned(),
            metadata: [("a".to_owned(), "b".to_owned())].into(),
            env_vars: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn create_and_destroy_are_asked_as_documented() {
        let script = r#"cat > $1.json; [ $1 = create ] && echo '{"iface":"tap7","addrs":["10.0.0.7"],"pid":5}'; exit 0"#;
        let (dir, exec) = provider(script);
        let port = exec.create(order(), None).await.unwrap();
        assert_eq!((port.iface.as_str(), port.addrs.len(), port.mac), ("tap7", 1, None));
        exec.destroy("abc".parse().unwrap(), Some(port)).await.unwrap();
        let asked = |verb: &str| -> Value {
            serde_json::from_slice(&fs::read(dir.path().join(format!("{verb}.json"))).unwrap()).unwrap()
        };
        assert_eq!(
            asked("create"),
            json!({
                "sandboxID": "abc", "templateID": "base", "metadata": { "a": "b" }, "envVars": {},
                "caCertificate": "/run/sandbox-filter/trust/ssl/sandbox-filter-ca.pem",
                "caBundle": "/run/sandbox-filter/trust/ssl/certs/ca-certificates.crt",
            })
        );
        assert_eq!(asked("destroy"), json!({ "sandboxID": "abc", "iface": "tap7" }));
    }

    #[tokio::test]
    async fn failures_say_why() {
        for (script, why) in [
            ("echo 'no image for this' >&2; exit 3", "failed at `create`: no image for this"),
            ("exit 1", "it gave no reason"),
            ("echo nonsense", "did not print"),
            ("echo '{\"iface\":\"t\",\"addrs\":[]}'", "no usable sandbox"),
            ("echo '{\"iface\":\"t\",\"addrs\":[\"127.0.0.1\"]}'", "no usable sandbox"),
        ] {
            let (_dir, exec) = provider(script);
            let error = exec.create(order(), None).await.unwrap_err();
            assert!(error.message.contains(why), "{script}: {}", error.message);
        }
        let missing = Exec::new("/nowhere/at/all".into(), None, Trust::of(&Config::default()));
        assert!(missing.create(order(), None).await.unwrap_err().message.contains("cannot run the provider"));
    }

    #[tokio::test]
    async fn what_hangs_is_killed_with_its_children() {
        let (dir, exec) = provider("sleep 1000 & echo $! > child; wait");
        let begun = Instant::now();
        let error = exec.create(order(), None).await.unwrap_err();
        assert!(error.message.contains("did not finish `create` within 800ms"), "{}", error.message);
        assert!(begun.elapsed() < Duration::from_secs(5));
        let child: i32 = fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
        let gone = || {
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the child is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_says_too_much_is_heard_out_and_garbage_is_not_a_sandbox() {
        let (_dir, exec) =
            provider("head -c 1000000 /dev/zero >&2; echo '{\"iface\":\"tap7\",\"addrs\":[\"10.0.0.7\"]}'");
        assert!(exec.create(order(), None).await.is_ok());
        let (_dir, exec) =
            provider("head -c 1000000 /dev/zero; echo '{\"iface\":\"tap7\",\"addrs\":[\"10.0.0.7\"]}'");
        assert!(exec.create(order(), None).await.unwrap_err().message.contains("did not print"));
        let (_dir, exec) = provider("yes");
        assert!(exec.create(order(), None).await.unwrap_err().message.contains("did not finish"));
    }

    #[tokio::test]
    async fn input_that_nobody_reads_does_not_hold_it_up() {
        let (_dir, exec) = provider("sleep 3 <&0 & echo '{\"iface\":\"tap7\",\"addrs\":[\"10.0.0.7\"]}'");
        let long = Order { env_vars: [("A".to_owned(), "x".repeat(1 << 20))].into(), ..order() };
        assert!(exec.create(long, None).await.is_ok());
    }

    #[tokio::test]
    async fn what_it_leaves_running_does_not_hold_it_up() {
        let (_dir, exec) = provider("sleep 3 & echo '{\"iface\":\"tap7\",\"addrs\":[\"10.0.0.7\"]}'");
        let begun = Instant::now();
        assert!(exec.create(order(), None).await.is_ok());
        assert!(begun.elapsed() < Duration::from_millis(1500));
    }
}
