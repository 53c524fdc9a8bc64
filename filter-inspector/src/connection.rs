//! A connection of a sandbox: its two ends, and what is told of it.

use std::{
    io::{self, ErrorKind},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use filter_common::{Reason, RuleWord};
use filter_policy::{Name, Scheme};
use nix::libc::{MSG_DONTWAIT, MSG_NOSIGNAL};
use socket2::SockRef;
use tokio::{net::TcpStream, time};

use crate::{
    dial::Dial,
    host::{Event, Flow, Happening, Host, Stage, Tenant},
    open::{Cut, Entry, Going, again},
    relay::{self, Means, with_scratch},
    rules::{Named, Rules, Target, Verdict},
    server::Shared,
};

/// How long a refused client has to take the refusal and stop talking.
const FAREWELL: Duration = Duration::from_secs(2);
/// How much it may still say meanwhile.
const FAREWELL_BYTES: usize = 1 << 20;

/// A connection that is being served. Its end, however it comes about, closes both sockets, tells what there
/// is to tell and strikes it out of the register.
pub(crate) struct Connection<H: Host> {
    pub(crate) shared: Arc<Shared<H>>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) client: Arc<TcpStream>,
    pub(crate) upstream: Option<Arc<TcpStream>>,
    /// When it began, until there is a verdict on it.
    begun: Option<Instant>,
    /// When the upstream was reached.
    opened: Option<Instant>,
    /// Bytes charged to the sandbox's share.
    buffered: usize,
    /// Whether the ends hear of a reset rather than of an orderly end.
    abrupt: bool,
}

/// A refusal: why, by which rule, of which policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) rule: RuleWord,
    pub(crate) generation: u32,
}

impl<H: Host> Connection<H> {
    /// `client` was accepted, so that its close is a reset until that is changed: should the process die, the
    /// client must not take a part of a transfer for the whole. Upstreams know what is whole: a request says
    /// how long it is, and TLS says when it ends.
    pub(crate) fn new(shared: Arc<Shared<H>>, entry: Arc<Entry>, client: TcpStream) -> Self {
        Self {
            shared,
            entry,
            client: Arc::new(client),
            upstream: None,
            begun: Some(Instant::now()),
            opened: None,
            buffered: 0,
            abrupt: false,
        }
    }

    pub(crate) fn flow(&self) -> &Flow {
        &self.entry.flow
    }

    pub(crate) fn tenant(&self) -> Tenant {
        self.entry.tenant
    }

    /// What the connection's directions may use.
    pub(crate) fn means(&self) -> Means<'_> {
        Means { pipes: &self.shared.pipes, share: &self.entry.share.pipes }
    }

    /// Has the client hear at once that what it said so far has come: it may wait for that before it goes on
    /// (RFC 896), and there is no answer yet that would say so.
    pub(crate) fn expect_more(&self) {
        // Without it the client hears a moment later.
        let _ = SockRef::from(&self.client).set_tcp_quickack(true);
    }

    /// Makes the close of both ends a reset.
    pub(crate) fn break_off(&mut self) {
        self.abrupt = true;
    }

    /// Charges bytes that are buffered before a verdict. False once the sandbox has too many of them.
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        self.buffered += bytes;
        let all = self.entry.share.buffered.fetch_add(bytes, Ordering::Relaxed) + bytes;
        all <= self.shared.settings.peek_memory
    }

    /// Gives back what was charged.
    pub(crate) fn discharge(&mut self) {
        self.entry.share.buffered.fetch_sub(self.buffered, Ordering::Relaxed);
        self.buffered = 0;
    }

    /// The generation in force, for what is refused before there is a verdict; 0 for a sandbox that is gone.
    pub(crate) fn generation(&self) -> u32 {
        self.shared.host.rules(self.tenant()).map_or(0, |rules| rules.generation)
    }

    /// A refusal that no rule decided.
    pub(crate) fn refused(&self, reason: Reason) -> Refused {
        Refused { reason, rule: RuleWord::UNMATCHED, generation: self.generation() }
    }

    /// The JSON pointer of the entry that decided, while its policy is in force.
    pub(crate) fn pointer(&self, refused: &Refused) -> Option<String> {
        let rules = self.shared.host.rules(self.tenant())?;
        (rules.generation == refused.generation).then(|| rules.policy.rule_pointer(refused.rule))?
    }

    /// Whether the connection may go where the sandbox wants it to whatever it says.
    pub(crate) fn passes_unnamed(&self) -> bool {
        let rules = self.shared.host.rules(self.tenant());
        rules.is_some_and(|rules| rules.passes_unnamed(self.flow().destination.ip()))
    }

    /// Whether it may, and nobody wants to know what it says in the clear: neither does it have to be learned, nor
    /// could it be a request that headers are set in.
    pub(crate) fn is_nobodys_business(&self) -> bool {
        let rules = self.shared.host.rules(self.tenant());
        rules.is_some_and(|rules| {
            rules.passes_unnamed(self.flow().destination.ip())
                && !rules.policy.is_observing()
                && !rules.policy.has_transforms_in_clear()
        })
    }

    /// Whether headers are set in requests to a host, if they come over TLS.
    pub(crate) fn sets_headers(&self, name: &Name) -> bool {
        let rules = self.shared.host.rules(self.tenant());
        rules.is_some_and(|rules| rules.policy.transform(name).is_some())
    }

    /// Whether headers are set in requests to a host, if they come in the clear.
    pub(crate) fn sets_headers_in_clear(&self, named: &Named) -> bool {
        let Ok(Some(name)) = named else { return false };
        let rules = self.shared.host.rules(self.tenant());
        let transform = |rules: Arc<Rules>| rules.policy.transform(name).map(|transform| transform.scheme);
        rules.and_then(transform) == Some(Scheme::Http)
    }

    /// The verdict under the rules in force.
    pub(crate) fn judge(&self, named: &Named) -> Result<Target, Refused> {
        let Some(rules) = self.shared.host.rules(self.tenant()) else {
            return Err(self.refused(Reason::Revoked));
        };
        match rules.judge(named, self.flow().destination.ip()) {
            Verdict::Allow { target, .. } => Ok(target),
            Verdict::Deny { reason, rule } => Err(Refused { reason, rule, generation: rules.generation }),
        }
    }

    /// Judges, connects to where the verdict says, and looks whether the verdict still stands. Afterwards the
    /// register knows what the connection goes on as, the kernel that it was allowed, and it is told.
    pub(crate) async fn reach(&mut self, named: &Named) -> Result<(), Refused> {
        let host = Arc::clone(&self.shared);
        let host = &host.host;
        let deadline = time::Instant::now() + self.shared.settings.dial_timeout;
        let entry = Arc::clone(&self.entry);
        loop {
            let mut changed = pin!(entry.changed.notified());
            let Some(rules) = host.rules(self.tenant()) else { return Err(self.refused(Reason::Revoked)) };
            let generation = rules.generation;
            if let Some(begun) = self.begun.take() {
                host.took(Stage::Verdict, begun.elapsed());
            }
            let (target, reason, rule) = match rules.judge(named, self.flow().destination.ip()) {
                Verdict::Allow { target, reason, rule } => (target, reason, rule),
                Verdict::Deny { reason, rule } => return Err(Refused { reason, rule, generation }),
            };
            let dial = Dial {
                addresses: &self.shared.addresses,
                rules: &rules,
                mark: self.shared.settings.upstream_mark,
                deadline,
            };
            let judged = Instant::now();
            let mut dialling = pin!(dial.connect(&target, self.flow().destination));
            let dialled = loop {
                tokio::select! {
                    biased;
                    dialled = &mut dialling => break Some(dialled),
                    () = &mut changed => {
                        changed.set(entry.changed.notified());
                        if self.judge(named).as_ref() != Ok(&target) {
                            break None;
                        }
                    }
                }
            };
            let Some(dialled) = dialled else { continue };
            let (upstream, resolved) = dialled.map_err(|reason| {
                // The guard decides whatever a rule says.
                let rule = if reason == Reason::Guarded { RuleWord::UNMATCHED } else { rule };
                Refused { reason, rule, generation }
            })?;
            host.took(Stage::Dial, judged.elapsed());
            let name = match &target {
                Target::Name(name) => Some(name.clone()),
                Target::Address(_) => None,
            };
            let mut going = Going { name, resolved, reason, rule, generation };
            self.entry.set_going(Some(going.clone()));
            // Whoever replaces the rules from now on finds the connection in the register.
            let Some(now) = host.rules(self.tenant()) else {
                self.entry.set_going(None);
                return Err(self.refused(Reason::Revoked));
            };
            if now.generation != generation {
                match again(&now, &going) {
                    Ok((reason, rule)) => {
                        (going.reason, going.rule, going.generation) = (reason, rule, now.generation);
                        self.entry.set_going(Some(going.clone()));
                    }
                    Err(_) => {
                        self.entry.set_going(None);
                        continue;
                    }
                }
            }
            self.upstream = Some(Arc::new(upstream));
            self.opened = Some(Instant::now());
            host.allowed(self.flow(), self.tenant(), going.rule);
            self.tell(Happening::Open, &going, self.opened);
            return Ok(());
        }
    }

    /// Connects to where the sandbox wants to go, which its policy allows, and relays whatever either side says.
    pub(crate) async fn pass(mut self) {
        match self.reach(&Ok(None)).await {
            Ok(()) => self.go_on(Vec::new()).await,
            Err(refused) => {
                self.tell_refused(refused, None, 0);
                self.break_off();
            }
        }
    }

    /// Gives the upstream what the client has said already, and relays.
    pub(crate) async fn go_on(mut self, said: Vec<u8>) {
        let Some(upstream) = &self.upstream else { return };
        if write_all(upstream, &said).await.is_err() {
            return self.break_off();
        }
        self.entry.sent.fetch_add(said.len() as u64, Ordering::Relaxed);
        drop(said);
        self.discharge();
        self.relay().await;
    }

    /// Takes leave of the upstream and tells so.
    pub(crate) fn leave_upstream(&mut self) {
        self.upstream = None;
        let Some(opened) = self.opened.take() else { return };
        if let Some(going) = self.entry.going() {
            self.tell(Happening::Close, &going, Some(opened));
        }
        self.entry.set_going(None);
        self.entry.sent.store(0, Ordering::Relaxed);
        self.entry.received.store(0, Ordering::Relaxed);
    }

    fn tell(&self, happening: Happening, going: &Going, opened: Option<Instant>) {
        self.shared.host.tell(
            self.tenant(),
            Event {
                happening,
                reason: going.reason,
                rule: going.rule,
                generation: going.generation,
                flow: *self.flow(),
                server_name: going.name.as_ref().map(|name| name.as_str().to_owned()),
                resolved: Some(going.resolved),
                bytes_out: self.entry.sent.load(Ordering::Relaxed),
                bytes_in: self.entry.received.load(Ordering::Relaxed),
                duration: opened.map_or(Duration::ZERO, |opened| opened.elapsed()),
            },
        );
    }

    /// Tells of a refusal.
    pub(crate) fn tell_refused(&self, refused: Refused, name: Option<&Name>, bytes: usize) {
        let Refused { reason, rule, generation } = refused;
        self.shared.host.tell(
            self.tenant(),
            Event {
                happening: Happening::Deny,
                reason,
                rule,
                generation,
                flow: *self.flow(),
                server_name: name.map(|name| name.as_str().to_owned()),
                resolved: None,
                bytes_out: bytes as u64,
                bytes_in: 0,
                duration: Duration::ZERO,
            },
        );
    }

    /// Relays until both ends are done.
    pub(crate) async fn relay(mut self) {
        let Some(upstream) = &self.upstream else { return };
        let tally = (&self.entry.sent, &self.entry.received);
        match relay::relay(&self.client, upstream, tally, self.means()).await {
            relay::Ending::Whole => {}
            relay::Ending::Unheard => {
                self.leave_upstream();
                self.listen_out().await;
            }
            relay::Ending::Broken => self.break_off(),
        }
    }

    /// Says the last words to the client and closes, so that it surely gets them: a close with unread input
    /// is a reset, which destroys what the client has not read yet.
    pub(crate) async fn say_farewell(self, words: &[u8]) {
        let said = time::timeout(FAREWELL, write_all(&self.client, words)).await;
        if matches!(said, Ok(Ok(()))) {
            relay::finish(&self.client);
            self.listen_out().await;
        }
    }

    /// Reads what the client still says, for nobody, until it ends, and no longer than is reasonable.
    pub(crate) async fn listen_out(self) {
        let _ = time::timeout(FAREWELL, async {
            let mut left = FAREWELL_BYTES;
            while left > 0 {
                self.client.readable().await?;
                match with_scratch(|scratch| self.client.try_read(scratch)) {
                    Ok(0) => break,
                    Ok(count) => left = left.saturating_sub(count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await;
    }
}

impl<H: Host> Drop for Connection<H> {
    fn drop(&mut self) {
        self.discharge();
        let cut = self.entry.cut();
        if self.abrupt || cut.is_some() {
            // The client is reset as it is closed.
            if let Some(upstream) = self.upstream.take() {
                reset_on_close(&upstream);
            }
        } else {
            end_on_close(&self.client);
        }
        if let Some(Cut::Revoked { rule, generation }) = cut
            && let Some(going) = self.entry.going()
        {
            let revoked = Going { reason: Reason::Revoked, rule, generation, ..going };
            self.tell(Happening::Deny, &revoked, self.opened);
        }
        self.leave_upstream();
        self.shared.register.leave(&self.entry);
    }
}

/// Makes the close of a socket a reset.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // Without it the socket closes all the same, only more politely.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Has a stream end in order when it is dropped.
fn end_on_close(stream: &TcpStream) {
    // Without it the other end hears of a reset.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Writes all of it.
pub(crate) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    // It nearly always has room, whether that is known or not.
    match SockRef::from(stream).send_with_flags(bytes, MSG_DONTWAIT | MSG_NOSIGNAL) {
        Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
