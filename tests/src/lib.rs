//! The ground that the tests and the demo stand on: a host, sandboxes and an "internet", each in a network
//! namespace of its own.
//!
//! ```text
//!   sandbox 1 ── sbx1 ┐
//!   sandbox 2 ── sbx2 ┤
//!   bridged   ── sbr1 ┼ host (forwards; the daemon runs here) ── up0 ══ eth0 ── internet
//!   tap guest ── tap1 ┘                                                         (servers, capture)
//! ```
//!
//! A [`Topology`] makes the namespaces, a [`Sandbox`] asks from inside one of them and says what it saw, a
//! [`Server`] answers and counts, a [`Capture`] tells which packets really arrived, and a [`Daemon`] runs the
//! binary under test. Nothing here knows the inside of the product: it is used as its users use it.
//!
//! Names and paths carry the process id and a number, so topologies can run side by side. They are removed on
//! drop and on a signal, and those that a killed process left behind by the next process that makes one.

mod capture;
mod client;
mod daemon;
mod frames;
mod guest;
mod http;
mod installed;
mod janitor;
mod netlink;
mod netns;
mod offload;
mod process;
mod programs;
mod recording;
mod sandbox;
mod sdk;
mod server;
mod site;
mod sys;
mod talk;
mod tap;
mod tls;
mod topology;
mod userland;
mod web;
mod workers;
mod zone;

pub use capture::{Capture, Count, Flow};
pub use client::{Attempt, HttpAnswer};
pub use daemon::{Daemon, DaemonBuilder, Output};
pub use frames::FrameSender;
pub use guest::Guest;
pub use http::{Api, ApiAnswer, ApiRequest};
pub use installed::{cache, compiled, node, python};
pub use netns::Netns;
pub use offload::Offload;
pub use process::Process;
pub use programs::{PROGRAMS, program};
pub use recording::{Recording, finish_checksum};
pub use sandbox::Sandbox;
pub use sdk::{Sdk, SdkKind, Thrown};
pub use server::{Accepted, Server, Service};
pub use site::{Ends, Site, Visit};
pub use talk::{Ending, Heard, Talk};
pub use tap::Tap;
pub use tls::{Ca, TlsClient, TlsServer, TlsService, TlsSession};
pub use topology::{Topology, TopologyBuilder};
pub use userland::Userland;
pub use web::{WebRequest, WebServer};
pub use workers::pattern;
pub use zone::{Asked, Behaviour, Forgery, Zone};

/// For DNS messages that no resolver would send.
pub use hickory_proto;

/// For frames that no socket would send.
pub use etherparse;
