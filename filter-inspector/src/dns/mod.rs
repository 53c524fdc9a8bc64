//! What a sandbox asks the resolvers that its policy opens.
//!
//! No query of a sandbox goes anywhere. It is read in full and judged ([`query`]); what the policy lets
//! through is asked anew by the filter's own [`crate::resolve`], and the answer is cleaned and written
//! ([`answer`]). Options, signatures, spare bits and further sections, in which something could travel
//! unseen, end here in both directions. [`Forwarder`] joins these; [`udp`] and [`tcp`] are the ways in.

pub mod answer;
mod forwarder;
mod load;
pub mod query;
mod tally;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod udp;

pub use self::forwarder::{Forwarder, Reply};
pub use self::load::Place;
