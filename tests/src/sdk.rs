//! E2B's SDKs as their registries have them, each in a process of its own that does what it is told, line by line.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::installed::{node, python};
use crate::netns::Netns;
use crate::process::Process;

const PYTHON: &str = include_str!("sdk/driver.py");
const JAVASCRIPT: &str = include_str!("sdk/driver.mjs");

/// Which SDK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SdkKind {
    /// PyPI `e2b` of this version.
    Python(&'static str),
    /// npm `e2b` of this version.
    JavaScript(&'static str),
}

/// An SDK that waits for orders, in a namespace.
#[derive(Debug)]
pub struct Sdk {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What an SDK threw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thrown {
    /// The class and those above it.
    pub classes: Vec<String>,
    /// Its text.
    pub message: String,
}

impl SdkKind {
    /// Those that must work unmodified.
    pub const ALL: [Self; 3] = [Self::Python("2.63.0"), Self::Python("2.45.1"), Self::JavaScript("2.51.0")];

    /// A Python and a JavaScript one.
    pub const BOTH_LANGUAGES: [Self; 2] = [Self::Python("2.63.0"), Self::JavaScript("2.51.0")];

    /// Starts it inside `netns`, pointed at an API there.
    pub fn start(self, netns: &Netns, api_url: &str, key: &str) -> Result<Sdk> {
        let mut command = match self {
            Self::Python(version) => {
                let home = python(&format!("e2b-{version}"), &[&format!("e2b=={version}")])?;
                let mut command = netns.command(home.join("bin/python"))?;
                command.args(["-u", "-c", PYTHON]);
                command
            }
            Self::JavaScript(version) => {
                let home = javascript(version)?;
                let mut command = netns.command("node")?;
                command.current_dir(&home).arg("driver.mjs");
                command
            }
        };
        command
            .env("E2B_API_URL", api_url)
            .env("E2B_SANDBOX_URL", "http://127.0.0.1:8080")
            .env("E2B_DOMAIN", "sandbox.localhost")
            .env("E2B_API_KEY", key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(command)?;
        let child = process.child();
        let orders = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Sdk { process, orders, answers })
    }
}

impl Sdk {
    /// Has it do something: what it returns, or what it throws.
    pub fn call(&mut self, order: &str, arguments: Value) -> Result<Result<Value, Thrown>> {
        writeln!(self.orders, "{}", json!({ "do": order, "with": arguments }))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the SDK's process ended: {:?}", self.process.ended()?);
        let mut answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let Some(thrown) = answer.get("thrown") else { return Ok(Ok(answer["returned"].take())) };
        let classes = thrown["classes"].as_array().into_iter().flatten();
        Ok(Err(Thrown {
            classes: classes.filter_map(Value::as_str).map(str::to_owned).collect(),
            message: thrown["message"].as_str().unwrap_or_default().to_owned(),
        }))
    }

    /// Has it do something that must work.
    pub fn must(&mut self, order: &str, arguments: Value) -> Result<Value> {
        self.call(order, arguments.clone())?
            .map_err(|thrown| anyhow::anyhow!("{order} with {arguments} threw {thrown:?}"))
    }
}

fn javascript(version: &str) -> Result<PathBuf> {
    let home = node(&format!("e2b-{version}"), &[&format!("e2b@{version}")])?;
    // Of this build, not of the one that installed it; tests run side by side, so in one piece.
    let (new, driver) = (home.join(format!(".driver-{}", std::process::id())), home.join("driver.mjs"));
    fs::write(&new, JAVASCRIPT)?;
    fs::rename(new, driver)?;
    Ok(home)
}
