//! What the kernel tells: events, and connections to cut.

use aya::maps::{Map, MapData, RingBuf};
use filter_common::layout::{Cut, Event};

use super::{KernelError, map};

/// The two rings. They have one reader each.
pub struct Rings {
    /// Events. Nobody is woken for them: read them a few times a second.
    pub events: Ring<Event>,
    /// Connections to cut. Its descriptor becomes readable when there is one.
    pub cuts: Ring<Cut>,
}

/// A ring of `T`.
pub struct Ring<T> {
    ring: RingBuf<MapData>,
    _entries: std::marker::PhantomData<fn() -> T>,
}

impl Rings {
    pub(super) fn open(
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        Ok(Self { events: Ring::open(take, "EVENTS")?, cuts: Ring::open(take, "CUTS")? })
    }
}

impl<T: Copy> Ring<T> {
    pub(super) fn open(
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
        name: &'static str,
    ) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(Map::RingBuf(take(name)?)).map_err(map(name))?;
        Ok(Self { ring, _entries: std::marker::PhantomData })
    }

    /// The next entry.
    pub fn pop(&mut self) -> Option<T> {
        let item = self.ring.next()?;
        let bytes: &[u8] = &item;
        if bytes.len() < size_of::<T>() {
            return None;
        }
        // SAFETY: the kernel programs write whole entries of this type, which is plain integers, so any
        // bytes are a value; unaligned, because nothing promises that they are aligned for it.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

impl<T> std::os::fd::AsFd for Ring<T> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the ring owns the descriptor for as long as the borrow lasts.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
