//! Connections by the name of a TLS hello: where they go, and which do not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;
#[path = "common/wire.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "as in its own module")]
mod wire;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::rr::RecordType;
use filter_tests::{
    Ca, Ending, FrameSender, Server, Service, Talk, TlsServer, TlsService, Topology, pattern,
};
use names_support::hello::{ECH, GREASE, Hello, PADDING, SERVER_NAME, hello, records, server_names};
use names_support::timed::eventually;
use names_support::{
    ACCESS_DENIED, Answer, CIDR, EVIL, GOOD, Ground, ID, PATIENCE, Row, SHORT, UNRECOGNIZED_NAME, WILD,
    alone, at, counted, curl, ip, names, usual_policy,
};
use nix::errno::Errno;
use serde_json::json;
use wire::{ACK, FIN, PSH, RST, SYN, Segment};

#[test]
fn the_filter_chooses_the_address() -> Result<()> {
    let ground = Ground::usual()?;
    for family in [0, 1] {
        // What the sandbox believes of the name, whether from its own resolver or /etc/hosts, is where it goes.
        let evil = at(EVIL[family], 443);
        ground.reaches(evil, &hello("allowed.test"), "allowed.test", GOOD[family])?;
        ground.reaches(evil, &hello("b.wild.test"), "b.wild.test", WILD[family])?;
        ground.reaches(at(GOOD[family], 443), &hello("a.b.wild.test"), "a.b.wild.test", WILD[family])?;
        ensure!(ground.arrived.frames_to(ip(EVIL[family]))? == 0, "something reached {evil}");
    }
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn a_client_that_checks_certificates_is_content() -> Result<()> {
    let mut ground = Ground::usual()?;
    ground.echo = None;
    let ca = Ca::new()?;
    let server = TlsServer::start(ground.topology.internet(), &ca, TlsService::Http, 443)?;
    let pem = tempfile(&ca.pem())?;
    for (to, answer, from) in [(EVIL[0], GOOD[0], "10.200.1.2"), (EVIL[1], GOOD[1], "fd00:200:1::2")] {
        let address = if to.contains(':') { format!("[{to}]") } else { to.to_owned() };
        let believed = format!("allowed.test:443:{address}");
        let cacert = pem.path();
        let args =
            ["--resolve", &believed, "--cacert", cacert, "https://allowed.test/", "https://allowed.test/2"];
        let (code, out, complaint) = curl(&ground.sandbox, &args)?;
        ensure!(code == 0, "{from}: {complaint}");
        ensure!(out == format!("hello from {} as allowed.test\n", at(answer, 443)).repeat(2), "{out}");

        let before = ground.before()?;
        let denied = format!("denied.test:443:{address}");
        let args = ["--resolve", &denied, "--cacert", cacert, "https://denied.test/"];
        let (code, _, complaint) = curl(&ground.sandbox, &args)?;
        // curl: "SSL connect error".
        ensure!(code == 35 && complaint.contains("unrecognized name"), "{code}: {complaint}");
        ground.ensure_moved(&before, &[("name_not_allowed", 1)])?;
        ensure!(ground.arrived.frames_to(ip(to))? == 0);
    }
    let names: Vec<_> = server.sessions().into_iter().filter_map(|session| session.server_name).collect();
    ensure!(names == ["allowed.test", "allowed.test"], "{names:?}");
    ensure!(server.connections() == 2);
    Ok(())
}

/// A file that goes with its owner.
struct TempFile(std::path::PathBuf);

fn tempfile(content: &str) -> Result<TempFile> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("names-{}-{}.pem", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, content)?;
    Ok(TempFile(path))
}

impl TempFile {
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Addresses that a name must not lead to, as its owner would write them.
const PLATFORM: [&[&str]; 14] = [
    &["169.254.169.254"],
    &["127.0.0.1"],
    &["10.0.0.1"],
    &["192.168.1.1"],
    &["100.64.0.1"],
    &["0.0.0.0"],
    &["::1"],
    &["::"],
    &["::ffff:10.0.0.1"],
    &["::ffff:169.254.169.254"],
    &["64:ff9b::a00:1"],
    &["2002:a00:1::1"],
    &["fe80::1"],
    // All of them at once are no better.
    &["127.0.0.1", "10.0.0.1", "::1", "64:ff9b::a9fe:a9fe"],
];

#[test]
fn a_name_does_not_lead_to_the_platform() -> Result<()> {
    let ground = Ground::usual()?;
    // Whoever is there would be reached: on the host, and in another sandbox.
    let other = ground.topology.sandbox(2)?;
    ground.daemon.attach("s2", &other, &json!({}))?;
    let decoys = [
        Server::start(ground.topology.host(), Service::TcpEcho, 443)?,
        Server::start(&other, Service::TcpEcho, 443)?,
    ];
    let own: Vec<String> = ground.topology.host_addresses().iter().map(ToString::to_string).collect();
    let gateways = [ground.sandbox.gateway_v4().to_string(), ground.sandbox.gateway_v6().to_string()];
    let others = [other.v4().to_string(), other.v6().to_string()];
    let mut rows = Vec::new();
    let lists = [&own[..], &gateways, &others].map(|list| list.iter().map(String::as_str).collect());
    let targets = PLATFORM.iter().map(|list| list.to_vec()).chain(lists);
    for (n, addresses) in targets.enumerate() {
        let name = format!("n{n}.wild.test");
        ground.zone.set(&name, &addresses)?;
        for to in EVIL {
            let what = format!("{addresses:?} by way of {to}");
            let row = Row::tls(&what, at(to, 443), hello(&name), "guarded").named(&name);
            rows.push(row.by(None).answered(Answer::Alert(ACCESS_DENIED)));
        }
    }
    let before = ground.before()?;
    ground.denied(&rows)?;
    for decoy in &decoys {
        ensure!(decoy.connections() == 0, "a decoy was reached: {:?}", decoy.accepted());
    }
    ensure!(ground.events(&before)?.iter().all(|event| event["reason"] != "allowed_name"));
    Ok(())
}

#[test]
fn of_several_addresses_the_next_is_tried() -> Result<()> {
    let ground = Ground::usual()?;
    let silent = ["203.0.113.250", "2001:db8:113:0:dead::1"];
    for (n, (addresses, to, reached)) in [
        (&["169.254.169.254", GOOD[0]][..], EVIL[0], GOOD[0]),
        (&["::1", "::ffff:10.0.0.1", "fe80::1", GOOD[1]], EVIL[1], GOOD[1]),
        (&[silent[0], GOOD[0]], EVIL[0], GOOD[0]),
        (&[silent[1], GOOD[1]], EVIL[1], GOOD[1]),
        // A mapped address is the one inside.
        (&["::ffff:198.51.100.10"], EVIL[0], GOOD[0]),
        // Whatever family the sandbox believes in, there is but one.
        (&[GOOD[0]], EVIL[1], GOOD[0]),
        (&[GOOD[1]], EVIL[0], GOOD[1]),
        (&GOOD, EVIL[0], GOOD[0]),
        (&GOOD, EVIL[1], GOOD[1]),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("m{n}.wild.test");
        ground.zone.set(&name, addresses)?;
        ground
            .reaches(at(to, 443), &hello(&name), &name, reached)
            .with_context(|| format!("{addresses:?}"))?;
    }
    Ok(())
}

#[test]
fn a_name_that_leads_nowhere() -> Result<()> {
    use filter_tests::Behaviour::{AliasLoop, Fails, PointerLoop, Silent};
    use filter_tests::hickory_proto::op::ResponseCode;
    let ground = Ground::usual()?;
    let mut rows = Vec::new();
    for (n, behaviour) in
        [Silent, AliasLoop, PointerLoop, Fails(ResponseCode::ServFail), Fails(ResponseCode::Refused)]
            .into_iter()
            .enumerate()
    {
        let name = format!("u{n}.wild.test");
        ground.zone.set(&name, &GOOD)?;
        let what = format!("{behaviour:?}");
        ground.zone.behave(&name, behaviour);
        rows.push(Row::tls(&what, at(EVIL[n % 2], 443), hello(&name), "unresolved").named(&name));
    }
    ground.zone.set("nothing.wild.test", &[])?;
    ground.zone.alias("dangling.wild.test", "nowhere.test")?;
    for name in ["nothing.wild.test", "dangling.wild.test", "unknown.wild.test"] {
        rows.push(Row::tls(name, at(EVIL[0], 443), hello(name), "unresolved").named(name));
    }
    let rows: Vec<_> = rows.into_iter().map(|row| row.by(Some("/allowOut/1"))).collect();
    ground.denied_together(&rows)?;

    // Somebody is there, and does not answer.
    ground.zone.set("silent.wild.test", &["203.0.113.250", "2001:db8:113:0:dead::1"])?;
    let before = ground.before()?;
    let heard = ground.sandbox.talk(at(EVIL[0], 443), &Talk::new().say(hello("silent.wild.test")))?;
    ensure!(heard.alert() == Some((2, names_support::INTERNAL_ERROR)), "{}", heard.summary());
    ensure!(heard.took.as_millis() >= 1400, "{:?}", heard.took);
    ground.ensure_moved(&before, &[("unresolved", 1)])?;
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn other_names_are_refused() -> Result<()> {
    let ground = Ground::usual()?;
    let longest = format!("{}.wild.test", ["a"; 121].join("."));
    let too_long = format!("{}.wild.test", ["a"; 122].join("."));
    ensure!((longest.len(), too_long.len()) == (251, 253));
    let too_long = format!("a{too_long}");
    let label = format!("{}.wild.test", "a".repeat(64));
    let mut rows = Vec::new();
    for name in [
        // Names that end or begin like allowed ones.
        "evilwild.test",
        "wild.test",
        "allowed.test.evil.test",
        "b.wild.test.evil.test",
        "xallowed.test",
        "sub.allowed.test",
        "allowed.tes",
        "allowed.test.test",
        "test",
        "wild.test.",
        "Denied.TEST",
        "xn--bcher-kva.test",
        "localhost",
        "metadata.google.internal",
    ] {
        let canonical = name.trim_end_matches('.').to_ascii_lowercase();
        rows.push(Row::tls(name, at(EVIL[0], 443), hello(name), "name_not_allowed").named(&canonical));
    }
    for name in [
        // No names, however they end.
        "allowed.test..",
        ".allowed.test",
        "a..wild.test",
        ".wild.test",
        "*.wild.test",
        "-a.wild.test",
        "a-.wild.test",
        " b.wild.test",
        "b.wild.test ",
        "b\0.wild.test",
        "b.wild.test\0",
        "allowed.test\0.evil.test",
        "allowed.test\r\n",
        "user@allowed.test",
        "allowed.test:443",
        "allowed.test/",
        "https://allowed.test",
        "allowed\u{3002}test",
        "allowed\u{ff0e}test",
        "\u{ff41}llowed.test",
        "b\u{fc}cher.wild.test",
        "b%2ewild.test",
        "[::1]",
        "::1",
        "2001:db8:198::10",
        "198.51.100.10",
        "203.0.113.10",
        "198.51.100.10.",
        "3325256714",
        "0xc633640a",
        "0306.063.0144.012",
        "127.1",
        "0x7f.1",
        "allowed.test.1",
        "",
        ".",
        &label,
        &too_long,
    ] {
        let reason = "bad_name";
        rows.push(Row::tls(&format!("{name:?}"), at(EVIL[0], 443), hello(name), reason));
    }
    rows.push(Row::tls("bytes beyond ASCII", at(EVIL[1], 443), hello(b"\xff\xfe.wild.test"), "bad_name"));
    let asked = ground.zone.asked().len();
    ground.denied(&rows)?;
    ensure!(ground.zone.asked().len() == asked, "the filter asked for {:?}", ground.zone.asked());

    // The edge is on the right side.
    ground.zone.set(&longest, &GOOD)?;
    ground.reaches(at(EVIL[0], 443), &hello(&longest), &longest, GOOD[0])
}

#[test]
fn one_name_has_many_spellings() -> Result<()> {
    let ground = Ground::with(
        SHORT,
        &json!({"allowOut": ["Allowed.TEST", "*.Wild.test.", "xn--bcher-kva.test"], "denyOut": ["0.0.0.0/0"]}),
    )?;
    ground.zone.set("xn--bcher-kva.test", &WILD)?;
    ground.zone.set("_a-1.wild.test", &WILD)?;
    for (said, name, reached) in [
        ("allowed.test", "allowed.test", GOOD),
        ("ALLOWED.test", "allowed.test", GOOD),
        ("allowed.test.", "allowed.test", GOOD),
        ("B.WILD.TEST.", "b.wild.test", WILD),
        ("XN--BCHER-KVA.test", "xn--bcher-kva.test", WILD),
        ("_a-1.wild.test", "_a-1.wild.test", WILD),
    ] {
        ground.reaches(at(EVIL[0], 443), &hello(said), name, reached[0]).context(said)?;
    }
    Ok(())
}

/// Ways to send a hello, with the bytes of each: what every client may do.
fn forms(name: &str) -> Vec<(&'static str, Talk, Vec<u8>)> {
    let plain = hello(name);
    // As large as clients with post-quantum keys are, and larger.
    let padded = |size: usize| Hello::of(name).and(PADDING, vec![0; size]);
    let late = Hello::new().and(PADDING, vec![0; 9000]).and(SERVER_NAME, server_names(&[name.as_bytes()]));
    let early = Hello::of(name).after(GREASE, b"").and(0x1a1a, b"\0");
    // Outer, AES-128-GCM, a key and a payload (RFC 9849 section 5).
    let ech = [&[0, 0, 1, 0, 1, 7, 0, 32][..], &[0x33; 32], &[0, 144], &[0x44; 144]].concat();
    let largest = {
        let room = 64 * 1024
            - 5 * records(&Hello::of(name).and(PADDING, vec![0; 60_000]).message(), 16_384)
                .len()
                .div_ceil(16_389);
        let empty = padded(0).message().len();
        padded(room - empty)
    };
    let mut forms: Vec<(&'static str, Vec<u8>)> = vec![
        ("plain", plain.clone()),
        ("1 byte a record", Hello::of(name).records(1)),
        ("7 bytes a record", Hello::of(name).records(7)),
        ("5 KiB", padded(5000).bytes()),
        ("5 KiB in small records", padded(5000).records(100)),
        ("almost 64 KiB", largest.bytes()),
        ("a late name", late.bytes()),
        ("GREASE", early.bytes()),
        ("GREASE ECH", Hello::of(name).and(ECH, &ech).bytes()),
        ("ECH in front", Hello::of(name).after(ECH, &ech).bytes()),
        ("another record version", {
            let mut bytes = plain.clone();
            bytes[2] = 4;
            bytes
        }),
    ];
    let mut talks: Vec<(&'static str, Talk, Vec<u8>)> =
        forms.drain(..).map(|(what, bytes)| (what, Talk::new().say(&bytes), bytes)).collect();
    talks.push(("1 byte a segment", Talk::new().say_in(1, &plain), plain.clone()));
    let padded = padded(5000).bytes();
    talks.push(("5 KiB in small segments", Talk::new().say_in(37, &padded), padded));
    let (first, second) = plain.split_at(3);
    let pause = Duration::from_millis(50);
    talks.push((
        "a pause in a record's header",
        Talk::new().say(first).pause(pause).say(second),
        plain.clone(),
    ));
    let early = [plain.as_slice(), &[20, 3, 3, 0, 1, 1], &[23, 3, 3, 0, 5], b"early"].concat();
    talks.push(("early data behind it", Talk::new().say(&early), early));
    talks
}

#[test]
fn a_hello_may_come_in_any_form() -> Result<()> {
    let ground = Ground::usual()?;
    for (n, (what, talk, bytes)) in forms("allowed.test").into_iter().enumerate() {
        let before = ground.before()?;
        let talk = talk.until(&bytes).end();
        let to = at(EVIL[n % 2], 443);
        ground.reaches_by(&before, to, &talk, &bytes, "allowed.test", GOOD[n % 2]).context(what)?;
    }
    // And none of the forms gets past.
    let rows: Vec<_> = forms("denied.test")
        .into_iter()
        .map(|(what, talk, _)| {
            Row::tls(what, at(EVIL[0], 443), b"", "name_not_allowed").named("denied.test").saying(talk)
        })
        .collect();
    ground.denied(&rows)
}

#[test]
fn what_names_nobody_is_refused() -> Result<()> {
    let ground = Ground::usual()?;
    let (to, allowed) = (at(EVIL[0], 443), b"allowed.test".as_slice());
    let tls = |what: &str, bytes: Vec<u8>, reason| Row::tls(what, to, bytes, reason);
    let message = Hello::of("allowed.test").message();
    let mut other_message = message.clone();
    other_message[0] = 2;
    let mut longer = message.clone();
    longer[3] += 1;
    let sized = |length: u16, content: &[u8]| [&[22, 3, 1][..], &length.to_be_bytes(), content].concat();
    let twice = Hello::of("allowed.test").and(SERVER_NAME, server_names(&[allowed]));
    let twice_denied = Hello::of("allowed.test").and(SERVER_NAME, server_names(&[b"denied.test"]));
    let odd = |content: &[u8]| Hello::new().and(SERVER_NAME, content).bytes();
    let rows = vec![
        tls("no name", Hello::new().bytes(), "no_name"),
        tls("the extension twice", twice.bytes(), "bad_name"),
        tls("the extension twice, with two names", twice_denied.bytes(), "bad_name"),
        tls("two names in a list", odd(&server_names(&[allowed, b"denied.test"])), "bad_name"),
        tls("the same name twice in a list", odd(&server_names(&[allowed, allowed])), "bad_name"),
        tls("an empty list", odd(&[0, 0]), "bad_name"),
        tls(
            "a name of another kind",
            odd(&[0, 15, 1, 0, 12, b'a', b'l', b'l', b'o', b'w', b'e', b'd', b'.', b't', b'e', b's', b't']),
            "bad_name",
        ),
        tls("a list that is too long", odd(&[0, 99, 0, 0, 1, b'a']), "no_name"),
        tls("bytes behind the list", odd(&[&server_names(&[allowed])[..], b"x"].concat()), "no_name"),
        tls(
            "another extension twice",
            Hello::of("allowed.test").and(PADDING, b"").and(PADDING, b"").bytes(),
            "no_name",
        ),
        tls(
            "larger than 64 KiB, with headers",
            Hello::of("allowed.test").and(PADDING, vec![0; 12_000]).records(1),
            "no_name",
        ),
        tls(
            "a length above 64 KiB",
            sized(16_384, &[&[1, 1, 0, 0][..], &vec![0; 16_380]].concat()),
            "no_name",
        ),
        tls("a record that is too large", sized(16_385, &message), "no_name"),
        tls("an empty record", [sized(0, b""), hello("allowed.test")].concat(), "no_name"),
        tls("a ServerHello", records(&other_message, 9000), "no_name"),
        tls("a length beyond the end", records(&[&longer[..], &message].concat(), 9000), "no_name"),
        tls("an alert", vec![21, 3, 1, 0, 2, 1, 0], "no_name"),
        tls("application data", vec![23, 3, 3, 0, 1, 0], "no_name"),
        tls("SSL 2.0", vec![0x80, 46, 1, 0, 2, 0, 5, 0, 0, 0, 16], "no_name"),
        tls("HTTP", b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec(), "no_name"),
        tls("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "no_name"),
        tls("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "no_name"),
        tls("zeroes", vec![0; 64], "no_name"),
        tls("half a hello and the end", b"".to_vec(), "no_name")
            .saying(Talk::new().say(&hello("allowed.test")[..40]).end())
            .by(None),
        tls("the end at once", b"".to_vec(), "no_name").saying(Talk::new().end()).by(None),
    ];
    ground.denied(&rows)?;
    let v6 = at(EVIL[1], 443);
    ground.denied(&[
        Row::tls("no name, IPv6", v6, Hello::new().bytes(), "no_name"),
        Row::tls("SSH, IPv6", v6, b"SSH-2.0-x\r\n", "no_name"),
    ])
}

#[test]
fn whoever_says_nothing_is_refused_in_time() -> Result<()> {
    let ground = Ground::usual()?;
    let whole = hello("allowed.test");
    let (start, rest) = whole.split_at(60);
    // A byte now and then does not prolong it.
    let drip =
        start.iter().fold(Talk::new(), |talk, byte| talk.say([*byte]).pause(Duration::from_millis(60)));
    let mut rows = Vec::new();
    for to in EVIL {
        let row = |what: &str, talk| Row::tls(what, at(to, 443), b"", "peek_timeout").saying(talk);
        rows.push(row("waits for the server to begin", Talk::new()));
        rows.push(row("half a hello", Talk::new().say(start)));
        rows.push(row("a header", Talk::new().say(&whole[..3])));
        rows.push(row("byte by byte", drip.clone()));
        rows.push(row("late", Talk::new().say(start).pause(Duration::from_millis(900)).say(rest)));
    }
    let start = Instant::now();
    ground.denied_together(&rows)?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(650), "{took:?}");
    // While they wait they count.
    let before = ground.before()?;
    thread::scope(|scope| -> Result<()> {
        let waits = scope.spawn(|| ground.sandbox.talk(at(EVIL[0], 443), &Talk::new()));
        eventually("it counts", PATIENCE, || Ok(ground.control.active(ID)? == 1))?;
        let heard = waits.join().unwrap()?;
        ensure!(heard.ending == Ending::End && heard.took.as_millis() >= 650, "{}", heard.summary());
        Ok(())
    })?;
    ground.ensure_moved(&before, &[("peek_timeout", 1)])?;
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn other_rules_stand_beside_names() -> Result<()> {
    let ground = Ground::usual()?;
    // An allowed address is reached as it is, whatever is said there.
    for to in CIDR {
        for bytes in [hello("denied.test"), b"SSH-2.0-x\r\n".to_vec()] {
            let before = ground.before()?;
            let heard = ground.sandbox.talk(at(to, 443), &Talk::new().say(&bytes).until(&bytes).end())?;
            ensure!(heard.bytes == bytes && heard.ending == Ending::End, "{}", heard.summary());
            let accepted = ground.echo.as_ref().unwrap().accepted();
            // It is the sandbox's own connection, not the filter's.
            let last = accepted.last().unwrap();
            ensure!((last.local, last.peer) == (at(to, 443), heard.from), "{last:?}");
            ground.ensure_moved(&before, &[])?;
        }
    }
    // Names are about two ports.
    let mut rows = Vec::new();
    for to in [GOOD[0], EVIL[0], GOOD[1], EVIL[1]] {
        for port in [22, 25, 81, 444, 853, 3128, 8080, 8443] {
            let what = format!("{to} port {port}");
            let row = Row::tls(&what, at(to, port), hello("allowed.test"), "denied_cidr");
            rows.push(row.by(Some("/denyOut/0")).answered(Answer::Refused));
        }
    }
    ground.denied(&rows)?;

    // Where denials come first, nothing is opened by name.
    let first = json!({"allowOut": ["allowed.test", "203.0.113.0/24"], "denyOut": ["0.0.0.0/0"], "precedence": "deny-first"});
    ground.update(&first)?;
    let rows: Vec<_> = [GOOD[0], GOOD[1], CIDR[0], EVIL[1]]
        .iter()
        .flat_map(|to| [443, 80].map(|port| at(to, port)))
        .map(|to| {
            let row = Row::tls(&format!("deny-first, {to}"), to, hello("allowed.test"), "denied_cidr");
            row.by(Some("/denyOut/0")).answered(Answer::Refused)
        })
        .collect();
    ground.denied(&rows)?;

    // Any name is any name that is one, and does not open the platform.
    ground.update(&names(&["*"]))?;
    ground.zone.set("inside.test", &["10.0.0.1"])?;
    ground.reaches(at(WILD[0], 443), &hello("denied.test"), "denied.test", EVIL[0])?;
    let rule = Some("/denyOut/0");
    ground.denied(&[
        Row::tls("inside", at(EVIL[0], 443), hello("inside.test"), "guarded").named("inside.test"),
        Row::tls("nobody", at(EVIL[0], 443), Hello::new().bytes(), "no_name").by(rule),
        Row::tls("an address", at(EVIL[0], 443), hello("198.51.100.10"), "bad_name").by(rule),
    ])
}

#[test]
fn the_platform_is_not_reached_by_its_address_either() -> Result<()> {
    let ground = Ground::usual()?;
    let decoy = Server::start(ground.topology.host(), Service::TcpEcho, 443)?;
    let mut rows = Vec::new();
    for to in [
        "169.254.169.254",
        "127.1.2.3",
        "10.0.0.1",
        "192.0.2.1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "2001:db8::1",
    ] {
        // A sandbox's own loopback never leaves it.
        if to.starts_with("127.") {
            continue;
        }
        let row = Row::tls(to, at(to, 443), hello("allowed.test"), "guarded");
        rows.push(row.by(None).answered(Answer::Refused));
    }
    let gateways = [ground.sandbox.gateway_v4().to_string(), ground.sandbox.gateway_v6().to_string()];
    for to in &gateways {
        rows.push(
            Row::tls(to, at(to, 443), hello("allowed.test"), "guarded").by(None).answered(Answer::Refused),
        );
    }
    ground.denied(&rows)?;
    ensure!(decoy.connections() == 0);
    Ok(())
}

#[test]
fn quic_is_refused_at_once() -> Result<()> {
    let ground = Ground::usual()?;
    let quic = topology_udp(&ground, 443)?;
    for to in [GOOD[0], EVIL[0], GOOD[1], EVIL[1]] {
        let before = ground.before()?;
        // A long header and version 1 (RFC 9000 section 17.2.2).
        let mut initial = vec![0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
        initial.resize(1200, 0);
        let attempt = ground.sandbox.udp_exchange(at(to, 443), &initial, PATIENCE);
        let errno = if ip(to).is_ipv4() { Errno::EHOSTUNREACH } else { Errno::EACCES };
        ensure!(attempt.errno() == Some(errno), "{to}: {:?}", attempt.result);
        ensure!(attempt.took < names_support::AT_ONCE, "{:?}", attempt.took);
        ground.ensure_moved(&before, &[("denied_cidr", 1)])?;
        let told = ground.wait_event(&before, |event| event["event"] == "deny" && event["dst"] == to)?;
        ensure!(told["proto"] == "udp" && told["dport"] == 443 && told["rule"] == "/denyOut/0", "{told}");
        ensure!(ground.arrived.frames_to(ip(to))? == 0);
    }
    ensure!(quic.datagrams() == 0);
    // An allowed address is another matter.
    ensure!(ground.sandbox.udp_exchange(at(CIDR[0], 443), b"?", PATIENCE).is_ok());
    Ok(())
}

fn topology_udp(ground: &Ground, port: u16) -> Result<Server> {
    ground.topology.serve(Service::UdpEcho, port)
}

#[test]
fn much_goes_through_and_ends_are_kept_apart() -> Result<()> {
    const LENGTH: u64 = 8 << 20;
    let mut ground = Ground::usual()?;
    ground.echo = None;
    let ca = Ca::new()?;
    let patience = Duration::from_secs(20);
    {
        let server = TlsServer::start(ground.topology.internet(), &ca, TlsService::Download(LENGTH), 443)?;
        for to in EVIL {
            let mut stream = ca.connect(&ground.sandbox, at(to, 443), "allowed.test", patience)?;
            let mut buffer = vec![0; 256 * 1024];
            let mut at = 0;
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                ensure!(buffer[..length] == pattern(at, length), "a wrong byte behind {at}");
                at += length as u64;
            }
            ensure!(at == LENGTH, "{at} of {LENGTH} bytes");
        }
        ensure!(server.accepted().iter().map(|end| end.local.ip().to_string()).eq(GOOD), "{server:?}");
    }
    let server = TlsServer::start(ground.topology.internet(), &ca, TlsService::Echo, 443)?;
    let mut stream = ca.connect(&ground.sandbox, at(EVIL[0], 443), "b.wild.test", patience)?;
    for round in 0..200 {
        let said = pattern(round * 1000, 1000 + usize::try_from(round)?);
        stream.write_all(&said)?;
        let mut back = vec![0; said.len()];
        stream.read_exact(&mut back)?;
        ensure!(back == said, "round {round}");
    }
    // The client has said all; the server has not.
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0; 16])? == 0);
    drop(stream);
    ensure!(server.sessions().len() == 1);
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn a_half_closed_connection_goes_on() -> Result<()> {
    let mut ground = Ground::usual()?;
    ground.echo = None;
    let hello = hello("allowed.test");
    for (to, good) in EVIL.iter().zip(GOOD) {
        let listener = names_support::timed::listen(ground.topology.internet(), at(good, 443))?;
        let connect = || -> Result<_> {
            let mut ours = ground.sandbox.tcp_connect(at(to, 443), PATIENCE).result?;
            ours.write_all(&hello)?;
            let (mut theirs, _) = listener.accept()?;
            theirs.set_read_timeout(Some(PATIENCE))?;
            let mut first = vec![0; hello.len()];
            theirs.read_exact(&mut first)?;
            ensure!(first == hello);
            Ok((ours, theirs))
        };
        // The client ends first, and gets what is still said.
        let (mut ours, mut theirs) = connect()?;
        ours.shutdown(Shutdown::Write)?;
        ensure!(theirs.read(&mut [0])? == 0);
        thread::sleep(Duration::from_millis(50));
        theirs.write_all(b"late")?;
        drop(theirs);
        let mut late = String::new();
        ours.read_to_string(&mut late)?;
        ensure!(late == "late");
        // And the other way round.
        let (mut ours, mut theirs) = connect()?;
        theirs.shutdown(Shutdown::Write)?;
        ensure!(ours.read(&mut [0])? == 0);
        ours.write_all(b"later")?;
        drop(ours);
        let mut later = String::new();
        theirs.read_to_string(&mut later)?;
        ensure!(later == "later");
        // A reset stays one.
        let (mut ours, theirs) = connect()?;
        names_support::timed::reset(theirs)?;
        ensure!(ours.read(&mut [0]).is_err(), "a reset became an end");
        let (ours, mut theirs) = connect()?;
        names_support::timed::reset(ours)?;
        ensure!(theirs.read(&mut [0]).is_err(), "a reset became an end");
    }
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn the_ports_are_the_operators_choice() -> Result<()> {
    let config = format!("{SHORT}[inspector.ports]\nhttp = [8080]\ntls = [443, 8443]\n");
    let ground = Ground::with(&config, &names(&["allowed.test"]))?;
    let more = ground.topology.serve(Service::TcpEcho, 8443)?;
    let said = hello("allowed.test");
    let heard = ground.sandbox.talk(at(EVIL[0], 8443), &Talk::new().say(&said).until(&said).end())?;
    ensure!(heard.bytes == said, "{}", heard.summary());
    ensure!(more.accepted()[0].local == at(GOOD[0], 8443));
    ground.denied(&[
        Row::tls("8443", at(EVIL[0], 8443), hello("denied.test"), "name_not_allowed").named("denied.test"),
        Row::tls("80", at(GOOD[0], 80), b"", "denied_cidr").by(Some("/denyOut/0")).answered(Answer::Refused),
    ])
}

#[test]
fn it_is_the_same_on_a_bridge_and_without_addresses() -> Result<()> {
    for any in [false, true] {
        let topology = Topology::new()?;
        let sandbox = if any { topology.sandbox(1)? } else { topology.bridge_sandbox(1)? };
        let other = if any { topology.sandbox(2)? } else { topology.bridge_sandbox(2)? };
        let ground = Ground::around(SHORT, topology, sandbox)?;
        if any {
            let iface = ground.sandbox.host_interface();
            let args = ["attach", ID, "--iface", iface, "--addr", "any", "--policy", "-", "--json"];
            ground.daemon.cli_with_input(&args, &usual_policy().to_string())?.success()?;
        } else {
            ground.daemon.attach(ID, &ground.sandbox, &usual_policy())?;
        }
        ground.daemon.attach("s2", &other, &names(&["denied.test"]))?;
        for (to, good) in EVIL.iter().zip(GOOD) {
            ground.reaches(at(to, 443), &hello("allowed.test"), "allowed.test", good)?;
            ground.denied(&[
                Row::tls("denied", at(to, 443), hello("denied.test"), "name_not_allowed")
                    .named("denied.test"),
                Row::tls("no name", at(to, 443), Hello::new().bytes(), "no_name"),
                Row::tls("another port", at(to, 8443), b"", "denied_cidr")
                    .answered(Answer::Refused)
                    .by(Some("/denyOut/0")),
            ])?;
            // Each is judged by its own policy.
            let said = hello("denied.test");
            let heard = other.talk(at(good, 443), &Talk::new().say(&said).until(&said).end())?;
            ensure!(heard.bytes == said, "{}", heard.summary());
            ensure!(ground.echo.as_ref().unwrap().accepted().last().unwrap().local == at(to, 443));
            let heard = other.talk(at(good, 443), &Talk::new().say(hello("allowed.test")))?;
            ensure!(heard.alert() == Some((2, UNRECOGNIZED_NAME)), "{}", heard.summary());
        }
        ensure!(counted(&ground.control.show("s2")?, "name_not_allowed") == 2);
    }
    Ok(())
}

#[test]
fn nobody_else_speaks_in_a_connection() -> Result<()> {
    let ground = Ground::usual()?;
    let said = hello("allowed.test");
    for (family, evil) in EVIL.iter().enumerate() {
        let mut stream = ground.sandbox.tcp_connect(at(evil, 443), PATIENCE).result?;
        stream.write_all(&said)?;
        stream.read_exact(&mut vec![0; said.len()])?;
        let port = stream.local_addr()?.port();
        let (from, to) = (ip(evil), ground.sandbox.address_like(ip(evil)));
        let before = ground.before()?;
        // From outside, as the other end that the sandbox believes in would send it.
        let (host, internet) = ([0x02, 0xff, 0, 0, 0, 1], [0x02, 0xff, 0, 0, 0, 2]);
        let sender = FrameSender::open(ground.topology.internet(), "eth0")?;
        let forged =
            [(RST, &b""[..]), (RST | ACK, b""), (ACK | PSH, b"injected"), (SYN | ACK, b""), (FIN | ACK, b"")];
        for (flags, payload) in forged {
            let segment = Segment { sport: 443, dport: port, seq: 1, ack: 1, flags }.bytes(from, to, payload);
            let (ethertype, packet) = wire::ip(from, to, wire::TCP, segment);
            sender.send(&wire::ethernet(host, internet, ethertype, &packet))?;
        }
        eventually(
            "all were dropped",
            PATIENCE,
            || Ok(ground.moved(&before)? == [("inbound".to_owned(), 5)]),
        )
        .with_context(|| format!("{:?}", ground.moved(&before)))?;
        stream.write_all(b"still")?;
        let mut still = [0; 5];
        stream.read_exact(&mut still)?;
        ensure!(&still == b"still", "{still:?}");
        ensure!(ground.echo.as_ref().unwrap().accepted().last().unwrap().local == at(GOOD[family], 443));
    }
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn a_host_with_strict_settings_is_no_obstacle() -> Result<()> {
    let ground = Ground::usual()?;
    let host = ground.topology.host();
    let sandbox = ground.sandbox.host_interface();
    for settings in [
        &[("rp_filter", "1")][..],
        &[("rp_filter", "1"), ("src_valid_mark", "1")],
        &[("rp_filter", "2"), ("src_valid_mark", "1"), ("accept_local", "0"), ("route_localnet", "0")],
    ] {
        for interface in ["all", "default", sandbox, "up0", "lo"] {
            for (key, value) in settings {
                host.sysctl(&format!("net/ipv4/conf/{interface}/{key}"), value)?;
            }
        }
        for more in [
            &[("net/ipv4/tcp_syncookies", "2")][..],
            &[
                ("net/ipv4/tcp_fwmark_accept", "1"),
                ("net/ipv4/fwmark_reflect", "1"),
                ("net/ipv6/fwmark_reflect", "1"),
            ],
            &[
                ("net/ipv4/tcp_early_demux", "0"),
                ("net/ipv4/udp_early_demux", "0"),
                ("net/ipv4/ip_early_demux", "0"),
            ],
        ] {
            for (key, value) in more {
                host.sysctl(key, value)?;
            }
            for (to, good) in EVIL.iter().zip(GOOD) {
                ground
                    .reaches(at(to, 443), &hello("allowed.test"), "allowed.test", good)
                    .with_context(|| format!("{settings:?} {more:?}"))?;
            }
            let query = names_support::dns::query("allowed.test", RecordType::A);
            let answer = names_support::dns::ask(&ground.sandbox, at("8.8.8.8", 53), &query)?;
            ensure!(
                names_support::dns::addresses(&answer) == [ip(GOOD[0])],
                "{settings:?} {more:?}: {answer}"
            );
        }
    }
    ground.control.settles(ID, 0, Duration::from_secs(10))
}

#[test]
fn many_at_once_each_get_their_own() -> Result<()> {
    let _alone = alone();
    const EACH: usize = 40;
    let ground = Ground::usual()?;
    let before = ground.before()?;
    let (to, start) = (at(EVIL[0], 443), Instant::now());
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let ground = &ground;
                scope.spawn(move || -> Result<()> {
                    for n in 0..EACH {
                        let bad = (client + n) % 2 == 0;
                        let said = hello(if bad { "denied.test" } else { "allowed.test" });
                        let talk = Talk::new().say(&said);
                        let heard =
                            ground.sandbox.talk(to, &if bad { talk } else { talk.until(&said).end() })?;
                        let right = if bad {
                            heard.alert() == Some((2, UNRECOGNIZED_NAME))
                        } else {
                            heard.bytes == said && heard.ending == Ending::End
                        };
                        ensure!(right, "client {client}, {n}: {}", heard.summary());
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap())
    })?;
    println!("{} in {:?}", 8 * EACH, start.elapsed());
    ground.ensure_moved(&before, &[("name_not_allowed", 4 * EACH as u64)])?;
    ensure!(ground.tls_connections() - before.tls == 4 * EACH as u64);
    ground.control.settles(ID, 0, PATIENCE)
}
