//! The kernel's half of the filter, as the daemon handles it: programs, maps, links.
//!
//! [`object`] loads the programs and opens their pinned maps; [`sandboxes`] writes who an interface belongs
//! to; [`policies`] builds tries and hands out their slots; [`words`] flips the policy of a sandbox;
//! [`links`] attaches; [`punts`] knows what was handed to the inspector; [`run`] has the kernel go through connections and send frames; [`rings`] reads what
//! it tells; [`trial`] asks what it would do. Nothing here knows ids, files or clients.
//!
//! Every call may block for as long as the kernel takes (up to some tens of milliseconds), so callers stay
//! off the asynchronous threads.

pub mod batch;
mod flows;
pub mod links;
mod memory;
pub mod object;
pub mod policies;
pub mod punts;
mod query;
pub mod rings;
pub mod run;
pub mod sandboxes;
pub mod tally;
pub mod trial;
mod trie;
mod unlink;
pub mod words;

use std::io;
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;

pub use links::{AttachMode, Links};
pub use object::{Kernel, Settings};
pub use policies::{Lease, Policies};

/// What can go wrong between the daemon and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Files under the BPF file system.
    #[error("{}: {source}", path.display())]
    Pins {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The maps that are pinned were made by a version with other layouts.
    #[error(
        "{} was made by another version of the filter (layout {found}, this one has {}). Run that version, \
         or detach everything with `sandbox-filter cleanup --force` and attach again",
        path.display(),
        filter_common::layout::ABI
    )]
    Abi {
        /// Where.
        path: PathBuf,
        /// Which layout.
        found: String,
    },
    /// The object does not load.
    #[error("the kernel does not take the programs: {0}. `sandbox-filter doctor` says what it lacks")]
    Load(#[from] EbpfError),
    /// A program does not load, run or attach.
    #[error("program {name}: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why; with the verifier's log, if it was the verifier.
        source: ProgramError,
    },
    /// A map cannot be read or written.
    #[error("map {name}: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A system call of our own failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A link.
    #[error("link {}: {source}", path.display())]
    Link {
        /// Which.
        path: PathBuf,
        /// Why.
        source: LinkError,
    },
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// All slots are taken.
    #[error("this host already has as many {what} as it can: {limit}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u32,
    },
}

pub(crate) fn pins(path: &Path) -> impl FnOnce(io::Error) -> KernelError + '_ {
    move |source| KernelError::Pins { path: path.to_owned(), source }
}

pub(crate) fn map(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name, source }
}

pub(crate) fn program(name: &'static str) -> impl Fn(ProgramError) -> KernelError {
    move |source| KernelError::Program { name, source }
}
