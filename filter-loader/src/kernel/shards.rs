//! The maps of flows are maps of maps: their parts have to be made once, and how connections are spread
//! over them has to be drawn.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use filter_common::layout::{EGRESS_SHARD, FLOW_SHARDS, Flow, FlowKey, INBOUND_SHARD, ShardSeed};

use super::{KernelError, batch, map};

/// Makes the shards of both maps, unless they were pinned with theirs.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn furnish(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    seed(ebpf)?;
    for (name, entries) in [("EGRESS", EGRESS_SHARD), ("INBOUND", INBOUND_SHARD)] {
        let missing = || KernelError::System { what: name, source: std::io::Error::other("no such map") };
        let Some(Map::ArrayOfMaps(outer)) = ebpf.map(name) else { return Err(missing()) };
        if is_furnished(outer)? {
            continue;
        }
        let shards: Vec<OwnedFd> =
            (0..FLOW_SHARDS).map(|_| shard(name, entries)).collect::<Result<_, _>>()?;
        let keys: Vec<u32> = (0..FLOW_SHARDS).collect();
        let values: Vec<u32> =
            shards.iter().map(|fd| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)).collect();
        // In one call: the kernel waits for a grace period at the end of each.
        batch::update(outer.fd().as_fd(), &keys, &values)
            .map_err(|source| KernelError::System { what: name, source })?;
    }
    Ok(())
}

/// Draws the seed, unless it was pinned with connections that lie where it says.
fn seed(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    const NAME: &str = "SHARD_SEED";
    let missing = || KernelError::System { what: NAME, source: std::io::Error::other("no such map") };
    let map_mut = ebpf.map_mut(NAME).ok_or_else(missing)?;
    let mut place: Array<_, ShardSeed> = Array::try_from(map_mut).map_err(map(NAME))?;
    if place.get(&0, 0).map_err(map(NAME))?.near == 0 {
        let drawn = ShardSeed { near: rand::random_range(1..=u64::MAX), far: rand::random() };
        place.set(0, drawn, 0).map_err(map(NAME))?;
    }
    Ok(())
}

fn is_furnished(outer: &MapData) -> Result<bool, KernelError> {
    use aya::maps::{ArrayOfMaps, HashMap};
    let fd = outer.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| KernelError::System { what: "flow maps", source })?;
    let data = MapData::from_fd(fd).map_err(map("flow maps"))?;
    let outer: ArrayOfMaps<MapData, HashMap<MapData, FlowKey, Flow>> =
        ArrayOfMaps::try_from(Map::ArrayOfMaps(data)).map_err(map("flow maps"))?;
    // All are made together.
    Ok(outer.get(&(FLOW_SHARDS - 1), 0).is_ok())
}

fn shard(name: &'static str, entries: u32) -> Result<OwnedFd, KernelError> {
    /// `BPF_F_NO_PREALLOC`: an empty shard is its buckets alone.
    const NO_PREALLOC: u32 = 1;
    let object = aya_obj::Map::new_from_params(
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH as u32,
        size_of::<FlowKey>() as u32,
        size_of::<Flow>() as u32,
        entries,
        NO_PREALLOC,
    );
    let data = MapData::create(object, "flows", None).map_err(map(name))?;
    data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::System { what: name, source })
}
