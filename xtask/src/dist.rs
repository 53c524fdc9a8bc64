//! `dist`: what is given to others. A Debian package, and the same files in a tar archive.
//!
//! The files are laid out once, as they lie on a host, and packed twice. Dates in the packages are that of the last
//! commit, or `SOURCE_DATE_EPOCH`, so that the same binary gives the same packages.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::tool::{self, output};

const NAME: &str = "sandbox-filter";
/// That of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const CONFIG: &str = "etc/sandbox-filter/config.toml";
const UNIT: &str = "usr/lib/systemd/system/sandbox-filter.service";
const DOC: &str = "usr/share/doc/sandbox-filter";
const MAN: &str = "usr/share/man/man1";
/// Shells, and where they look for the completions of a command.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/sandbox-filter"),
    ("zsh", "usr/share/zsh/vendor-completions/_sandbox-filter"),
    ("fish", "usr/share/fish/vendor_completions.d/sandbox-filter.fish"),
];
/// Programs for `[provider] kind = "exec"`.
const PROVIDERS: &[&str] = &["container.sh", "firecracker.sh"];
/// What dpkg runs when the package comes and goes.
const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];

/// What to package.
#[derive(clap::Args)]
pub struct Args {
    /// Package this binary [default: a release build]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How often this version has been packaged
    #[arg(long, default_value_t = 1)]
    revision: u32,
    /// Where the packages go [default: target/dist]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Builds what is missing and packages it.
pub fn run(args: &Args) -> Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => build()?,
    };
    let out = args.out.clone().unwrap_or_else(|| tool::target_dir().join("dist"));
    let date = date()?;
    let tree = lay_out(&binary, &out)?;
    let archive = out.join(format!("{NAME}-{VERSION}-{}.tar.gz", env::consts::ARCH));
    tree.archive(&date, &archive)?;
    let package = pack(&tree, args.revision, &date, "xz", &out)?;
    eprintln!("Packages: {} and {}", package.display(), archive.display());
    Ok(())
}

/// Packages `binary` as so many revisions of the same version and leaves nothing else in `out`; without compression,
/// which takes longer than a test has.
pub fn uncompressed(binary: &Path, revisions: &[u32], out: &Path) -> Result<()> {
    remove(out)?;
    let tree = lay_out(binary, out)?;
    let date = date()?;
    revisions.iter().try_for_each(|revision| pack(&tree, *revision, &date, "none", out).map(drop))
}

/// Makes the Debian package.
fn pack(tree: &Tree, revision: u32, date: &str, compression: &str, out: &Path) -> Result<PathBuf> {
    let (version, architecture) = (format!("{VERSION}-{revision}"), architecture()?);
    add_control(tree, &version, architecture)?;
    let package = out.join(format!("{NAME}_{version}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.env("SOURCE_DATE_EPOCH", date).arg(format!("-Z{compression}")).arg("--root-owner-group");
    pack.arg("--build").arg(&tree.0).arg(&package).stdout(Stdio::null());
    tool::run(&mut pack, "the lines above say what is wrong with the package")?;
    Ok(package)
}

fn build() -> Result<PathBuf> {
    crate::build_ebpf::run()?;
    tool::run(
        Command::new("cargo").current_dir(tool::root()).args(["build", "--release", "-p", "filter-loader"]),
        "the daemon does not build",
    )?;
    Ok(tool::target_dir().join("release").join(NAME))
}

/// The files, as they lie on a host.
fn lay_out(binary: &Path, out: &Path) -> Result<Tree> {
    tool::ensure(&[("dpkg-deb", "dpkg"), ("strip", "binutils")], "`cargo xtask dist`")?;
    let tree = Tree::fresh(out.join("tree"))?;
    let installed = tree.copy(binary, "usr/bin/sandbox-filter", 0o755)?;
    tool::run(
        Command::new("strip").arg("--strip-debug").arg(&installed),
        "is that a binary of this architecture?",
    )?;
    let root = tool::root();
    tree.copy(&root.join("packaging/config.toml"), CONFIG, 0o644)?;
    tree.copy(&root.join("packaging/sandbox-filter.service"), UNIT, 0o644)?;
    tree.copy(&root.join("packaging/debian/copyright"), &format!("{DOC}/copyright"), 0o644)?;
    tree.copy(&root.join("packaging/strict.conf"), &format!("{DOC}/examples/strict.conf"), 0o644)?;
    for example in PROVIDERS {
        tree.copy(&root.join("examples").join(example), &format!("{DOC}/examples/{example}"), 0o755)?;
    }
    tree.copy(&root.join("docs/install.md"), &format!("{DOC}/install.md"), 0o644)?;
    compress(&tree.copy(&root.join("CHANGELOG.md"), &format!("{DOC}/changelog"), 0o644)?)?;

    for (shell, path) in COMPLETIONS {
        tree.write(path, &said(binary, &["completions", shell])?, 0o644)?;
    }
    let pages = tree.directory(MAN)?;
    tool::run(
        Command::new(binary).args(["man", "--dir"]).arg(&pages),
        "the binary to be packaged does not run here",
    )?;
    for page in fs::read_dir(&pages)? {
        let page = page?.path();
        fs::set_permissions(&page, fs::Permissions::from_mode(0o644))?;
        compress(&page)?;
    }
    Ok(tree)
}

/// What dpkg wants to know.
fn add_control(tree: &Tree, version: &str, architecture: &str) -> Result<()> {
    let debian = tool::root().join("packaging/debian");
    let size = tree.kibibytes()?;
    let libc = newest_libc(&fs::read(tree.0.join("usr/bin/sandbox-filter"))?)?;
    let control =
        fs::read_to_string(debian.join("control")).context("cannot read packaging/debian/control")?;
    let control = [
        ("@VERSION@", version),
        ("@ARCHITECTURE@", architecture),
        ("@SIZE@", &size.to_string()),
        ("@LIBC@", &libc),
    ]
    .iter()
    .fold(control, |text, (mark, value)| text.replace(mark, value));
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)?;
    tree.write("DEBIAN/conffiles", format!("/{CONFIG}\n").as_bytes(), 0o644)?;
    for script in SCRIPTS {
        tree.copy(&debian.join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    Ok(())
}

/// A directory that stands for `/`.
struct Tree(PathBuf);

impl Tree {
    fn fresh(path: PathBuf) -> Result<Self> {
        remove(&path)?;
        let tree = Self(path);
        tree.directory("")?;
        Ok(tree)
    }

    /// Makes a directory and those above it; the caller's umask is nobody else's business.
    fn directory(&self, path: &str) -> Result<PathBuf> {
        let mut directory = self.0.clone();
        for part in std::iter::once("").chain(path.split('/')) {
            directory.push(part);
            fs::create_dir_all(&directory)
                .and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(directory)
    }

    fn write(&self, path: &str, content: &[u8], mode: u32) -> Result<PathBuf> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        let file = self.0.join(path);
        fs::write(&file, content)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<PathBuf> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(path, &content, mode)
    }

    fn archive(&self, date: &str, to: &Path) -> Result<()> {
        let mut tar = Command::new("tar");
        tar.args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--use-compress-program=gzip -n",
        ]);
        tar.arg(format!("--mtime=@{date}")).arg("-cf").arg(to).arg("-C").arg(&self.0).args(["etc", "usr"]);
        tool::run(&mut tar, "the archive cannot be written")
    }

    fn kibibytes(&self) -> Result<u64> {
        let mut directories = vec![self.0.clone()];
        let mut bytes = 0;
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    directories.push(entry.path());
                } else {
                    bytes += entry.metadata()?.len();
                }
            }
        }
        Ok(bytes.div_ceil(1024))
    }
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", directory.display())),
    }
}

fn said(binary: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let done = Command::new(binary).args(args).output();
    let done = done.with_context(|| format!("cannot run {}", binary.display()))?;
    if !done.status.success() {
        bail!("`{} {}`: {}", binary.display(), args.join(" "), String::from_utf8_lossy(&done.stderr));
    }
    Ok(done.stdout)
}

fn compress(file: &Path) -> Result<()> {
    tool::run(Command::new("gzip").args(["-9", "-n"]).arg(file), "gzip is needed")
}

/// When it was made, in seconds since 1970.
fn date() -> Result<String> {
    if let Ok(date) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(date);
    }
    let commit = output(Command::new("git").current_dir(tool::root()).args(["log", "-1", "--format=%ct"]))?;
    match commit.filter(|date| !date.is_empty()) {
        Some(date) => Ok(date),
        None => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string()),
    }
}

/// Debian's name of this architecture.
fn architecture() -> Result<&'static str> {
    match env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("there are no packages for {other}"),
    }
}

/// The version of the C library that a binary asks for: the newest of its symbols' versions (`GLIBC_2.34`).
fn newest_libc(binary: &[u8]) -> Result<String> {
    const MARK: &[u8] = b"GLIBC_2.";
    let minors = binary.windows(MARK.len() + 3).filter_map(|window| {
        let digits = window.strip_prefix(MARK)?.split(|byte| !byte.is_ascii_digit()).next()?;
        std::str::from_utf8(digits).ok()?.parse::<u32>().ok()
    });
    let newest = minors.max().context("the binary does not say what C library it needs")?;
    Ok(format!("2.{newest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_says_which_c_library_it_needs() {
        let binary = b"\0GLIBC_2.4\0__libc_start_main\0GLIBC_2.34\0GLIBC_2.17\0GLIBC_2.x\0\0\0\0";
        assert_eq!(newest_libc(binary).ok().as_deref(), Some("2.34"));
        assert!(newest_libc(b"static").is_err());
    }
}
