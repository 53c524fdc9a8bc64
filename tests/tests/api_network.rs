//! Replacing the network of a running sandbox, step by step, each step looked at from inside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod api_common;

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api_common::{A, B, KEY, Stand, inside, reaches};
use filter_tests::{Service, Zone};
use serde_json::{Value, json};

const ALL: &str = "0.0.0.0/0";

#[test]
fn the_steps_of_a_sequence_of_updates() -> Result<()> {
    let stand = Stand::new()?;
    let _zone = Zone::serve(stand.topology.internet(), &[("a.test", &[A]), ("b.test", &[B])])?;
    let _web = stand.topology.serve(Service::Http, 80)?;
    let id = stand.create(json!({}))?;
    let sandbox = inside(&id)?;
    // Whether a name is let through, at an address that no rule allows.
    let by_name = |name: &str| -> Result<bool> {
        let to: SocketAddr = "203.0.113.77:80".parse()?;
        let attempt = sandbox.http_get(to, name, Duration::from_secs(5));
        Ok(attempt.result.is_ok_and(|answer| answer.status != 403))
    };
    // The update; whether A and B are reached by address; whether a.test and b.test are by name.
    let steps: &[(&str, Value, [bool; 2], [bool; 2])] = &[
        ("deny all", json!({ "denyOut": [ALL] }), [false, false], [false, false]),
        ("allow one through it", json!({ "denyOut": [ALL], "allowOut": [A] }), [true, false], [false, false]),
        ("replace it", json!({ "denyOut": [ALL], "allowOut": [B] }), [false, true], [false, false]),
        ("several", json!({ "denyOut": [ALL], "allowOut": [A, B] }), [true, true], [false, false]),
        (
            "a CIDR",
            json!({ "denyOut": [ALL], "allowOut": ["203.0.113.0/28"] }),
            [true, false],
            [false, false],
        ),
        ("a domain", json!({ "denyOut": [ALL], "allowOut": ["a.test"] }), [false, false], [true, false]),
        (
            "domain and address",
            json!({ "denyOut": [ALL], "allowOut": ["b.test", A] }),
            [true, false],
            [false, true],
        ),
        ("drop allow, keep deny", json!({ "denyOut": [ALL] }), [false, false], [false, false]),
        ("clear", json!({}), [true, true], [true, true]),
        ("again", json!({ "denyOut": [ALL], "allowOut": [A] }), [true, false], [false, false]),
        ("allow without deny", json!({ "allowOut": [A] }), [true, true], [true, true]),
        ("internet off", json!({ "allow_internet_access": false }), [false, false], [false, false]),
        ("internet on", json!({ "allow_internet_access": true }), [true, true], [true, true]),
        (
            "off but for one",
            json!({ "allow_internet_access": false, "allowOut": [B] }),
            [false, true],
            [false, false],
        ),
        ("omitted", json!({ "denyOut": [B] }), [true, false], [true, true]),
    ];
    let path = format!("/sandboxes/{id}/network");
    for (generation, (step, body, addresses, names)) in (2..).zip(steps) {
        stand.ask(KEY, "PUT", &path, Some(body))?.success().with_context(|| step.to_string())?;
        assert_eq!([reaches(&id, A)?, reaches(&id, B)?], *addresses, "{step}, by address");
        assert_eq!([by_name("a.test")?, by_name("b.test")?], *names, "{step}, by name");
        let shown = stand.ask(KEY, "GET", &path, None)?.success()?;
        assert_eq!((&shown["generation"], &shown["enforced"]), (&json!(generation), &json!(true)), "{step}");
    }
    // What is refused changes nothing of the last step.
    for bad in [
        json!({ "denyOut": ["nonsense"] }),
        json!({ "allowOut": ["a.test"] }),
        json!({ "allowOut": ["a.test"], "allow_internet_access": false }),
        json!({ "denyOut": [ALL, "::/0"] }),
        json!({ "rules": { "a.test": [{ "transform": { "headers": { "Host": "x" } } }] } }),
    ] {
        assert_eq!(stand.ask(KEY, "PUT", &path, Some(&bad))?.status, 400, "{bad}");
        assert_eq!([reaches(&id, A)?, reaches(&id, B)?], [true, false], "{bad}");
    }
    Ok(())
}

#[test]
fn what_is_fixed_at_creation_stays() -> Result<()> {
    let stand = Stand::new()?;
    let id = stand.create(json!({ "allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}" }))?;
    let path = format!("/sandboxes/{id}/network");
    for body in [json!({}), json!({ "allowPublicTraffic": true, "maskRequestHost": "other.test" })] {
        stand.ask(KEY, "PUT", &path, Some(&body))?.success()?;
        let network = stand.ask(KEY, "GET", &format!("/sandboxes/{id}"), None)?.success()?["network"].take();
        assert_eq!(network["allowPublicTraffic"], json!(false));
        assert_eq!(network["maskRequestHost"], json!("localhost:${PORT}"));
    }
    Ok(())
}

#[test]
fn of_two_that_change_what_they_have_seen_one_learns_of_the_other() -> Result<()> {
    let stand = Stand::new()?;
    let id = stand.create(json!({}))?;
    let path = format!("/v1/attachments/{id}/policy");
    let api = stand.daemon.api();
    let tag =
        api.ask("GET", &format!("/v1/attachments/{id}"), None)?.header("etag").context("no tag")?.to_owned();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|n| {
                let (api, path, tag) = (&api, &path, &tag);
                scope.spawn(move || {
                    let body = json!({ "denyOut": [format!("198.51.100.{n}")] });
                    let request = api.request("PUT", path, Some(&body)).with_header("If-Match", tag);
                    api.send(&request).unwrap().status
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 7, "{statuses:?}");
    // A part changes in one step, whoever else changes another.
    let merged = api.ask("PATCH", &path, Some(&json!({ "denyOut": [A] })))?.success()?;
    assert_eq!(merged["policy"]["denyOut"], json!([A]));
    let merged =
        api.ask("PATCH", &path, Some(&json!({ "limits": { "egressConnections": 9 } })))?.success()?;
    assert_eq!((&merged["policy"]["denyOut"], &merged["connections"]["limit"]), (&json!([A]), &json!(9)));
    assert!(!reaches(&id, A)? && reaches(&id, B)?);
    Ok(())
}
