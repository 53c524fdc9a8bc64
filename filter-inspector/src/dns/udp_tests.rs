//! Real datagrams between two network namespaces: that of the host, where resolvers are local addresses as
//! they are for punted packets, and that of a sandbox.

use std::{
    collections::HashMap,
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::{Mutex, mpsc},
    thread,
};

use filter_common::RuleWord;
use filter_policy::{Defaults, Guard, Matcher, Policy, compile};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::RecordType,
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use serde_json::json;

use super::*;
use crate::{
    host::{Event, Tenant},
    resolve::{
        Resolver, Settings,
        fake::{Fake, a},
    },
    rules::Rules,
};

const V4: &str = "8.8.8.8:53";
const V6: &str = "[2001:db8::53]:53";

/// A host with one sandbox, at two addresses.
struct OneSandbox {
    rules: Arc<Rules>,
    seen: Mutex<HashMap<SocketAddr, usize>>,
}

impl Host for OneSandbox {
    fn tenant(&self, flow: &Flow) -> Option<Tenant> {
        *self.seen.lock().unwrap().entry(flow.destination).or_default() += 1;
        let own: [IpAddr; 2] = ["10.9.0.2".parse().unwrap(), "fd09::2".parse().unwrap()];
        own.contains(&flow.source.ip()).then_some(1)
    }

    fn rules(&self, _: Tenant) -> Option<Arc<Rules>> {
        Some(Arc::clone(&self.rules))
    }

    fn allowed(&self, _: &Flow, _: Tenant, _: RuleWord) {}

    fn tell(&self, _: Tenant, _: Event) {}
}

fn rules() -> Rules {
    let guard = Guard::default();
    let policy = json!({
        "allowOut": ["*.test"], "denyOut": ["0.0.0.0/0"], "dns": {"servers": ["8.8.8.8", "2001:db8::53"]}
    });
    let policy = Policy::from_value(policy, &Defaults::default()).unwrap();
    Rules {
        generation: 1,
        names: Arc::new(Matcher::new(&policy)),
        compiled: Arc::new(compile(&policy, &guard)),
        policy: Arc::new(policy),
        guard: Arc::new(guard),
    }
}

/// Runs `ip` in the namespace of this thread.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {arguments}");
}

/// Gives this thread a network namespace of its own; its end is the namespace's.
fn namespace() {
    let made = unshare(CloneFlags::CLONE_NEWNET);
    assert!(made.is_ok(), "no network namespace ({made:?}); run `cargo xtask test`, which asks for root");
    ip("link set lo up");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What a client in the sandbox gets from a resolver, if anything comes back from where it asked.
fn ask(resolver: &str, from: &str, name: &str, payload: u16) -> Option<Message> {
    let socket = UdpSocket::bind(from).unwrap();
    // Connected: the kernel passes on nothing that comes from anywhere else.
    socket.connect(resolver).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut query = Message::query();
    query.add_query(Query::query(name.parse().unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).ok()?;
    let answer = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    Some(answer)
}

#[test]
fn answers_come_from_where_the_queries_went() {
    let (to_host, from_sandbox) = mpsc::channel();
    let (to_sandbox, from_host) = mpsc::channel();
    let sandbox = thread::spawn(move || {
        namespace();
        to_host.send(gettid()).unwrap();
        from_host.recv().unwrap();
        for command in [
            "link set vs up",
            "addr add 10.9.0.2/24 dev vs",
            "addr add 10.9.0.3/24 dev vs",
            "addr add fd09::2/64 dev vs nodad",
            "route add default via 10.9.0.1",
            "-6 route add default via fd09::1",
        ] {
            ip(command);
        }
        let mut answers = Vec::new();
        for (resolver, own) in [(V4, "10.9.0.2:0"), (V6, "[fd09::2]:0")] {
            answers.push(ask(resolver, own, "a.test.", 1232).expect(resolver));
            answers.push(ask(resolver, own, "many.test.", 1232).expect(resolver));
            answers.push(ask(resolver, own, "many.test.", 512).expect(resolver));
        }
        // Another resolver that is local there as well, and an address that is nobody's.
        answers.push(ask("9.9.9.9:53", "10.9.0.2:0", "a.test.", 1232).unwrap());
        assert!(ask(V4, "10.9.0.3:0", "a.test.", 1232).is_none());
        answers
    });
    let seen = thread::spawn(move || {
        namespace();
        let peer = from_sandbox.recv().unwrap();
        for command in [
            "link add vh type veth peer name vs",
            &format!("link set vs netns {peer}"),
            "link set vh up",
            "addr add 10.9.0.1/24 dev vh",
            "addr add fd09::1/64 dev vh nodad",
            "route add local 8.8.8.8/32 dev lo",
            "route add local 9.9.9.9/32 dev lo",
            "-6 route add local 2001:db8::53/128 dev lo",
        ] {
            ip(command);
        }
        runtime().block_on(async {
            let server = Fake::new(|asked| {
                let name = asked.name().to_string();
                let count = if name.to_lowercase() == "many.test." { 60 } else { 1 };
                vec![asked.answer((1..=count).map(|last| a(&name, 9, [192, 0, 2, last])).collect())]
            })
            .await;
            let settings = Settings { upstream: vec![server.address], ..Settings::default() };
            let forwarder = Forwarder::new(Resolver::new(&settings).unwrap());
            let listener =
                Listener::bind_to("0.0.0.0:53".parse().unwrap(), "[::]:53".parse().unwrap()).unwrap();
            let host = Arc::new(OneSandbox { rules: Arc::new(rules()), seen: Mutex::default() });
            let serving = tokio::spawn(listener.serve(Arc::clone(&host), forwarder));
            to_sandbox.send(()).unwrap();
            let answers = tokio::task::spawn_blocking(|| sandbox.join().unwrap()).await.unwrap();
            serving.abort();
            (answers, host.seen.lock().unwrap().clone())
        })
    });
    let (answers, seen) = seen.join().unwrap();
    let sizes: Vec<_> = answers.iter().map(|answer| answer.answers.len()).collect();
    assert_eq!(sizes, [1, 60, 0, 1, 60, 0, 0]);
    let truncated: Vec<_> = answers.iter().map(|answer| answer.metadata.truncation).collect();
    assert_eq!(truncated, [false, false, true, false, false, true, false]);
    assert_eq!(answers[6].metadata.response_code, ResponseCode::Refused);
    let expected = [(V4, 4), (V6, 3), ("9.9.9.9:53", 1)];
    assert_eq!(seen, expected.map(|(resolver, count)| (resolver.parse().unwrap(), count)).into());
}

#[test]
fn servers_are_asked_with_the_mark() {
    let servers = thread::spawn(|| {
        namespace();
        ip("addr add 192.0.2.53/32 dev lo");
        runtime().block_on(async {
            let server = Fake::at([192, 0, 2, 53], |asked| {
                let mut reply = asked.reply(ResponseCode::NoError);
                reply.metadata.truncation = asked.over == Transport::Udp;
                reply.answers = asked.addresses(9);
                vec![reply.to_vec().unwrap()]
            })
            .await;
            // From now on it is reached by packets with the mark alone.
            for command in [
                "rule add fwmark 0x77 lookup 100",
                "route add local 192.0.2.53/32 dev lo src 127.0.0.1 table 100",
                "route add unreachable default",
                "route del local 192.0.2.53/32 dev lo table local",
            ] {
                ip(command);
            }
            let lookup = async |mark| {
                let settings = Settings {
                    upstream: vec![server.address],
                    mark,
                    timeout: Duration::from_millis(900),
                    ..Settings::default()
                };
                let name = "n.test.".parse().unwrap();
                Resolver::new(&settings).unwrap().lookup(&name, RecordType::A).await.rcode
            };
            (lookup(0).await, lookup(0x77).await, server.asked().len())
        })
    });
    // Once over UDP and once over TCP.
    assert_eq!(servers.join().unwrap(), (ResponseCode::ServFail, ResponseCode::NoError, 2));
}

#[test]
fn a_listener_has_loopback_sockets_of_each_family() {
    runtime().block_on(async {
        let listener = Listener::bind().expect("raw sockets; run `cargo xtask test`, which asks for root");
        let v4 = socket2::SockRef::from(&listener.v4()).local_addr().unwrap().as_socket().unwrap();
        assert!(v4.ip().is_loopback() && v4.port() != 0);
        if let Some(v6) = listener.v6() {
            let v6 = socket2::SockRef::from(&v6).local_addr().unwrap().as_socket().unwrap();
            assert!(v6.is_ipv6() && v6.ip().is_loopback() && v6.port() != 0);
        }
    });
}
