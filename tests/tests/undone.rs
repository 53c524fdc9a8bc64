//! Operations that cannot be done whole, nor undone: what is left stays whose it was until it is cleaned up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

#[path = "support_b/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Daemon, Service, Topology};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use support::{A, B, Control, PATIENCE, all_but, eventually, only};

/// Something mounted over a directory, which cannot be removed then, nor what it hides.
struct Cover(PathBuf);

impl Cover {
    fn over(directory: &Path) -> Result<Self> {
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        // Whoever looks for what is left of the test finds it.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_attach_that_cannot_be_undone_keeps_its_place_until_it_is_detached() -> Result<()> {
    let topology = Topology::new()?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let daemon = Arc::new(Daemon::start_on(&topology)?);
    let control = Control::of(&daemon);
    let (sandbox, second) = (topology.sandbox(1)?, topology.sandbox(2)?);

    // Writing the sandbox down waits for a reader, and then fails: a pipe has nothing to write to a disk.
    let pipe = daemon.state_dir().join("sandboxes/.one.new");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU)?;
    let attach =
        ["attach", "one", "--iface", sandbox.host_interface(), "--addr", "10.200.1.2", "--policy", "-"];
    let attaching = thread::spawn({
        let (daemon, attach) = (Arc::clone(&daemon), attach.map(str::to_owned));
        move || daemon.cli_with_input(&attach.each_ref().map(String::as_str), &only(&[A]).to_string())
    });
    let links = daemon.pins().join("links/one");
    eventually("both programs are attached", PATIENCE, || {
        Ok(fs::read_dir(&links).is_ok_and(|links| links.count() == 2))
    })?;
    let cover = Cover::over(&links)?;
    drop(fs::File::open(&pipe)?);
    let attached = attaching.join().unwrap()?;
    ensure!(attached.code == 1, "{attached:?}");
    ensure!(
        attached.stderr.contains("cannot be undone") && attached.stderr.contains("Detach one"),
        "{attached:?}"
    );

    // Nobody else gets its name or its interface; a new sandbox is judged by its own policy alone.
    ensure!(daemon.cli_with_input(&attach, "{}")?.code == 4, "its name was free");
    let same_interface = attach.map(|word| if word == "one" { "three" } else { word });
    ensure!(daemon.cli_with_input(&same_interface, "{}")?.code == 4, "its interface was free");
    control.attach("two", &second, &all_but(&[A]))?;
    let refused = |sandbox: &filter_tests::Sandbox, to| !sandbox.tcp_connect((to, 7), PATIENCE).is_ok();
    ensure!(refused(&sandbox, B), "its policy is no longer in force");
    ensure!(refused(&second, A) && !refused(&second, B), "the other's policy is not in force");
    let (one, two) = (control.show("one")?, control.show("two")?);
    ensure!(support::packets(&one, "denied_cidr")? > 0, "{one}");
    ensure!(support::packets(&two, "denied_cidr")? == 1, "{two}");
    ensure!(daemon.cli(&["detach", "one"])?.code == 1, "it could be detached all the same");

    // What was in the way has gone.
    drop(cover);
    daemon.cli(&["detach", "one"])?.success()?;
    ensure!(!links.exists(), "links are left");
    ensure!(!refused(&sandbox, B), "it is filtered still");
    fs::remove_file(&pipe).or_else(|error| if pipe.exists() { Err(error) } else { Ok(()) })?;
    daemon.cli_with_input(&attach, &only(&[A]).to_string())?.success()?;
    ensure!(refused(&sandbox, B) && !refused(&sandbox, A), "the new policy is not in force");
    ensure!(support::generation(&control.show("one")?)? == 1, "it starts from something");
    control.show("two").context("the other one is gone").map(drop)
}
