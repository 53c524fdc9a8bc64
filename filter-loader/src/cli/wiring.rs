//! Where commands reach into the kernel-facing half of the crate.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use super::output::{Human, Printer, Style};
use super::table::Table;
use crate::client::Client;
use crate::config::Config;
use crate::daemon;
use crate::doctor::{self, Finding, Status};
use crate::error::{ControlError, ErrorCode};

/// `run`: the daemon, until it is told to stop.
pub(super) fn run(config: Config) -> Result<ExitCode, ControlError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
    daemon::run(config)?;
    Ok(ExitCode::SUCCESS)
}

/// `doctor`: what this host can do, and what the daemon says of itself if there is one.
pub(super) fn doctor(config: &Config, client: &Client, printer: &Printer) -> Result<ExitCode, ControlError> {
    let mut findings = doctor::of_host(config);
    match client.doctor() {
        Ok(said) => findings.extend(of_daemon(said)?),
        Err(error) if error.code == ErrorCode::Unreachable => {
            findings.push(Finding::new("daemon", Status::Warning, error.message));
        }
        Err(error) => return Err(error),
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Failed);
    printer.print(&Findings { findings })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_daemon(said: Value) -> Result<Vec<Finding>, ControlError> {
    serde_json::from_value(said)
        .map_err(|error| ControlError::failed(format!("the daemon's findings cannot be read: {error}")))
}

#[derive(Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

impl Human for Findings {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let mut table = Table::new(["CHECK", "STATUS", "DETAIL"]);
        for finding in &self.findings {
            table.row([finding.check.clone(), finding.status.name().to_owned(), finding.detail.clone()]);
        }
        table.write(out, style)
    }
}

/// `cleanup`: removes everything from the host, and refuses while sandboxes are attached unless forced.
pub(super) fn cleanup(config: &Config, force: bool, printer: &Printer) -> Result<ExitCode, ControlError> {
    let removed = daemon::cleanup(config, force)?;
    printer.print(&Removed { removed })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Removed {
    removed: Vec<String>,
}

impl Human for Removed {
    fn human(&self, out: &mut dyn Write, _style: Style) -> io::Result<()> {
        if self.removed.is_empty() {
            return writeln!(out, "there was nothing to remove");
        }
        self.removed.iter().try_for_each(|what| writeln!(out, "removed {what}"))
    }
}
