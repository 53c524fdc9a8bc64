//! Running other programs: cargo, rustup, the linker.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

/// The repository.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Where the outer build puts its results.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs `command` with its output on the terminal; anything but success is an error that ends in `advice`.
pub fn run(command: &mut Command, advice: &str) -> Result<()> {
    let name = name(command);
    let status = command.status().with_context(|| format!("cannot start {name}; {advice}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); {advice}");
    }
    Ok(())
}

/// What `command` prints, or nothing when there is no such program or it fails.
pub fn output(command: &mut Command) -> Result<Option<String>> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run {}", name(command))),
    }
}

/// Installs the Debian packages of those programs that are missing, where there is a way to. Pairs of a program
/// and its package.
pub fn ensure(programs: &[(&str, &str)], whose: &str) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !exists(program));
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(", ");
    let advice = format!("{whose} needs {list}; install them by hand");
    if !nix::unistd::geteuid().is_root() || !exists("apt-get") {
        bail!("{advice}");
    }
    eprintln!("Installing {list}.");
    run(Command::new("apt-get").args(["update", "-qq"]), &advice)?;
    // What is installed to be looked at shall not serve anybody.
    let policy = NoServices::new()?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    run(install.stdout(Stdio::null()), &advice)?;
    drop(policy);
    Ok(())
}

/// Whether there is a program of this name; `sbin` is not in everybody's path.
pub fn exists(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).exists())
}

/// While it is there, packages that are installed start no services (invoke-rc.d(8)).
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn new() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").context("cannot keep services from being started")?;
        let policy = Self(Some(path));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(fs::remove_file) {
            eprintln!(
                "warning: cannot remove /usr/sbin/policy-rc.d, which keeps services from starting: {error}"
            );
        }
    }
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    format!("`{line}`")
}
