//! What is written down of a sandbox that the API made, one file each.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::ControlError,
    protocol::{Mac, SandboxId},
};

/// Whose a sandbox is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// Whoever may open the control socket.
    Operator,
    /// The holder of a key, by a name that does not give the key away.
    Key(String),
}

/// Where a sandbox is plugged in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its interface on the host.
    pub iface: String,
    /// The addresses it has.
    pub addrs: Vec<IpAddr>,
    /// The hardware address it has, where that is known.
    #[serde(default)]
    pub mac: Option<Mac>,
}

/// A sandbox that the API made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Number of this form.
    pub version: u32,
    /// Its name.
    pub id: SandboxId,
    /// Whose it is.
    pub owner: Owner,
    /// What it was made from.
    pub template_id: String,
    /// What its owner says about it.
    pub metadata: BTreeMap<String, String>,
    /// Whether its controller asks for a token.
    pub secure: bool,
    /// When it was made.
    #[serde(with = "humantime_serde")]
    pub started_at: SystemTime,
    /// When it ends.
    #[serde(with = "humantime_serde")]
    pub end_at: SystemTime,
    /// Where it is plugged in; not known before its provider has made it.
    pub port: Option<Port>,
}

/// Number of the form that this version writes.
pub const VERSION: u32 = 1;

/// The directory of these files.
#[derive(Debug)]
pub struct Records(PathBuf);

impl Records {
    /// Opens the directory, and makes it if there is none.
    ///
    /// # Errors
    /// `failed` if the file system refuses.
    pub fn open(state_dir: &Path) -> Result<Self, ControlError> {
        let path = state_dir.join("made");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed(&path))?;
        Ok(Self(path))
    }

    /// Writes a sandbox down, in one piece or not at all.
    ///
    /// # Errors
    /// `failed` if the file system refuses; what was written before is still there then.
    pub fn save(&self, record: &Record) -> Result<(), ControlError> {
        let path = self.file(&record.id);
        let new = self.0.join(format!(".{}.new", record.id));
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
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

    /// Everything that is written down.
    ///
    /// # Errors
    /// `failed`, naming the file that cannot be read.
    pub fn load(&self) -> Result<Vec<Record>, ControlError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed(&self.0))? {
            let path = entry.map_err(failed(&self.0))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                if path.extension().is_some_and(|extension| extension == "new") {
                    // Of a write that was interrupted; what it was to replace is still there.
                    fs::remove_file(&path).map_err(failed(&path))?;
                }
                continue;
            }
            let text = fs::read(&path).map_err(failed(&path))?;
            let record: Result<Record, _> = serde_json::from_slice(&text);
            match record {
                Ok(record) if record.version == VERSION => records.push(record),
                Ok(_) | Err(_) => {
                    return Err(ControlError::failed(format!(
                        "{} was not written by this version; end that sandbox by hand and remove the file",
                        path.display()
                    )));
                }
            }
        }
        Ok(records)
    }

    fn file(&self, id: &SandboxId) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ControlError + '_ {
    move |error| ControlError::failed(format!("{}: {error}", path.display()))
}
