//! HTTP/1.1 as far as a filter needs it: where a message begins and ends, and whom it is for.
//!
//! A head goes on to the origin server byte for byte, so a server will read it again. What two readers
//! could take for two different things is therefore refused: [`request`] is as strict as RFC 9112 allows,
//! and stricter where servers are known to differ. [`response`] is strict about where a message ends and
//! easier about the rest. [`body`] follows chunks without holding them.

pub mod body;
mod exchange;
mod head;
pub(crate) mod proxy;
#[cfg(test)]
mod proxy_tests;
pub(crate) mod refusal;
pub mod request;
pub mod response;
