//! Connections that the kernel handed to the inspector: whose they are, and what it said of them; and the
//! inspector's sockets, which the kernel has to know.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData, SockMap};
use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use filter_common::RuleWord;
use filter_common::layout::{FlowKey, Punt, PuntKey};

use super::{KernelError, map, pins, program, query};

const NAME: &str = "to_inspector";

/// The maps and the program of punted connections.
pub struct Punts {
    punted: HashMap<MapData, PuntKey, Punt>,
    verdicts: Mutex<HashMap<MapData, FlowKey, u32>>,
    sockets: Mutex<SockMap<MapData>>,
    to_inspector: Mutex<SkLookup>,
    pin: PathBuf,
}

/// Where the link of the program is pinned that finds the inspector's sockets.
pub fn lookup_pin(bpffs: &Path) -> PathBuf {
    bpffs.join(NAME)
}

impl Punts {
    pub(super) fn open(
        bpffs: &Path,
        to_inspector: SkLookup,
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        let verdicts = HashMap::try_from(Map::LruHashMap(take("VERDICTS")?)).map_err(map("VERDICTS"))?;
        Ok(Self {
            punted: HashMap::try_from(Map::HashMap(take("PUNTED")?)).map_err(map("PUNTED"))?,
            verdicts: Mutex::new(verdicts),
            sockets: Mutex::new(SockMap::try_from(Map::SockMap(take("SOCKETS")?)).map_err(map("SOCKETS"))?),
            to_inspector: Mutex::new(to_inspector),
            pin: lookup_pin(bpffs),
        })
    }

    /// The sandbox that has this punted connection.
    pub fn tenant(&self, key: &PuntKey) -> Option<u32> {
        self.punted.get(key, 0).ok().map(|punt| punt.tenant)
    }

    /// Lets the kernel know by which rule a connection passes. It only counts by it.
    pub fn settle(&self, key: &FlowKey, rule: RuleWord) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = verdicts.insert(key, rule.bits(), 0) {
            tracing::debug!(%error, "a connection goes on uncounted");
        }
    }

    /// Has the kernel deliver punted packets to `socket`, until that is closed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn serve(&self, place: u32, socket: impl AsFd) -> Result<(), KernelError> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.set(place, &socket.as_fd(), 0).map_err(map("SOCKETS"))
    }

    /// Has the kernel ask our program whenever it looks up a socket in this network namespace. Whatever an
    /// earlier daemon left there is replaced, without a moment between.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&self) -> Result<(), KernelError> {
        let here = netns()?;
        let mut lookup = self.to_inspector.lock().unwrap_or_else(PoisonError::into_inner);
        let id = lookup.attach(here).map_err(program(NAME))?;
        let link = FdLink::from(lookup.take_link(id).map_err(program(NAME))?);
        // A BPF file system has no names with dots.
        let new = self.pin.with_file_name("to_inspector_new");
        if new.exists() {
            fs::remove_file(&new).map_err(pins(&new))?;
        }
        link.pin(&new)?;
        fs::rename(&new, &self.pin).map_err(pins(&self.pin))
    }

    /// Whether the kernel asks our program. The pin does not say so: a link can be detached and stay pinned.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn is_attached(&self) -> Result<bool, KernelError> {
        let here = netns()?;
        let asked = query::socket_lookups(here.as_fd()).map_err(|source| KernelError::System {
            what: "asking which programs look up sockets",
            source,
        })?;
        let lookup = self.to_inspector.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(asked.contains(&lookup.info().map_err(program(NAME))?.id()))
    }
}

/// The network namespace that this process is in.
fn netns() -> Result<File, KernelError> {
    let path = Path::new("/proc/self/ns/net");
    File::open(path).map_err(pins(path))
}
