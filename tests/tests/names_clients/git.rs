//! git, over HTTPS by name and over SSH by address.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Netns, Output, Process, program};

use crate::names_support::timed::eventually;
use crate::names_support::{CIDR, EVIL, ID, PATIENCE, at, counted, ip};
use crate::place::{Place, said, success};

/// Makes a bare repository with one commit.
fn make_repository(place: &Place) -> Result<std::path::PathBuf> {
    let root = place.userland.home().join("repositories");
    let script = r#"
        git init -q -b main work && cd work && echo hello > file && git add file
        git -c user.name=a -c user.email=a@allowed.test commit -qm first
        mkdir -p "$1" && git clone -q --bare . "$1/project.git"
        git -C "$1/project.git" config http.receivepack true
    "#;
    let mut command = place.command("sh", &["-ec", script, "sh"])?;
    success(Output::of(command.arg(&root))?, "making a repository")?;
    place.site.repositories(&root);
    Ok(root)
}

/// Clones, commits and pushes.
const EDIT: &str = r#"
    git clone -q "$1" "$2" && cd "$2" && cat file && echo more >> file
    git -c user.name=a -c user.email=a@allowed.test commit -qam "from $2"
    git push -q origin main && git log --format=%s
"#;

fn has_commit(repository: &Path, subject: &str) -> Result<()> {
    let mut log = Command::new(program("git")?);
    log.args(["-c", "safe.directory=*", "-C"]).arg(repository).args(["log", "--format=%s", "main"]);
    let log = success(Output::of(&mut log)?, "git log")?;
    ensure!(log.lines().any(|line| line == subject), "{log}");
    Ok(())
}

#[test]
fn git_over_https() -> Result<()> {
    let place = Place::new()?;
    let root = make_repository(&place)?;
    let before = place.before()?;
    let edit = |url: &str, to: &str| place.run("sh", &["-ec", EDIT, "sh", url, to]);
    let log = success(edit("https://allowed.test/git/project.git", "https")?, "clone and push")?;
    ensure!(log == "hello\nfrom https\nfirst\n", "{log}");
    has_commit(&root.join("project.git"), "from https")?;
    let visits = place.ensure_allowed(&before)?;
    ensure!(visits.iter().any(|visit| visit.path.ends_with("/git-receive-pack")), "{visits:?}");

    let before = place.before()?;
    let output = edit("https://denied.test/git/project.git", "denied")?;
    let told = said(&output);
    ensure!(output.code != 0 && told.contains("unable to access 'https://denied.test/"), "{told}");
    ensure!(
        told.contains("server name sent was not recognized") || told.contains("unrecognized name"),
        "{told}"
    );
    place.ensure_denied(&before, "name_not_allowed")
}

#[test]
fn git_over_ssh() -> Result<()> {
    let place = Place::new()?;
    let root = make_repository(&place)?;
    let _server = ssh_server(place.topology.internet(), &place.userland.home())?;
    let ssh = "ssh -i $HOME/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    let edit = |address: &str, to: &str| {
        let url = format!("ssh://root@{}{}/project.git", bracketed(address), root.display());
        let script = format!("export GIT_SSH_COMMAND=\"{ssh}\"\n{EDIT}");
        place.run("sh", &["-ec", &script, "sh", &url, to])
    };
    let before = place.before()?;
    for (address, to) in CIDR.into_iter().zip(["ssh-4", "ssh-6"]) {
        let log = success(edit(address, to)?, to)?;
        ensure!(log.contains(&format!("from {to}\n")), "{log}");
        has_commit(&root.join("project.git"), &format!("from {to}"))?;
        ensure!(place.arrived.tcp_frames_to(at(address, 22))? > 0);
    }
    ensure!(counted(&place.daemon.show(ID)?, "allowed_cidr") > 0);
    place.ensure_nothing_denied(&before)?;

    let before = place.before()?;
    let output = edit(EVIL[0], "denied")?;
    ensure!(output.code != 0 && said(&output).contains("Connection refused"), "{}", said(&output));
    place.wait_event(&before, |event| {
        event["event"] == "deny"
            && event["reason"] == "denied_cidr"
            && event["dst"] == EVIL[0]
            && event["dport"] == 22
    })?;
    ensure!(place.arrived.frames_to(ip(EVIL[0]))? == 0);
    Ok(())
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// An SSH server, and the directory that it keeps its unprivileged half in (sshd(8)) if that was not there.
struct SshServer {
    _process: Process,
    made_directory: bool,
}

const EMPTY: &str = "/run/sshd";

impl Drop for SshServer {
    fn drop(&mut self) {
        if self.made_directory {
            // An empty directory harms nobody.
            let _ = fs::remove_dir(EMPTY);
        }
    }
}

/// An SSH server that lets the holder of `key` in `home` in.
fn ssh_server(netns: &Netns, home: &Path) -> Result<SshServer> {
    let made_directory = fs::create_dir(EMPTY).is_ok();
    for key in ["key", "host-key"] {
        let mut keygen = Command::new(program("ssh-keygen")?);
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(home.join(key));
        success(Output::of(&mut keygen)?, "ssh-keygen")?;
    }
    let mut command = netns.command(program("sshd")?)?;
    command.args(["-D", "-e", "-f", "/dev/null"]);
    for (option, value) in [
        ("HostKey", home.join("host-key").display().to_string()),
        ("AuthorizedKeysFile", home.join("key.pub").display().to_string()),
        ("PidFile", "none".to_owned()),
        ("PermitRootLogin", "yes".to_owned()),
        ("StrictModes", "no".to_owned()),
        ("UseDNS", "no".to_owned()),
    ] {
        command.arg("-o").arg(format!("{option}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(home.join("sshd.log"))?);
    let server = SshServer { _process: Process::start(command)?, made_directory };
    eventually("the SSH server listens", PATIENCE * 2, || {
        Ok(netns.tcp_connect(at(CIDR[0], 22), PATIENCE).is_ok())
    })
    .with_context(|| fs::read_to_string(home.join("sshd.log")).unwrap_or_default())?;
    Ok(server)
}
