//! The daemon: what was asked for, put into force and kept there.
//!
//! [`core`] has the operations (attach, update, detach, show); [`registry`] knows which sandboxes there are;
//! [`state`] writes down what was asked for; [`reconcile`] brings the kernel back to it at a start; [`guard`]
//! follows the host's addresses; [`templates`] shares what equal policies compile to; [`inspection`] runs the inspector, [`ingress`] the gateway of public URLs; [`cut`] resets connections that lost their permission; [`events`] turns
//! what the kernel tells into lines, which [`journal`] writes; [`tokens`] derives the secrets of sandboxes. [`service`]
//! ties them to the API and runs until it is told to stop.

pub mod cleanup;
pub mod core;
pub mod cut;
pub mod events;
pub mod guard;
pub mod ingress;
pub mod inspection;
pub mod journal;
pub mod reconcile;
pub mod registry;
pub mod service;
mod serving;
pub mod state;
pub mod templates;
pub mod tokens;
mod transforms;

pub use cleanup::cleanup;
pub use core::Core;
pub use service::run;
