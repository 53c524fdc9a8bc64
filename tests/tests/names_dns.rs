//! DNS of a sandbox whose policy has names: one resolver, and through the filter.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;
#[path = "common/wire.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "as in its own module")]
mod wire;

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::op::{Message, ResponseCode};
use filter_tests::hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use filter_tests::{Behaviour, Ending, Forgery, FrameSender, Sandbox, Service, Talk};
use names_support::dns::{RESOLVER, addresses, ask, ask_over_tcp, ask_raw, code, query, query_of, with_edns};
use names_support::hello::hello;
use names_support::{
    AT_ONCE, Answer, EVIL, GOOD, Ground, ID, PATIENCE, Row, SHORT, WILD, at, counted, ip, names, usual_policy,
};
use nix::errno::Errno;
use serde_json::{Value, json};

const V6_RESOLVER: &str = "2001:4860:4860::8888";

fn strict() -> Value {
    json!({
        "allowOut": ["allowed.test", "*.wild.test"],
        "denyOut": ["0.0.0.0/0"],
        "dns": {"mode": "strict", "servers": [RESOLVER, V6_RESOLVER]},
    })
}

fn resolver() -> SocketAddr {
    at(RESOLVER, 53)
}

#[test]
fn a_sandbox_asks_through_the_filter() -> Result<()> {
    let ground = Ground::with(
        SHORT,
        &json!({
            "allowOut": ["allowed.test"], "denyOut": ["0.0.0.0/0"],
            "dns": {"servers": [RESOLVER, V6_RESOLVER]},
        }),
    )?;
    ground.zone.text("allowed.test", "some text");
    let before = ground.before()?;
    for server in [resolver(), at(V6_RESOLVER, 53)] {
        let asked = |message: &Message| ask(&ground.sandbox, server, message);
        let a = asked(&query("allowed.test", RecordType::A))?;
        ensure!(code(&a) == ResponseCode::NoError && addresses(&a) == [ip(GOOD[0])], "{a}");
        let aaaa = asked(&query("Allowed.TEST", RecordType::AAAA))?;
        ensure!(
            addresses(&aaaa) == [ip(GOOD[1])] && aaaa.answers[0].name.to_ascii() == "Allowed.TEST.",
            "{aaaa}"
        );
        let txt = asked(&query("allowed.test", RecordType::TXT))?;
        ensure!(txt.answers.len() == 1 && txt.answers[0].record_type() == RecordType::TXT, "{txt}");
        // Names that no rule matches can be asked for as well, unless the policy is strict.
        let denied = asked(&query("denied.test", RecordType::A))?;
        ensure!(addresses(&denied) == [ip(EVIL[0])], "{denied}");
        let nothing = asked(&query("nothing.test", RecordType::A))?;
        ensure!(code(&nothing) == ResponseCode::NXDomain && nothing.answers.is_empty(), "{nothing}");
        let none = asked(&query("allowed.test", RecordType::MX))?;
        ensure!(code(&none) == ResponseCode::NoError && none.answers.is_empty(), "{none}");
        // Over TCP, several at once.
        let questions = ["allowed.test", "b.wild.test", "denied.test"].map(|name| query(name, RecordType::A));
        let answers = ask_over_tcp(&ground.sandbox, server, &questions)?;
        let found: Vec<_> = answers.iter().flat_map(addresses).collect();
        ensure!(found == [GOOD[0], WILD[0], EVIL[0]].map(ip), "{found:?}");
    }
    // Upstream was asked by the host and in the filter's own words, and once for each question.
    let queries = ground.zone.queries();
    let host = ground.topology.host_addresses();
    for asked in &queries {
        ensure!(host.contains(&asked.from.ip()) && asked.server == ip(RESOLVER) && !asked.tcp, "{asked:?}");
    }
    let count = |name, kind| queries.iter().filter(|asked| asked.name == name && asked.kind == kind).count();
    for (name, kind) in [
        ("allowed.test", RecordType::A),
        ("allowed.test", RecordType::AAAA),
        ("allowed.test", RecordType::TXT),
        ("denied.test", RecordType::A),
    ] {
        ensure!(count(name, kind) == 1, "{name} {kind}: {} times", count(name, kind));
    }
    ground.ensure_moved(&before, &[])?;
    ensure!(counted(&ground.show()?, "dns") > counted(&before.show, "dns"));
    ensure!(ground.arrived.udp_frames_to(at(V6_RESOLVER, 53))? == 0, "the sandbox's own query arrived");
    // Queries end their places by themselves.
    ground.control.settles(ID, 0, Duration::from_secs(10))
}

#[test]
fn nothing_of_a_query_travels_on_but_the_question() -> Result<()> {
    let ground = Ground::usual()?;
    let marker = b"exfiltrated";
    let mut message = with_edns(query("allowed.test", RecordType::A), 4096, marker);
    message.metadata.checking_disabled = true;
    let answer = ask(&ground.sandbox, resolver(), &message)?;
    ensure!(addresses(&answer) == [ip(GOOD[0])] && answer.edns.is_some(), "{answer}");
    let sent = message.to_vec()?;
    let queries = ground.zone.queries();
    let id = sent[..2].to_vec();
    ensure!(!queries.is_empty());
    for asked in &queries {
        ensure!(!asked.bytes.windows(marker.len()).any(|window| window == marker), "{asked:?}");
        let read = Message::from_vec(&asked.bytes)?;
        ensure!(!read.metadata.checking_disabled && read.additionals.is_empty(), "{read}");
    }
    // Neither id nor case is the sandbox's: that would be a way to talk, and to forge.
    let mut ids = Vec::new();
    let mut spellings = Vec::new();
    for n in 0..8 {
        let name = format!("abcdefghijklmnop{n}.test");
        let mut message = query(&name, RecordType::A);
        message.metadata.id = 7;
        ask(&ground.sandbox, resolver(), &message)?;
        let queries = ground.zone.queries();
        let asked = queries.iter().rfind(|asked| asked.name == name).context("nobody asked")?;
        let read = Message::from_vec(&asked.bytes)?;
        ids.push(read.metadata.id);
        spellings.push(read.queries[0].name().to_ascii());
    }
    ensure!(ids.iter().filter(|id| **id == 7).count() <= 1, "{ids:?}");
    ensure!(spellings.iter().any(|name| name.chars().any(char::is_uppercase)), "{spellings:?}");
    ensure!(spellings.iter().any(|name| name.chars().any(char::is_lowercase)), "{spellings:?}");
    ensure!(queries.iter().any(|asked| asked.bytes[..2] != id));
    Ok(())
}

/// Datagrams to a place are refused at once, told, and do not arrive.
fn datagrams_are_refused(ground: &Ground, to: SocketAddr, reason: &str, rule: Option<&str>) -> Result<()> {
    let before = ground.before()?;
    let bytes = query("allowed.test", RecordType::A).to_vec()?;
    let attempt = ground.sandbox.udp_exchange(to, &bytes, Duration::from_millis(300));
    if to.ip().is_multicast() {
        ensure!(attempt.result.is_err(), "somebody answered from {to}");
    } else {
        let errno = if to.is_ipv4() { Errno::EHOSTUNREACH } else { Errno::EACCES };
        ensure!(attempt.errno() == Some(errno) && attempt.took < AT_ONCE, "{to}: {attempt:?}");
    }
    ground.ensure_moved(&before, &[(reason, 1)]).with_context(|| format!("UDP to {to}"))?;
    let told = ground.wait_event(&before, |event| {
        event["event"] == "deny" && event["dst"] == to.ip().to_string() && event["dport"] == to.port()
    })?;
    ensure!(told["reason"] == reason && told["rule"].as_str() == rule && told["proto"] == "udp", "{told}");
    ensure!(ground.arrived.udp_frames_to(to)? == 0, "a datagram arrived at {to}");
    Ok(())
}

#[test]
fn other_resolvers_and_other_ways_are_closed() -> Result<()> {
    let ground = Ground::usual()?;
    let rule = Some("/denyOut/0");
    let sinks = [853, 5353, 8853].map(|port| ground.topology.serve(Service::UdpEcho, port));
    let others = ["1.1.1.1", "8.8.4.4", V6_RESOLVER, GOOD[0], EVIL[1]];
    for to in others {
        datagrams_are_refused(&ground, at(to, 53), "denied_cidr", rule)?;
    }
    // DNS over TLS or QUIC, and other ports of the one that is open.
    for to in [RESOLVER, "1.1.1.1"] {
        for port in [443, 853, 5353, 8853, 54, 52, 123] {
            datagrams_are_refused(&ground, at(to, port), "denied_cidr", rule)?;
        }
    }
    for to in ["224.0.0.251", "224.0.0.252", "239.255.255.250"] {
        datagrams_are_refused(&ground, at(to, 5353), "guarded", None)?;
    }
    let link = ground.sandbox.run(|| Ok(nix::net::if_::if_nametoindex(Sandbox::INTERFACE)?))?;
    for to in ["ff02::fb", "ff02::1:3"] {
        let to = SocketAddrV6::new(to.parse()?, 5353, 0, link);
        datagrams_are_refused(&ground, to.into(), "guarded", None)?;
    }
    let mut rows = Vec::new();
    for to in others {
        rows.push(at(to, 53));
    }
    for to in [RESOLVER, "1.1.1.1", V6_RESOLVER] {
        rows.extend([853, 5353, 54, 22].map(|port| at(to, port)));
    }
    let rows: Vec<_> = rows
        .into_iter()
        .map(|to| {
            let row = Row::tls(&format!("TCP to {to}"), to, "", "denied_cidr");
            row.by(rule).answered(Answer::Refused)
        })
        .collect();
    ground.denied(&rows)?;
    // DNS over HTTPS is HTTPS, and is judged by name.
    let to = at(RESOLVER, 443);
    ground.denied(&[
        Row::tls("DNS over HTTPS", to, hello("dns.google"), "name_not_allowed").named("dns.google"),
        Row::tls("DNS over HTTPS by address", to, hello("8.8.8.8"), "bad_name"),
    ])?;
    let ping = ground.sandbox.ping(ip(RESOLVER), PATIENCE);
    ensure!(ping.errno() == Some(Errno::EHOSTUNREACH), "{ping:?}");
    ensure!(ground.zone.asked().is_empty(), "{:?}", ground.zone.asked());
    for sink in sinks {
        ensure!(sink?.datagrams() == 0);
    }
    // Without names nothing is opened.
    ground.update(&json!({"denyOut": ["0.0.0.0/0"]}))?;
    datagrams_are_refused(&ground, resolver(), "denied_cidr", rule)?;
    ground.update(
        &json!({"allowOut": ["allowed.test"], "denyOut": ["0.0.0.0/0"], "dns": {"servers": ["1.1.1.1"]}}),
    )?;
    datagrams_are_refused(&ground, resolver(), "denied_cidr", rule)?;
    let answer = ask(&ground.sandbox, at("1.1.1.1", 53), &query("allowed.test", RecordType::A))?;
    ensure!(addresses(&answer) == [ip(GOOD[0])], "{answer}");
    // Whom the operator's own resolver is, is not the sandbox's choice.
    ensure!(ground.zone.queries().iter().all(|asked| asked.server == ip(RESOLVER)));
    Ok(())
}

#[test]
fn a_strict_policy_asks_nobody_for_other_names() -> Result<()> {
    let ground = Ground::with(SHORT, &strict())?;
    let data = "a".repeat(63);
    let tunnel = format!("{data}.{data}.{data}.evil.test");
    for server in [resolver(), at(V6_RESOLVER, 53)] {
        for name in [
            "denied.test",
            "evilwild.test",
            "wild.test",
            "sub.allowed.test",
            "allowed.test.evil.test",
            &tunnel,
            "4.3.2.1.in-addr.arpa",
            "_dns.resolver.arpa",
            "test",
            "localhost",
        ] {
            for kind in [RecordType::A, RecordType::TXT, RecordType::ANY] {
                is_refused(&ground, server, &query(name, kind), Some(name))
                    .with_context(|| format!("{name} {kind}"))?;
            }
        }
        // What is no host name cannot be one that is allowed.
        let dotted = Name::from_labels([b"x.wild".as_slice(), b"test"])?;
        is_refused(&ground, server, &query_of(dotted, RecordType::A), None).context("a label with a dot")?;
        let odd = Name::from_labels([b"a\0b".as_slice(), b"wild", b"test"])?;
        is_refused(&ground, server, &query_of(odd, RecordType::A), None).context("a label with NUL")?;
        is_refused(&ground, server, &query("a b.wild.test", RecordType::A), None)?;
        // Neither another class nor what is no record.
        let mut chaos = query("allowed.test", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        is_refused(&ground, server, &chaos, Some("allowed.test")).context("another class")?;
        is_refused(&ground, server, &query("allowed.test", RecordType::AXFR), Some("allowed.test"))?;
    }
    ensure!(ground.zone.queries().is_empty(), "upstream was asked: {:?}", ground.zone.asked());

    let tcp = ask_over_tcp(
        &ground.sandbox,
        resolver(),
        &[query("denied.test", RecordType::A), query("allowed.test", RecordType::A)],
    )?;
    ensure!(code(&tcp[0]) == ResponseCode::Refused && addresses(&tcp[1]) == [ip(GOOD[0])], "{tcp:?}");
    for (name, address) in [("allowed.test", GOOD[0]), ("b.wild.test", WILD[0]), ("A.B.Wild.Test", WILD[0])] {
        let answer = ask(&ground.sandbox, resolver(), &query(name, RecordType::A))?;
        ensure!(addresses(&answer) == [ip(address)], "{answer}");
    }
    // Everything about a name that is allowed: the least, and nobody asked.
    let asked = ground.zone.asked().len();
    let any = ask(&ground.sandbox, resolver(), &query("allowed.test", RecordType::ANY))?;
    ensure!(any.answers.len() == 1 && any.answers[0].record_type() == RecordType::HINFO, "{any}");
    ensure!(ground.zone.asked().len() == asked);
    let mut names: Vec<_> = ground.zone.asked();
    names.dedup();
    ensure!(names == ["allowed.test", "b.wild.test", "a.b.wild.test"], "{names:?}");
    // An alias leads where it leads: its owner is the one whose name is allowed.
    ground.zone.alias("alias.wild.test", "denied.test")?;
    let answer = ask(&ground.sandbox, resolver(), &query("alias.wild.test", RecordType::A))?;
    ensure!(addresses(&answer) == [ip(EVIL[0])] && answer.answers.len() == 2, "{answer}");
    Ok(())
}

/// A query is refused in DNS, counted, told, and not asked.
fn is_refused(ground: &Ground, server: SocketAddr, message: &Message, name: Option<&str>) -> Result<()> {
    let before = ground.before()?;
    let answer = ask(&ground.sandbox, server, message)?;
    ensure!(code(&answer) == ResponseCode::Refused && answer.answers.is_empty(), "{answer}");
    ground.ensure_moved(&before, &[("dns_refused", 1)])?;
    let told = ground.wait_event(&before, |event| {
        event["event"] == "deny" && event["reason"] == "dns_refused" && event["serverName"].as_str() == name
    })?;
    ensure!(
        told["proto"] == "udp"
            && told["dst"] == server.ip().to_string()
            && told["dport"] == 53
            && told["src"] == ground.sandbox.address_like(server.ip()).to_string(),
        "{told}"
    );
    Ok(())
}

#[test]
fn only_the_resolvers_own_answer_is_believed() -> Result<()> {
    use Forgery::{Address, Case, Id, Name, Owner, Port, Query, Type};
    let ground = Ground::usual()?;
    for (n, forgery) in [Id, Name, Type, Port, Address, Query, Case].into_iter().enumerate() {
        let forged = |name: &str| -> Result<()> {
            ground.zone.set(name, &GOOD[..1])?;
            ground.zone.behave(name, Behaviour::Forged(forgery, ip(EVIL[0])));
            Ok(())
        };
        // What the sandbox asks, and what the filter asks to dial.
        let name = format!("f{n}.wild.test");
        forged(&name)?;
        let answer = ask(&ground.sandbox, resolver(), &query(&name, RecordType::A))?;
        ensure!(addresses(&answer) == [ip(GOOD[0])], "{forgery:?}: {answer}");
        let name = format!("g{n}.wild.test");
        forged(&name)?;
        ground
            .reaches(at(WILD[0], 443), &hello(&name), &name, GOOD[0])
            .with_context(|| format!("{forgery:?}"))?;
    }
    // One from the right place about something else is an answer, of nothing.
    ground.zone.set("owner.wild.test", &GOOD[..1])?;
    ground.zone.behave("owner.wild.test", Behaviour::Forged(Owner, ip(EVIL[0])));
    let answer = ask(&ground.sandbox, resolver(), &query("owner.wild.test", RecordType::A))?;
    ensure!(!addresses(&answer).contains(&ip(EVIL[0])), "{answer}");
    let answer = ask(&ground.sandbox, resolver(), &query("other.test", RecordType::A))?;
    ensure!(code(&answer) == ResponseCode::NXDomain, "what was said of another name is remembered: {answer}");
    ensure!(ground.arrived.frames_to(ip(EVIL[0]))? == 0);
    Ok(())
}

#[test]
fn nobody_else_answers_a_sandbox() -> Result<()> {
    let ground = Ground::usual()?;
    ground.zone.set("slow.test", &GOOD[..1])?;
    ground.zone.behave("slow.test", Behaviour::Slow(Duration::from_millis(300)));
    let socket = ground.sandbox.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(resolver())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })?;
    let message = query("slow.test", RecordType::A);
    socket.send(&message.to_vec()?)?;
    sleep(Duration::from_millis(50));
    // The very packet that would be the answer, from outside.
    let before = ground.before()?;
    let mut forged = message.clone().into_response();
    let record = Record::from_rdata(message.queries[0].name().clone(), 60, RData::from(ip(EVIL[0])));
    forged.add_answer(record);
    let (from, to) = (ip(RESOLVER), IpAddr::from(ground.sandbox.v4()));
    let datagram = wire::udp(from, to, 53, socket.local_addr()?.port(), &forged.to_vec()?);
    let (ethertype, packet) = wire::ip(from, to, wire::UDP, datagram);
    let (host, internet) = ([0x02, 0xff, 0, 0, 0, 1], [0x02, 0xff, 0, 0, 0, 2]);
    let frame = wire::ethernet(host, internet, ethertype, &packet);
    FrameSender::open(ground.topology.internet(), "eth0")?.send(&frame)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    let answer = Message::from_vec(&answer[..length])?;
    ensure!(addresses(&answer) == [ip(GOOD[0])], "{answer}");
    ground.ensure_moved(&before, &[("inbound", 1)])
}

#[test]
fn what_does_not_fit_comes_over_tcp() -> Result<()> {
    let ground = Ground::usual()?;
    // Upstream.
    ground.zone.set("cut.wild.test", &GOOD)?;
    ground.zone.behave("cut.wild.test", Behaviour::Truncates);
    let answer = ask(&ground.sandbox, resolver(), &query("cut.wild.test", RecordType::A))?;
    ensure!(addresses(&answer) == [ip(GOOD[0])] && !answer.metadata.truncation, "{answer}");
    let queries = ground.zone.queries();
    ensure!(queries.iter().any(|asked| asked.tcp) && queries.iter().any(|asked| !asked.tcp), "{queries:?}");
    ground.reaches(at(EVIL[1], 443), &hello("cut.wild.test"), "cut.wild.test", GOOD[1])?;

    // Towards the sandbox.
    for n in 0..12 {
        ground.zone.text("large.test", &format!("{n}{}", "x".repeat(150)));
    }
    let large = query("large.test", RecordType::TXT);
    for (message, fits) in [
        (large.clone(), false),
        (with_edns(large.clone(), 512, b""), false),
        (with_edns(large.clone(), 65_535, b""), false),
    ] {
        let answer = ask(&ground.sandbox, resolver(), &message)?;
        ensure!(answer.metadata.truncation != fits && answer.answers.is_empty() != fits, "{answer}");
        ensure!(answer.edns.is_some() == message.edns.is_some(), "{answer}");
    }
    let whole = ask_over_tcp(&ground.sandbox, resolver(), &[large])?;
    ensure!(whole[0].answers.len() == 12 && !whole[0].metadata.truncation, "{whole:?}");
    for n in 0..6 {
        ground.zone.text("medium.test", &format!("{n}{}", "x".repeat(150)));
    }
    let medium = query("medium.test", RecordType::TXT);
    let answer = ask(&ground.sandbox, resolver(), &medium)?;
    ensure!(answer.metadata.truncation, "{answer}");
    let answer = ask(&ground.sandbox, resolver(), &with_edns(medium, 1232, b""))?;
    ensure!(!answer.metadata.truncation && answer.answers.len() == 6, "{answer}");
    Ok(())
}

#[test]
fn an_answer_is_good_for_a_reasonable_time() -> Result<()> {
    let ground = Ground::usual()?;
    for (name, ttl, least, most) in [
        ("zero.wild.test", 0, 1, 1),
        ("short.wild.test", 2, 1, 2),
        ("hour.wild.test", 3600, 3599, 3600),
        ("huge.wild.test", u32::MAX, 1, 3600),
        ("large.wild.test", 0x7fff_ffff, 3599, 3600),
    ] {
        ground.zone.set(name, &GOOD)?;
        ground.zone.ttl(name, ttl);
        let answer = ask(&ground.sandbox, resolver(), &query(name, RecordType::A))?;
        let said = answer.answers[0].ttl;
        ensure!((least..=most).contains(&said), "{name}: {said}");
        // Asked again at once, nobody is asked.
        ask(&ground.sandbox, resolver(), &query(name, RecordType::A))?;
        ensure!(ground.zone.count(name) == 1, "{name}: asked {} times", ground.zone.count(name));
    }
    // When it is over, the next answer counts, for queries and for connections.
    ground.reaches(at(EVIL[0], 443), &hello("zero.wild.test"), "zero.wild.test", GOOD[0])?;
    ground.zone.set("zero.wild.test", &WILD)?;
    sleep(Duration::from_millis(1100));
    ground.reaches(at(EVIL[0], 443), &hello("zero.wild.test"), "zero.wild.test", WILD[0])?;
    let answer = ask(&ground.sandbox, resolver(), &query("zero.wild.test", RecordType::A))?;
    ensure!(addresses(&answer) == [ip(WILD[0])], "{answer}");
    // A name that leads inside from now on is not followed there.
    ground.zone.set("zero.wild.test", &["10.0.0.1"])?;
    sleep(Duration::from_millis(1100));
    let row = Row::tls("rebound", at(EVIL[0], 443), hello("zero.wild.test"), "guarded");
    ground.denied(&[row.named("zero.wild.test").by(None)])
}

#[test]
fn an_answer_has_neither_keys_of_hidden_names_nor_addresses_of_the_platform() -> Result<()> {
    let ground = Ground::usual()?;
    let ech = b"encrypted hello configuration";
    ground.zone.https("allowed.test", ech, &[GOOD[0], "10.0.0.1"])?;
    for over_tcp in [false, true] {
        let message = with_edns(query("allowed.test", RecordType::HTTPS), 1232, b"");
        let answer = if over_tcp {
            ask_over_tcp(&ground.sandbox, resolver(), &[message])?.remove(0)
        } else {
            ask(&ground.sandbox, resolver(), &message)?
        };
        ensure!(answer.answers.len() == 1, "{answer}");
        let text = answer.answers[0].to_string();
        ensure!(text.contains("alpn") && text.contains(GOOD[0]), "{text}");
        ensure!(!text.contains("10.0.0.1") && !text.to_lowercase().contains("ech"), "{text}");
        let bytes = answer.to_vec()?;
        ensure!(!bytes.windows(ech.len()).any(|window| window == ech), "the key is there");
    }
    ground.zone.set("inside.test", &["10.0.0.1", GOOD[0], "169.254.169.254", "192.0.2.1", "127.0.0.1"])?;
    let answer = ask(&ground.sandbox, resolver(), &query("inside.test", RecordType::A))?;
    ensure!(addresses(&answer) == [GOOD[0], "127.0.0.1"].map(ip), "{answer}");
    ground.zone.set("inside6.test", &["::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1", GOOD[1]])?;
    let answer = ask(&ground.sandbox, resolver(), &query("inside6.test", RecordType::AAAA))?;
    ensure!(addresses(&answer) == [ip(GOOD[1])], "{answer}");
    Ok(())
}

#[test]
fn aliases_are_followed_and_circles_are_not() -> Result<()> {
    let ground = Ground::usual()?;
    ground.zone.alias("one.wild.test", "two.test")?;
    ground.zone.alias("two.test", "three.test")?;
    ground.zone.set("three.test", &GOOD)?;
    let answer = ask(&ground.sandbox, resolver(), &query("one.wild.test", RecordType::A))?;
    let owners: Vec<_> = answer.answers.iter().map(|record| record.name.to_ascii()).collect();
    ensure!(owners == ["one.wild.test.", "two.test.", "three.test."], "{answer}");
    // The name that is asked for counts, not where it leads.
    ground.reaches(at(EVIL[0], 443), &hello("one.wild.test"), "one.wild.test", GOOD[0])?;
    let rows =
        [Row::tls("the alias", at(EVIL[0], 443), hello("three.test"), "name_not_allowed")
            .named("three.test")];
    ground.denied(&rows)?;

    ground.zone.set("circle.wild.test", &[])?;
    ground.zone.behave("circle.wild.test", Behaviour::AliasLoop);
    let start = Instant::now();
    let answer = ask(&ground.sandbox, resolver(), &query("circle.wild.test", RecordType::A))?;
    ensure!(code(&answer) == ResponseCode::ServFail && answer.answers.is_empty(), "{answer}");
    ensure!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let mut name = "chain0.wild.test".to_owned();
    for n in 1..30 {
        let next = format!("chain{n}.wild.test");
        ground.zone.alias(&name, &next)?;
        name = next;
    }
    ground.zone.set(&name, &GOOD)?;
    let answer = ask(&ground.sandbox, resolver(), &query("chain0.wild.test", RecordType::A))?;
    ensure!(code(&answer) == ResponseCode::ServFail, "{answer}");
    let answer = ask(&ground.sandbox, resolver(), &query("chain20.wild.test", RecordType::A))?;
    ensure!(addresses(&answer) == [ip(GOOD[0])], "{answer}");
    Ok(())
}

#[test]
fn a_resolver_that_fails_holds_up_nobody_else() -> Result<()> {
    // Queries are followed for longer than the filter asks for an answer.
    let ground = Ground::with(&SHORT.replace("udp = \"1s\"", "udp = \"6s\""), &usual_policy())?;
    for (name, behaviour) in [
        ("silent.test", Behaviour::Silent),
        ("pointer.test", Behaviour::PointerLoop),
        ("failing.test", Behaviour::Fails(ResponseCode::ServFail)),
        ("refusing.test", Behaviour::Fails(ResponseCode::Refused)),
    ] {
        ground.zone.set(name, &GOOD)?;
        ground.zone.behave(name, behaviour);
    }
    ground.zone.set("half.wild.test", &GOOD[..1])?;
    thread::scope(|scope| -> Result<()> {
        let asks: Vec<_> = ["silent.test", "pointer.test", "failing.test", "refusing.test"]
            .map(|name| {
                let ground = &ground;
                scope.spawn(move || -> Result<Duration> {
                    let start = Instant::now();
                    let answer =
                        ask(&ground.sandbox, resolver(), &query(name, RecordType::A)).context(name)?;
                    ensure!(code(&answer) == ResponseCode::ServFail, "{answer}");
                    Ok(start.elapsed())
                })
            })
            .into();
        sleep(Duration::from_millis(100));
        let start = Instant::now();
        let answer = ask(&ground.sandbox, resolver(), &query("allowed.test", RecordType::A))?;
        ensure!(addresses(&answer) == [ip(GOOD[0])] && start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        for asked in asks {
            // Before the C library asks again.
            let took = asked.join().unwrap()?;
            ensure!(took < Duration::from_secs(5), "{took:?}");
        }
        Ok(())
    })?;
    ground.control.settles(ID, 0, Duration::from_secs(15))
}

#[test]
fn what_is_no_query_goes_nowhere() -> Result<()> {
    let ground = Ground::usual()?;
    let plain = query("allowed.test", RecordType::A).to_vec()?;
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = plain.clone();
        change(&mut bytes);
        bytes
    };
    // Nothing that wants an answer.
    for (what, bytes) in [
        ("a response", with(|bytes| bytes[2] |= 0x80)),
        ("half a header", plain[..7].to_vec()),
        ("nothing", Vec::new()),
        ("text", b"hello".to_vec()),
    ] {
        let attempt = ask_raw(&ground.sandbox, resolver(), &bytes);
        ensure!(attempt.timed_out(), "{what}: {attempt:?}");
    }
    // Something that is told that it is wrong.
    let code_of = |bytes: &[u8]| bytes.get(3).map(|flags| flags & 0b1111);
    for (what, bytes, code) in [
        ("another operation", with(|bytes| bytes[2] |= 4 << 3), 4),
        ("no question", with(|bytes| bytes[5] = 0), 1),
        ("two questions", with(|bytes| bytes[5] = 2), 1),
        ("a question and an answer", with(|bytes| bytes[7] = 1), 1),
        ("bytes behind it", with(|bytes| bytes.extend(b"exfiltrated")), 1),
        (
            "a name that points to itself",
            with(|bytes| bytes.splice(12.., [0xc0, 12, 0, 1, 0, 1]).for_each(drop)),
            1,
        ),
        ("a name without an end", with(|bytes| bytes.splice(12.., [60; 40]).for_each(drop)), 1),
        (
            "a name that is too long",
            with(|bytes| {
                let label = [&[63][..], &[b'a'; 63]].concat();
                bytes.splice(12.., [label.repeat(5), vec![0, 0, 1, 0, 1]].concat()).for_each(drop);
            }),
            1,
        ),
    ] {
        let attempt = ask_raw(&ground.sandbox, resolver(), &bytes);
        let answer = attempt.result.with_context(|| what.to_owned())?;
        ensure!(code_of(&answer) == Some(code) && answer[..2] == bytes[..2], "{what}: {answer:02x?}");
    }
    ensure!(ground.zone.queries().is_empty(), "{:?}", ground.zone.asked());
    // Over TCP too. A connection that sends no query is closed.
    for bytes in [&b"\xff\xff"[..], b"\0\x05hello", b"GET / HTTP/1.1\r\n\r\n"] {
        let heard = ground.sandbox.talk(resolver(), &Talk::new().say(bytes))?;
        ensure!(
            heard.bytes.is_empty() && matches!(heard.ending, Ending::End | Ending::Reset),
            "{}",
            heard.summary()
        );
    }
    ground.control.settles(ID, 0, Duration::from_secs(10))
}

#[test]
fn each_sandbox_asks_under_its_own_policy() -> Result<()> {
    let ground = Ground::with(SHORT, &strict())?;
    let (second, bridged) = (ground.topology.sandbox(2)?, ground.topology.bridge_sandbox(1)?);
    let mut policy = strict();
    policy["allowOut"] = json!(["denied.test"]);
    ground.daemon.attach("s2", &second, &policy)?;
    ground.daemon.attach("s3", &bridged, &usual_policy())?;
    let found = |sandbox: &Sandbox, name: &str| -> Result<Vec<IpAddr>> {
        Ok(addresses(&ask(sandbox, resolver(), &query(name, RecordType::A))?))
    };
    // What one may know, and has asked, is not the other's.
    for _ in 0..2 {
        ensure!(found(&ground.sandbox, "allowed.test")? == [ip(GOOD[0])]);
        ensure!(found(&ground.sandbox, "denied.test")?.is_empty());
        ensure!(found(&second, "allowed.test")?.is_empty());
        ensure!(found(&second, "denied.test")? == [ip(EVIL[0])]);
        ensure!(found(&bridged, "allowed.test")? == [ip(GOOD[0])]);
        ensure!(found(&bridged, "denied.test")? == [ip(EVIL[0])]);
    }
    for (id, refused) in [(ID, 2), ("s2", 2), ("s3", 0)] {
        let counted = counted(&ground.control.show(id)?, "dns_refused");
        ensure!(counted == refused, "{id}: {counted}");
    }
    // With an update at once.
    ground.update(&names(&["denied.test"]))?;
    ensure!(found(&ground.sandbox, "denied.test")? == [ip(EVIL[0])]);
    ground.update(&strict())?;
    ensure!(found(&ground.sandbox, "denied.test")?.is_empty());
    Ok(())
}
