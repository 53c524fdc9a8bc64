//! What was asked for, one file a sandbox, so that the next daemon knows.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

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
pub struct Record<P = Value> {
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
    pub policy: P,
}

/// Number of the form that this version writes.
const VERSION: u32 = 1;

impl<'a> Record<&'a RawValue> {
    /// As it is to be written.
    pub fn of(sandbox: &Sandbox, generation: u32, policy: &'a RawValue) -> Self {
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
            policy,
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
    pub fn save(&self, record: &Record<&RawValue>) -> Result<(), ControlError> {
        self.propose(record)?;
        self.confirm(&record.id)
    }

    /// Writes down what is about to be in force, beside what is. Should the daemon end before that is confirmed,
    /// [`Self::take_proposals`] asks what became of it. It need not be on disk: should the host fail, nothing is
    /// in force any more, and what was written before is still there.
    ///
    /// # Errors
    /// `failed` if the file system refuses.
    pub fn propose(&self, record: &Record<&RawValue>) -> Result<(), ControlError> {
        let path = self.proposal(&record.id);
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            // A policy may hold secrets.
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
            file.write_all(&text)
        };
        write().map_err(failed(&path))
    }

    /// Has what was proposed last on disk, in the place of what was there.
    ///
    /// # Errors
    /// `failed` if the file system refuses; what was there still is then.
    pub fn confirm(&self, id: &SandboxId) -> Result<(), ControlError> {
        let (new, path) = (self.proposal(id), self.file(id));
        let write = || -> io::Result<()> {
            File::open(&new)?.sync_data()?;
            fs::rename(&new, &path)
        };
        match write() {
            // Confirmed already, by another replacement.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(failed(&path)),
        }
    }

    /// Confirms what was proposed and is in force, and forgets what is not. To be called before [`Self::load`].
    ///
    /// # Errors
    /// `failed` if the file system refuses, or `is_in_force` does.
    pub fn take_proposals(
        &self,
        is_in_force: impl Fn(&Record) -> Result<bool, ControlError>,
    ) -> Result<(), ControlError> {
        for entry in fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let path = entry.map_err(failed(&self.path))?.path();
            if path.extension().is_none_or(|extension| extension != "new") {
                continue;
            }
            let text = fs::read(&path).map_err(failed(&path))?;
            // One that is not whole is of a write that was interrupted: it was never in force.
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) if record.version == VERSION && is_in_force(&record)? => {
                    self.confirm(&record.id)?
                }
                Ok(_) | Err(_) => fs::remove_file(&path).map_err(failed(&path))?,
            }
        }
        Ok(())
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// `failed` if the file system refuses.
    pub fn remove(&self, id: &SandboxId) -> Result<(), ControlError> {
        for path in [self.proposal(id), self.file(id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
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

    fn proposal(&self, id: &SandboxId) -> PathBuf {
        self.path.join(format!(".{id}.new"))
    }

    fn file(&self, id: &SandboxId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ControlError + '_ {
    move |error| ControlError::failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;
    use tempfile::TempDir;

    use super::*;

    /// A directory in which the first generation of a sandbox is written down.
    fn state() -> (TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        write(1, |record| state.save(record));
        (directory, state)
    }

    fn write(generation: u32, how: impl Fn(&Record<&RawValue>) -> Result<(), ControlError>) {
        let policy = to_raw_value(&generation).unwrap();
        let record = Record {
            version: VERSION,
            id: "one".parse().unwrap(),
            iface: "tap0".to_owned(),
            ifindex: 7,
            addrs: Vec::new(),
            mac: None,
            slot: 3,
            tenant: 9,
            created_at: SystemTime::UNIX_EPOCH,
            generation,
            policy: policy.as_ref(),
        };
        how(&record).unwrap();
    }

    fn generations(state: &StateDir) -> Vec<(u32, Value)> {
        let records = state.load().unwrap();
        records.into_iter().map(|record| (record.generation, record.policy)).collect()
    }

    #[test]
    fn what_was_proposed_counts_once_it_is_confirmed() {
        let (_directory, state) = state();
        write(2, |record| state.propose(record));
        assert_eq!(generations(&state), [(1, 1.into())]);
        let id = "one".parse().unwrap();
        for _ in 0..2 {
            state.confirm(&id).unwrap();
            assert_eq!(generations(&state), [(2, 2.into())]);
        }
        write(3, |record| state.propose(record));
        state.remove(&id).unwrap();
        state.take_proposals(|_| Ok(true)).unwrap();
        assert_eq!(generations(&state), []);
    }

    #[test]
    fn the_next_daemon_takes_up_what_is_in_force_and_forgets_the_rest() {
        let (directory, state) = state();
        write(2, |record| state.propose(record));
        state.take_proposals(|record| Ok(record.generation == 1)).unwrap();
        assert_eq!(generations(&state), [(1, 1.into())]);
        write(2, |record| state.propose(record));
        state.take_proposals(|record| Ok(record.generation == 2)).unwrap();
        assert_eq!(generations(&state), [(2, 2.into())]);
        // Interrupted half-way.
        fs::write(directory.path().join("sandboxes/.one.new"), "{\"version\":1,").unwrap();
        state.take_proposals(|_| Ok(true)).unwrap();
        assert_eq!(generations(&state), [(2, 2.into())]);
    }
}
