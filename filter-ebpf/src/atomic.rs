//! Atomic operations on memory that CPUs and userspace share.
//!
//! The target's description says that it has none, so `core` leaves most of them out; the instruction set
//! has had them since Linux 5.12.
//! <https://github.com/torvalds/linux/blob/v6.12/Documentation/bpf/standardization/instruction-set.rst?plain=1#L627>

use core::intrinsics::{self, AtomicOrdering};

/// Adds to `*place`.
///
/// # Safety
/// `place` must be valid and aligned.
#[inline(always)]
pub unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(place, value) };
}

/// Sets `bits` in `*place` and returns what it was.
///
/// # Safety
/// `place` must be valid and aligned.
#[inline(always)]
pub unsafe fn set_bits(place: *mut u32, bits: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { intrinsics::atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(place, bits) }
}

/// Replaces `*place` if it is still `old`.
///
/// # Safety
/// `place` must be valid and aligned.
#[inline(always)]
pub unsafe fn replace(place: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the caller's promise.
    let (_, replaced) = unsafe {
        intrinsics::atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            place, old, new,
        )
    };
    replaced
}

/// As [`replace`].
///
/// # Safety
/// `place` must be valid and aligned.
#[inline(always)]
pub unsafe fn replace_word(place: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    let (_, replaced) = unsafe {
        intrinsics::atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            place, old, new,
        )
    };
    replaced
}

/// Reads `*place` in one piece.
///
/// # Safety
/// `place` must be valid and aligned.
#[inline(always)]
pub unsafe fn load<T: Copy>(place: *const T) -> T {
    // SAFETY: the caller's promise. An aligned word is read in one instruction.
    unsafe { place.read_volatile() }
}

/// `value`, cut to below `BOUND`, a power of two.
///
/// Written in assembly because the compiler drops a mask that it knows to be needless, and then the
/// verifier, which does not know, refuses the access.
#[inline(always)]
pub fn within<const BOUND: u64>(value: u64) -> u64 {
    const { assert!(BOUND.is_power_of_two()) };
    let mut value = value;
    // SAFETY: one instruction on one register.
    unsafe {
        core::arch::asm!("{value} &= {mask}", value = inout(reg) value, mask = const BOUND - 1);
    }
    value
}
