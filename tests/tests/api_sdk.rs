//! E2B's SDKs, unmodified, against the daemon; what they bring about is looked at from inside the sandboxes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod api_common;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use api_common::{A, API, B, HOBBY, Stand, eventually, inside, reaches};
use filter_tests::{Sdk, SdkKind, Service, Zone};
use serde_json::{Value, json};

fn id_of(made: &Value) -> Result<String> {
    Ok(made["sandboxID"].as_str().context("no id")?.to_owned())
}

fn for_each_sdk(work: impl Fn(&Stand, &mut Sdk, SdkKind) -> Result<()>) -> Result<()> {
    let stand = Stand::new()?;
    for kind in SdkKind::ALL {
        let mut sdk = stand.sdk(kind)?;
        work(&stand, &mut sdk, kind).with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[test]
fn a_sandbox_from_its_making_to_its_end() -> Result<()> {
    for_each_sdk(|stand, sdk, _| {
        let made =
            sdk.must("create", json!({ "template": "base", "metadata": { "app": "x" }, "timeout": 120 }))?;
        let id = id_of(&made)?;
        assert!(id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_eq!(made["domain"], json!("sandbox.localhost"));
        assert_eq!(made["host"], json!(format!("3000-{id}.sandbox.localhost")));
        assert!(made["trafficAccessToken"].as_str().is_some_and(|token| token.len() == 64));
        assert!(reaches(&id, A)? && reaches(&id, B)?);

        let info = sdk.must("info", json!({ "id": id }))?;
        assert_eq!((&info["sandboxID"], &info["templateID"]), (&made["sandboxID"], &json!("base")));
        assert_eq!((&info["state"], &info["metadata"]), (&json!("running"), &json!({ "app": "x" })));
        let lives = |info: &Value| info["endAt"].as_f64().unwrap() - info["startedAt"].as_f64().unwrap();
        assert!((119.0..121.0).contains(&lives(&info)), "{info}");

        let connected = sdk.must("connect", json!({ "id": id, "timeout": 600 }))?;
        assert_eq!(connected, made);
        assert!(lives(&sdk.must("info", json!({ "id": id }))?) > 590.0);
        sdk.must("connect", json!({ "id": id, "timeout": 1 }))?;
        assert!(lives(&sdk.must("info", json!({ "id": id }))?) > 590.0, "connecting never shortens");

        let odd = json!({ "user name": "ä & ö=+%" });
        let third = id_of(&sdk.must("create", json!({ "metadata": odd }))?)?;
        let some = sdk.must("list", json!({ "metadata": odd }))?;
        assert_eq!((&some[0][0]["sandboxID"], &some[0][0]["metadata"]), (&json!(third), &odd), "{some}");
        sdk.must("kill", json!({ "id": third }))?;

        let second = id_of(&sdk.must("create", json!({ "metadata": { "app": "y" } }))?)?;
        let all = sdk.must("list", json!({}))?;
        assert_eq!(all.as_array().map(|pages| pages.concat_len()), Some(2));
        let some = sdk.must("list", json!({ "metadata": { "app": "y" } }))?;
        assert_eq!((&some[0][0]["sandboxID"], some[0].as_array().unwrap().len()), (&json!(second), 1));
        let pages = sdk.must("list", json!({ "limit": 1 }))?;
        assert_eq!(pages.as_array().unwrap().len(), 2);

        assert_eq!(sdk.must("kill", json!({ "id": id }))?, json!(true));
        assert_eq!(sdk.must("kill", json!({ "id": id }))?, json!(false));
        assert!(inside(&id).is_err());
        // A time to live that is over ends the other.
        sdk.must("timeout", json!({ "id": second, "seconds": 0 }))?;
        eventually("the sandbox ended", || Ok(stand.left()?.nothing_of(&second)))
    })
}

trait Pages {
    fn concat_len(&self) -> usize;
}

impl Pages for Vec<Value> {
    fn concat_len(&self) -> usize {
        self.iter().filter_map(Value::as_array).map(Vec::len).sum()
    }
}

#[test]
fn networks_of_new_sandboxes() -> Result<()> {
    for_each_sdk(|_, sdk, _| {
        for (options, a, b) in [
            (json!({ "network": { "allow_out": [A], "deny_out": ["0.0.0.0/0"] } }), true, false),
            (json!({ "network": { "deny_out": [A] } }), false, true),
            (json!({ "network": { "deny_out": ["203.0.113.0/24"], "allow_out": [A] } }), true, true),
            (json!({ "network": { "by_function": true, "allow_out": [B] } }), false, true),
            (json!({ "allow_internet_access": false }), false, false),
            (json!({ "allow_internet_access": false, "network": { "allow_out": [A] } }), true, false),
            (json!({ "allow_internet_access": true }), true, true),
        ] {
            let id = id_of(&sdk.must("create", options.clone())?)?;
            assert_eq!((reaches(&id, A)?, reaches(&id, B)?), (a, b), "{options}");
            sdk.must("kill", json!({ "id": id }))?;
        }
        Ok(())
    })
}

#[test]
fn an_update_is_felt_by_the_running_sandbox() -> Result<()> {
    for_each_sdk(|_, sdk, _| {
        let id = id_of(&sdk.must("create", json!({}))?)?;
        for (network, a, b) in [
            (json!({ "deny_out": ["0.0.0.0/0"] }), false, false),
            (json!({ "allow_out": [B], "by_function": true }), false, true),
            (json!({}), true, true),
        ] {
            sdk.must("update", json!({ "id": id, "network": network }))?;
            assert_eq!((reaches(&id, A)?, reaches(&id, B)?), (a, b), "{network}");
        }
        sdk.must("update", json!({ "id": id, "network": { "deny_out": [A] } }))?;
        let info = sdk.must("info", json!({ "id": id }))?;
        let denied = info["network"].get("deny_out").or_else(|| info["network"].get("denyOut"));
        assert_eq!(denied, Some(&json!([A])), "{info}");
        sdk.must("kill", json!({ "id": id }))?;
        Ok(())
    })
}

#[test]
fn domains_and_wildcards() -> Result<()> {
    let stand = Stand::new()?;
    let names =
        [("allowed.test", &[A][..]), ("a.wild.test", &[A]), ("wild.test", &[A]), ("other.test", &[A])];
    let _zone = Zone::serve(stand.topology.internet(), &names)?;
    let _web = stand.topology.serve(Service::Http, 80)?;
    for kind in SdkKind::ALL {
        let mut sdk = stand.sdk(kind)?;
        let network = json!({ "allow_out": ["allowed.test", "*.wild.test"], "deny_out": ["0.0.0.0/0"] });
        let id = id_of(&sdk.must("create", json!({ "network": network }))?)?;
        let sandbox = inside(&id)?;
        for (name, allowed) in
            [("allowed.test", true), ("a.wild.test", true), ("wild.test", false), ("other.test", false)]
        {
            let to: std::net::SocketAddr = format!("{A}:80").parse()?;
            let answer = sandbox.http_get(to, name, Duration::from_secs(5)).result?;
            assert_eq!(answer.status != 403, allowed, "{kind:?} {name}: {answer:?}");
        }
        sdk.must("kill", json!({ "id": id }))?;
    }
    Ok(())
}

#[test]
fn every_class_of_error() -> Result<()> {
    for_each_sdk(|stand, sdk, kind| {
        let python = matches!(kind, SdkKind::Python(_));
        let class = |python_name: &'static str, other: &'static str| if python { python_name } else { other };
        let none = "ib1234567890123456789";
        for (order, arguments, classes, message) in [
            (
                "info",
                json!({ "id": none }),
                class("SandboxNotFoundException", "SandboxNotFoundError"),
                "not found",
            ),
            (
                "connect",
                json!({ "id": none }),
                class("SandboxNotFoundException", "SandboxNotFoundError"),
                "not found",
            ),
            (
                "update",
                json!({ "id": none, "network": {} }),
                class("SandboxNotFoundException", "SandboxNotFoundError"),
                "not found",
            ),
            (
                "timeout",
                json!({ "id": none, "seconds": 60 }),
                class("SandboxNotFoundException", "SandboxNotFoundError"),
                "not found",
            ),
            (
                "info",
                json!({ "id": none, "api_key": "e2b_00000000000000000000000000000000000000ff" }),
                class("AuthenticationException", "AuthenticationError"),
                "Invalid API key",
            ),
            (
                "create",
                json!({ "network": { "deny_out": ["example.com"] } }),
                class("SandboxException", "SandboxError"),
                "400: invalid denied CIDR example.com",
            ),
            (
                "create",
                json!({ "network": { "allow_out": ["example.com"] } }),
                class("SandboxException", "SandboxError"),
                "400: When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to \
                 block all other traffic.",
            ),
        ] {
            let thrown = sdk.call(order, arguments.clone())?.expect_err(order);
            assert!(thrown.classes.iter().any(|known| known == classes), "{order} {arguments}: {thrown:?}");
            assert!(thrown.message.contains(message), "{order} {arguments}: {thrown:?}");
        }
        // Too fast: newer SDKs try again as `Retry-After` says, so that the second comes a second later.
        thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        let first = id_of(&sdk.must("create", json!({ "api_key": HOBBY }))?)?;
        let second = match sdk.call("create", json!({ "api_key": HOBBY }))? {
            Ok(second) => id_of(&second)?,
            Err(thrown) => {
                assert_eq!(kind, SdkKind::Python("2.45.1"), "{thrown:?}");
                assert_eq!(thrown.classes[0], "RateLimitException");
                thread::sleep(Duration::from_secs(1));
                id_of(&sdk.must("create", json!({ "api_key": HOBBY }))?)?
            }
        };
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        // Somebody else's.
        let thrown = sdk.call("info", json!({ "id": first }))?.expect_err("it is another's");
        assert!(thrown.classes.iter().any(|known| known.starts_with("SandboxNotFound")), "{thrown:?}");
        assert_eq!(sdk.must("kill", json!({ "id": first }))?, json!(false));
        for id in [first, second] {
            assert_eq!(sdk.must("kill", json!({ "id": id, "api_key": HOBBY }))?, json!(true));
        }
        assert!(stand.daemon.log().lines().all(|line| !line.contains(HOBBY)), "keys are in no log");
        Ok(())
    })
}

#[test]
fn too_many_is_an_error_of_its_own() -> Result<()> {
    let one = "e2b_0000000000000000000000000000000000000003";
    let stand = Stand::with(&format!(
        "[[api_keys]]\nkey = '{one}'\nconcurrent_sandboxes = 1\ncreate_rate = {{ requests = 100, per = '1s' }}\n"
    ))?;
    for kind in SdkKind::ALL {
        let mut sdk = kind.start(stand.topology.host(), &format!("http://{API}"), one)?;
        let first = id_of(&sdk.must("create", json!({}))?)?;
        let thrown = sdk.call("create", json!({}))?.expect_err("there may be one");
        assert!(thrown.classes.iter().any(|known| known.starts_with("RateLimit")), "{kind:?}: {thrown:?}");
        assert_eq!(sdk.must("kill", json!({ "id": first }))?, json!(true));
    }
    Ok(())
}
