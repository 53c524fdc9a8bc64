//! What a sandbox has to trust where headers are set in its requests, as files that are put where its programs look.
//!
//! ```text
//!   <directory of the control socket>/trust/
//!     environment                    variables for what does not look in /etc/ssl
//!     ssl/sandbox-filter-ca.pem      the authority
//!     ssl/certs/ca-certificates.crt  the authority, and what the host trusts
//!     ssl/cert.pem                   the same
//! ```
//!
//! `ssl` takes the place of `/etc/ssl` in a sandbox. It is one directory for all, so that a rotation reaches those
//! that are there.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
};

use crate::config::Config;

/// Where systems keep what they trust, in one file.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// What else programs look for there: OpenSSL's settings, and the store of Java, which has one of its own.
const OTHERS: [&str; 2] = ["openssl.cnf", "certs/java/cacerts"];
/// For what has a list of its own, or looks elsewhere.
const ENVIRONMENT: &str = "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
GIT_SSL_CAINFO=/etc/ssl/certs/ca-certificates.crt
NODE_EXTRA_CA_CERTS=/etc/ssl/sandbox-filter-ca.pem
";

/// The files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trust(PathBuf);

impl Trust {
    /// Where they are.
    pub fn of(config: &Config) -> Self {
        let socket = &config.paths.socket;
        Self(socket.parent().unwrap_or(Path::new("/run/sandbox-filter")).join("trust"))
    }

    /// What takes the place of `/etc/ssl`.
    pub fn ssl(&self) -> PathBuf {
        self.0.join("ssl")
    }

    /// What takes the place of `/etc/environment`.
    pub fn environment(&self) -> PathBuf {
        self.0.join("environment")
    }

    /// The authority.
    pub fn certificate(&self) -> PathBuf {
        self.ssl().join("sandbox-filter-ca.pem")
    }

    /// The authority, and what the host trusts.
    pub fn bundle(&self) -> PathBuf {
        self.ssl().join("certs/ca-certificates.crt")
    }

    /// Writes them, each in one piece.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, certificate: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(self.ssl().join("certs"))?;
        let host = BUNDLES.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let bundle = format!("{certificate}{host}");
        replace(&self.environment(), ENVIRONMENT)?;
        replace(&self.certificate(), certificate)?;
        replace(&self.bundle(), &bundle)?;
        replace(&self.ssl().join("cert.pem"), &bundle)?;
        for name in OTHERS {
            // What the host does not have, the sandbox does not miss.
            let Ok(content) = fs::read(Path::new("/etc/ssl").join(name)) else { continue };
            let path = self.ssl().join(name);
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            replace(&path, content)?;
        }
        Ok(())
    }

    /// Puts them where `ip netns exec` looks for what shall take the place of files in `/etc`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn link_into(&self, etc: &Path) -> io::Result<()> {
        for (name, target) in [("ssl", self.ssl()), ("environment", self.environment())] {
            match symlink(target, etc.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn replace(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_stands_in_front_of_what_the_host_trusts() {
        let directory = tempfile::tempdir().unwrap();
        let trust = Trust(directory.path().join("trust"));
        for certificate in ["first\n", "second\n"] {
            trust.write(certificate).unwrap();
            assert_eq!(fs::read_to_string(trust.certificate()).unwrap(), certificate);
            assert!(fs::read_to_string(trust.bundle()).unwrap().starts_with(certificate));
        }
        let etc = directory.path().join("etc");
        fs::create_dir(&etc).unwrap();
        trust.link_into(&etc).unwrap();
        trust.link_into(&etc).unwrap();
        assert_eq!(fs::read_to_string(etc.join("ssl/sandbox-filter-ca.pem")).unwrap(), "second\n");
        assert!(fs::read_to_string(etc.join("environment")).unwrap().contains("NODE_EXTRA_CA_CERTS="));
    }
}
