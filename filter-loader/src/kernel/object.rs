//! Loading the programs, and opening the maps that outlive them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::{SchedClassifier, SkLookup};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use filter_common::layout::{ABI, MAX_INSPECTED_PORTS};
use nix::time::{ClockId, clock_getres};

use super::policies::Policies;
use super::punts::Punts;
use super::rings::Rings;
use super::run::Runner;
use super::sandboxes::Sandboxes;
use super::tally::Tally;
use super::words::Words;
use super::{KernelError, Links, pins, program};
use crate::kernel::links::AttachMode;

/// The programs, as `cargo xtask build-ebpf` made them.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.o"));

/// Maps whose content outlives the daemon. The others are remade at each start.
const PINNED: &[&str] = &[
    "SANDBOXES",
    "DISPLACED",
    "POLICY_WORDS",
    "POLICIES",
    "TRIES",
    "BUDGETS",
    "COUNTERS",
    "THROTTLES",
    "CLOSED",
    "FLOWS",
    "FLOW_LOCKS",
    "FLOW_SEED",
    "EXPIRY",
    "EVENTS",
    "EVENTS_LOST",
    "CUTS",
    "PUNTED",
    "VERDICTS",
    "SOCKETS",
];

/// What the programs are told when they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Idle timeout of a TCP connection that is not yet open.
    pub tcp_half_open: Duration,
    /// … that is closing.
    pub tcp_closing: Duration,
    /// … that is open.
    pub tcp_established: Duration,
    /// … of a UDP exchange.
    pub udp: Duration,
    /// … of an ICMP echo exchange.
    pub icmp: Duration,
    /// Egress connections that no sandbox has more of, whatever its policy says.
    pub egress_ceiling: u32,
    /// How to attach.
    pub attach: AttachMode,
    /// What is handed to the inspector, and how it is told.
    pub punt: PuntSettings,
}

/// What is handed to the inspector, and how it is told.
#[derive(Clone, Copy, Debug)]
pub struct PuntSettings {
    /// TCP ports that are inspected; 0 where there are fewer.
    pub ports: [u16; MAX_INSPECTED_PORTS],
    /// The bits of packet marks that are ours.
    pub mask: u32,
    /// What they are on a packet for the inspector. Whatever else of ours is on a packet, the inspector sent it.
    pub punted: u32,
}

/// The loaded programs and everything that goes with them.
pub struct Kernel {
    /// Who an interface belongs to, and what it did.
    pub sandboxes: Sandboxes,
    /// What was counted, for who counts with it.
    pub tally: Tally,
    /// Which policy is in force.
    pub words: Words,
    /// Tries and their slots.
    pub policies: Policies,
    /// Attachment.
    pub links: Links,
    /// What was handed to the inspector.
    pub punts: Punts,
    /// Programs that run on demand.
    pub runner: Runner,
    /// What the kernel tells; taken once by whoever reads it.
    pub rings: Mutex<Option<Rings>>,
}

/// Where maps of this layout are pinned.
pub fn maps_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("maps-v{ABI}"))
}

/// The directory of maps that another version has pinned, and its layout number.
///
/// # Errors
/// If the directory cannot be read.
pub fn foreign_maps(bpffs: &Path) -> Result<Option<(PathBuf, String)>, KernelError> {
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(pins(bpffs)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(pins(bpffs))?;
        if let Some(found) = entry.file_name().to_str().and_then(|name| name.strip_prefix("maps-v"))
            && found != ABI.to_string()
        {
            return Ok(Some((entry.path(), found.to_owned())));
        }
    }
    Ok(None)
}

impl Kernel {
    /// Loads the programs. Maps that are pinned under `bpffs` are taken over with what is in them.
    ///
    /// # Errors
    /// If another version's maps are pinned there, or the kernel refuses.
    pub fn load(bpffs: &Path, settings: &Settings) -> Result<Self, KernelError> {
        if let Some((path, found)) = foreign_maps(bpffs)? {
            return Err(KernelError::Abi { path, found });
        }
        let maps = maps_dir(bpffs);
        fs::create_dir_all(&maps).map_err(pins(&maps))?;
        let mark = inject_mark(settings.punt.mask);
        let mut ebpf = load_object(Some(&maps), settings, mark)?;
        let to_inspector = take_lookup(&mut ebpf)?;
        let mut take = |name: &'static str| take_map(&mut ebpf, name);

        let counters = take("COUNTERS")?;
        let tally = Tally::open(&counters)?;
        let sandboxes = Sandboxes::open(counters, &mut take)?;
        let words = Words::open(&take("POLICY_WORDS")?)?;
        let policies = Policies::open(&mut take)?;
        let rings = Rings::open(&mut take)?;
        let punts = Punts::open(bpffs, to_inspector, &mut take)?;
        let links = Links::open(
            bpffs,
            settings.attach,
            take_program(&mut ebpf, "from_sandbox")?,
            take_program(&mut ebpf, "to_sandbox")?,
        );
        let runner = Runner::new(take_program(&mut ebpf, "sweep")?, take_program(&mut ebpf, "inject")?, mark);
        runner.start_expiry()?;
        Ok(Self { sandboxes, tally, words, policies, links, punts, runner, rings: Mutex::new(Some(rings)) })
    }
}

/// Loads the object and verifies its programs. `maps`: where to pin, if anywhere.
///
/// # Errors
/// If the kernel refuses; with the verifier's log.
pub fn load_object(maps: Option<&Path>, settings: &Settings, mark: u32) -> Result<Ebpf, KernelError> {
    let mut ebpf = open_object(maps, settings, mark)?;
    for name in ["from_sandbox", "to_sandbox", "sweep", "inject"] {
        classifier(&mut ebpf, name)?.load().map_err(program(name))?;
    }
    lookup(&mut ebpf)?.load().map_err(program(LOOKUP))?;
    Ok(ebpf)
}

/// Makes the maps of the object. Its programs are still to be loaded.
pub(super) fn open_object(maps: Option<&Path>, settings: &Settings, mark: u32) -> Result<Ebpf, KernelError> {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let timeouts = [
        ("TCP_HALF_OPEN", nanos(settings.tcp_half_open)),
        ("TCP_CLOSING", nanos(settings.tcp_closing)),
        ("TCP_ESTABLISHED", nanos(settings.tcp_established)),
        ("UDP", nanos(settings.udp)),
        ("ICMP", nanos(settings.icmp)),
        ("NANOSECONDS_PER_TICK", nanos(tick()?)),
    ];
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for (name, value) in &timeouts {
        loader.override_global(name, value, true);
    }
    let punt = &settings.punt;
    let ports = punt.ports.map(u16::to_be);
    loader.override_global("EGRESS_CEILING", &settings.egress_ceiling, true);
    loader.override_global("INJECT_MARK", &mark, true);
    loader.override_global("INSPECTED_PORTS", &ports, true);
    loader.override_global("PUNT_MASK", &punt.mask, true);
    loader.override_global("PUNT_MARK", &punt.punted, true);
    if let Some(maps) = maps {
        for name in PINNED {
            loader.map_pin_path(name, maps.join(name));
        }
    }
    let mut ebpf = loader.load(OBJECT)?;
    super::flows::seed(&mut ebpf)?;
    Ok(ebpf)
}

/// The mark that says "from the daemon" to the programs; nobody else is to know it. Even, since the odd number
/// behind it is another, and nothing that the routing rules look at.
fn inject_mark(ours: u32) -> u32 {
    loop {
        let mark = rand::random::<u32>() & !ours & !1;
        if mark != 0 {
            return mark;
        }
    }
}

const LOOKUP: &str = "to_inspector";

/// The program that finds the inspector's sockets.
///
/// # Errors
/// If the object has no such program.
pub fn lookup(ebpf: &mut Ebpf) -> Result<&mut SkLookup, KernelError> {
    let missing = || KernelError::System {
        what: LOOKUP,
        source: std::io::Error::other("no such program in the object"),
    };
    ebpf.program_mut(LOOKUP).ok_or_else(missing)?.try_into().map_err(program(LOOKUP))
}

/// An owned handle to it.
fn take_lookup(ebpf: &mut Ebpf) -> Result<SkLookup, KernelError> {
    let info = lookup(ebpf)?.info().map_err(program(LOOKUP))?;
    SkLookup::from_program_info(info, LOOKUP.into()).map_err(program(LOOKUP))
}

/// The length of a tick of the kernel's timer, in which the programs keep time: it is the resolution of the
/// coarse clocks.
fn tick() -> Result<Duration, KernelError> {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map(Duration::from)
        .map_err(|errno| KernelError::System { what: "the length of a timer tick", source: errno.into() })
}

/// A program of the object.
///
/// # Errors
/// If the object has no such program.
pub fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    let missing =
        || KernelError::System { what: name, source: std::io::Error::other("no such program in the object") };
    let found = ebpf.program_mut(name).ok_or_else(missing)?;
    found.try_into().map_err(program(name))
}

/// An owned handle to a loaded program.
fn take_program(ebpf: &mut Ebpf, name: &'static str) -> Result<SchedClassifier, KernelError> {
    let info = classifier(ebpf, name)?.info().map_err(program(name))?;
    SchedClassifier::from_program_info(info, name.into()).map_err(program(name))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the object has maps of the kinds named only")]
pub(super) fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    let problem = |text| KernelError::System { what: name, source: std::io::Error::other(text) };
    match ebpf.take_map(name).ok_or_else(|| problem("no such map in the object"))? {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::SockMap(data)
        | Map::RingBuf(data)
        | Map::ArrayOfMaps(data) => Ok(data),
        _ => Err(problem("a map of a kind that is not expected here")),
    }
}
