//! A network namespace that this process made, and running things inside.

use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};

use crate::offload::Offload;
use crate::{janitor, netlink, sys};

/// A network namespace. Clones are the same one; the last to go removes it.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
    /// Whether it was made here, and so goes with this.
    is_own: bool,
}

impl Netns {
    /// A fresh namespace with loopback up, mounted as `/run/netns/sf-<pid>-<n>-<role>` for people to look at
    /// (`ip netns exec …`).
    pub fn new(role: &str) -> Result<Self> {
        janitor::start()?;
        let name = janitor::fresh_name(role);
        let path = Path::new(janitor::NAMESPACES).join(&name);
        janitor::note(&path);
        let file = make(&path).inspect_err(|_| drop(janitor::remove(&path)))?;
        let netns = Self(Arc::new(Inner { name, path, file, is_own: true }));
        netns.run(configure)?;
        netlink::with(&netns, async |links| links.up("lo").await)?;
        Ok(netns)
    }

    /// One that somebody else has made and called `name`.
    pub fn existing(name: &str) -> Result<Self> {
        let path = Path::new(janitor::NAMESPACES).join(name);
        let file = File::open(&path).with_context(|| format!("no namespace {}", path.display()))?;
        Ok(Self(Arc::new(Inner { name: name.to_owned(), path, file, is_own: false })))
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.0.file
    }

    /// Runs `work` on a thread of its own inside the namespace. Threads that it starts stay inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name(self.name().into()).spawn_scoped(scope, || {
                self.enter()?;
                work()
            })?;
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace that may outlive the caller; it keeps the namespace alive.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let netns = self.clone();
        Ok(thread::Builder::new().name(self.name().into()).spawn(move || {
            netns.enter()?;
            work()
        })?)
    }

    /// A command that will start inside the namespace and see this process's mounts.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        sys::start_in(&mut command, self.file().try_clone()?);
        Ok(command)
    }

    /// Writes a setting of the namespace: `sysctl("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))
    }

    /// Switches offloads of an interface.
    pub fn set_offloads(&self, interface: &str, offloads: &[Offload], on: bool) -> Result<()> {
        self.run(|| offloads.iter().try_for_each(|offload| offload.set(interface, on)))
    }

    /// Switches an interface on or off.
    pub fn set_link_up(&self, interface: &str, up: bool) -> Result<()> {
        netlink::with(
            self,
            async |links| {
                if up { links.up(interface).await } else { links.down(interface).await }
            },
        )
    }

    /// Removes an interface, and with a veth its other end.
    pub fn delete_link(&self, interface: &str) -> Result<()> {
        netlink::with(self, async |links| links.delete(interface).await)
    }

    /// Adds interfaces that nobody uses: `<prefix>1` to `<prefix><count>`, each with another end here.
    pub fn add_pairs(&self, prefix: &str, count: usize) -> Result<()> {
        netlink::with(self, async |links| {
            for number in 1..=count {
                links.pair(&format!("{prefix}{number}"), &format!("{prefix}{number}p")).await?;
            }
            Ok(())
        })
    }

    /// Adds an address to an interface.
    pub fn add_address(&self, interface: &str, address: ipnet::IpNet) -> Result<()> {
        netlink::with(self, async |links| links.address(interface, address).await)
    }

    /// Sets the largest packet that an interface takes.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        netlink::with(self, async |links| links.mtu(interface, mtu).await)
    }

    /// Forgets the hardware addresses of all neighbours.
    pub fn flush_neighbours(&self) -> Result<()> {
        netlink::with(self, async |links| links.flush_neighbours().await)
    }

    /// The names of the interfaces here.
    pub fn links(&self) -> Result<Vec<String>> {
        self.run(|| {
            let links = nix::net::if_::if_nameindex()?;
            Ok(links.iter().map(|link| link.name().to_string_lossy().into_owned()).collect())
        })
    }

    fn enter(&self) -> Result<()> {
        setns(self.file(), CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.is_own {
            return;
        }
        if let Err(error) = janitor::remove(&self.path) {
            eprintln!("warning: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Makes the namespace on a thread that ends: what `unshare` does to it concerns nobody else.
fn make(path: &Path) -> Result<File> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
            let this = "/proc/thread-self/ns/net";
            nix::mount::mount(Some(this), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot mount {}", path.display()))?;
            File::open(this).context("cannot open the network namespace")
        })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// What every namespace wants, before it has interfaces that inherit it.
fn configure() -> Result<()> {
    for (key, value) in [
        // An address is usable at once: nobody here has the same one.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // Packets that no test asked for would disturb the counts.
        ("net/ipv6/conf/default/router_solicitations", "0"),
        // Sockets of type ICMP for everybody, for `ping`.
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ] {
        write_sysctl(key, value)?;
    }
    Ok(())
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    // /proc/sys/net shows the namespace of the thread that looks.
    fs::write(Path::new("/proc/sys").join(key), value).with_context(|| format!("cannot set {key} to {value}"))
}
