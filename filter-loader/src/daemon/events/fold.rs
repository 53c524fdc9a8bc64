//! Repetitions of a denial, told once a second with their number.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::protocol::event::Event;

/// Repetitions are told once in this time.
const TIME: Duration = Duration::from_secs(1);
/// Denials that are being folded at once. Beyond that each is told by itself.
const MOST: usize = 65_536;

/// The denials of the last second.
#[derive(Default)]
pub(super) struct Folded(HashMap<Denial, Repeated>);

/// What makes two denials the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Denial {
    tenant: u32,
    generation: u32,
    reason: Cow<'static, str>,
    proto: Cow<'static, str>,
    src: Option<IpAddr>,
    sport: Option<u16>,
    dst: Option<IpAddr>,
    dport: Option<u16>,
    server_name: Option<String>,
}

struct Repeated {
    event: Event,
    count: u64,
    since: SystemTime,
}

impl Folded {
    /// What is to be told at once of a denial: all of it if it is the first of its kind, otherwise nothing.
    pub(super) fn take(&mut self, tenant: u32, event: Event) -> Option<Event> {
        let denial = Denial {
            tenant,
            generation: event.generation,
            reason: event.reason.clone(),
            proto: event.proto.clone(),
            src: event.src,
            sport: event.sport,
            dst: event.dst,
            dport: event.dport,
            server_name: event.server_name.clone(),
        };
        if let Some(repeated) = self.0.get_mut(&denial) {
            repeated.count += 1;
            repeated.event.ts = event.ts;
            repeated.event.bytes_out += event.bytes_out;
            repeated.event.bytes_in += event.bytes_in;
            return None;
        }
        let first = Event { count: Some(1), ..event.clone() };
        if self.0.len() < MOST {
            let event = Event { bytes_out: 0, bytes_in: 0, ..event };
            self.0.insert(denial, Repeated { since: event.ts, event, count: 0 });
        }
        Some(first)
    }

    /// The repetitions whose second is over, or all of them.
    pub(super) fn due(&mut self, all: bool) -> Vec<Event> {
        let now = SystemTime::now();
        let mut due = Vec::new();
        self.0.retain(|_, repeated| {
            let keep = !all && now.duration_since(repeated.since).is_ok_and(|age| age < TIME);
            if !keep && repeated.count > 0 {
                due.push(Event { count: Some(repeated.count), ..repeated.event.clone() });
            }
            keep
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(sport: u16) -> Event {
        Event {
            ts: SystemTime::now(),
            schema: 1,
            event: "deny".into(),
            sandbox: "a".parse().unwrap(),
            generation: 1,
            decision: "deny".into(),
            reason: "denied_cidr".into(),
            rule: None,
            proto: "tcp".into(),
            src: Some([10, 0, 0, 2].into()),
            sport: Some(sport),
            dst: Some([203, 0, 113, 7].into()),
            dport: Some(7),
            server_name: None,
            resolved_ip: None,
            bytes_out: 60,
            bytes_in: 0,
            duration_ms: None,
            count: None,
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_what_repeats_it_as_one() {
        let mut folded = Folded::default();
        assert_eq!(folded.take(1, denial(1)).unwrap().count, Some(1));
        for _ in 0..3 {
            assert_eq!(folded.take(1, denial(1)), None);
        }
        assert!(folded.take(1, denial(2)).is_some() && folded.take(2, denial(1)).is_some(), "not the same");
        assert_eq!(folded.due(false), [], "not a second ago");
        let due = folded.due(true);
        let [one] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!((one.count, one.bytes_out), (Some(3), 180));
        assert!(folded.take(1, denial(1)).is_some(), "the next second begins anew");
    }

    #[test]
    fn when_there_are_too_many_each_is_told_and_memory_stays() {
        let mut folded = Folded::default();
        for tenant in 0..u32::try_from(MOST).unwrap() + 10 {
            assert!(folded.take(tenant, denial(1)).is_some());
        }
        assert!(folded.take(u32::MAX, denial(1)).is_some() && folded.take(u32::MAX, denial(1)).is_some());
        assert_eq!(folded.0.len(), MOST);
    }
}
