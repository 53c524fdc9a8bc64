//! The operator's secrets: one file each, in one directory, and no way out of it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use filter_policy::SecretName;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};
use zeroize::Zeroizing;

/// The longest secret.
const MAX_SECRET: u64 = 16 * 1024;

/// A secret. It is shown to nobody, and wiped from memory with its last user.
pub(super) struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// What it is.
    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// There is no such secret, or none that could be sent. Why is for the log: it may say something of the host.
#[derive(Debug)]
pub(super) struct Missing;

/// Those of a directory.
pub(super) struct Secrets {
    directory: Option<PathBuf>,
    known: Mutex<HashMap<SecretName, (Stamp, Arc<Secret>)>>,
}

/// What changes with a file's content.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Secrets {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, known: Mutex::default() }
    }

    /// The secret as it is now.
    pub(super) fn read(&self, name: &SecretName) -> Result<Arc<Secret>, Missing> {
        let Some(directory) = &self.directory else {
            tracing::warn!(
                secret = name.as_str(),
                "a policy names a secret, and there is no [transform].secrets_dir"
            );
            return Err(Missing);
        };
        self.fresh(directory, name).map_err(|error| {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            tracing::warn!(secret = name.as_str(), %error, "a secret that a policy names cannot be read");
            Missing
        })
    }

    fn fresh(&self, directory: &Path, name: &SecretName) -> io::Result<Arc<Secret>> {
        let mut file = find(directory, name)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, secret)) = known.get(name)
            && *then == stamp
        {
            return Ok(secret.clone());
        }
        let secret = Arc::new(read(&mut file, stamp.size)?);
        known.insert(name.clone(), (stamp, secret.clone()));
        Ok(secret)
    }
}

/// The file of a secret. Links may lead to other files of the directory, as those of mounted secrets do, and nowhere
/// else.
fn find(directory: &Path, name: &SecretName) -> io::Result<File> {
    let directory = open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        // Opening a pipe does not wait for who writes it.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(&directory, name.as_str(), how)?.into())
}

/// The content, without the line end that editors put behind it.
fn read(file: &mut File, size: u64) -> io::Result<Secret> {
    if size > MAX_SECRET {
        return Err(io::Error::other(format!("a secret has at most {MAX_SECRET} bytes")));
    }
    // As much room as it needs from the start: a buffer that grows leaves copies behind.
    let room = usize::try_from(size + 1).map_err(io::Error::other)?;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(size).read_to_end(&mut content)?;
    if content.ends_with(b"\n") {
        content.pop();
        if content.ends_with(b"\r") {
            content.pop();
        }
    }
    if content.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    // What may stand in a header (RFC 9110 section 5.5).
    if content.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(io::Error::other("it has control characters, which no header can have"));
    }
    Ok(Secret(content))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use filter_policy::{Defaults, Part, Policy};

    use super::*;

    /// Only a policy makes names.
    fn name(text: &str) -> SecretName {
        let policy = serde_json::json!({
            "rules": { "a.test": [{ "transform": { "headers": { "x": format!("${{secrets.{text}}}") } } }] },
        });
        let policy = Policy::from_value(policy, &Defaults::default()).unwrap();
        let transform = policy.rules.values().next().unwrap();
        match &transform.headers["x"].parts()[0] {
            Part::Secret(name) => name.clone(),
            Part::Text(_) => panic!("{text}"),
        }
    }

    fn directory(what: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("secrets-{}-{what}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("in")).unwrap();
        path
    }

    fn is_missing(secrets: &Secrets, text: &str) -> bool {
        secrets.read(&name(text)).is_err()
    }

    #[test]
    fn a_secret_is_what_its_file_says_now() {
        let top = directory("now");
        let secrets = Secrets::new(Some(top.join("in")));
        assert!(is_missing(&secrets, "key"));
        fs::write(top.join("in/key"), "one\n").unwrap();
        assert_eq!(secrets.read(&name("key")).unwrap().expose(), b"one");
        fs::write(top.join("in/.new"), "other two\r\n").unwrap();
        fs::rename(top.join("in/.new"), top.join("in/key")).unwrap();
        assert_eq!(secrets.read(&name("key")).unwrap().expose(), b"other two");
        let again = secrets.read(&name("key")).unwrap();
        assert!(Arc::ptr_eq(&again, &secrets.read(&name("key")).unwrap()));
        fs::remove_file(top.join("in/key")).unwrap();
        assert!(is_missing(&secrets, "key"));
    }

    #[test]
    fn nothing_outside_of_the_directory_is_a_secret() {
        let top = directory("outside");
        let secrets = Secrets::new(Some(top.join("in")));
        fs::write(top.join("outside"), "no secret").unwrap();
        fs::write(top.join("in/real"), "yes").unwrap();
        symlink("../outside", top.join("in/up")).unwrap();
        symlink(top.join("outside"), top.join("in/far")).unwrap();
        symlink(top.join("in/real"), top.join("in/absolute")).unwrap();
        symlink("/proc/self/environ", top.join("in/environ")).unwrap();
        symlink("real", top.join("in/near")).unwrap();
        fs::create_dir(top.join("in/directory")).unwrap();
        nix::unistd::mkfifo(&top.join("in/pipe"), Mode::S_IRUSR).unwrap();
        for missing in ["up", "far", "absolute", "environ", "directory", "pipe", "nobody"] {
            assert!(is_missing(&secrets, missing), "{missing}");
        }
        assert_eq!(secrets.read(&name("near")).unwrap().expose(), b"yes");
        assert!(is_missing(&Secrets::new(None), "real"));
    }

    #[test]
    fn what_no_header_can_have_is_no_secret() {
        let top = directory("control");
        let secrets = Secrets::new(Some(top.join("in")));
        for (file, content) in
            [("lines", &b"a\nb"[..]), ("crlf", b"a\r\nX: y"), ("nul", b"a\0"), ("empty", b"\n")]
        {
            fs::write(top.join("in").join(file), content).unwrap();
            assert!(is_missing(&secrets, file), "{file}");
        }
        fs::write(top.join("in/long"), vec![b'a'; 16 * 1024 + 1]).unwrap();
        assert!(is_missing(&secrets, "long"));
        fs::write(top.join("in/longest"), vec![b'a'; 16 * 1024]).unwrap();
        assert_eq!(secrets.read(&name("longest")).unwrap().expose().len(), 16 * 1024);
    }
}
