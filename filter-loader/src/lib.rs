//! The daemon and its command line.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test panics to fail")
)]

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod error;
pub mod explain;
pub mod kernel;
pub mod learn;
pub mod limits;
pub mod metrics;
pub mod netlink;
pub mod protocol;
pub mod routing;
pub mod sandboxes;
pub mod trust;
