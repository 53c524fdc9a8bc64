use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;

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
        tokens: None,
    }
}

#[test]
fn requests_survive_the_way() {
    let attach = AttachRequest {
        id: id("a"),
        iface: "tap0\n".to_owned(),
        addrs: Addrs::list(["10.0.0.2".parse().unwrap()]).unwrap(),
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        policy: Some(json!({ "denyOut": ["0.0.0.0/0"] })),
    };
    for request in [
        attach.clone(),
        AttachRequest { addrs: Addrs::Learn, mac: None, policy: None, ..attach.clone() },
        AttachRequest { addrs: Addrs::Any, ..attach },
    ] {
        let document = serde_json::to_value(&request).unwrap();
        assert_eq!(serde_json::from_value::<AttachRequest>(document).unwrap(), request);
    }
    for refused in [
        json!({}),
        json!({ "id": "../etc", "iface": "b" }),
        json!({ "id": "a", "iface": "b", "adrs": "any" }),
        json!({ "id": "a", "iface": "b", "addrs": { "list": [] } }),
    ] {
        assert!(serde_json::from_value::<AttachRequest>(refused.clone()).is_err(), "{refused}");
    }
}

#[test]
fn tokens_are_there_when_asked_for_and_in_no_debug_output() {
    let tokens = Tokens { traffic_access_token: "aaa".to_owned(), envd_access_token: "bbb".to_owned() };
    let shown = Show { tokens: Some(tokens), ..show("a") };
    let json = serde_json::to_value(&shown).unwrap();
    assert_eq!((&json["trafficAccessToken"], &json["envdAccessToken"]), (&json!("aaa"), &json!("bbb")));
    assert_eq!(serde_json::from_value::<Show>(json).unwrap(), shown);
    let plain = serde_json::to_value(show("a")).unwrap();
    assert_eq!(serde_json::from_value::<Show>(plain).unwrap().tokens, None);
    assert!(!format!("{shown:?}").contains("aaa"));
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
