//! How much a client may ask, and how much a sandbox is asked at the same time.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};

use crate::settings::Rate;

/// How fast each client address may ask.
#[derive(Debug)]
pub struct ClientRate {
    limiter: Option<RateLimiter<IpAddr, DefaultKeyedStateStore<IpAddr>, DefaultClock>>,
    clock: DefaultClock,
}

impl ClientRate {
    /// A limiter of this rate; none where there is none.
    pub fn new(rate: Option<Rate>) -> Self {
        let clock = DefaultClock::default();
        let limiter = rate.and_then(|rate| {
            let requests = NonZeroU32::new(rate.requests)?;
            let quota = Quota::with_period(rate.per / rate.requests)?.allow_burst(requests);
            Some(RateLimiter::new(quota, DefaultKeyedStateStore::default(), clock.clone()))
        });
        Self { limiter, clock }
    }

    /// Lets a request through, or says when the next one may come.
    ///
    /// # Errors
    /// If there were too many of late.
    pub fn check(&self, client: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(&subscriber(client)).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// Forgets clients that have not asked for so long that they may ask as if for the first time.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// Whoever has one address of an IPv6 network has all of its /64 (RFC 6177).
fn subscriber(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(addr) => Ipv6Addr::from(u128::from(addr) & (u128::MAX << 64)).into(),
    }
}

/// How many requests of each sandbox are under way.
#[derive(Debug)]
pub struct Places {
    limit: u32,
    /// By the sandbox's number; those that have none are not in it.
    taken: Mutex<HashMap<u32, u32>>,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    tenant: u32,
}

impl Places {
    /// So many for each sandbox.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes one, if there is one.
    pub fn take(self: &Arc<Self>, tenant: u32) -> Option<Place> {
        let mut taken = self.lock();
        let count = taken.entry(tenant).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Place { places: self.clone(), tenant })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        // No code that holds it panics half-way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.places.lock().entry(self.tenant) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_a_rate_of_its_own() {
        let rate = ClientRate::new(Some(Rate { requests: 2, per: Duration::from_secs(60) }));
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!((rate.check(client("192.0.2.1")), rate.check(client("192.0.2.1"))), (Ok(()), Ok(())));
        let wait = rate.check(client("192.0.2.1")).unwrap_err();
        assert!(wait > Duration::from_secs(20) && wait <= Duration::from_secs(30), "{wait:?}");
        assert!(rate.check(client("::ffff:192.0.2.1")).is_err(), "the same address");
        assert!(rate.check(client("192.0.2.2")).is_ok());
        assert!(rate.check(client("2001:db8::1")).is_ok() && rate.check(client("2001:db8::2")).is_ok());
        assert!(rate.check(client("2001:db8::3")).is_err(), "the same network");
        assert!(rate.check(client("2001:db8:0:1::1")).is_ok());
        rate.tidy();
        assert!(rate.check(client("192.0.2.1")).is_err(), "it is not forgotten too early");
    }

    #[test]
    fn no_rate_is_no_limit() {
        let rate = ClientRate::new(None);
        assert!((0..100_000).all(|_| rate.check(IpAddr::from([192, 0, 2, 1])).is_ok()));
    }

    #[test]
    fn places_are_a_sandboxs_own_and_come_back() {
        let places = Places::new(2);
        let held = [places.take(1), places.take(1)];
        assert!(held.iter().all(Option::is_some) && places.take(1).is_none());
        assert!(places.take(2).is_some());
        drop(held);
        assert!(places.lock().is_empty());
        assert!(places.take(1).is_some());
    }
}
