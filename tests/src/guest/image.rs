//! What a virtual machine is made of, and getting it: qemu and busybox from the system's packages, and a kernel that
//! is unpacked into `target/guest` and kept there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::cpio::Archive;

/// What a virtio network card without PCI needs, in the order in which it has to be loaded.
const MODULES: [&str; 6] = ["virtio_ring", "virtio", "virtio_mmio", "failover", "net_failover", "virtio_net"];

/// A kernel with its modules.
#[derive(Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    modules: PathBuf,
}

/// Installs what is missing. One process at a time does so, the others wait for it.
pub fn prepare() -> Result<Image> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot wait for another process that prepares a virtual machine")?;
    install("qemu-system-x86_64", "qemu-system-x86")?;
    install("busybox", "busybox-static")?;
    if let Some(image) = unpacked(&cache)? {
        return Ok(image);
    }
    download(&cache)?;
    unpacked(&cache)?
        .with_context(|| format!("the kernel's package had no kernel; look into {}", cache.display()))
}

impl Image {
    /// A first file system with busybox, the modules, `init`, and `script` to be run by it.
    pub fn initrd(&self, init: &str, script: &str) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["bin", "etc", "modules"] {
            archive.directory(directory)?;
        }
        let busybox = find_program("busybox").context("no busybox")?;
        archive.file("bin/busybox", &fs::read(&busybox)?)?;
        let mut order = String::new();
        for module in MODULES {
            // What is not a file is built in; the script would fail to find its card otherwise.
            if let Some(content) = self.module(module)? {
                archive.file(&format!("modules/{module}.ko"), &content)?;
                order.push_str(&format!("{module}.ko\n"));
            }
        }
        archive.file("modules/order", order.as_bytes())?;
        // Names are looked up in files alone: what busybox would load for more is not here.
        archive.file("etc/nsswitch.conf", b"hosts: files\nservices: files\n")?;
        archive.file("etc/services", b"http 80/tcp\n")?;
        archive.file("script", script.as_bytes())?;
        archive.file("init", init.as_bytes())?;
        archive.finish()
    }

    fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file_name = |suffix: &str| format!("{name}.ko{suffix}");
        for (suffix, unpack) in
            [("", None), (".xz", Some("xz")), (".zst", Some("zstd")), (".gz", Some("gzip"))]
        {
            let Some(path) = find_file(&self.modules, &file_name(suffix))? else { continue };
            let Some(program) = unpack else { return Ok(Some(fs::read(path)?)) };
            let output = Command::new(program).arg("-dc").arg(&path).output();
            let output = output.with_context(|| format!("{} needs {program}", path.display()))?;
            ensure!(output.status.success(), "{program} cannot unpack {}", path.display());
            return Ok(Some(output.stdout));
        }
        Ok(None)
    }
}

/// The newest kernel that is there already.
fn unpacked(cache: &Path) -> Result<Option<Image>> {
    let boot = cache.join("kernel/boot");
    if !boot.exists() {
        return Ok(None);
    }
    let kernels = fs::read_dir(&boot)?.filter_map(|entry| Some(entry.ok()?.path()));
    let kernel = kernels.filter(|path| name_of(path).starts_with("vmlinuz-")).max();
    let Some(kernel) = kernel else { return Ok(None) };
    let version = name_of(&kernel).trim_start_matches("vmlinuz-").to_owned();
    let modules =
        ["lib/modules", "usr/lib/modules"].map(|path| cache.join("kernel").join(path).join(&version));
    let modules = modules.into_iter().find(|path| path.exists()).context("the kernel has no modules")?;
    Ok(Some(Image { kernel, modules }))
}

/// Unpacks the newest kernel for machines without devices of their own.
fn download(cache: &Path) -> Result<()> {
    let package = match newest_kernel()? {
        Some(package) => package,
        None => {
            run(Command::new("apt-get").args(["update", "-q"]))?;
            newest_kernel()?.context("no package linux-image-…-cloud-amd64: is this Debian on x86-64?")?
        }
    };
    let download = cache.join("download");
    // What a process left that did not get to the end.
    for left in [&download, &cache.join("kernel")] {
        if left.exists() {
            fs::remove_dir_all(left)?;
        }
    }
    fs::create_dir_all(&download)?;
    eprintln!("Downloading {package} for virtual machines, once.");
    let got = run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&download));
    if got.is_err() {
        // The list of packages may be older than what the archive has.
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&download))?;
    }
    let archive = find_suffix(&download, ".deb")?.context("apt-get downloaded nothing")?;
    let unpacked = download.join("kernel");
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    fs::rename(&unpacked, cache.join("kernel"))?;
    fs::remove_dir_all(&download)?;
    Ok(())
}

/// The name of the newest kernel package, if the system knows any.
fn newest_kernel() -> Result<Option<String>> {
    let pattern = "^linux-image-[0-9].*-cloud-amd64$";
    let output = Command::new("apt-cache").args(["search", "--names-only", pattern]).output();
    let output = output.context("no apt-cache: a virtual machine's kernel comes from Debian's packages")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    Ok(names.max_by_key(|name| numbers(name)))
}

/// The numbers in a name, by which versions compare.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|text| text.parse().ok()).collect()
}

fn install(program: &str, package: &str) -> Result<()> {
    if find_program(program).is_some() {
        return Ok(());
    }
    eprintln!("Installing {package} for virtual machines, once.");
    let mut command = Command::new("apt-get");
    command.args(["install", "-q", "-y", "--no-install-recommends", package]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    if run(&mut command).is_err() {
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(&mut command).with_context(|| {
            format!("there is no {program}; install it, on Debian: apt-get install {package}")
        })?;
    }
    ensure!(find_program(program).is_some(), "{package} is installed, but there is no {program} in PATH");
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn find_suffix(directory: &Path, suffix: &str) -> Result<Option<PathBuf>> {
    let paths = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.into_iter().find(|path| name_of(path).ends_with(suffix)))
}

/// The file of that name, however deep.
fn find_file(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = match entry.file_type()? {
            kind if kind.is_dir() => find_file(&entry.path(), name)?,
            _ => (entry.file_name() == name).then(|| entry.path()),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
