use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;
use crate::error::ErrorCode;

fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}

pub(crate) fn show(name: &str) -> Show {
    Show {
        id: id(name),
        iface: "veth0".to_owned(),
        ifindex: 7,
        addrs: vec!["10.0.0.2".parse().unwrap()],
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        identity: Identity::Checked,
        policy: json!({ "allowOut": [] }),
        generation: 3,
        policy_hash: "00ff".to_owned(),
        enforced: true,
        connections: Connections { active: 1, limit: 2500, peak: 4, refused: 2 },
        counters: counters(|_| Counter { packets: 1, bytes: 60 }),
        created_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
    }
}

#[test]
fn requests_survive_the_line() {
    let attach = AttachRequest {
        id: id("a"),
        iface: "tap0\n".to_owned(),
        addrs: Addrs::list(["10.0.0.2".parse().unwrap()]).unwrap(),
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        policy: Some(json!({ "denyOut": ["0.0.0.0/0"] })),
    };
    for request in [
        Request::Attach(attach.clone()),
        Request::Attach(AttachRequest { addrs: Addrs::Learn, mac: None, policy: None, ..attach.clone() }),
        Request::Attach(AttachRequest { addrs: Addrs::Any, ..attach }),
        Request::Update(UpdateRequest { id: id("a"), policy: json!({}) }),
        Request::Detach { id: id("a") },
        Request::List,
        Request::Show { id: id("a") },
        Request::Stats { id: None },
        Request::Stats { id: Some(id("a")) },
        Request::Doctor,
        Request::Ping,
    ] {
        let line = encode_request(&request).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode_request(&line).unwrap(), request);
    }
}

#[test]
fn responses_survive_the_line() {
    let stats = Stats::new(
        vec![SandboxStats { id: id("a"), connections: show("a").connections, counters: show("a").counters }],
        9,
    );
    for response in [
        Ok(Reply::Done),
        Ok(Reply::Sandbox(Box::new(show("a")))),
        Ok(Reply::Sandboxes(vec![show("a").into(), show("b").into()])),
        Ok(Reply::Stats(stats)),
        Ok(Reply::Doctor(json!({ "healthy": true }))),
        Ok(Reply::Pong { release: "0.1.0".to_owned() }),
        Err(ControlError::not_found("a")),
    ] {
        let line = encode_response(&response).unwrap();
        assert_eq!(decode_response(&line), response);
    }
}

#[test]
fn another_version_is_answered_with_ours() {
    for line in [r#"{"version":2,"request":{"fly":"to the moon"}}"#, r#"{"request":1,"version":0}"#] {
        let error = decode_request(line.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage);
        assert!(error.message.contains("speaks version 1"), "{}", error.message);
    }
}

#[test]
fn what_is_no_request_is_refused() {
    for line in [
        "",
        "nonsense",
        "{}",
        "[]",
        r#"{"version":1}"#,
        r#"{"version":"1","request":"list"}"#,
        r#"{"version":1,"request":"fly"}"#,
        r#"{"version":1,"request":{"show":{"id":"../etc"}}}"#,
        r#"{"version":1,"request":{"show":{"id":"a","extra":1}}}"#,
        r#"{"version":1,"request":{"attach":{"id":"a","iface":"b","adrs":"any"}}}"#,
        r#"{"version":1,"request":"list"} {}"#,
    ] {
        assert_eq!(decode_request(line.as_bytes()).unwrap_err().code, ErrorCode::Usage, "{line}");
    }
}

#[test]
fn show_has_the_documented_shape() {
    let json = serde_json::to_value(show("a")).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "id",
            "iface",
            "ifindex",
            "addrs",
            "mac",
            "identity",
            "policy",
            "generation",
            "policyHash",
            "enforced",
            "connections",
            "counters",
            "createdAt"
        ]
    );
    assert_eq!(json["connections"], json!({ "active": 1, "limit": 2500, "peak": 4, "refused": 2 }));
    assert_eq!(json["counters"]["denied_cidr"], json!({ "packets": 1, "bytes": 60 }));
    assert_eq!(json["counters"].as_object().unwrap().len(), filter_common::Reason::COUNT);
    assert_eq!(json["createdAt"], "2023-11-14T22:13:20.123Z");
    assert_eq!(json["identity"], "checked");
}

#[test]
fn totals_are_sums() {
    let one = SandboxStats { id: id("a"), connections: show("a").connections, counters: show("a").counters };
    let stats = Stats::new(vec![one.clone(), SandboxStats { id: id("b"), ..one }], 0);
    assert_eq!(stats.totals.connections, TotalConnections { active: 2, refused: 4 });
    assert_eq!(stats.totals.counters["default"], Counter { packets: 2, bytes: 120 });
}
