//! A namespace that has a name in `/run/netns`, as `ip netns` makes and finds them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rtnetlink::Handle;
use tokio::runtime;

use crate::protocol::SandboxId;

const NAMED: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// The name of a sandbox's namespace.
pub(super) fn name(id: &SandboxId) -> String {
    format!("sbx-{id}")
}

/// A namespace, whether it is there or not.
#[derive(Clone, Debug)]
pub(super) struct Namespace(PathBuf);

impl Namespace {
    pub(super) fn of(id: &SandboxId) -> Self {
        Self(Path::new(NAMED).join(name(id)))
    }

    /// Makes it. Gives the host's own namespace, and a connection to the kernel's routing sockets inside. Blocks;
    /// must be called within the runtime.
    pub(super) fn create(&self) -> io::Result<(File, Handle)> {
        prepare_directory()?;
        let here = File::open(OWN)?;
        File::create_new(&self.0)?;
        let runtime = runtime::Handle::current();
        let (path, (send, receive)) = (self.0.clone(), mpsc::channel());
        // On a thread that ends: what `unshare` does to it concerns nobody else.
        thread::Builder::new().name("netns".into()).spawn(move || {
            let made = || -> io::Result<Handle> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                let _within = runtime.enter();
                // The socket belongs to the namespace that it was made in, whoever uses it.
                let (connection, handle, _) = rtnetlink::new_connection()?;
                runtime.spawn(connection);
                Ok(handle)
            };
            // Whoever asked waits for it.
            let _ = send.send(made());
        })?;
        let handle = receive.recv().map_err(|_| io::Error::other("the thread that makes it failed"))??;
        Ok((here, handle))
    }

    /// Takes its name away; it ends with the last process inside.
    pub(super) fn remove(&self) -> io::Result<()> {
        match umount2(&self.0, MntFlags::MNT_DETACH) {
            // It was never mounted, or never there.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Makes `/run/netns` what `ip netns` makes of it: a mount of its own whose mounts are seen in every mount
/// namespace.
fn prepare_directory() -> io::Result<()> {
    // Two at once would mount one over the other, and hide what the first has put there.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let share =
        || mount(None::<&str>, NAMED, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match fs::create_dir(NAMED) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match share() {
        Ok(()) => Ok(()),
        // Not a mount yet.
        Err(nix::Error::EINVAL) => {
            mount(Some(NAMED), NAMED, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            Ok(share()?)
        }
        Err(errno) => Err(errno.into()),
    }
}
