//! Where connections lie is drawn, once.

use aya::Ebpf;
use aya::maps::Array;
use filter_common::layout::FlowSeed;

use super::{KernelError, map};

/// Draws the seed, unless it was pinned with connections that lie where it says.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn seed(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    const NAME: &str = "FLOW_SEED";
    let missing = || KernelError::System { what: NAME, source: std::io::Error::other("no such map") };
    let map_mut = ebpf.map_mut(NAME).ok_or_else(missing)?;
    let mut place: Array<_, FlowSeed> = Array::try_from(map_mut).map_err(map(NAME))?;
    if place.get(&0, 0).map_err(map(NAME))?.odd[0] == 0 {
        let drawn = FlowSeed { odd: std::array::from_fn(|_| rand::random::<u64>() | 1) };
        place.set(0, drawn, 0).map_err(map(NAME))?;
    }
    Ok(())
}
