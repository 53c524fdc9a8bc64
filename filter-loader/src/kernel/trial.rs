//! A copy of the program with maps of its own, to ask what becomes of a packet without it being sent: no map, ring
//! or interface of the running filter is touched.
//!
//! It is large (the table of connections is an array) and lives no longer than a question.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, SockMap};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use filter_common::layout::{
    Budget, Counters, Event, PolicyWord, Punt, PuntKey, Sandbox, sandbox_place, socket,
};
use filter_common::{Reason, RuleWord};
use filter_policy::Compiled;

use super::object::{Settings, classifier, open_object, take_map};
use super::policies;
use super::rings::Ring;
use super::trie::{self, Trie};
use super::{KernelError, map, program};

/// The slot of the one policy.
const SLOT: u32 = 0;
const GENERATION: u32 = 1;
/// What the daemon would mark its own frames with; there are none.
const NOBODYS_MARK: u32 = 1 << 30;
/// `TC_ACT_UNSPEC` of `linux/pkt_cls.h`: the packet goes on.
const PASS: u32 = u32::MAX;
const FROM_SANDBOX: &str = "from_sandbox";

/// The copy.
pub struct Trial {
    ebpf: Ebpf,
    ifindex: u32,
    slot: u32,
    budget: Budget,
    budgets: Array<MapData, Budget>,
    counters: Array<MapData, Counters>,
    punted: HashMap<MapData, PuntKey, Punt>,
    events: Ring<Event>,
    /// What stands for the inspector's sockets, lest the program find none. They see no packet.
    _sockets: Sockets,
}

struct Sockets {
    map: SockMap<MapData>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tried {
    /// Why it passed or did not. `None`: it went to the inspector.
    pub reason: Option<Reason>,
    /// By which rule.
    pub rule: RuleWord,
}

impl Trial {
    /// Puts a sandbox with these connections under a policy. Its interface has to be there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(
        settings: &Settings,
        sandbox: &Sandbox,
        budget: Budget,
        compiled: &Compiled,
    ) -> Result<Self, KernelError> {
        let mut ebpf = open_object(None, settings, NOBODYS_MARK)?;
        classifier(&mut ebpf, FROM_SANDBOX)?.load().map_err(program(FROM_SANDBOX))?;
        let trie = Trie::create()?;
        trie.fill(&compiled.entries)?;
        trie::publish(take_map(&mut ebpf, "TRIES")?.fd().as_fd(), &[(SLOT, &trie)])?;
        let numbers = policies::numbers(compiled, [0; 32]);
        set(&mut ebpf, "POLICIES", SLOT, numbers)?;
        set(&mut ebpf, "POLICY_WORDS", sandbox.slot, PolicyWord::new(SLOT, GENERATION).bits())?;
        set(&mut ebpf, "SANDBOXES", sandbox_place(sandbox.ifindex), *sandbox)?;
        let punted = aya::maps::Map::HashMap(take_map(&mut ebpf, "PUNTED")?);
        Ok(Self {
            ifindex: sandbox.ifindex,
            slot: sandbox.slot,
            budget,
            budgets: array(&mut ebpf, "BUDGETS")?,
            counters: array(&mut ebpf, "COUNTERS")?,
            punted: HashMap::try_from(punted).map_err(map("PUNTED"))?,
            events: Ring::open(&mut |name| take_map(&mut ebpf, name), "EVENTS")?,
            _sockets: Sockets::open(take_map(&mut ebpf, "SOCKETS")?)?,
            ebpf,
        })
    }

    /// Runs the program on a frame of the sandbox.
    ///
    /// # Errors
    /// If the kernel refuses to run it, or nothing says what it did.
    pub fn run(&mut self, frame: &[u8]) -> Result<Tried, KernelError> {
        self.budgets.set(self.slot, self.budget, 0).map_err(map("BUDGETS"))?;
        let before = self.counters.get(&self.slot, 0).map_err(map("COUNTERS"))?;
        let context = context(self.ifindex);
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let from_sandbox: &SchedClassifier = classifier(&mut self.ebpf, FROM_SANDBOX)?;
        let action = from_sandbox.test_run(options).map_err(program(FROM_SANDBOX))?.return_value;
        let after = self.counters.get(&self.slot, 0).map_err(map("COUNTERS"))?;
        let counted = Reason::ALL.iter().copied().find(|reason| {
            let of =
                |counters: &Counters| counters.by_reason.get(*reason as usize).map(|count| count.packets);
            of(&before) != of(&after)
        });
        let told = std::iter::from_fn(|| self.events.pop()).last();
        let rule = told.map_or(RuleWord::UNMATCHED, |event| RuleWord::from_bits(event.rule));
        match counted {
            Some(reason) => Ok(Tried { reason: Some(reason), rule }),
            None if action == PASS && self.punted.keys().next().is_some() => Ok(Tried { reason: None, rule }),
            None => Err(KernelError::System {
                what: "asking the program",
                source: std::io::Error::other("it does not say what it did with the packet"),
            }),
        }
    }
}

impl Sockets {
    fn open(data: MapData) -> Result<Self, KernelError> {
        let failed = |source| KernelError::System { what: "a socket on loopback", source };
        let map = SockMap::try_from(aya::maps::Map::SockMap(data)).map_err(map("SOCKETS"))?;
        let mut sockets = Self { map, tcp: Vec::new(), udp: Vec::new() };
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        sockets.stand_in(v4, socket::TCP_V4, socket::UDP_V4).map_err(failed)?;
        // A host without IPv6 has no inspector for it either.
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        if let Err(error) = sockets.stand_in(v6, socket::TCP_V6, socket::UDP_V6) {
            tracing::debug!(%error, "no IPv6");
        }
        Ok(sockets)
    }

    fn stand_in(&mut self, at: SocketAddr, tcp_place: u32, udp_place: u32) -> std::io::Result<()> {
        let (tcp, udp) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
        self.map.set(tcp_place, &tcp.as_fd(), 0).map_err(std::io::Error::other)?;
        self.map.set(udp_place, &udp.as_fd(), 0).map_err(std::io::Error::other)?;
        self.tcp.push(tcp);
        self.udp.push(udp);
        Ok(())
    }
}

/// `struct __sk_buff` as far as a caller may set it: by which interface the packet came in.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L6179-L6224>
fn context(ifindex: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    for offset in [INGRESS_IFINDEX, IFINDEX] {
        context[offset..offset + 4].copy_from_slice(&ifindex.to_ne_bytes());
    }
    context
}

fn array<T: aya::Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, T>, KernelError> {
    Array::try_from(aya::maps::Map::Array(take_map(ebpf, name)?)).map_err(map(name))
}

fn set<T: aya::Pod>(ebpf: &mut Ebpf, name: &'static str, place: u32, value: T) -> Result<(), KernelError> {
    array(ebpf, name)?.set(place, value, 0).map_err(map(name))
}
