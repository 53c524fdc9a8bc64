//! Changing a policy: as a whole or in part, and only if it is still the one that the client has seen.

use serde_json::{Map, Value};

use crate::error::ControlError;

/// What shall become of a policy.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// This whole document; what it leaves out is at its default.
    Replace(Value),
    /// The fields that are named; `null` puts one back to its default (RFC 7396).
    Merge(Value),
}

impl Change {
    /// The document that it makes of the policy in force, given in canonical form.
    ///
    /// # Errors
    /// When what shall be merged is no object, or names a field in two spellings.
    pub fn apply(self, in_force: impl FnOnce() -> Value) -> Result<Value, ControlError> {
        match self {
            Self::Replace(document) => Ok(document),
            Self::Merge(Value::Object(patch)) => {
                let mut document = in_force();
                merge(&mut document, spelled(patch)?);
                Ok(document)
            }
            Self::Merge(_) => Err(ControlError::usage("what is merged into a policy is an object")),
        }
    }
}

fn merge(target: &mut Value, patch: Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(members.shift_remove(&key)),
            Value::Object(inner) => merge(members.entry(key).or_insert(Value::Null), inner),
            plain @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                members.insert(key, plain);
            }
        }
    }
}

/// The same with every field in its canonical spelling, so that what is named meets what is there.
fn spelled(patch: Map<String, Value>) -> Result<Map<String, Value>, ControlError> {
    let mut all = Map::new();
    for (key, value) in patch {
        let canonical = camel(&key);
        // What rules name is the user's, not a field.
        let value = if canonical == "rules" { value } else { spelled_inside(value)? };
        if all.insert(canonical.clone(), value).is_some() {
            return Err(ControlError::usage(format!("`{canonical}` stands there twice, in two spellings")));
        }
    }
    Ok(all)
}

fn spelled_inside(value: Value) -> Result<Value, ControlError> {
    if let Value::Object(inner) = value { spelled(inner).map(Value::Object) } else { Ok(value) }
}

/// `allow_out` → `allowOut`, so that a field meets itself whatever its spelling.
fn camel(key: &str) -> String {
    let mut words = key.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

/// The tag of a policy in force, as HTTP has it (RFC 9110 section 8.8.3).
pub fn etag(generation: u64, policy_hash: &str) -> String {
    let hash = policy_hash.get(..16).unwrap_or(policy_hash);
    format!("\"{generation}-{hash}\"")
}

/// What a change has put in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The number of the policy.
    pub generation: u64,
    /// Its hash.
    pub policy_hash: String,
}

impl Changed {
    /// Its tag.
    pub fn etag(&self) -> String {
        etag(self.generation, &self.policy_hash)
    }
}

/// `If-Match`: what must be in force for a change to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Anything.
    Any,
    /// One of these tags.
    OneOf(Vec<String>),
}

impl Condition {
    /// Reads the header. A weak tag matches nothing, since it says less than is asked.
    pub fn parse(header: &str) -> Self {
        if header.trim() == "*" {
            return Self::Any;
        }
        Self::OneOf(header.split(',').map(|tag| tag.trim().to_owned()).collect())
    }

    /// Whether a policy with this tag meets it.
    pub fn is_met(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(tags) => tags.iter().any(|listed| listed == tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merging_changes_what_is_named() {
        let before = json!({ "allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"], "dns": { "mode": "open", "servers": [] } });
        let merged = |patch: Value| Change::Merge(patch).apply(|| before.clone()).unwrap();
        assert_eq!(merged(json!({})), before);
        assert_eq!(merged(json!({ "allow_out": [] }))["allowOut"], json!([]));
        assert_eq!(merged(json!({ "denyOut": null })).get("denyOut"), None);
        let dns = merged(json!({ "dns": { "mode": "strict" } }));
        assert_eq!(dns["dns"], json!({ "mode": "strict", "servers": [] }));
        assert_eq!(merged(json!({ "rules": { "a_b.test": [] } }))["rules"], json!({ "a_b.test": [] }));
        let limits = json!({ "limits": { "egressConnections": 9 } });
        let reset = Change::Merge(json!({ "limits": { "egress_connections": null } }));
        assert_eq!(reset.apply(|| limits).unwrap(), json!({ "limits": {} }));
        let twice = json!({ "allowInternetAccess": true, "allow_internet_access": false });
        assert!(Change::Merge(twice).apply(|| before.clone()).is_err());
        assert!(Change::Merge(json!([])).apply(|| before.clone()).is_err());
        let whole = json!({ "allowOut": [] });
        assert_eq!(Change::Replace(whole.clone()).apply(|| before.clone()).unwrap(), whole);
    }

    #[test]
    fn conditions() {
        let tag = etag(3, "00112233445566778899");
        assert_eq!(tag, "\"3-0011223344556677\"");
        for (header, met) in [
            ("*", true),
            (tag.as_str(), true),
            ("\"1-x\", \"3-0011223344556677\"", true),
            ("\"1-x\"", false),
            ("W/\"3-0011223344556677\"", false),
            ("", false),
        ] {
            assert_eq!(Condition::parse(header).is_met(&tag), met, "{header}");
        }
    }
}
