//! What the resolver believes, of servers on loopback that answer in every way that there is.
#![expect(clippy::wildcard_enum_match_arm, reason = "record types are without number")]

use std::{
    fs,
    net::UdpSocket,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{DNSClass, RData, rdata},
};
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::{
    fake::{Asked, Fake, a, alias, soa},
    *,
};
use crate::host::Transport;

/// What a lookup may take in a test where no answer is to be believed.
const SHORT: Duration = Duration::from_millis(300);

fn resolver(servers: &[&Fake]) -> Resolver {
    let upstream = servers.iter().map(|server| server.address).collect();
    Resolver::new(&Settings { upstream, ..Settings::default() }).unwrap()
}

fn hasty(servers: &[&Fake]) -> Resolver {
    let upstream = servers.iter().map(|server| server.address).collect();
    Resolver::new(&Settings { upstream, timeout: SHORT, ..Settings::default() }).unwrap()
}

fn host(name: &str) -> Name {
    Name::parse(name).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn lookup(resolver: &Resolver, name: &str, kind: RecordType) -> Answer {
    resolver.lookup(&name.parse().unwrap(), kind).await
}

async fn addresses_of(resolver: &Resolver, name: &str) -> Vec<IpAddr> {
    addresses(&lookup(resolver, name, RecordType::A).await).collect()
}

#[tokio::test]
async fn addresses_of_both_families_each_in_its_order() {
    let server = Fake::new(|asked| {
        vec![asked.answer(match asked.kind() {
            RecordType::A => vec![a("n.test.", 9, [192, 0, 2, 9]), a("n.test.", 9, [192, 0, 2, 1])],
            _ => asked.addresses(9),
        })]
    })
    .await;
    let found = resolver(&[&server]).addresses(&host("n.test")).await.unwrap();
    assert_eq!(found, [ip("192.0.2.9"), ip("192.0.2.1"), ip("2001:db8::1")]);
    let mut kinds: Vec<_> = server.asked().iter().map(Asked::kind).collect();
    kinds.sort();
    assert_eq!(kinds, [RecordType::A, RecordType::AAAA]);
}

#[tokio::test]
async fn one_family_is_enough_whatever_becomes_of_the_other() {
    let server = Fake::new(|asked| match (asked.kind(), asked.name().to_lowercase().to_string().as_str()) {
        (RecordType::AAAA, "silent6.test.") | (RecordType::A, "silent4.test.") => vec![],
        (RecordType::AAAA, "broken6.test.") | (RecordType::A, "broken4.test.") => {
            vec![asked.code(ResponseCode::ServFail)]
        }
        _ => vec![asked.answer(asked.addresses(9))],
    })
    .await;
    let settings = Settings {
        upstream: vec![server.address],
        timeout: Duration::from_millis(1500),
        ..Settings::default()
    };
    let resolver = Resolver::new(&settings).unwrap();
    let v4 = Ok(vec![ip("192.0.2.1")]);
    let v6 = Ok(vec![ip("2001:db8::1")]);
    assert_eq!(resolver.addresses(&host("silent6.test")).await, v4);
    assert_eq!(resolver.addresses(&host("broken6.test")).await, v4);
    assert_eq!(resolver.addresses(&host("silent4.test")).await, v6);
    assert_eq!(resolver.addresses(&host("broken4.test")).await, v6);
}

#[tokio::test]
async fn ipv4_does_not_wait_for_an_answer_about_ipv6_that_never_comes() {
    let server = Fake::new(|asked| match asked.kind() {
        RecordType::A => vec![asked.answer(asked.addresses(9))],
        _ => vec![],
    })
    .await;
    let begin = Instant::now();
    assert!(resolver(&[&server]).addresses(&host("n.test")).await.is_ok());
    assert!(begin.elapsed() < Settings::default().timeout);
}

#[tokio::test]
async fn why_there_are_no_addresses() {
    let server = Fake::new(|asked| {
        vec![match asked.name().to_lowercase().to_string().as_str() {
            "nowhere.test." => asked.code(ResponseCode::NXDomain),
            "empty.test." => asked.answer(vec![]),
            _ => asked.code(ResponseCode::ServFail),
        }]
    })
    .await;
    let resolver = resolver(&[&server]);
    assert_eq!(resolver.addresses(&host("nowhere.test")).await, Err(Unresolved::NoSuchName));
    assert_eq!(resolver.addresses(&host("empty.test")).await, Err(Unresolved::NoAddress));
    assert_eq!(resolver.addresses(&host("broken.test")).await, Err(Unresolved::Failed));
}

/// Changes an answer into one that must not be believed.
type Forgery = fn(&Asked, &mut Message);

const FORGERIES: &[(&str, Forgery)] = &[
    ("id", |_, reply| reply.metadata.id ^= 1),
    ("name", |_, reply| reply.queries[0].name = "evil.test.".parse().unwrap()),
    ("type", |_, reply| reply.queries[0].query_type = RecordType::TXT),
    ("class", |_, reply| reply.queries[0].query_class = DNSClass::CH),
    ("no question", |_, reply| reply.queries.clear()),
    ("two questions", |_, reply| reply.queries.push(Query::query("n.test.".parse().unwrap(), RecordType::A))),
    ("a query", |asked, reply| reply.metadata.message_type = asked.query.metadata.message_type),
    ("opcode", |_, reply| reply.metadata.op_code = hickory_proto::op::OpCode::Notify),
];

fn forged(asked: &Asked, forge: Forgery) -> Vec<u8> {
    let mut reply = asked.reply(ResponseCode::NoError);
    reply.answers = vec![a("n.test.", 9, [203, 0, 113, 66])];
    forge(asked, &mut reply);
    reply.to_vec().unwrap()
}

#[tokio::test]
async fn forged_answers_are_passed_over_and_the_right_one_is_waited_for() {
    for &(what, forge) in FORGERIES {
        let server = Fake::new(move |asked| {
            let right = asked.answer(vec![a("n.test.", 9, [192, 0, 2, 1])]);
            vec![forged(asked, forge), vec![], b"\0".to_vec(), right]
        })
        .await;
        assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await, [ip("192.0.2.1")], "{what}");
    }
}

#[tokio::test]
async fn forged_answers_alone_are_none() {
    for &(what, forge) in FORGERIES {
        let server = Fake::new(move |asked| vec![forged(asked, forge)]).await;
        let answer = lookup(&hasty(&[&server]), "n.test", RecordType::A).await;
        assert_eq!(answer, reading::Dated::failure().answer, "{what}");
    }
}

#[tokio::test]
async fn answers_from_another_port_or_address_never_arrive() {
    for elsewhere in ["127.0.0.1:0", "127.0.0.2:0"] {
        let other = UdpSocket::bind(elsewhere).unwrap();
        let server = Fake::new(move |asked| {
            let forged = asked.answer(vec![a("n.test.", 9, [203, 0, 113, 66])]);
            other.send_to(&forged, asked.from).unwrap();
            vec![asked.answer(vec![a("n.test.", 9, [192, 0, 2, 1])])]
        })
        .await;
        assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await, [ip("192.0.2.1")]);
    }
}

#[tokio::test]
async fn each_query_has_an_id_a_port_and_a_case_of_its_own() {
    let server = Fake::plain().await;
    let resolver = resolver(&[&server]);
    for number in 0..40 {
        lookup(&resolver, &format!("abcdefghijklmnop{number}.test"), RecordType::A).await;
    }
    let asked = server.asked();
    let different = |of: fn(&Asked) -> String| {
        let mut all: Vec<_> = asked.iter().map(of).collect();
        all.sort();
        all.dedup();
        all.len()
    };
    // Chance makes two ids or ports alike now and then.
    assert!(different(|asked| asked.query.metadata.id.to_string()) > 35);
    assert!(different(|asked| asked.from.port().to_string()) > 35);
    assert!(different(|asked| asked.name().iter().next().unwrap()[..16].escape_ascii().to_string()) > 35);
}

#[tokio::test]
async fn nothing_is_asked_for_that_is_not_needed() {
    let server = Fake::plain().await;
    lookup(&resolver(&[&server]), "n.test", RecordType::A).await;
    let query = &server.asked()[0].query;
    let edns = query.edns.as_ref().unwrap();
    assert!(query.metadata.recursion_desired && !query.metadata.checking_disabled);
    assert!(!edns.flags().dnssec_ok && edns.options().as_ref().is_empty() && edns.max_payload() == 1232);
    assert!(query.answers.is_empty() && query.authorities.is_empty() && query.additionals.is_empty());
}

#[tokio::test]
async fn an_answer_in_the_wrong_case_is_asked_for_over_tcp() {
    let server = Fake::new(|asked| {
        let mut reply = asked.reply(ResponseCode::NoError);
        reply.queries[0].name = reply.queries[0].name.to_lowercase();
        let last = if asked.over == Transport::Tcp { 1 } else { 66 };
        reply.answers = vec![a("averylongname.test.", 9, [192, 0, 2, last])];
        vec![reply.to_vec().unwrap()]
    })
    .await;
    assert_eq!(addresses_of(&resolver(&[&server]), "averylongname.test").await, [ip("192.0.2.1")]);
}

#[tokio::test]
async fn truncated_answers_are_asked_for_over_tcp() {
    let many = || (0..200).map(|last| a("n.test.", 9, [192, 0, 2, last])).collect::<Vec<_>>();
    for cut in [usize::MAX, 100, 12] {
        let server = Fake::new(move |asked| {
            let mut reply = asked.reply(ResponseCode::NoError);
            reply.metadata.truncation = asked.over == Transport::Udp;
            reply.answers = many();
            if asked.over == Transport::Udp {
                reply.answers.truncate(20);
            }
            let mut bytes = reply.to_vec().unwrap();
            if asked.over == Transport::Udp {
                bytes.truncate(cut);
            }
            vec![bytes]
        })
        .await;
        assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await.len(), 200, "{cut}");
    }
}

#[tokio::test]
async fn over_tcp_other_answers_and_truncated_ones_are_none() {
    let to_tcp = |asked: &Asked| {
        let mut reply = asked.reply(ResponseCode::NoError);
        reply.metadata.truncation = true;
        reply
    };
    for &(what, forge) in FORGERIES {
        let server = Fake::new(move |asked| match asked.over {
            Transport::Udp => vec![to_tcp(asked).to_vec().unwrap()],
            Transport::Tcp => vec![forged(asked, forge)],
        })
        .await;
        assert_eq!(addresses_of(&hasty(&[&server]), "n.test").await, [] as [IpAddr; 0], "{what}");
    }
    let server = Fake::new(move |asked| vec![to_tcp(asked).to_vec().unwrap()]).await;
    assert_eq!(lookup(&hasty(&[&server]), "n.test", RecordType::A).await.rcode, ResponseCode::ServFail);
}

#[tokio::test]
async fn aliases_are_followed_within_the_answer_and_the_rest_is_dropped() {
    let server = Fake::new(|asked| {
        let mut foreign = a("n.test.", 9, [203, 0, 113, 66]);
        foreign.dns_class = DNSClass::CH;
        let mut reply = asked.reply(ResponseCode::NoError);
        reply.answers = vec![
            a("c.test.", 9, [192, 0, 2, 1]),
            alias("b.test.", 9, "C.test."),
            a("evil.test.", 9, [203, 0, 113, 66]),
            alias("evil.test.", 9, "n.test."),
            foreign,
            alias("N.test.", 9, "b.test."),
            alias("n.test.", 9, "evil.test."),
        ];
        reply.authorities = vec![a("ns.test.", 9, [203, 0, 113, 66])];
        reply.additionals = vec![a("n.test.", 9, [203, 0, 113, 66])];
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let answer = lookup(&resolver(&[&server]), "n.test", RecordType::A).await;
    let kept: Vec<_> = answer.answers.iter().map(|record| record.name.to_lowercase().to_string()).collect();
    assert_eq!(kept, ["n.test.", "b.test.", "c.test."]);
    assert_eq!(addresses(&answer).collect::<Vec<_>>(), [ip("192.0.2.1")]);
    assert!(answer.authorities.is_empty());
}

#[tokio::test]
async fn an_answer_about_another_name_is_empty() {
    let server = Fake::new(|asked| vec![asked.answer(vec![a("evil.test.", 9, [203, 0, 113, 66])])]).await;
    let resolver = resolver(&[&server]);
    assert_eq!(resolver.addresses(&host("n.test")).await, Err(Unresolved::NoAddress));
}

#[tokio::test]
async fn circles_and_long_chains_of_aliases_end() {
    fn chain(length: usize) -> Vec<Record> {
        let link = |number| alias(&format!("n{number}.test."), 9, &format!("n{}.test.", number + 1));
        let end = a(&format!("n{length}.test."), 9, [192, 0, 2, 1]);
        (0..length).map(link).chain([end]).collect()
    }
    let circle = vec![alias("n0.test.", 9, "m.test."), alias("m.test.", 9, "n0.test.")];
    let own = vec![alias("n0.test.", 9, "n0.test.")];
    for (records, found) in [(chain(16), 17), (chain(17), 0), (chain(60), 0), (circle, 0), (own, 0)] {
        let server = Fake::new(move |asked| vec![asked.answer(records.clone())]).await;
        let answer = lookup(&resolver(&[&server]), "n0.test", RecordType::A).await;
        assert_eq!(answer.answers.len(), found);
        assert_eq!(answer.rcode == ResponseCode::ServFail, found == 0);
    }
}

#[tokio::test]
async fn an_alias_is_an_answer_to_who_asks_for_aliases() {
    let server = Fake::new(|asked| {
        vec![asked.answer(vec![alias("n.test.", 9, "m.test."), alias("m.test.", 9, "n.test.")])]
    })
    .await;
    let answer = lookup(&resolver(&[&server]), "n.test", RecordType::CNAME).await;
    assert_eq!(answer.answers, [alias("n.test.", 9, "m.test.")]);
}

/// An answer, header and question as they should be, followed by these bytes as its only record.
fn raw(asked: &Asked, record: &[u8]) -> Vec<u8> {
    let mut bytes = asked.code(ResponseCode::NoError);
    bytes[7] = 1;
    bytes.extend_from_slice(record);
    bytes
}

#[tokio::test]
async fn compression_loops_and_lies_about_lengths_are_no_answers() {
    // The question is 12 + 8 + 4 bytes long, so that the record begins at 24.
    for (what, record) in [
        ("to itself", b"\xc0\x18\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04".as_slice()),
        ("ahead", b"\xc0\x30\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04"),
        ("in a circle", b"\x01a\xc0\x18\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04"),
        ("past the end", b"\xff\xff\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04"),
        ("alias in a circle", b"\xc0\x0c\0\x05\0\x01\0\0\0\x09\0\x04\x01a\xc0\x24"),
        ("too long a record", b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\xff\xff\x01\x02\x03\x04"),
        ("too short an address", b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x03\x01\x02\x03"),
        ("no address at all", b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\0"),
        ("label type 01", b"\x40\0\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04"),
    ] {
        let bytes = record.to_vec();
        let server = Fake::new(move |asked| vec![raw(asked, &bytes)]).await;
        let answer = lookup(&hasty(&[&server]), "n.test", RecordType::A).await;
        assert_eq!(answer.rcode, ResponseCode::ServFail, "{what}");
    }
    let server =
        Fake::new(|asked| vec![raw(asked, b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x01\x02\x03\x04")]).await;
    assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await, [ip("1.2.3.4")]);
}

#[tokio::test]
async fn times_are_kept_within_their_bounds() {
    for (ttl, said) in
        [(0, 1), (1, 1), (77, 77), (3600, 3600), (3601, 3600), (i32::MAX as u32, 3600), (1 << 31, 1)]
    {
        let server = Fake::new(move |asked| vec![asked.answer(asked.addresses(ttl))]).await;
        let answer = lookup(&resolver(&[&server]), "n.test", RecordType::A).await;
        assert_eq!(answer.answers[0].ttl, said, "{ttl}");
    }
}

#[tokio::test]
async fn an_answer_is_kept_for_the_shortest_of_its_times_and_says_what_is_left() {
    let server = Fake::new(|asked| {
        vec![asked.answer(vec![alias("n.test.", 3, "m.test."), a("m.test.", 100, [192, 0, 2, 1])])]
    })
    .await;
    let resolver = resolver(&[&server]);
    lookup(&resolver, "n.test", RecordType::A).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let later = lookup(&resolver, "N.TEST", RecordType::A).await;
    assert!((1..=2).contains(&later.answers[0].ttl) && (90..=99).contains(&later.answers[1].ttl));
    assert_eq!(server.asked().len(), 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let fresh = lookup(&resolver, "n.test", RecordType::A).await;
    assert_eq!((fresh.answers[1].ttl, server.asked().len()), (100, 2));
}

#[tokio::test]
async fn that_there_is_nothing_is_kept_as_long_as_the_soa_says() {
    let server = Fake::new(|asked| {
        let name = asked.name().to_lowercase().to_string();
        let mut reply = asked.reply(match name.as_str() {
            "empty.test." => ResponseCode::NoError,
            _ => ResponseCode::NXDomain,
        });
        reply.authorities = vec![
            soa("evil.", 900, 900),
            match name.as_str() {
                "short.test." => soa("test.", 900, 60),
                "long.test." => soa("test.", 90_000, 90_000),
                "foreign.test." => soa("other.test.", 900, 900),
                _ => soa("test.", 50, 900),
            },
        ];
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let resolver = resolver(&[&server]);
    for (name, ttl) in
        [("empty.test", Some(50)), ("short.test", Some(60)), ("long.test", Some(300)), ("foreign.test", None)]
    {
        let answer = lookup(&resolver, name, RecordType::A).await;
        assert_eq!(answer.authorities.first().map(|soa| soa.ttl), ttl, "{name}");
        assert_eq!(answer.rcode == ResponseCode::NoError, name == "empty.test");
        assert!(answer.authorities.len() <= 1);
        lookup(&resolver, name, RecordType::A).await;
    }
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn a_name_that_leads_nowhere_keeps_its_aliases() {
    let server = Fake::new(|asked| {
        let mut reply = asked.reply(ResponseCode::NXDomain);
        reply.answers = vec![alias("n.test.", 9, "gone.other.")];
        reply.authorities = vec![soa("other.", 9, 9)];
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let answer = lookup(&resolver(&[&server]), "n.test", RecordType::A).await;
    assert_eq!(answer.rcode, ResponseCode::NXDomain);
    assert_eq!((answer.answers.len(), answer.authorities.len()), (1, 1));
}

#[tokio::test]
async fn a_server_that_fails_is_passed_over_and_the_one_that_answers_is_preferred() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::FormErr, ResponseCode::NotImp] {
        let broken = Fake::new(move |asked| vec![asked.code(code)]).await;
        let good = Fake::plain().await;
        let resolver = resolver(&[&broken, &good]);
        assert_eq!(addresses_of(&resolver, "n.test").await, [ip("192.0.2.1")], "{code}");
        let tried = broken.asked().len();
        // Once, and once without EDNS where that might be what it is about.
        assert!(tried <= 2);
        assert_eq!(addresses_of(&resolver, "m.test").await, [ip("192.0.2.1")]);
        assert_eq!((broken.asked().len(), good.asked().len()), (tried, 2));
    }
}

#[tokio::test]
async fn a_server_that_is_silent_or_gone_is_passed_over() {
    let silent = Fake::new(|_| vec![]).await;
    let good = Fake::plain().await;
    assert_eq!(addresses_of(&resolver(&[&silent, &good]), "n.test").await, [ip("192.0.2.1")]);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings {
        upstream: vec![closed, good.address],
        timeout: Duration::from_secs(60),
        ..Settings::default()
    };
    let begin = Instant::now();
    assert_eq!(addresses_of(&Resolver::new(&settings).unwrap(), "n.test").await, [ip("192.0.2.1")]);
    // Its host says at once that nobody listens there, so that nobody has to be patient.
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_query_is_repeated_and_a_late_answer_still_counts() {
    let server = Fake::new({
        let count = std::sync::atomic::AtomicUsize::new(0);
        move |asked| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => vec![],
            _ => vec![asked.answer(asked.addresses(9))],
        }
    })
    .await;
    assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await, [ip("192.0.2.1")]);
    let slow = Fake::new(|asked| {
        std::thread::sleep(Duration::from_millis(450));
        vec![asked.answer(asked.addresses(9))]
    })
    .await;
    let settings =
        Settings { upstream: vec![slow.address], timeout: Duration::from_millis(900), ..Settings::default() };
    assert_eq!(addresses_of(&Resolver::new(&settings).unwrap(), "n.test").await, [ip("192.0.2.1")]);
}

#[tokio::test]
async fn a_lookup_ends_in_time_and_its_failure_is_remembered_for_a_moment() {
    let server = Fake::new(|_| vec![]).await;
    let resolver = hasty(&[&server]);
    let begin = Instant::now();
    assert_eq!(resolver.addresses(&host("n.test")).await, Err(Unresolved::Failed));
    assert!(begin.elapsed() < 5 * SHORT);
    let asked = server.asked().len();
    assert_eq!(resolver.addresses(&host("n.test")).await, Err(Unresolved::Failed));
    assert_eq!(server.asked().len(), asked);
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without() {
    let server = Fake::new(|asked| match &asked.query.edns {
        Some(_) => {
            let mut reply = asked.reply(ResponseCode::FormErr);
            reply.queries.clear();
            vec![reply.to_vec().unwrap()]
        }
        None => vec![asked.answer(asked.addresses(9))],
    })
    .await;
    assert_eq!(addresses_of(&resolver(&[&server]), "n.test").await, [ip("192.0.2.1")]);
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn the_same_question_at_the_same_time_is_asked_once() {
    let server = Fake::plain().await;
    let resolver = resolver(&[&server]);
    let mut all = JoinSet::new();
    for number in 0..100 {
        let resolver = resolver.clone();
        let name = if number % 2 == 0 { "n.test" } else { "N.TEST." };
        all.spawn(async move { addresses_of(&resolver, name).await });
    }
    assert!(all.join_all().await.iter().all(|found| *found == [ip("192.0.2.1")]));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_and_gives_up_does_not_take_the_others_with_it() {
    let server = Fake::new(|asked| {
        std::thread::sleep(Duration::from_millis(100));
        vec![asked.answer(asked.addresses(9))]
    })
    .await;
    let resolver = resolver(&[&server]);
    let first = tokio::spawn({
        let resolver = resolver.clone();
        async move { addresses_of(&resolver, "n.test").await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = tokio::spawn({
        let resolver = resolver.clone();
        async move { addresses_of(&resolver, "n.test").await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.abort();
    assert_eq!(second.await.unwrap(), [ip("192.0.2.1")]);
}

#[tokio::test]
async fn names_of_the_host_are_asked_for_like_any_other() {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let local = hosts.lines().filter(|line| !line.starts_with('#'));
    let local = local.flat_map(|line| line.split_ascii_whitespace().skip(1));
    let names = local.chain(["localhost", "a.localhost", "printer.local", "single", "x.invalid"]);
    for name in names.filter_map(|name| Name::parse(name).ok()) {
        let server = Fake::plain().await;
        let found = resolver(&[&server]).addresses(&name).await.unwrap();
        assert_eq!(found, [ip("192.0.2.1"), ip("2001:db8::1")], "{name}");
        // As it is, without anything from a search list behind it, and nothing else.
        let asked = server.asked();
        assert_eq!(asked.len(), 2);
        assert!(asked.iter().all(|asked| asked.name().to_lowercase().to_string() == format!("{name}.")));
    }
}

#[tokio::test]
async fn any_type_is_looked_up_and_what_is_unknown_stays_as_it_is() {
    let unknown = RData::Unknown { code: RecordType::Unknown(4711), rdata: rdata::NULL::with(vec![1, 2, 3]) };
    let record = Record::from_rdata("n.test.".parse().unwrap(), 9, unknown);
    let server = {
        let record = record.clone();
        Fake::new(move |asked| vec![asked.answer(vec![record.clone()])]).await
    };
    let answer = lookup(&resolver(&[&server]), "n.test", RecordType::Unknown(4711)).await;
    assert_eq!(answer.answers, [record]);
}

#[test]
fn without_servers_there_is_no_resolver() {
    let text = NoServers::Empty.to_string();
    assert!(text.contains("/etc/resolv.conf") && text.contains("[dns]"));
}

proptest! {
    #[test]
    fn any_bytes_in_an_answer_are_read_or_not(tail in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..300usize) {
        let question = Question::new(&"n.test.".parse().unwrap(), RecordType::A);
        exchange::hear_anything(&question, &tail, cut);
    }
}
