//! How many answers there were, by what they say.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hickory_proto::op::ResponseCode;

/// What a sandbox may be answered, with the name that it has in metrics. `Refused` is only ever said for the
/// policy: what a server refuses is a failure.
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "noerror"),
    (ResponseCode::FormErr, "formerr"),
    (ResponseCode::ServFail, "servfail"),
    (ResponseCode::NXDomain, "nxdomain"),
    (ResponseCode::NotImp, "notimp"),
    (ResponseCode::Refused, "refused"),
    (ResponseCode::BADVERS, "badvers"),
];

/// Counts answers. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<[AtomicU64; CODES.len()]>);

impl Tally {
    pub(super) fn count(&self, rcode: ResponseCode) {
        let place = CODES.iter().position(|(code, _)| *code == rcode);
        if let Some(count) = place.and_then(|place| self.0.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each code with its name in metrics and how often it was said.
    pub(super) fn counts(&self) -> impl Iterator<Item = (ResponseCode, &'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        CODES.iter().zip(counts).map(|((code, name), count)| (*code, *name, count))
    }
}
