//! What Prometheus finds, and that the dashboard asks for nothing else.

mod names_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::rr::RecordType;
use filter_tests::{Daemon, Service, Talk, Topology};
use serde_json::{Value, json};

use names_support::hello::hello;
use names_support::{EVIL, Ground, ID, PATIENCE, SHORT, at, dns, timed, usual_policy};

/// What dashboards and alerts rely on: the names, and the labels that they have.
const PROMISED: [(&str, &[&str]); 16] = [
    ("flows_total", &["proto", "decision", "reason"]),
    ("flows_active", &[]),
    ("connection_limit_refused_total", &[]),
    ("packets_total", &["direction", "decision"]),
    ("policy_updates_total", &["result"]),
    ("policy_apply_seconds", &[]),
    ("inspections_total", &["protocol", "decision", "reason"]),
    ("inspect_seconds", &[]),
    ("upstream_connect_seconds", &[]),
    ("dns_queries_total", &["decision", "rcode"]),
    ("ingress_requests_total", &["code"]),
    ("transforms_total", &[]),
    ("map_entries", &["map"]),
    ("map_capacity", &["map"]),
    ("events_dropped_total", &[]),
    ("build_info", &["version"]),
];

/// What is there: each sample's name with its labels, and its value.
struct Scrape(Vec<(String, BTreeMap<String, String>, f64)>);

impl Scrape {
    fn of(topology: &Topology) -> Result<Self> {
        let answer = topology.host().run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9464")?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain"), "{head}");
        let samples = body.lines().filter(|line| line.starts_with("sandbox_filter_"));
        samples.map(sample).collect::<Result<_>>().map(Self)
    }

    /// The sum of those with this name and these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |there: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| there.get(*key).is_some_and(|there| there == value))
        };
        let full = format!("sandbox_filter_{name}");
        self.0
            .iter()
            .filter(|(there, labels, _)| *there == full && wanted(labels))
            .map(|(_, _, value)| value)
            .sum()
    }

    fn labels(&self, full: &str) -> BTreeSet<&str> {
        let of_it = self.0.iter().filter(|(there, _, _)| there == full);
        of_it.flat_map(|(_, labels, _)| labels.keys().map(String::as_str)).collect()
    }

    fn has(&self, full: &str) -> bool {
        self.0.iter().any(|(there, _, _)| there == full)
    }
}

fn sample(line: &str) -> Result<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
        let (key, value) = label.split_once("=\"").with_context(|| format!("no label: {label}"))?;
        Ok((key.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Ok((name.to_owned(), labels.collect::<Result<_>>()?, value.parse()?))
}

/// A sandbox that did a bit of everything.
fn busy() -> Result<Ground> {
    let mut policy = usual_policy();
    policy["limits"] = json!({ "egressConnections": 20 });
    let ground = Ground::with(SHORT, &policy)?;
    let _echo = ground.topology.serve(Service::TcpEcho, 7)?;
    let sandbox = &ground.sandbox;
    sandbox.tcp_exchange(at("203.0.113.10", 7), b"hello", PATIENCE).result?;
    assert!(!sandbox.tcp_connect(at("198.51.100.7", 7), PATIENCE).is_ok());
    assert_eq!(sandbox.http_get(at(EVIL[0], 80), "allowed.test", PATIENCE).result?.status, 200);
    assert_eq!(sandbox.http_get(at(EVIL[0], 80), "denied.test", PATIENCE).result?.status, 403);
    let greeting = hello("allowed.test");
    sandbox.talk(at(EVIL[0], 443), &Talk::new().say(&greeting).until(&greeting).end())?;
    let question = dns::query("allowed.test", RecordType::A);
    dns::ask(sandbox, at("8.8.8.8", 53), &question)?;
    ground.update(&policy)?;
    assert!(ground.control.update(ID, &json!({ "denyOut": ["x"] })).is_err());
    Ok(ground)
}

#[test]
fn everything_that_is_promised_is_there_and_counts_what_happened() -> Result<()> {
    let ground = busy()?;
    timed::eventually("the events are counted", PATIENCE, || {
        let scrape = Scrape::of(&ground.topology)?;
        let denied = [("proto", "tcp"), ("decision", "deny"), ("reason", "denied_cidr")];
        Ok(scrape.sum("flows_total", &denied) >= 1.0
            && scrape.sum("flows_total", &[("reason", "name_not_allowed")]) >= 1.0)
    })?;
    let scrape = Scrape::of(&ground.topology)?;
    for (name, labels) in PROMISED {
        let full = format!("sandbox_filter_{name}");
        let full = if name.ends_with("_seconds") { format!("{full}_count") } else { full };
        assert!(scrape.has(&full), "no {name}");
        assert_eq!(scrape.labels(&full), labels.iter().copied().collect(), "{name}");
    }
    for (name, labels, at_least) in [
        ("flows_total", &[("decision", "allow"), ("reason", "allowed_cidr")][..], 1.0),
        ("flows_total", &[("decision", "allow"), ("reason", "allowed_name")], 2.0),
        ("packets_total", &[("direction", "from_sandbox"), ("decision", "allow")], 5.0),
        ("packets_total", &[("direction", "from_sandbox"), ("decision", "deny")], 1.0),
        ("packets_total", &[("direction", "to_sandbox"), ("decision", "allow")], 5.0),
        ("policy_updates_total", &[("result", "ok")], 1.0),
        ("policy_updates_total", &[("result", "invalid")], 1.0),
        ("policy_apply_seconds_count", &[], 1.0),
        (
            "inspections_total",
            &[("protocol", "http"), ("decision", "allow"), ("reason", "allowed_name")],
            1.0,
        ),
        ("inspections_total", &[("protocol", "http"), ("reason", "name_not_allowed")], 1.0),
        ("inspections_total", &[("protocol", "tls"), ("reason", "allowed_name")], 1.0),
        ("inspect_seconds_count", &[], 3.0),
        ("upstream_connect_seconds_count", &[], 2.0),
        ("dns_queries_total", &[("decision", "allow"), ("rcode", "noerror")], 1.0),
        ("map_entries", &[("map", "sandboxes")], 1.0),
        ("map_capacity", &[("map", "flows")], 1000.0),
        ("build_info", &[], 1.0),
    ] {
        assert!(scrape.sum(name, labels) >= at_least, "{name} {labels:?}: {}", scrape.sum(name, labels));
    }

    // A sandbox that leaves takes nothing away from what was counted.
    ground.daemon.cli(&["detach", ID])?.success()?;
    let after = Scrape::of(&ground.topology)?;
    let allowed = [("direction", "from_sandbox"), ("decision", "allow")];
    assert!(after.sum("packets_total", &allowed) >= scrape.sum("packets_total", &allowed));
    assert_eq!(
        (after.sum("map_entries", &[("map", "sandboxes")]), after.sum("flows_active", &[])),
        (0.0, 0.0)
    );
    Ok(())
}

#[test]
fn sandboxes_are_named_only_where_that_is_wanted() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let daemon = Daemon::on(&topology).config("[metrics]\nper_sandbox = true\n").start()?;
    daemon.attach("one", &sandbox, &json!({}))?;
    let scrape = Scrape::of(&topology)?;
    for name in ["flows_active", "connection_limit_refused_total", "packets_total"] {
        assert!(scrape.labels(&format!("sandbox_filter_{name}")).contains("sandbox"), "{name}");
    }
    daemon.cli(&["detach", "one"])?.success()?;
    assert!(!Scrape::of(&topology)?.has("sandbox_filter_flows_active"), "nothing is left of it");
    Ok(())
}

/// The words of a query that could be names.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
}

#[test]
fn the_dashboard_asks_for_what_is_there() -> Result<()> {
    let ground = busy()?;
    let scrape = Scrape::of(&ground.topology)?;
    let text = include_str!("../../packaging/grafana/sandbox-filter.json");
    let dashboard: Value = serde_json::from_str(text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut asked = BTreeSet::new();
    for query in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
        let query = query["expr"].as_str().context("no query")?;
        let names: Vec<_> = words(query).filter(|word| word.starts_with("sandbox_filter_")).collect();
        ensure!(!names.is_empty(), "{query}");
        for name in &names {
            ensure!(scrape.has(name), "{name} of {query} is not there");
            asked.insert((*name).to_owned());
        }
        // Prometheus adds two labels of its own.
        let known: BTreeSet<_> =
            names.iter().flat_map(|name| scrape.labels(name)).chain(["job", "instance", "le"]).collect();
        let grouped = query.split("by (").skip(1).filter_map(|rest| rest.split(')').next()).flat_map(words);
        let selected = query
            .split(['{', ','])
            .skip(1)
            .filter_map(|part| part.split_once('='))
            .map(|(key, _)| key.trim());
        for label in grouped.chain(selected.filter(|key| words(key).eq([*key]))) {
            ensure!(known.contains(label), "{query} asks for the label {label}");
        }
    }
    let missing = PROMISED.iter().filter(|(name, _)| !asked.iter().any(|asked| asked.contains(name)));
    assert_eq!(missing.count(), 0, "every metric has a panel: {asked:?}");
    Ok(())
}
