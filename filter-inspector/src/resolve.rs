//! The one resolver of the filter: for the dialler, which wants addresses, and for the [`crate::dns`]
//! forwarder, which wants whatever a sandbox asks for.
//!
//! It asks the operator's servers and nobody else: no hosts file, no search list, no multicast. An answer is
//! believed only if it is one to the filter's own query (`exchange`), and of an answer only what is about
//! the name that was asked for (`reading`). Answers are kept for as long as they say, within bounds
//! (`cache`); queries for the same thing at the same time become one. Nothing here knows of sandboxes or
//! policies.

mod cache;
mod exchange;
#[cfg(test)]
pub(crate) mod fake;
mod reading;
mod resolv_conf;
#[cfg(test)]
mod tests;
mod upstream;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use filter_policy::Name;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{self, Record, RecordType},
};
use thiserror::Error;

use self::{
    cache::Cache,
    reading::Question,
    upstream::{Purpose, Upstream},
};

pub use self::resolv_conf::NoServers;
pub(crate) use self::upstream::LOOKUPS;

/// How long the answer with IPv6 addresses may keep IPv4 addresses waiting that are already there.
const GRACE: Duration = Duration::from_millis(250);

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The servers, in the order of preference. None: those of the host's `/etc/resolv.conf`.
    pub upstream: Vec<SocketAddr>,
    /// The mark (`SO_MARK`) of the sockets that ask; 0 for none.
    pub mark: u32,
    /// How long a lookup may take, all servers and repetitions together.
    pub timeout: Duration,
    /// The seconds that an answer is kept and said to be good for, at least and at most.
    pub ttl: RangeInclusive<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstream: Vec::new(),
            mark: 0,
            // Below the 5 s after which the C library's resolver asks again, so that it hears of a failure.
            timeout: Duration::from_secs(4),
            ttl: 1..=3600,
        }
    }
}

/// Asks servers for names. Clones share cache and limits.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Upstream,
    cache: Cache,
}

/// What there is of a type at a name.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// `NoError`, `NXDomain`, or `ServFail` where no server gave an answer to believe.
    pub rcode: ResponseCode,
    /// The aliases from the name to where it ends, in this order, and the records that are there.
    pub answers: Vec<Record>,
    /// The SOA that vouches for there being no records, if there are none.
    pub authorities: Vec<Record>,
}

impl Answer {
    /// What a message says to a question, as if it were a server's answer to the filter's own query. Pure; for
    /// those who want to see what becomes of odd messages.
    pub fn read(name: &rr::Name, kind: RecordType, message: &[u8]) -> Option<Self> {
        let message = Message::from_vec(message).ok()?;
        Some(reading::read(&Question::new(name, kind), message, &Settings::default().ttl).answer)
    }
}

/// Why a name has no addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unresolved {
    /// It does not exist.
    #[error("the name does not exist")]
    NoSuchName,
    /// It exists, but has no addresses.
    #[error("the name has no address")]
    NoAddress,
    /// No server gave an answer to believe in time.
    #[error("no DNS server gave an answer")]
    Failed,
}

impl Resolver {
    /// A resolver with an empty cache. `/etc/resolv.conf` is read once, here.
    pub fn new(settings: &Settings) -> Result<Self, NoServers> {
        let servers = match settings.upstream.as_slice() {
            [] => resolv_conf::servers()?,
            servers => servers.to_vec(),
        };
        let upstream = Upstream::new(servers, settings.mark, settings.timeout);
        Ok(Self(Arc::new(Inner { upstream, cache: Cache::new(settings.ttl.clone()) })))
    }

    /// The addresses of a name: IPv4 first, each family in the order of its answer.
    pub async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, Unresolved> {
        let labels = name.as_str().split('.').map(str::as_bytes);
        let name = rr::Name::from_labels(labels).map_err(|_| Unresolved::NoSuchName)?;
        let v4 = self.ask(&name, RecordType::A, Purpose::Dialling);
        let v6 = self.ask(&name, RecordType::AAAA, Purpose::Dialling);
        tokio::pin!(v4, v6);
        // Both are asked at once, but a server that never answers for IPv6 does not hold up IPv4
        // (RFC 8305 section 3). The other way round there might be no route to what was found.
        let (v4, v6) = tokio::select! {
            v4 = &mut v4 => {
                let v6 = match addresses(&v4).next() {
                    Some(_) => tokio::time::timeout(GRACE, v6).await.ok(),
                    None => Some(v6.await),
                };
                (v4, v6)
            }
            v6 = &mut v6 => (v4.await, Some(v6)),
        };
        let found: Vec<_> = [Some(&v4), v6.as_ref()].into_iter().flatten().flat_map(addresses).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let rcodes = [Some(v4.rcode), v6.map(|v6| v6.rcode)];
        Err(if rcodes.contains(&Some(ResponseCode::ServFail)) {
            Unresolved::Failed
        } else if rcodes.contains(&Some(ResponseCode::NXDomain)) {
            Unresolved::NoSuchName
        } else {
            Unresolved::NoAddress
        })
    }

    /// What there is of a type at a name; the time that records are good for is what is left of it.
    pub async fn lookup(&self, name: &rr::Name, kind: RecordType) -> Answer {
        self.ask(name, kind, Purpose::Sandbox).await
    }

    async fn ask(&self, name: &rr::Name, kind: RecordType, purpose: Purpose) -> Answer {
        let question = Question::new(name, kind);
        self.0.cache.answer(&question, self.0.upstream.ask(&question, purpose)).await
    }
}

fn addresses(answer: &Answer) -> impl Iterator<Item = IpAddr> {
    answer.answers.iter().filter_map(|record| record.data.ip_addr())
}
