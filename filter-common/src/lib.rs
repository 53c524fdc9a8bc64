//! What the kernel programs and userspace share: one definition for both, so that nothing must be
//! kept in sync by hand.
//!
//! A packet goes through the modules in this order, unless [`plain`] recognises it at once: [`frame`] says what it is, [`ip`] (with [`icmp`])
//! finds addresses and ports, [`neighbour`] judges ARP and neighbour discovery, [`decide`] gives the
//! verdict, [`tcp`] follows the connection. All of these are pure: they read bytes through
//! [`read::Read`] and never look anything up, so `cargo test` reaches every line on the host.
//!
//! [`layout`] has the types that lie in maps and ring buffers. [`Reason`] is the list that counters,
//! events, metric labels and messages follow.
//!
//! The crate is `no_std` for the kernel's sake and knows nothing of loaders, sockets or names.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test panics to fail")
)]

mod addr;
#[cfg(test)]
mod fixtures;
mod reason;
mod rule;

pub mod decide;
pub mod frame;
pub mod icmp;
pub mod ip;
pub mod layout;
pub mod neighbour;
pub mod plain;
pub mod read;
pub mod tcp;

pub use addr::Addr;
pub use reason::{Decision, Reason};
pub use rule::{Class, RuleWord};
