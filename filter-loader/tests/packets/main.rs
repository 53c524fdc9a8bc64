//! The kernel programs on real frames: every verdict with its counter, its event and its refusal, and what
//! becomes of connections over time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod budget;
mod idle;
mod interfaces;
mod oracle;
mod policy;
mod punt;
mod refusals;
mod table;
mod tcp;
