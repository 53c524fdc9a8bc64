//! Clients of other people, as their registries have them, in a sandbox whose policy has names: they reach what is
//! allowed as if there were no filter, and are told of what is not in a way that their users understand.
//!
//! Every program runs with a resolver, an authority and a home of its own. What it reached is what the servers saw;
//! what became of it is what the filter counted and told.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test panics to fail")]

#[path = "../names_support/mod.rs"]
mod names_support;

mod fetch;
mod git;
mod packages;
mod place;
mod streams;
