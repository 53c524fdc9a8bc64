//! From the bytes of a query to the bytes of its answer, with a server on loopback behind it.
#![expect(clippy::wildcard_enum_match_arm, reason = "record types are without number")]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use filter_common::Reason;
use filter_policy::{Defaults, Guard, Matcher, Policy, compile};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{
            self, A, AAAA, HTTPS, SVCB, TXT,
            opt::{ClientSubnet, EdnsOption},
            svcb::{Alpn, EchConfigList, IpHint, Mandatory, SvcParamKey, SvcParamValue, Unknown},
        },
    },
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{
    Forwarder, Reply,
    answer::{self, MAX_DATAGRAM},
    load,
    query::{self, Parsed},
    tcp,
};
use crate::{
    harness::Table,
    host::{Flow, Happening, Transport},
    resolve::{
        Answer, Resolver, Settings,
        fake::{Asked, Fake, a, alias},
    },
    rules::Rules,
};

fn rules(policy: Value) -> Rules {
    let guard = Guard::default();
    let policy = Policy::from_value(policy, &Defaults::default()).unwrap();
    Rules {
        generation: 1,
        names: Arc::new(Matcher::new(&policy)),
        compiled: Arc::new(compile(&policy, &guard)),
        policy: Arc::new(policy),
        guard: Arc::new(guard),
    }
}

fn policy(mode: &str) -> Value {
    let allowed = ["allowed.test", "*.wild.test", "203.0.113.0/24"];
    json!({"allowOut": allowed, "denyOut": ["0.0.0.0/0"], "dns": {"mode": mode}})
}

fn forwarder(server: &Fake) -> Forwarder {
    let settings = Settings { upstream: vec![server.address], ..Settings::default() };
    Forwarder::new(Resolver::new(&settings).unwrap())
}

/// A name in the case in which it is written; with `|` between its labels where they have odd bytes.
fn wire(name: &str) -> Name {
    if name.contains('|') {
        return Name::from_labels(name.split('|').map(str::as_bytes)).unwrap();
    }
    Name::from_ascii(name).unwrap()
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(wire(name), kind));
    message
}

fn with_edns(name: &str, kind: RecordType, payload: u16) -> Message {
    let mut message = query(name, kind);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(true);
    edns.options_mut().insert(EdnsOption::Subnet(ClientSubnet::new(Ipv4Addr::LOCALHOST.into(), 32, 0)));
    edns.options_mut().insert(EdnsOption::Unknown(65001, b"smuggled".to_vec()));
    message.set_edns(edns);
    message
}

async fn ask(server: &Fake, mode: &str, query: &Message, over: Transport) -> Reply {
    let bytes = query.to_vec().unwrap();
    forwarder(server).answer(&bytes, over, &rules(policy(mode))).await.unwrap()
}

async fn ask_open(server: &Fake, query: &Message) -> Message {
    let reply = ask(server, "open", query, Transport::Udp).await;
    assert_eq!(reply.decision, Ok(()));
    read(&reply)
}

fn read(reply: &Reply) -> Message {
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!(message.metadata.response_code, reply.rcode);
    message
}

#[tokio::test]
async fn strict_asks_nobody_for_names_that_no_rule_allows() {
    let server = Fake::plain().await;
    for (name, kind) in [
        ("evil.test.", RecordType::A),
        ("wild.test.", RecordType::A),
        ("evilwild.test.", RecordType::A),
        ("www.allowed.test.", RecordType::A),
        ("allowed.test.evil.test.", RecordType::TXT),
        ("c2VjcmV0.evil.test.", RecordType::TXT),
        ("allowed.", RecordType::A),
        (".", RecordType::NS),
        ("1.2.0.192.in-addr.arpa.", RecordType::PTR),
        ("evil.test.", RecordType::ANY),
        ("a.wild|test", RecordType::A),
        ("a.|wild|test", RecordType::A),
        ("*|wild|test", RecordType::A),
        ("a\0|wild|test", RecordType::A),
        ("allowed.test|evil", RecordType::A),
        ("allowed|test\0", RecordType::A),
    ] {
        for over in [Transport::Udp, Transport::Tcp] {
            let reply = ask(&server, "strict", &query(name, kind), over).await;
            assert_eq!(
                (reply.decision, reply.rcode),
                (Err(Reason::DnsRefused), ResponseCode::Refused),
                "{name}"
            );
            let message = read(&reply);
            assert!(message.answers.is_empty() && message.authorities.is_empty());
            assert_eq!(message.queries[0].name, wire(name));
        }
    }
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn strict_asks_for_names_that_a_rule_allows() {
    let server = Fake::plain().await;
    for name in ["allowed.test.", "ALLOWED.test.", "a.wild.test.", "a.b.wild.test."] {
        let reply = ask(&server, "strict", &query(name, RecordType::A), Transport::Udp).await;
        assert_eq!((reply.decision, reply.rcode), (Ok(()), ResponseCode::NoError), "{name}");
        assert_eq!(reply.name.as_ref().unwrap().as_str(), name.trim_end_matches('.').to_lowercase());
        assert_eq!(read(&reply).answers, [a(name, 60, [192, 0, 2, 1])]);
    }
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn open_asks_for_every_name_that_dns_has() {
    let server = Fake::plain().await;
    let names = ["evil.test.", ".", "_x._tcp.evil.test.", "1.2.0.192.in-addr.arpa.", "a.b\0ü|test"];
    for (count, name) in names.iter().enumerate() {
        let answer = ask_open(&server, &query(name, RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(server.asked().len(), count + 1);
        assert_eq!(*server.asked()[count].name(), wire(name));
    }
}

#[tokio::test]
async fn transfers_and_other_questions_about_no_data_are_refused() {
    let server = Fake::plain().await;
    for kind in [0, 41, 128, 249, 250, 251, 252, 253, 254] {
        let reply = ask(&server, "open", &query("allowed.test.", kind.into()), Transport::Tcp).await;
        assert_eq!((reply.decision, reply.rcode), (Err(Reason::DnsRefused), ResponseCode::Refused), "{kind}");
    }
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY, DNSClass::Unknown(7)] {
        let mut query = query("version.bind.", RecordType::TXT);
        query.queries[0].query_class = class;
        let reply = ask(&server, "open", &query, Transport::Udp).await;
        assert_eq!(
            (reply.decision, reply.rcode),
            (Err(Reason::DnsRefused), ResponseCode::Refused),
            "{class}"
        );
        assert_eq!(read(&reply).queries, query.queries);
    }
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn whoever_asks_for_everything_gets_the_least() {
    let server = Fake::plain().await;
    let answer = ask_open(&server, &query("evil.test.", RecordType::ANY)).await;
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(answer.answers[0].record_type(), RecordType::HINFO);
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn what_is_no_query_gets_what_it_deserves() {
    let server = Fake::plain().await;
    let (forwarder, rules) = (forwarder(&server), rules(policy("open")));
    let plain = query("allowed.test.", RecordType::A).to_vec().unwrap();
    let but = |at: usize, byte: u8| {
        let mut bytes = plain.clone();
        bytes[at] = byte;
        bytes
    };
    for nothing in [b"".to_vec(), plain[..11].to_vec(), but(2, 0x81)] {
        assert_eq!(forwarder.answer(&nothing, Transport::Udp, &rules).await, None);
    }
    for (bytes, code) in [
        (but(2, 0x29), ResponseCode::NotImp),
        (but(5, 2), ResponseCode::FormErr),
        (but(7, 1), ResponseCode::FormErr),
        ([plain.as_slice(), b"\0"].concat(), ResponseCode::FormErr),
    ] {
        let reply = forwarder.answer(&bytes, Transport::Udp, &rules).await.unwrap();
        assert_eq!((reply.bytes.len(), reply.rcode, reply.decision), (12, code, Ok(())));
        // The id, the operation and RD; an answer, recursion available.
        assert_eq!(reply.bytes[..2], bytes[..2]);
        assert_eq!((reply.bytes[2], reply.bytes[3] & 0xf0), (bytes[2] | 0x80, 0x80));
    }
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn edns_of_another_version_is_said_to_be_bad() {
    let server = Fake::plain().await;
    let mut query = with_edns("allowed.test.", RecordType::A, 1232);
    query.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&server, "open", &query, Transport::Udp).await;
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!((reply.rcode, message.edns.unwrap().rcode_high()), (ResponseCode::BADVERS, 1));
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn id_flags_and_the_case_of_the_name_come_back() {
    let server = Fake::plain().await;
    let mut query = query("AlLoWeD.TeSt.", RecordType::A);
    query.metadata.id = 0xbeef;
    query.metadata.checking_disabled = true;
    query.metadata.authentic_data = true;
    let bytes = query.to_vec().unwrap();
    let reply = ask(&server, "strict", &query, Transport::Udp).await;
    assert_eq!(reply.bytes[12..bytes.len()], bytes[12..]);
    let answer = read(&reply);
    let head = &answer.metadata;
    assert!((head.id, head.recursion_available, head.checking_disabled) == (0xbeef, true, true));
    // Nothing was verified here, and nobody here is an authority.
    assert!(!head.authentic_data && !head.authoritative && !head.truncation);
    assert!(answer.answers[0].name.eq_case(&query.queries[0].name));
}

#[tokio::test]
async fn nothing_of_edns_goes_through_in_either_direction() {
    let server = Fake::new(|asked| {
        let mut reply = asked.reply(ResponseCode::NoError);
        reply.answers = asked.addresses(9);
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Unknown(65001, b"smuggled".to_vec()));
        reply.set_edns(edns);
        reply.additionals = vec![a("extra.test.", 9, [192, 0, 2, 7])];
        reply.metadata.authentic_data = true;
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let answer = ask_open(&server, &with_edns("allowed.test.", RecordType::A, 4096)).await;
    for edns in [answer.edns.as_ref(), server.asked()[0].query.edns.as_ref()] {
        let edns = edns.unwrap();
        assert!(!edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
        assert_eq!((edns.max_payload(), edns.version()), (MAX_DATAGRAM, 0));
    }
    assert!(answer.additionals.is_empty() && !answer.metadata.authentic_data);
    assert!(ask_open(&server, &query("allowed.test.", RecordType::A)).await.edns.is_none());
}

#[tokio::test]
async fn answers_fit_or_are_truncated() {
    // 20 bytes each, behind 30 of header and question and 11 of OPT.
    fn many(asked: &Asked) -> Vec<Vec<u8>> {
        let count =
            asked.name().iter().next().unwrap()[1..].iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
        let record = |number: u32| a(&asked.name().to_string(), 9, number.to_be_bytes().map(|byte| byte | 1));
        let mut reply = asked.reply(ResponseCode::NoError);
        reply.answers = (0..count).map(record).collect();
        reply.metadata.truncation = asked.over == Transport::Udp && count > 50;
        if reply.metadata.truncation {
            reply.answers.clear();
        }
        vec![reply.to_vec().unwrap()]
    }
    let server = Fake::new(many).await;
    for (count, payload, over, fits) in [
        (10, None, Transport::Udp, true),
        (40, None, Transport::Udp, false),
        (40, None, Transport::Tcp, true),
        (40, Some(512), Transport::Udp, false),
        (40, Some(100), Transport::Udp, false),
        (40, Some(900), Transport::Udp, true),
        (40, Some(4096), Transport::Udp, true),
        (100, Some(4096), Transport::Udp, false),
        (100, Some(512), Transport::Tcp, true),
        (2000, None, Transport::Tcp, true),
    ] {
        let name = format!("n{count}.test.");
        let query = match payload {
            Some(payload) => with_edns(&name, RecordType::A, payload),
            None => query(&name, RecordType::A),
        };
        let reply = ask(&server, "open", &query, over).await;
        let answer = read(&reply);
        assert_eq!(answer.answers.len(), if fits { count } else { 0 }, "{count} {payload:?} {over:?}");
        assert_eq!(answer.metadata.truncation, !fits);
        assert_eq!((answer.queries, answer.edns.is_some()), (query.queries, payload.is_some()));
        if over == Transport::Udp {
            assert!(reply.bytes.len() <= payload.unwrap_or(512).clamp(512, MAX_DATAGRAM).into());
        }
    }
}

#[tokio::test]
async fn keys_that_hide_names_are_taken_out_and_the_rest_stays() {
    let addresses = |hidden: bool| {
        let v4 = hidden.then_some(A::new(10, 0, 0, 1)).into_iter().chain([A::new(192, 0, 2, 1)]);
        let v6 = hidden.then_some(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)).into_iter();
        (v4.collect(), v6.chain([AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)]).collect())
    };
    let service = |ech: bool, hidden: bool| {
        let mandatory = [SvcParamKey::Alpn, SvcParamKey::EchConfigList];
        let (v4, v6) = addresses(hidden);
        let mut parameters = vec![
            (
                SvcParamKey::Mandatory,
                SvcParamValue::Mandatory(Mandatory(mandatory[..if ech { 2 } else { 1 }].to_vec())),
            ),
            (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".into(), "h3".into()]))),
            (SvcParamKey::Port, SvcParamValue::Port(8443)),
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4))),
            (
                SvcParamKey::EchConfigList,
                SvcParamValue::EchConfigList(EchConfigList(b"\0\x04\xfe\x0d\0\0".to_vec())),
            ),
            (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6))),
            (SvcParamKey::Key(65400), SvcParamValue::Unknown(Unknown(vec![1, 2]))),
        ];
        parameters.retain(|(key, _)| ech || *key != SvcParamKey::EchConfigList);
        SVCB::new(1, "svc.test.".parse().unwrap(), parameters)
    };
    let only = |value: Vec<(SvcParamKey, SvcParamValue)>| SVCB::new(2, Name::root(), value);
    let ech = (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(b"\0\0".to_vec())));
    let needs =
        (SvcParamKey::Mandatory, SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::EchConfigList])));
    let guarded = (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(169, 254, 169, 254)])));
    let before = [service(true, true), only(vec![needs, guarded, ech])];
    let after = [service(false, false), only(vec![])];
    let server = Fake::new(move |asked| {
        let record = |service: SVCB| match asked.kind() {
            RecordType::HTTPS => RData::HTTPS(HTTPS(service)),
            _ => RData::SVCB(service),
        };
        let records =
            before.clone().map(|service| Record::from_rdata(asked.name().clone(), 9, record(service)));
        vec![asked.answer(records.to_vec())]
    })
    .await;
    for kind in [RecordType::HTTPS, RecordType::SVCB] {
        let answer = ask_open(&server, &with_edns("allowed.test.", kind, 1232)).await;
        let found: Vec<_> = answer
            .answers
            .iter()
            .map(|record| match &record.data {
                RData::HTTPS(https) => https.0.clone(),
                RData::SVCB(svcb) => svcb.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, after, "{kind}");
    }
}

#[tokio::test]
async fn guarded_addresses_are_not_told_but_those_of_the_sandbox_itself_are() {
    let server = Fake::new(|asked| {
        let name = asked.name().to_string();
        let v6 = |address: [u16; 8]| {
            Record::from_rdata(asked.name().clone(), 9, RData::AAAA(AAAA(Ipv6Addr::from(address))))
        };
        vec![asked.answer(match asked.kind() {
            RecordType::A => vec![
                alias(&name, 9, "m.test."),
                a("m.test.", 9, [169, 254, 169, 254]),
                a("m.test.", 9, [10, 1, 2, 3]),
                a("m.test.", 9, [127, 0, 0, 1]),
                a("m.test.", 9, [0, 0, 0, 0]),
                a("m.test.", 9, [198, 51, 100, 1]),
            ],
            RecordType::AAAA => vec![
                v6([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
                v6([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
                v6([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1]),
                v6([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x201]),
                v6([0x64, 0xff9b, 0, 0, 0, 0, 0xa00, 1]),
                v6([0, 0, 0, 0, 0, 0, 0, 1]),
                v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            ],
            _ => vec![],
        })]
    })
    .await;
    let found = |answer: Message| -> Vec<_> {
        answer.answers.iter().filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_string()).collect()
    };
    let v4 = ask_open(&server, &query("n.test.", RecordType::A)).await;
    assert_eq!(v4.answers.len(), 4);
    assert_eq!(found(v4), ["127.0.0.1", "0.0.0.0", "198.51.100.1"]);
    let v6 = ask_open(&server, &query("n.test.", RecordType::AAAA)).await;
    assert_eq!(found(v6), ["::1", "2001:db8::1"]);
}

#[tokio::test]
async fn times_are_what_is_left_of_them() {
    let server = Fake::new(|asked| vec![asked.answer(asked.addresses(100))]).await;
    let (forwarder, rules) = (forwarder(&server), rules(policy("open")));
    let query = query("allowed.test.", RecordType::A).to_vec().unwrap();
    let ttl = async || read(&forwarder.answer(&query, Transport::Udp, &rules).await.unwrap()).answers[0].ttl;
    assert_eq!(ttl().await, 100);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!((90..=99).contains(&ttl().await));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn records_of_every_type_come_back_as_they_are() {
    let server = Fake::new(|asked| {
        let name = || asked.name().clone();
        let data = match asked.kind() {
            RecordType::MX => RData::MX(rdata::MX::new(10, "mx.test.".parse().unwrap())),
            RecordType::TXT => RData::TXT(TXT::from_bytes(vec![b"\0\xff", &[b'x'; 255]])),
            RecordType::SRV => RData::SRV(rdata::SRV::new(1, 2, 3, "srv.test.".parse().unwrap())),
            kind => RData::Unknown { code: kind, rdata: rdata::NULL::with(vec![0, 1, 255]) },
        };
        vec![asked.answer(vec![Record::from_rdata(name(), 9, data)])]
    })
    .await;
    for kind in [
        RecordType::MX,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::Unknown(4711),
        RecordType::Unknown(65280),
    ] {
        let answer = ask_open(&server, &query("allowed.test.", kind)).await;
        assert_eq!((answer.answers.len(), answer.answers[0].record_type()), (1, kind));
    }
}

#[tokio::test]
async fn failures_of_servers_are_not_refusals() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotAuth] {
        let server = Fake::new(move |asked| vec![asked.code(code)]).await;
        let reply = ask(&server, "strict", &query("allowed.test.", RecordType::A), Transport::Udp).await;
        assert_eq!((reply.rcode, reply.decision), (ResponseCode::ServFail, Ok(())));
    }
    let server = Fake::new(|asked| vec![asked.code(ResponseCode::NXDomain)]).await;
    let reply = ask(&server, "strict", &query("allowed.test.", RecordType::A), Transport::Udp).await;
    assert_eq!((reply.rcode, reply.decision), (ResponseCode::NXDomain, Ok(())));
}

fn flow(transport: Transport, resolver: &str) -> Flow {
    Flow { transport, source: "127.0.1.1:4000".parse().unwrap(), destination: resolver.parse().unwrap() }
}

#[tokio::test]
async fn refusals_are_told_with_their_name() {
    let server = Fake::plain().await;
    let (forwarder, host) = (forwarder(&server), Table::default());
    host.enforce(1, 7, policy("strict"));
    let flow = flow(Transport::Udp, "8.8.8.8:53");
    let bytes = query("Evil.test.", RecordType::A).to_vec().unwrap();
    let place = forwarder.admit(1).unwrap();
    assert!(forwarder.serve(&place, &bytes, &flow, 1, &host).await.is_some());
    let events = host.events(1);
    assert_eq!(host.told(1), [(Happening::Deny, Reason::DnsRefused, Some("evil.test".to_owned()))]);
    assert_eq!((events[0].generation, events[0].flow, events[0].bytes_out), (7, flow, bytes.len() as u64));

    let allowed = query("allowed.test.", RecordType::A).to_vec().unwrap();
    forwarder.serve(&place, &allowed, &flow, 1, &host).await.unwrap();
    assert_eq!(host.told(1).len(), 1);

    let counts: Vec<_> = forwarder.tally().map(|(_, name, count)| (name, count)).collect();
    assert!(counts.contains(&("refused", 1)) && counts.contains(&("noerror", 1)));
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 2);

    host.detach(1);
    assert_eq!(forwarder.serve(&place, &allowed, &flow, 1, &host).await, None);
}

#[tokio::test]
async fn a_resolver_that_the_policy_does_not_open_any_more_answers_nothing() {
    let server = Fake::plain().await;
    let (forwarder, host) = (forwarder(&server), Table::default());
    let place = forwarder.admit(1).unwrap();
    let query = query("allowed.test.", RecordType::A).to_vec().unwrap();
    for (policy, resolver, answered) in [
        (policy("open"), "8.8.8.8:53", true),
        (policy("open"), "9.9.9.9:53", false),
        (policy("open"), "10.0.0.1:53", false),
        (json!({"denyOut": ["0.0.0.0/0"]}), "8.8.8.8:53", false),
        (json!({"allowOut": ["8.8.8.8"], "denyOut": ["0.0.0.0/0"]}), "8.8.8.8:53", true),
        (json!({}), "8.8.8.8:53", true),
        (policy("open"), "[2001:db8::53]:53", false),
    ] {
        host.enforce(1, 1, policy);
        let before = host.told(1).len();
        let flow = flow(Transport::Udp, resolver);
        let reply = forwarder.serve(&place, &query, &flow, 1, &host).await.unwrap();
        assert_eq!(reply.rcode == ResponseCode::NoError, answered, "{resolver}");
        assert_eq!(host.told(1).len() - before, usize::from(!answered));
    }
}

#[tokio::test]
async fn one_query_too_many_fails_at_once() {
    let server = Fake::plain().await;
    let forwarder = forwarder(&server);
    let places: Vec<_> = (0..load::PER_SANDBOX).map(|_| forwarder.admit(1).unwrap()).collect();
    assert!(forwarder.clone().admit(1).is_none() && forwarder.admit(2).is_some());
    drop(places);
    assert!(forwarder.admit(1).is_some());
    let query = with_edns("allowed.test.", RecordType::A, 1232);
    let reply = forwarder.busy(&query.to_vec().unwrap(), Transport::Udp).unwrap();
    assert_eq!((reply.rcode, reply.decision), (ResponseCode::ServFail, Ok(())));
    assert_eq!(read(&reply).queries, query.queries);
    assert_eq!(forwarder.busy(b"x", Transport::Udp), None);
}

/// A connection to the forwarder.
struct Client {
    stream: DuplexStream,
    host: Arc<Table>,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Client {
    fn new(server: &Fake) -> Self {
        let host = Arc::new(Table::default());
        host.enforce(1, 1, policy("strict"));
        let (stream, other) = tokio::io::duplex(1 << 16);
        let flow = flow(Transport::Tcp, "8.8.8.8:53");
        let served = tokio::spawn(tcp::serve(other, flow, 1, Arc::clone(&host), forwarder(server)));
        Self { stream, host, served }
    }

    async fn send(&mut self, name: &str) -> u16 {
        let query = query(name, RecordType::A);
        let bytes = query.to_vec().unwrap();
        self.stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        self.stream.write_all(&bytes).await.unwrap();
        query.metadata.id
    }

    async fn receive(&mut self) -> Message {
        let mut bytes = vec![0; self.stream.read_u16().await.unwrap().into()];
        self.stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    /// What is left to be read before the end.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
        rest
    }
}

#[tokio::test]
async fn over_tcp_queries_come_behind_each_other_and_answers_as_they_are_found() {
    let server = Fake::new(|asked| {
        if asked.name().to_lowercase().to_string() == "slow.wild.test." {
            return vec![];
        }
        vec![asked.answer(asked.addresses(9))]
    })
    .await;
    let mut client = Client::new(&server);
    let slow = client.send("slow.wild.test.").await;
    let mut quick = Vec::new();
    for number in 0..100 {
        quick.push(client.send(&format!("n{number}.wild.test.")).await);
    }
    quick.sort_unstable();
    let mut answered = Vec::new();
    for _ in 0..100 {
        let answer = client.receive().await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        answered.push(answer.metadata.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, quick);
    let last = client.receive().await;
    assert_eq!((last.metadata.id, last.metadata.response_code), (slow, ResponseCode::ServFail));
}

#[tokio::test]
async fn over_tcp_each_query_is_judged_by_the_rules_of_its_moment() {
    let server = Fake::plain().await;
    let mut client = Client::new(&server);
    let codes = [ResponseCode::NoError, ResponseCode::Refused, ResponseCode::Refused];
    let other = json!({"allowOut": ["other.test"], "denyOut": ["0.0.0.0/0"], "dns": {"mode": "strict"}});
    for (generation, (policy, code)) in
        [policy("strict"), other, json!({"denyOut": ["0.0.0.0/0"]})].into_iter().zip(codes).enumerate()
    {
        client.host.enforce(1, generation as u32, policy);
        client.send("allowed.test.").await;
        assert_eq!(client.receive().await.metadata.response_code, code);
    }
    assert_eq!(server.asked().len(), 1);
    assert_eq!(client.host.told(1).len(), 2);
    client.host.detach(1);
    client.send("allowed.test.").await;
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn over_tcp_a_query_may_come_in_pieces_and_the_client_may_say_that_it_was_the_last() {
    let server = Fake::plain().await;
    let mut client = Client::new(&server);
    let query = query("allowed.test.", RecordType::A).to_vec().unwrap();
    let length = u16::try_from(query.len()).unwrap().to_be_bytes();
    for byte in [&length, query.as_slice()].concat() {
        client.stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    client.send("evil.test.").await;
    client.stream.shutdown().await.unwrap();
    let codes = [client.receive().await, client.receive().await].map(|answer| answer.metadata.response_code);
    assert!(codes.contains(&ResponseCode::NoError) && codes.contains(&ResponseCode::Refused));
    assert!(client.rest().await.is_empty());
    client.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn over_tcp_what_is_no_query_ends_the_connection() {
    let server = Fake::plain().await;
    for bytes in [b"\0\0".as_slice(), b"\0\x01x", b"\xff\xff\0\0", b"\x10\x01"] {
        let mut client = Client::new(&server);
        client.stream.write_all(bytes).await.unwrap();
        assert!(client.rest().await.is_empty(), "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn over_tcp_bytes_that_trickle_do_not_keep_a_connection() {
    let server = Fake::plain().await;
    let mut client = Client::new(&server);
    let begin = tokio::time::Instant::now();
    while client.stream.write_all(b"\x01").await.is_ok() {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert!(begin.elapsed() >= Duration::from_secs(9) && begin.elapsed() <= Duration::from_secs(16));
}
#[test]
fn what_does_not_even_fit_tcp_is_a_failure() {
    let bytes = query("n.test.", RecordType::A).to_vec().unwrap();
    let Parsed::Query(query) = query::parse(&bytes) else { panic!("no query") };
    let answers = (0..5000u32).map(|number| a("n.test.", 9, number.to_be_bytes())).collect();
    let answer = Answer { rcode: ResponseCode::NoError, answers, authorities: vec![] };
    assert_eq!(answer::write(&query, answer, Transport::Tcp), None);
}
