//! What was asked for, one file a sandbox, so that the next daemon knows.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::registry::Sandbox;
use crate::error::ControlError;
use crate::protocol::{Mac, SandboxId};

/// The directory, locked for one daemon.
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// A sandbox as it is written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Number of this form.
    pub version: u32,
    /// Its name.
    pub id: SandboxId,
    /// Its interface.
    pub iface: String,
    /// The interface's index.
    pub ifindex: u32,
    /// Its addresses; empty if they are not checked.
    pub addrs: Vec<IpAddr>,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its place in the kernel's maps.
    pub slot: u32,
    /// Its number there.
    pub tenant: u32,
    /// When it was attached.
    #[serde(with = "humantime_serde")]
    pub created_at: SystemTime,
    /// The number of its policy.
    pub generation: u32,
    /// Its policy, in canonical form.
    pub policy: Value,
}

/// Number of the form that this version writes.
const VERSION: u32 = 1;

impl Record {
    /// As it is to be written.
    pub fn of(sandbox: &Sandbox, generation: u32, policy: &filter_policy::Policy) -> Self {
        Self {
            version: VERSION,
            id: sandbox.id.clone(),
            iface: sandbox.iface.clone(),
            ifindex: sandbox.ifindex,
            addrs: sandbox.addrs.clone(),
            mac: sandbox.mac,
            slot: sandbox.slot,
            tenant: sandbox.tenant,
            created_at: sandbox.created_at,
            generation,
            policy: policy.canonical(),
        }
    }
}

impl StateDir {
    /// Opens the directory, and makes it if there is none.
    ///
    /// # Errors
    /// `conflict` if another daemon has it; `failed` if the file system refuses.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let sandboxes = path.join("sandboxes");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&sandboxes).map_err(failed(&sandboxes))?;
        let lock_path = path.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: sandboxes, _lock: lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(ControlError::conflict(format!(
                "another sandbox-filter daemon is running on {}; stop it, or give this one a state_dir of its own",
                path.display()
            ))),
            Err((_, errno)) => Err(failed(&lock_path)(errno.into())),
        }
    }

    /// Writes a sandbox down, in one piece or not at all.
    ///
    /// # Errors
    /// `failed` if the file system refuses; what was written before is still there then.
    pub fn save(&self, record: &Record) -> Result<(), ControlError> {
        let path = self.file(&record.id);
        let new = self.path.join(format!(".{}.new", record.id));
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            // A policy may hold secrets.
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().map_err(failed(&path))
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// `failed` if the file system refuses.
    pub fn remove(&self, id: &SandboxId) -> Result<(), ControlError> {
        let path = self.file(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Everything that is written down. A file that cannot be read is an error: guessing what was asked for
    /// could open what was closed.
    ///
    /// # Errors
    /// `failed`, naming the file.
    pub fn load(&self) -> Result<Vec<Record>, ControlError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let path = entry.map_err(failed(&self.path))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                if path.extension().is_some_and(|extension| extension == "new") {
                    // Of a write that was interrupted; what it was to replace is still there.
                    fs::remove_file(&path).map_err(failed(&path))?;
                }
                continue;
            }
            let text = fs::read(&path).map_err(failed(&path))?;
            let unreadable = |error: &dyn std::fmt::Display| {
                ControlError::failed(format!(
                    "{}: {error}. It was not written by this version; remove the file and attach the sandbox again",
                    path.display()
                ))
            };
            let record: Record = serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
            if record.version != VERSION {
                return Err(unreadable(&format!("form {} is not known", record.version)));
            }
            records.push(record);
        }
        Ok(records)
    }

    fn file(&self, id: &SandboxId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ControlError + '_ {
    move |error| ControlError::failed(format!("{}: {error}", path.display()))
}
