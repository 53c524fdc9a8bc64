//! The part of the filter that looks at names: TCP to the inspected ports, and DNS.
//!
//! The kernel hands over ("punts") connections that it cannot judge by address. [`server`] accepts them and
//! asks its [`host::Host`] whose they are and which [`rules::Rules`] are in force. `tls` reads the name out
//! of a ClientHello ([`hello`]), [`http`] out of every request; [`rules`] judges it; `dial` connects to an
//! address that [`resolve`] found for the name, never to the one that the sandbox chose; `relay` moves the
//! bytes. [`dns`] answers the sandbox's queries. `open` has the connections that are going on, to judge
//! them again when a policy is replaced.
//!
//! Parsers and judges are pure and never wait; whatever reads or writes a socket decides nothing. How policy
//! reaches the kernel, and what becomes of the events, is the business of the [`host::Host`].
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test panics to fail")
)]

pub mod authority;
mod connection;
mod dial;
pub mod dns;
#[cfg(test)]
mod harness;
pub mod hello;
pub mod host;
pub mod http;
mod listen;
mod open;
#[cfg(test)]
mod open_tests;
mod pipe;
mod relay;
pub mod resolve;
pub mod rules;
pub mod server;
mod stream;
mod tls;
#[cfg(test)]
mod tls_tests;
pub mod transform;
mod workers;
