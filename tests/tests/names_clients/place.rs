//! Where the clients are: a sandbox with names in its policy, and the web sites that they ask for.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Ca, Capture, Daemon, Output, Sandbox, Site, Topology, Userland, Visit, Zone};
use serde_json::Value;

use crate::names_support::{CIDR, EVIL, GOOD, ID, PATIENCE, counted, ip, moved, usual_policy, usual_zone};

/// The sandbox, attached with the usual policy.
pub struct Place {
    // Dropped first: it cleans up after itself with the others still there.
    pub daemon: Daemon,
    pub userland: Userland,
    pub sandbox: Sandbox,
    pub zone: Zone,
    pub site: Site,
    pub ca: Ca,
    pub arrived: Capture,
    pub topology: Topology,
}

/// The state before an attempt.
pub struct Before {
    show: Value,
    events: usize,
    visits: usize,
}

impl Place {
    pub fn new() -> Result<Self> {
        Self::with(&usual_policy(), "8.8.8.8")
    }

    /// With another policy, and programs that ask this resolver.
    pub fn with(policy: &Value, resolver: &str) -> Result<Self> {
        let topology = Topology::new()?;
        let sandbox = topology.sandbox(1)?;
        let ca = Ca::new()?;
        let addresses: Vec<&str> = [GOOD, EVIL, CIDR].into_iter().flatten().collect();
        let place = Self {
            daemon: Daemon::start_on(&topology)?,
            userland: Userland::new(resolver, &ca)?,
            zone: usual_zone(&topology)?,
            site: Site::start(topology.internet(), &ca, &addresses)?,
            arrived: topology.capture()?,
            sandbox,
            ca,
            topology,
        };
        place.daemon.attach(ID, &place.sandbox, policy)?;
        Ok(place)
    }

    /// A program in the sandbox.
    pub fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<Command> {
        let mut command = self.userland.command(&self.sandbox, program)?;
        command.args(args);
        Ok(command)
    }

    /// Runs a program in the sandbox.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<Output> {
        Output::of(&mut self.command(program, args)?)
    }

    pub fn before(&self) -> Result<Before> {
        Ok(Before {
            show: self.daemon.show(ID)?,
            events: self.daemon.events()?.len(),
            visits: self.site.visits().len(),
        })
    }

    /// The requests since.
    pub fn visits(&self, before: &Before) -> Vec<Visit> {
        self.site.visits().split_off(before.visits)
    }

    /// As [`Self::ensure_asked`], and nothing was denied.
    pub fn ensure_allowed(&self, before: &Before) -> Result<Vec<Visit>> {
        let visits = self.ensure_asked(before)?;
        self.ensure_nothing_denied(before)?;
        Ok(visits)
    }

    /// Since then the site was asked at the allowed name's own addresses, by clients that named it. The requests are
    /// returned.
    pub fn ensure_asked(&self, before: &Before) -> Result<Vec<Visit>> {
        let visits = self.visits(before);
        ensure!(!visits.is_empty(), "nobody came to the site");
        for visit in &visits {
            let secure = visit.ends.local.port() == 443;
            ensure!(
                GOOD.map(ip).contains(&visit.ends.local.ip())
                    && visit.ends.server_name.as_deref() == secure.then_some("allowed.test")
                    && visit.host == "allowed.test",
                "{visit:?}"
            );
        }
        self.ensure_name_counted(before, "allowed.test")?;
        Ok(visits)
    }

    /// Connections for a name were counted and told since.
    pub fn ensure_name_counted(&self, before: &Before, name: &str) -> Result<()> {
        let now = self.daemon.show(ID)?;
        ensure!(
            counted(&now, "allowed_name") > counted(&before.show, "allowed_name"),
            "no packet was counted as allowed by name"
        );
        self.wait_event(before, |event| {
            event["event"] == "open"
                && event["decision"] == "allow"
                && event["reason"] == "allowed_name"
                && event["serverName"] == name
        })
        .map(drop)
    }

    pub fn ensure_nothing_denied(&self, before: &Before) -> Result<()> {
        let denied = self.denied(before)?;
        ensure!(denied.is_empty(), "{denied:?} were denied");
        Ok(())
    }

    /// The denials that were counted since, by reason.
    pub fn denied(&self, before: &Before) -> Result<Vec<(String, u64)>> {
        moved(&before.show, &self.daemon.show(ID)?)
    }

    /// Since then connections for `denied.test` were denied for this reason and no other, told, and did not arrive.
    pub fn ensure_denied(&self, before: &Before, reason: &str) -> Result<()> {
        let denied = self.denied(before)?;
        ensure!(
            denied.iter().all(|(what, _)| what == reason) && !denied.is_empty(),
            "counted were {denied:?}"
        );
        self.wait_event(before, |event| {
            event["event"] == "deny"
                && event["decision"] == "deny"
                && event["reason"] == reason
                && event["serverName"] == "denied.test"
                && event["proto"] == "tcp"
        })?;
        self.ensure_not_at(&EVIL)?;
        ensure!(self.visits(before).is_empty(), "{:?}", self.visits(before));
        Ok(())
    }

    /// Not a packet has come to these addresses.
    pub fn ensure_not_at(&self, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let frames = self.arrived.frames_to(ip(address))?;
            ensure!(frames == 0, "{frames} frames arrived at {address}");
        }
        Ok(())
    }

    /// The first event since that `wanted` picks.
    pub fn wait_event(&self, before: &Before, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.daemon.events()?.split_off(before.events);
            if let Some(event) = events.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() >= deadline {
                let last: Vec<_> = events.iter().map(Value::to_string).collect();
                anyhow::bail!("no such event:\n{}", last.join("\n"));
            }
            sleep(Duration::from_millis(10));
        }
    }
}

/// What a client printed, all of it.
pub fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// What a client printed, if it succeeded.
pub fn success(output: Output, what: &str) -> Result<String> {
    let said = said(&output);
    output.success().map(|output| output.stdout).with_context(|| format!("{what}: {said}"))
}

/// The same in the words that all of them use, however they write them.
pub fn complaint(output: &Output) -> String {
    said(output).to_lowercase().replace('_', " ")
}
