//! How fast something may happen.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};

use crate::config::sections::Rate;

/// So many in such a time: all at once or spread, and then as places become free again.
#[derive(Debug)]
pub struct Limiter {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
    requests: NonZeroU32,
    per: Duration,
}

/// How things stand after something was let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// How many there may be at once.
    pub limit: u32,
    /// How many more there may be now.
    pub remaining: u32,
    /// When it will be as many as at the beginning.
    pub reset: Duration,
}

/// Why something was not let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// How many there may be at once.
    pub limit: u32,
    /// When the next one may come.
    pub wait: Duration,
}

impl Limiter {
    /// A limiter of this rate; none where the rate is no limit.
    pub fn new(rate: Rate) -> Option<Self> {
        let requests = NonZeroU32::new(rate.requests)?;
        let quota = Quota::with_period(rate.per / rate.requests)?.allow_burst(requests);
        let clock = DefaultClock::default();
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone())
            .with_middleware::<StateInformationMiddleware>();
        Some(Self { limiter, clock, requests, per: rate.per })
    }

    /// Lets one through, or says when.
    ///
    /// # Errors
    /// When there were too many of late.
    pub fn check(&self) -> Result<Standing, Refused> {
        let limit = self.requests.get();
        match self.limiter.check() {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity().min(limit);
                let reset = (self.per / limit) * (limit - remaining);
                Ok(Standing { limit, remaining, reset })
            }
            Err(refused) => Err(Refused { limit, wait: refused.wait_time_from(self.clock.now()) }),
        }
    }
}

/// Whole seconds, of which none is too early.
pub fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let limiter = Limiter::new(Rate { requests: 3, per: Duration::from_millis(300) }).unwrap();
        let standings: Vec<_> = (0..3).map(|_| limiter.check().unwrap().remaining).collect();
        assert_eq!(standings, [2, 1, 0]);
        let refused = limiter.check().unwrap_err();
        assert_eq!(refused.limit, 3);
        assert!(refused.wait > Duration::ZERO && refused.wait <= Duration::from_millis(100), "{refused:?}");
        std::thread::sleep(refused.wait + Duration::from_millis(5));
        let standing = limiter.check().unwrap();
        assert_eq!(standing.remaining, 0);
        assert!(standing.reset > Duration::from_millis(200) && standing.reset <= Duration::from_millis(300));
        assert!(limiter.check().is_err());
        assert!(Limiter::new(Rate { requests: 0, per: Duration::from_secs(1) }).is_none());
    }

    #[test]
    fn seconds_round_up() {
        assert_eq!(
            (seconds(Duration::ZERO), seconds(Duration::from_millis(1)), seconds(Duration::from_secs(2))),
            (0, 1, 2)
        );
    }
}
