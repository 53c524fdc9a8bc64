//! Putting the programs onto an interface so that they stay there, with or without the daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;

use super::{KernelError, pins, program, unlink};

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachMode {
    /// TCX where the kernel has it (Linux 6.6), else clsact.
    #[default]
    Auto,
    /// TCX links, pinned.
    Tcx,
    /// Filters of a clsact qdisc, which stay until they are removed.
    Clsact,
}

/// The handle of our filters: ours alone at their priority, so that a restart finds and replaces them.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: u16 = 0x5f;

/// The two programs and where they are attached.
pub struct Links {
    dir: PathBuf,
    tcx: bool,
    programs: Mutex<[(Way, SchedClassifier); 2]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    FromSandbox,
    ToSandbox,
}

impl Way {
    const fn program(self) -> &'static str {
        match self {
            Self::FromSandbox => "from_sandbox",
            Self::ToSandbox => "to_sandbox",
        }
    }

    const fn hook(self) -> TcAttachType {
        match self {
            Self::FromSandbox => TcAttachType::Ingress,
            Self::ToSandbox => TcAttachType::Egress,
        }
    }
}

impl Links {
    pub(super) fn open(
        bpffs: &Path,
        mode: AttachMode,
        from_sandbox: SchedClassifier,
        to_sandbox: SchedClassifier,
    ) -> Self {
        let tcx = match mode {
            AttachMode::Auto => {
                KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
            }
            AttachMode::Tcx => true,
            AttachMode::Clsact => false,
        };
        let programs = [(Way::FromSandbox, from_sandbox), (Way::ToSandbox, to_sandbox)];
        Self { dir: links_dir(bpffs), tcx, programs: Mutex::new(programs) }
    }

    /// Attaches both programs to `iface` under the name `key`; if they are there already, puts this
    /// daemon's in their place, without a moment between.
    ///
    /// # Errors
    /// If the kernel refuses. Nothing stays attached that was not before.
    pub fn attach(&self, key: &str, iface: &str) -> Result<(), KernelError> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !self.dir.join(key).exists();
        for (way, program) in programs.iter_mut() {
            let attached = if self.tcx {
                self.attach_tcx(key, iface, *way, program)
            } else {
                attach_clsact(iface, *way, program)
            };
            if let Err(error) = attached {
                drop(programs);
                // What was in force before this call stays.
                if is_new {
                    self.detach(key, iface)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn attach_tcx(
        &self,
        key: &str,
        iface: &str,
        way: Way,
        classifier: &mut SchedClassifier,
    ) -> Result<(), KernelError> {
        let dir = self.dir.join(key);
        fs::create_dir_all(&dir).map_err(pins(&dir))?;
        let path = dir.join(way.program());
        if path.exists() {
            match replace(&path, classifier) {
                Ok(()) => return Ok(()),
                // The link of an interface that is gone: the kernel took it off.
                Err(error) => tracing::debug!(%error, "making the link anew"),
            }
        }
        // First, so that no other program can let a packet past us.
        let order = || TcAttachOptions::TcxOrder(LinkOrder::first());
        let attach_error = program(way.program());
        let begun = Instant::now();
        let id = loop {
            match classifier.attach_with_options(iface, way.hook(), order()) {
                // The kernel takes a link off that was just given up when it gets to it; until then the program
                // counts as attached.
                Err(error) if is_there_already(&error) && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(STEP);
                }
                attached => break attached.map_err(&attach_error)?,
            }
        };
        let link = classifier.take_link(id).map_err(&attach_error)?;
        let link =
            FdLink::try_from(link).map_err(|source| KernelError::Link { path: path.clone(), source })?;
        // The old one goes when the new one is there.
        if path.exists() {
            fs::remove_file(&path).map_err(pins(&path))?;
        }
        link.pin(&path)?;
        Ok(())
    }

    /// Takes both programs off. What is not attached need not be taken off.
    ///
    /// # Errors
    /// If a pin cannot be removed: the programs then still judge every packet.
    pub fn detach(&self, key: &str, iface: &str) -> Result<(), KernelError> {
        let dir = self.dir.join(key);
        for name in names_in(&dir)? {
            let path = dir.join(name);
            unlink::detach(&path).map_err(pins(&path))?;
        }
        unpin(&dir)?;
        if !self.tcx {
            detach_filters(iface);
        }
        Ok(())
    }

    /// The names under which links are pinned.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn pinned(&self) -> Result<Vec<String>, KernelError> {
        names_in(&self.dir)
    }

    /// Whether the programs are on the interface with this index.
    pub fn are_attached(&self, key: &str, iface: &str) -> bool {
        if !self.tcx {
            return clsact_attached(iface);
        }
        [Way::FromSandbox, Way::ToSandbox].iter().all(|way| {
            let hook = SchedClassifier::query_tcx(iface, way.hook());
            self.dir.join(key).join(way.program()).exists()
                && hook.is_ok_and(|(_, programs)| {
                    programs
                        .iter()
                        .any(|info| info.name_as_str().is_some_and(|name| way.program().starts_with(name)))
                })
        })
    }

    /// Whether links are used, rather than filters.
    pub const fn is_tcx(&self) -> bool {
        self.tcx
    }
}

/// How long a link that was given up may take to be gone.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(5);

fn is_there_already(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::AlreadyExists)
}

/// Where links are pinned, in a directory a sandbox.
pub fn links_dir(bpffs: &Path) -> PathBuf {
    bpffs.join("links")
}

fn replace(path: &Path, classifier: &mut SchedClassifier) -> Result<(), KernelError> {
    let link_error = |source| KernelError::Link { path: path.to_owned(), source };
    let pinned = PinnedLink::from_pin(path).map_err(link_error)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(link_error)?;
    let id = classifier.attach_to_link(link).map_err(program("link"))?;
    // Our descriptor may go; the pin holds the link.
    classifier.take_link(id).map_err(program("link"))?;
    Ok(())
}

fn clsact_link(iface: &str, way: Way) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(iface, way.hook(), CLSACT_PRIORITY, TcHandle::new(0, CLSACT_HANDLE), None)
}

fn attach_clsact(iface: &str, way: Way, classifier: &mut SchedClassifier) -> Result<(), KernelError> {
    let attach_error = program(way.program());
    // Fails if it is there already; if it is not there after that, attaching says so.
    let _ = qdisc_add_clsact(iface);
    let link = clsact_link(iface, way)
        .map_err(|source| KernelError::System { what: "looking up the interface", source })?;
    let id = match classifier.attach_to_link(link) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions {
                priority: CLSACT_PRIORITY,
                handle: TcHandle::new(0, CLSACT_HANDLE),
                classid: None,
            };
            classifier
                .attach_with_options(iface, way.hook(), TcAttachOptions::Netlink(options))
                .map_err(&attach_error)?
        }
    };
    let link = classifier.take_link(id).map_err(&attach_error)?;
    // Dropping it would take the filter off; it is to stay when the daemon goes.
    std::mem::forget(link);
    Ok(())
}

/// Takes our clsact filters off an interface, if there are any.
pub fn detach_filters(iface: &str) {
    for way in [Way::FromSandbox, Way::ToSandbox] {
        if let Ok(link) = clsact_link(iface, way) {
            // Dropping it takes the filter off, if there is one.
            drop(link);
        }
    }
}

fn clsact_attached(iface: &str) -> bool {
    [Way::FromSandbox, Way::ToSandbox].iter().all(|way| {
        let mut arguments = vec!["filter", "show", "dev", iface];
        arguments.push(match way {
            Way::FromSandbox => "ingress",
            Way::ToSandbox => "egress",
        });
        std::process::Command::new("tc")
            .args(arguments)
            .output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(way.program()))
    })
}

/// Removes a directory of pins.
///
/// # Errors
/// If something in it cannot be removed.
pub fn unpin(dir: &Path) -> Result<(), KernelError> {
    for name in names_in(dir)? {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(pins(&path))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pins(dir)(error)),
        _ => Ok(()),
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>, KernelError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(pins(dir)(error)),
    };
    entries.map(|entry| Ok(entry.map_err(pins(dir))?.file_name().to_string_lossy().into_owned())).collect()
}
