//! A machine of its own, as far as programs can tell: systemd as process 1, processes, mounts, control groups and
//! BPF file system that nobody else sees, this machine's files under a layer that takes all changes, and the
//! network of a topology's host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::daemon::Output;
use crate::janitor;
use crate::process::Process;
use crate::topology::Topology;

const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine. Dropping it ends everything on it.
#[derive(Debug)]
pub struct Machine {
    /// The process that holds the mounts; its one child is systemd.
    holder: Process,
    init: u32,
    directory: PathBuf,
    group: PathBuf,
}

/// Joins the control group `$2`, so that what systemd makes of it is its own; the rest of its life is in namespaces of
/// its own.
const ENTER: &str = r#"echo $$ > "$2/cgroup.procs"
exec unshare --mount --propagation private --pid --fork --kill-child --cgroup --uts --ipc sh -euc "$3" sh "$1""#;

/// Lays out the machine's files in `$1` and becomes its process 1. What there is one of, in the kernel, cannot be changed:
/// its settings but those of the network are read-only, and capabilities for the rest are dropped. `container` tells
/// systemd so, and nothing is started that is usually started at a boot.
const BOOT: &str = r#"
mount -t tmpfs -o mode=755 machine "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work machine root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o mode=755 run run
mount -t tmpfs tmp tmp
mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir dev/net
touch dev/net/tun
mount --bind /dev/net/tun dev/net/tun
ln -s pts/ptmx dev/ptmx
rm -rf usr/lib/systemd/system/*.target.wants usr/lib/systemd/system-generators etc/systemd/system/*.wants etc/fstab
cat > etc/systemd/system/sysinit.target <<END
[Unit]
Description=Nothing
END
cat > etc/systemd/system/quiet.target <<END
[Unit]
Description=A journal, and nothing that nobody asked for
Wants=systemd-journald.service
After=systemd-journald.service
END
rm -f etc/machine-id usr/sbin/policy-rc.d
echo 5afe5afe5afe5afe5afe5afe5afe5afe > etc/machine-id
for init in usr/lib/systemd/systemd lib/systemd/systemd; do
    [ ! -x $init ] || exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        setpriv --bounding-set=-sys_boot,-sys_time,-sys_module,-sys_rawio,-audit_control \
        chroot . /$init --unit=quiet.target --show-status=0 --log-target=journal
done
echo "this test needs systemd: apt-get install systemd" >&2
exit 1
"#;

impl Machine {
    /// Starts a machine in the network of `topology`'s host.
    pub fn boot(topology: &Topology) -> Result<Self> {
        let name = janitor::fresh_name("machine");
        let directory = Path::new(janitor::RUN).join(&name);
        let group = janitor::control_groups()?.join(&name);
        for path in [&directory, &group] {
            janitor::note(path);
            fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mut command = topology.host().command("sh")?;
        command.args(["-euc", ENTER, "sh"]).arg(&directory).arg(&group).arg(BOOT);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut holder = Process::start(command)?;
        let started = Self::wait_for_init(&mut holder);
        let mut machine = Self { holder, init: 0, directory, group };
        machine.init = started?;
        Ok(machine)
    }

    /// Installs a package of the binary that is tested.
    pub fn install(&self, revision: u32) -> Result<()> {
        let package = package(revision)?;
        // In memory, where no package manager looks.
        let there = Path::new("/tmp").join(package.file_name().context("a file")?);
        let there = there.to_string_lossy().into_owned();
        fs::copy(&package, self.path(&there)).context("cannot copy the package")?;
        self.must(&["dpkg", "--install", &there]).map(drop)
    }

    /// Runs a command on the machine.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        let output = self.command(args).output().context("cannot run nsenter")?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Ok(Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// Runs a command on the machine that must succeed; gives what it prints.
    pub fn must(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        ensure!(
            output.code == 0,
            "{}: {}{}\nThe journal says:\n{}",
            args.join(" "),
            output.stdout,
            output.stderr,
            self.run(&["journalctl", "--no-pager", "--output=cat", "--lines=50"])?.stdout
        );
        Ok(output.stdout)
    }

    /// A command that will run on the machine.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--root", "--wd=/", "--"]);
        command.args(args).stdin(Stdio::null());
        // Those of the one who runs the tests are of this machine.
        command.env("PATH", PATH).env("LC_ALL", "C.UTF-8");
        command
    }

    /// A file of the machine, seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }

    /// What the machine has added to this one's files, changed or removed: paths, sorted. That a directory has other
    /// things in it is no change of its own.
    pub fn changed(&self) -> Result<Vec<PathBuf>> {
        let holder = Path::new("/proc").join(self.holder.id().to_string()).join("root");
        let upper = holder.join(self.directory.strip_prefix("/")?).join("upper");
        let (mut found, mut directories) = (Vec::new(), vec![upper.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let path = Path::new("/").join(entry.path().strip_prefix(&upper)?);
                let is_directory = entry.file_type()?.is_dir();
                if is_directory {
                    directories.push(entry.path());
                }
                if !(is_directory && path.is_dir()) {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn wait_for_init(holder: &mut Process) -> Result<u32> {
        let deadline = Instant::now() + PATIENCE;
        let children = PathBuf::from(format!("/proc/{0}/task/{0}/children", holder.id()));
        loop {
            if let Some(status) = holder.ended()? {
                let said = holder.child().stderr.take().map(std::io::read_to_string);
                bail!("the machine did not start ({status}): {}", said.transpose()?.unwrap_or_default());
            }
            let children = fs::read_to_string(&children).context("the kernel does not tell of children")?;
            if let Some(init) = children.split_whitespace().next().and_then(|child| child.parse().ok()) {
                let process = Path::new("/proc").join(format!("{init}"));
                // Before it is systemd its root is this machine's.
                let is_systemd =
                    fs::read_to_string(process.join("comm")).is_ok_and(|name| name == "systemd\n");
                // There since systemd answers.
                if is_systemd && process.join("root/run/systemd/private").exists() {
                    return Ok(init);
                }
            }
            ensure!(Instant::now() < deadline, "systemd does not answer within {PATIENCE:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

fn package(revision: u32) -> Result<PathBuf> {
    let directory = env::var_os("SANDBOX_FILTER_PACKAGES").context(
        "SANDBOX_FILTER_PACKAGES names no directory with packages to be tested; `cargo xtask test` makes them",
    )?;
    let ending = format!("-{revision}_");
    let packages =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let packages = packages.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let wanted = packages.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".deb") && name.contains(&ending)
    });
    wanted.with_context(|| format!("no package of revision {revision} in {}", directory.display()))
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Process 1 goes with the one that holds it, and with process 1 all others.
        if let Err(error) = self.holder.kill() {
            eprintln!("warning: cannot end the machine: {error}");
        }
        for path in [&self.group, &self.directory] {
            if let Err(error) = janitor::remove(path) {
                eprintln!("warning: cannot remove {}: {error}", path.display());
            }
        }
    }
}
