//! The daemon: what was asked for, put into force and kept there.
//!
//! [`core`] has the operations (attach, update, detach, show); [`registry`] knows which sandboxes there are;
//! [`state`] writes down what was asked for; [`reconcile`] brings the kernel back to it at a start; [`guard`]
//! follows the host's addresses; [`templates`] shares what equal policies compile to; [`inspection`] runs the
//! inspector, [`ingress`] the gateway of public URLs; [`cut`] resets connections that lost their permission;
//! [`events`] turns what the kernel tells into lines, which [`journal`] writes and [`feed`] keeps; [`tokens`] derives
//! the secrets of sandboxes; `explain` says what would become of a connection; `learning` allows everything for a
//! while; `scrape` puts what the kernel counts into the metrics. `supervisor`
//! tells the service manager how it goes. [`service`]
//! ties them to the API and runs until it is told to stop.

pub mod cleanup;
pub mod core;
pub mod cut;
pub mod events;
mod explain;
pub mod feed;
pub mod guard;
pub mod ingress;
pub mod inspection;
pub mod journal;
mod learning;
pub mod reconcile;
pub mod registry;
mod scrape;
pub mod service;
mod serving;
pub mod state;
mod supervisor;
pub mod templates;
pub mod tokens;
mod transforms;

pub use cleanup::cleanup;
pub use core::Core;
pub use service::run;
