//! What tests need from registries and compilers, made once into a directory below `target`.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

/// A virtual environment with these packages of PyPI, made if it is not there yet.
pub fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    installed(&format!("python-{name}"), |home| {
        run(Command::new("python3").args(["-m", "venv"]).arg(home))?;
        let mut pip = Command::new(home.join("bin/pip"));
        run(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(packages))
    })
}

/// A directory with these packages of npm, made if it is not there yet.
pub fn node(name: &str, packages: &[&str]) -> Result<PathBuf> {
    installed(&format!("node-{name}"), |home| {
        fs::create_dir_all(home)?;
        let mut npm = Command::new("npm");
        run(npm.current_dir(home).args(["install", "--silent", "--no-audit", "--no-fund"]).args(packages))
    })
}

/// A directory with what `compiler` makes of the program `source` there; it is given the file's name.
pub fn compiled(file: &str, source: &str, compiler: &mut Command) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (source, format!("{compiler:?}")).hash(&mut hasher);
    installed(&format!("{file}-{:016x}", hasher.finish()), |home| {
        fs::create_dir_all(home)?;
        fs::write(home.join(file), source)?;
        run(compiler.current_dir(home).arg(file))
    })
}

/// A directory that `install` has filled, once for all processes that want it.
fn installed(name: &str, install: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache()?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let (home, done) = (cache.join(name), cache.join(format!("{name}.done")));
    if !done.exists() {
        // What an interrupted attempt has left.
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        install(&home).with_context(|| {
            format!("cannot make {name}; `cargo xtask test` installs the programs that this needs, and the registry must be reachable once")
        })?;
        File::create(done)?;
    }
    Ok(home)
}

/// Where all of it is.
pub fn cache() -> Result<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/sdk");
    fs::create_dir_all(&cache)?;
    Ok(cache.canonicalize()?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}
