//! Public URLs of sandboxes: `<port>-<id>.<domain>`.
//!
//! A client's connection is taken by [`server`], decrypted where there is a certificate ([`tls`]), and its requests are
//! answered one by one by `gateway`: how fast the client is ([`limit`]), what it asks for ([`route`]), whether it may
//! ([`access`], [`controller`]); then the head is rewritten (`headers`, `cookies`, `query`), a connection to the sandbox's
//! own address is taken from the `pool` or dialled, and bodies are passed on as they come. Whoever is refused is told
//! why ([`refusal`]), and [`counters`] count it.
//!
//! Which sandboxes there are, and who may call them, the daemon says through [`Directory`]. Nothing here knows of
//! egress, of policies or of the kernel: a connection to a sandbox is an ordinary one of the host's.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::expect_used,
        clippy::indexing_slicing,
        reason = "a test panics to fail"
    )
)]

pub mod access;
pub mod authority;
mod body;
pub mod client;
pub mod controller;
mod cookies;
pub mod counters;
mod dial;
pub mod directory;
mod forward;
mod gateway;
mod headers;
mod idle;
pub mod limit;
mod page;
mod pool;
mod query;
pub mod refusal;
pub mod route;
pub mod server;
pub mod settings;
pub mod tls;
mod tunnel;

pub use counters::Counters;
pub use directory::{Directory, Sandbox, Secret};
pub use server::{Gateway, Handle, Running};
pub use settings::{Rate, Settings};
