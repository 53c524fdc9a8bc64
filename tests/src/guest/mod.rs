//! A virtual machine as a sandbox: qemu's `microvm` with a virtio network card on a tap device, which is what
//! microVM monitors give their guests. It runs without hardware support for virtualisation.

mod cpio;
mod image;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::janitor;
use crate::netlink::{self, Mac};
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::Topology;

/// The pace of the processor's clock, which an emulated one has as well.
fn clock_khz() -> Option<u32> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu MHz"))?;
    let (mhz, _) = line.split_once(':')?.1.trim().split_once('.')?;
    Some(mhz.parse::<u32>().ok()? * 1000)
}

/// What begins a line that the script says, so that it is told from what the kernel says.
const MARK: &str = "@ ";

/// A running virtual machine behind the tap device `vm<n>`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    n: u8,
    host: Netns,
    /// For the first file system. qemu reads it some time after it has made the tap device.
    directory: PathBuf,
    // Killed before the console's reader is waited for.
    machine: Option<Process>,
    console: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Guest {
    /// Boots a machine on the topology's host that runs `script` with busybox's shell, its network set up, and then
    /// ends. `say …` in the script prints a line for [`Self::wait_for`]. Returns when the tap device is there, long
    /// before the guest uses it.
    ///
    /// What is missing for it is installed first: qemu, busybox, and a kernel in `target/guest`.
    pub fn boot(topology: &Topology, n: u8, script: &str) -> Result<Self> {
        let host = topology.host().clone();
        let directory = Path::new(janitor::RUN).join(janitor::fresh_name("guest"));
        janitor::note(&directory);
        let mut guest = Self { n, host, directory, machine: None, console: Arc::default(), reader: None };
        fs::create_dir_all(&guest.directory)
            .with_context(|| format!("cannot create {}", guest.directory.display()))?;
        let image = image::prepare().context("cannot make a virtual machine")?;
        let initrd = guest.directory.join("initrd");
        fs::write(&initrd, image.initrd(&guest.init(), script)?)
            .with_context(|| format!("cannot write {}", initrd.display()))?;

        let mut command = guest.host.command("qemu-system-x86_64")?;
        command.args(["-M", "microvm,isa-serial=on,rtc=on", "-accel", "tcg", "-cpu", "max", "-m", "160"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&initrd);
        let mut kernel = "console=ttyS0 quiet loglevel=0 panic=-1 reboot=t mitigations=off".to_owned();
        // This machine has no timer but the processor's own, and on a busy computer its pace cannot be measured.
        if let Some(pace) = clock_khz() {
            kernel.push_str(&format!(" tsc_early_khz={pace}"));
        }
        command.arg("-append").arg(kernel);
        let tap = guest.host_interface();
        command.arg("-netdev");
        command.arg(format!("tap,id=net,ifname={tap},script=no,downscript=no,vnet_hdr=on"));
        command.arg("-device").arg(format!("virtio-net-device,netdev=net,mac={}", guest.mac_text()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut machine = Process::start(command)?;
        let stdout = machine.child().stdout.take().context("no console")?;
        let console = Arc::clone(&guest.console);
        guest.reader = Some(thread::Builder::new().name("console".into()).spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                console.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })?);
        guest.machine = Some(machine);
        guest.set_up_tap(&tap)?;
        Ok(guest)
    }

    /// The interface on the host.
    pub fn host_interface(&self) -> String {
        format!("vm{}", self.n)
    }

    /// The guest's address.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 203, self.n, 2)
    }

    /// The guest's IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x203, self.n.into(), 0, 0, 0, 0, 2)
    }

    /// The guest's hardware address as text.
    pub fn mac_text(&self) -> String {
        format!("02:76:00:00:{:02x}:02", self.n)
    }

    /// What the script said so far.
    pub fn said(&self) -> Vec<String> {
        self.console().iter().filter_map(|line| Some(line.split_once(MARK)?.1.to_owned())).collect()
    }

    /// Waits until the script says a line that begins with `start`, and gives the rest of it.
    pub fn wait_for(&mut self, start: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(rest) = self.said().iter().find_map(|line| line.strip_prefix(start)) {
                return Ok(rest.trim().to_owned());
            }
            let ended = self.machine.as_mut().map(Process::ended).transpose()?.flatten();
            if ended.is_some() || Instant::now() >= deadline {
                let what =
                    ended.map_or_else(|| format!("within {timeout:?}"), |status| format!("({status})"));
                let console = self.console().join("\n");
                bail!("the guest did not say {start:?} {what}:\n{console}{}", self.complaint());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn console(&self) -> MutexGuard<'_, Vec<String>> {
        // Lines are whole whatever thread panicked while it held the lock.
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What qemu said on its standard error, if it has ended.
    fn complaint(&mut self) -> String {
        let Some(machine) = &mut self.machine else { return String::new() };
        if !matches!(machine.ended(), Ok(Some(_))) {
            return String::new();
        }
        let stderr = machine.child().stderr.take();
        stderr.and_then(|stderr| std::io::read_to_string(stderr).ok()).unwrap_or_default()
    }

    fn gateway_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 203, self.n, 1)
    }

    fn gateway_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x203, self.n.into(), 0, 0, 0, 0, 1)
    }

    /// qemu makes the device; addresses are ours to give.
    fn set_up_tap(&mut self, tap: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.host.links()?.iter().any(|link| link == tap) {
            if Instant::now() >= deadline || !self.complaint().is_empty() {
                bail!("qemu does not make the tap device {tap}: {}", self.complaint());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mac: Mac = [0x02, 0x76, 0, 0, self.n, 0x01];
        let v4 = Ipv4Net::new(self.gateway_v4(), 30)?;
        let v6 = Ipv6Net::new(self.gateway_v6(), 64)?;
        netlink::with(&self.host, async |links| {
            links.mac(tap, mac).await?;
            links.up(tap).await?;
            links.address(tap, v4.into()).await?;
            links.address(tap, v6.into()).await
        })
    }

    /// What the guest runs first.
    fn init(&self) -> String {
        format!(
            "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod \"/modules/$module\" || echo \"cannot load $module\"; done < /modules/order
for which in all default eth0; do echo 0 > /proc/sys/net/ipv6/conf/$which/accept_dad; done
ip link set lo up
ip link set eth0 up
ip addr add {v4}/30 dev eth0
ip -6 addr add {v6}/64 dev eth0
ip route add default via {gateway_v4}
ip -6 route add default via {gateway_v6}
say() {{ echo \"{MARK}$*\"; }}
. /script
reboot -f
",
            v4 = self.v4(),
            v6 = self.v6(),
            gateway_v4 = self.gateway_v4(),
            gateway_v6 = self.gateway_v6(),
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.machine.take());
        if let Some(reader) = self.reader.take() {
            // It ends with the console, and has nothing to report.
            let _ = reader.join();
        }
        if let Err(error) = janitor::remove(&self.directory) {
            eprintln!("warning: cannot remove {}: {error}", self.directory.display());
        }
    }
}
