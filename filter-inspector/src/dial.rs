//! Connects to where a verdict says: to an address that the filter resolved, or to the one that the policy
//! allows by itself; never to one that is guarded.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use filter_common::Reason;
use filter_policy::Name;
use futures_util::{StreamExt, future::Either, stream::FuturesUnordered};
use nix::libc::EINPROGRESS;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    resolve::Resolver,
    rules::{Rules, Target},
};

/// How long the addresses of a name are good for another connection, beyond the time that the resolver's own
/// cache gives them: to ask that cache costs more than the rest of a verdict.
const MEMORY: Duration = Duration::from_secs(1);
/// How many names are remembered.
const NAMES: usize = 1024;
/// How long an address has before the next one is tried beside it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

type Recent = HashMap<Name, (Instant, Arc<[IpAddr]>)>;

/// Where names lead, asked of the resolver and remembered for a moment.
#[derive(Debug)]
pub(crate) struct Addresses {
    resolver: Resolver,
    recent: Mutex<Recent>,
}

impl Addresses {
    /// Those that the resolver finds.
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self { resolver, recent: Mutex::default() }
    }

    async fn of(&self, name: &Name) -> Option<Arc<[IpAddr]>> {
        if let Some((found, addresses)) = self.recent().get(name)
            && found.elapsed() < MEMORY
        {
            return Some(Arc::clone(addresses));
        }
        // A lookup is large and rare; a connection need not have room for it all its life.
        let addresses: Arc<[IpAddr]> = Box::pin(self.resolver.addresses(name)).await.ok()?.into();
        let mut recent = self.recent();
        if recent.len() >= NAMES {
            recent.clear();
        }
        recent.insert(name.clone(), (Instant::now(), Arc::clone(&addresses)));
        Some(addresses)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a dial needs besides the target.
#[derive(Clone, Copy)]
pub(crate) struct Dial<'a> {
    /// Finds the addresses of a name.
    pub(crate) addresses: &'a Addresses,
    /// Which addresses may be dialled.
    pub(crate) rules: &'a Rules,
    /// The mark of the sockets, by which the host knows that their packets are nobody's to inspect; 0 for none.
    pub(crate) mark: u32,
    /// When to give up.
    pub(crate) deadline: Instant,
}

impl Dial<'_> {
    /// Connects to the target. `wanted` is where the sandbox wanted to go: its port is dialled, and addresses
    /// of its family come first.
    ///
    /// # Errors
    /// [`Reason::Guarded`] if every address is guarded, [`Reason::DeniedCidr`] if none is permitted;
    /// [`Reason::Unresolved`] if there is none or none answers; [`Reason::Capacity`] if the host has no descriptor or port left.
    pub(crate) async fn connect(
        &self,
        target: &Target,
        wanted: SocketAddr,
    ) -> Result<(TcpStream, IpAddr), Reason> {
        let addresses = match target {
            Target::Address(address) => Arc::from([*address]),
            Target::Name(name) => match timeout_at(self.deadline, self.addresses.of(name)).await {
                Ok(Some(addresses)) => addresses,
                Ok(None) | Err(_) => return Err(Reason::Unresolved),
            },
        };
        let name = match target {
            Target::Name(name) => Some(name),
            Target::Address(_) => None,
        };
        let allowed = permitted(&addresses, |address| self.rules.permits(name, address), wanted.ip());
        if allowed.is_empty() {
            let is_guarded = |address: &IpAddr| self.rules.guard.contains(address.to_canonical());
            return Err(if addresses.is_empty() {
                Reason::Unresolved
            } else if addresses.iter().all(is_guarded) {
                Reason::Guarded
            } else {
                Reason::DeniedCidr
            });
        }
        let connected = timeout_at(self.deadline, self.first_of(&allowed, wanted.port())).await;
        match connected {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) if is_exhausted(&error) => Err(Reason::Capacity),
            Ok(Err(_)) | Err(_) => Err(Reason::Unresolved),
        }
    }

    /// The first that answers, each being tried once the one before it has failed or had its head start.
    async fn first_of(&self, addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, IpAddr)> {
        let [first, rest @ ..] = addresses else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let mut attempt = pin!(self.one(*first, port));
        if rest.is_empty() {
            return attempt.await;
        }
        let failed = match timeout(HEAD_START, &mut attempt).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        // Rare, and a connection need not have room for it all its life.
        Box::pin(self.race(attempt, failed, rest, port)).await
    }

    /// As above, once the first address has failed or had its head start.
    async fn race(
        &self,
        first: impl Future<Output = io::Result<(TcpStream, IpAddr)>>,
        mut failed: Option<io::Error>,
        rest: &[IpAddr],
        port: u16,
    ) -> io::Result<(TcpStream, IpAddr)> {
        let mut rest = rest.iter().map(|address| self.one(*address, port));
        let mut trying = FuturesUnordered::new();
        if failed.is_none() {
            trying.push(Either::Left(first));
        }
        loop {
            trying.extend(rest.next().map(Either::Right));
            let done = if rest.len() == 0 {
                trying.next().await
            } else {
                match timeout(HEAD_START, trying.next()).await {
                    Ok(done) => done,
                    Err(_) => continue,
                }
            };
            match done {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failed = Some(error),
                None => return Err(failed.unwrap_or(io::ErrorKind::AddrNotAvailable.into())),
            }
        }
    }

    async fn one(&self, address: IpAddr, port: u16) -> io::Result<(TcpStream, IpAddr)> {
        let to = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        socket.set_tcp_nodelay(true)?;
        // Whoever dials speaks first: what acknowledges the other end's packet goes out with the first words.
        socket.set_tcp_quickack(false)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let stream = TcpStream::from_std(socket.into())?;
        // One that is near has answered already.
        if stream.peer_addr().is_err() {
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
        }
        Ok((stream, address))
    }
}

/// The addresses that may be dialled, each once, those of the wanted family first.
fn permitted(addresses: &[IpAddr], permits: impl Fn(IpAddr) -> bool, wanted: IpAddr) -> Vec<IpAddr> {
    let mut allowed: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    for address in addresses {
        // A mapped address is the IPv4 address inside, and is dialled as what was judged.
        let address = address.to_canonical();
        if permits(address) && !allowed.contains(&address) {
            allowed.push(address);
        }
    }
    allowed.sort_by_key(|address| address.is_ipv4() != wanted.is_ipv4());
    allowed
}

/// Whether the host, not the other end, is why there is no connection.
fn is_exhausted(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use filter_policy::Guard;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_not_guarded_is_dialled_in_canonical_form_and_once() {
        let guard = Guard::default();
        let addresses = [
            "2001:db8::1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::1",
            "::ffff:203.0.113.1",
            "203.0.113.1",
            "::1",
        ]
        .map(ip);
        let v4_first = permitted(&addresses, |address| !guard.contains(address), ip("198.51.100.1"));
        assert_eq!(v4_first, [ip("203.0.113.1"), ip("2001:db8::1")]);
        let v6_first = permitted(&addresses, |address| !guard.contains(address), ip("2001:db8::9"));
        assert_eq!(v6_first, [ip("2001:db8::1"), ip("203.0.113.1")]);
    }
}
