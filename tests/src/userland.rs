//! What the programs of a sandbox find around them: a resolver, hosts, an authority that they trust, a home.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, iter};

use anyhow::{Context as _, Result};

use crate::daemon::Output;
use crate::janitor;
use crate::netns::Netns;
use crate::programs::program;
use crate::tls::Ca;

/// The surroundings of programs, in a directory that goes with this.
#[derive(Debug)]
pub struct Userland {
    directory: PathBuf,
}

/// No client may take longer.
const PATIENCE: &str = "120";

/// Puts the files over the machine's own, for the program and nobody else, and becomes it.
const ENTER: &str = r#"
for file in resolv.conf hosts nsswitch.conf; do mount --bind "$0/$file" "/etc/$file"; done
mount --bind "$0/ca.pem" /etc/ssl/certs/ca-certificates.crt
exec "$@"
"#;

impl Userland {
    /// One whose programs ask this resolver, and trust this authority alone.
    pub fn new(resolver: &str, ca: &Ca) -> Result<Self> {
        let directory = Path::new(janitor::RUN).join(janitor::fresh_name("userland"));
        janitor::note(&directory);
        let userland = Self { directory };
        fs::create_dir_all(userland.home())
            .with_context(|| format!("cannot create {}", userland.directory.display()))?;
        userland.write("resolv.conf", &format!("nameserver {resolver}\n"))?;
        userland.write("hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
        userland.write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
        userland.write("ca.pem", &ca.pem())?;
        Ok(userland)
    }

    /// Has programs believe that a name is at an address.
    pub fn believe(&self, name: &str, address: &str) -> Result<()> {
        self.write("hosts", &format!("127.0.0.1 localhost\n{address} {name}\n"))
    }

    /// A directory for whatever programs leave.
    pub fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    /// The certificate that is trusted.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A program, by name or path, that will start inside `netns` with these surroundings and no others. It is
    /// ended after two minutes.
    pub fn command(&self, netns: &Netns, name: impl AsRef<Path>) -> Result<Command> {
        let name = name.as_ref();
        let path = match name.to_str() {
            Some(word) if !word.contains('/') => program(word)?,
            _ => name.to_owned(),
        };
        let mut command = netns.command("timeout")?;
        command.args(["--kill-after=2", PATIENCE, "unshare", "--mount", "sh", "-ec", ENTER]);
        command.arg(&self.directory).arg(path);
        command.current_dir(self.home()).env_clear().stdin(Stdio::null());
        // `sbin` is not in everybody's path.
        let own = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(env::split_paths(&own).chain(iter::once("/usr/sbin".into())))?;
        command.env("PATH", path).env("HOME", self.home()).env("LANG", "C.UTF-8");
        // Those that do not look where the system has its authorities.
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
            command.env(variable, self.authority());
        }
        // What this machine is configured to is left out: proxies, mirrors, other indexes.
        for (variable, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("NPM_CONFIG_GLOBALCONFIG", "/dev/null"),
            ("PIP_CONFIG_FILE", "/dev/null"),
            ("UV_NO_CONFIG", "1"),
        ] {
            command.env(variable, value);
        }
        Ok(command)
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Userland {
    fn drop(&mut self) {
        if let Err(error) = janitor::remove(&self.directory) {
            eprintln!("warning: cannot remove {}: {error}", self.directory.display());
        }
    }
}

impl Output {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it cannot be started; how it ends is in what this gives.
    pub fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }
}
