//! Whether the host's own firewall lets packets in that are on their way to the inspector.

use std::process::Command;

use serde_json::Value;

use super::{Finding, Status};
use crate::config::sections::Marks;

const CHECK: &str = "firewall";

/// Looks at the rules for what is delivered on this host.
pub(super) fn finding(marks: &Marks) -> Finding {
    let (nft, legacy) =
        (output("nft", &["-j", "list", "ruleset"]), output("iptables-legacy", &["-S", "INPUT"]));
    let ruleset = nft.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let chains = ruleset.as_ref().map(closed_chains).unwrap_or_default();
    if let Some(chain) = chains.first() {
        let Marks { mask, punted, .. } = marks;
        return Finding::new(
            CHECK,
            Status::Warning,
            format!(
                "nft chain {chain} drops what it does not know, connections by name among it; nft insert rule {chain} \
                 meta mark and {mask:#x} == {punted:#x} accept"
            ),
        );
    }
    if legacy.as_deref().is_some_and(is_closed) {
        let Marks { mask, punted, .. } = marks;
        return Finding::new(
            CHECK,
            Status::Warning,
            format!(
                "iptables INPUT drops what it does not know, connections by name among it; iptables -I INPUT -m mark \
                 --mark {punted:#x}/{mask:#x} -j ACCEPT"
            ),
        );
    }
    match (ruleset, legacy) {
        (None, None) => {
            Finding::new(CHECK, Status::Ok, "not known: neither nft nor iptables tells its rules")
        }
        _ => Finding::new(CHECK, Status::Ok, "lets packets for the inspector in"),
    }
}

/// What a command prints, if it is there and works.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The chains at the input hook that drop what no rule of theirs is about, and have no rule about marks that accepts;
/// as `family table chain`.
fn closed_chains(ruleset: &Value) -> Vec<String> {
    let items = || ruleset["nftables"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let inputs = items().map(|item| &item["chain"]).filter(|chain| chain["hook"] == "input");
    let closed = inputs.filter(|chain| {
        let rules = || {
            items().map(|item| &item["rule"]).filter(|rule| {
                rule["family"] == chain["family"]
                    && rule["table"] == chain["table"]
                    && rule["chain"] == chain["name"]
            })
        };
        let drops = chain["policy"] == "drop" || rules().any(drops_everything);
        drops && !rules().any(accepts_a_mark)
    });
    closed
        .map(|chain| format!("{} {} {}", text(&chain["family"]), text(&chain["table"]), text(&chain["name"])))
        .collect()
}

/// Whether a rule is about all packets and drops them.
fn drops_everything(rule: &Value) -> bool {
    let statements = || rule["expr"].as_array().into_iter().flatten();
    let has = |statement: &Value, what: &str| statement.get(what).is_some();
    statements().any(|statement| has(statement, "drop") || has(statement, "reject"))
        && !statements().any(|statement| has(statement, "match") || has(statement, "xt"))
}

fn accepts_a_mark(rule: &Value) -> bool {
    let text = rule["expr"].to_string();
    text.contains("\"accept\"") && (text.contains("\"key\":\"mark\"") || text.contains("\"name\":\"mark\""))
}

/// The same of `iptables -S INPUT`.
fn is_closed(rules: &str) -> bool {
    let drops = rules
        .lines()
        .any(|line| matches!(line.trim(), "-P INPUT DROP" | "-A INPUT -j DROP" | "-A INPUT -j REJECT"));
    drops && !rules.lines().any(|line| line.contains("--mark") && line.contains("ACCEPT"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ruleset(policy: &str, rules: &[Value]) -> Value {
        let chain = json!({ "chain": {
            "family": "inet", "table": "filter", "name": "input", "hook": "input", "policy": policy,
        } });
        let rules = rules.iter().map(
            |expr| json!({ "rule": { "family": "inet", "table": "filter", "chain": "input", "expr": expr } }),
        );
        let all: Vec<_> = [chain].into_iter().chain(rules).collect();
        json!({ "nftables": all })
    }

    #[test]
    fn a_chain_that_drops_what_it_does_not_know_is_named_unless_it_knows_marks() {
        let mark = json!([
            { "match": { "op": "==", "left": { "&": [{ "meta": { "key": "mark" } }, 1] }, "right": 1 } },
            { "accept": null },
        ]);
        let established =
            json!([{ "match": { "op": "in", "left": {}, "right": "established" } }, { "accept": null }]);
        let drop = json!([{ "counter": null }, { "drop": null }]);
        let closed = ["inet filter input".to_owned()];
        assert_eq!(closed_chains(&ruleset("accept", std::slice::from_ref(&established))), [""; 0]);
        assert_eq!(closed_chains(&ruleset("drop", std::slice::from_ref(&established))), closed);
        assert_eq!(closed_chains(&ruleset("accept", &[established.clone(), drop.clone()])), closed);
        assert_eq!(closed_chains(&ruleset("drop", &[established, mark, drop])), [""; 0]);
        assert_eq!(closed_chains(&json!({})), [""; 0]);
    }

    #[test]
    fn the_same_of_iptables() {
        assert!(is_closed("-P INPUT DROP\n") && is_closed("-P INPUT ACCEPT\n-A INPUT -j DROP\n"));
        assert!(!is_closed("-P INPUT ACCEPT\n-A INPUT -s 1.2.3.4 -j DROP\n"));
        assert!(!is_closed("-P INPUT DROP\n-A INPUT -m mark --mark 0x10000000/0x30000000 -j ACCEPT\n"));
    }
}
