//! Programs of other people that tests drive.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Programs, and the Debian packages that have them. `cargo xtask test` installs those that are missing.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("bpftool", "bpftool"),
    ("unshare", "util-linux"),
    ("update-ca-certificates", "ca-certificates"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("git", "git"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("python3", "python3-venv"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
    ("chromium-headless-shell", "chromium-headless-shell"),
    ("dpkg-deb", "dpkg"),
];

/// Where a program is; `sbin` is not in everybody's path.
///
/// # Errors
/// If it is not there, with what would install it.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.exists())).with_context(
        || {
            let package = PROGRAMS.iter().find(|(program, _)| *program == name);
            let package = package.map_or(name, |(_, package)| package);
            format!("this test needs `{name}`: `cargo xtask test` installs it, or apt-get install {package}")
        },
    )
}
