//! `top` on a terminal: what is drawn is what sandboxes do.

mod support_b;

use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use filter_tests::{Daemon, Process, Service, Topology};
use nix::pty::{Winsize, openpty};
use serde_json::json;

use support_b::{A, B, PATIENCE, eventually, reaches};

const ROWS: NonZeroU16 = NonZeroU16::new(24).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(110).unwrap();

/// A program on a terminal of its own.
struct OnTerminal {
    process: Process,
    keys: std::fs::File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl OnTerminal {
    fn start(daemon: &Daemon, args: &[&str]) -> Result<Self> {
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None)?;
        let end = || -> Result<Stdio> { Ok(OwnedFd::try_clone(&pty.slave)?.into()) };
        let mut command = daemon.command(args)?;
        command.env("TERM", "xterm-256color").stdin(end()?).stdout(end()?).stderr(end()?);
        let process = Process::start(command)?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let (drawn, keys) = (screen.clone(), std::fs::File::from(pty.master));
        let mut output = keys.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends when the program has.
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                drawn.lock().unwrap_or_else(PoisonError::into_inner).process(&buffer[..count]);
            }
        });
        Ok(Self { process, keys, screen })
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen().contents()
    }

    fn shows(&self, parts: &[&str]) -> Result<()> {
        eventually("it is drawn", PATIENCE * 2, || Ok(parts.iter().all(|part| self.text().contains(part))))
            .with_context(|| format!("{parts:?} on\n{}", self.text()))
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }
}

#[test]
fn the_terminal_shows_what_sandboxes_do_as_they_do_it() -> Result<()> {
    let topology = Topology::new()?;
    let (sandbox, quiet) = (topology.sandbox(1)?, topology.sandbox(2)?);
    let daemon = Daemon::start_on(&topology)?;
    let policy = json!({ "allowOut": [A], "denyOut": ["0.0.0.0/0"], "limits": { "egressConnections": 4 } });
    daemon.attach("busy", &sandbox, &policy)?;
    daemon.attach("quiet", &quiet, &json!({}))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let mut top = OnTerminal::start(&daemon, &["top"])?;
    top.shows(&["2 sandboxes", "busy", "quiet", "0/4", "0/2500", "nothing is denied", "by denied"])?;

    let _open: Vec<_> =
        (0..3).map(|_| sandbox.tcp_connect((A, 7), PATIENCE).result).collect::<std::io::Result<_>>()?;
    top.shows(&["3/4", "########..", "3 connections"])?;
    // Something is denied whenever it looks.
    let denied = eventually("denials are drawn", PATIENCE * 2, || {
        assert!(!reaches(&sandbox, (B, 7))?);
        Ok(top.text().contains("denied_cidr"))
    });
    denied.with_context(|| top.text())?;
    println!("{}", top.text());

    top.press("s")?;
    top.shows(&["by connections"])?;
    assert!(top.process.ended()?.is_none());
    top.press("q")?;
    assert!(top.process.wait(PATIENCE)?.success());
    Ok(())
}

#[test]
fn without_a_terminal_or_a_daemon_it_says_so() -> Result<()> {
    let topology = Topology::new()?;
    let mut daemon = Daemon::start_on(&topology)?;
    let piped = daemon.cli(&["top"])?;
    assert!(piped.code == 2 && piped.stderr.contains("stats --json"), "{piped:?}");
    daemon.stop()?;
    let mut alone = OnTerminal::start(&daemon, &["top"])?;
    assert_eq!(alone.process.wait(PATIENCE)?.code(), Some(5));
    Ok(())
}
