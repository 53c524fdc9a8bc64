//! `[defaults]`: one key of its own, and beside it the fields of a policy document.

use filter_policy::Policy;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Map, Value};

use super::error::Wrong;

/// What applies to a sandbox whose policy leaves something out, or that has none.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Defaults {
    /// Who may start connections to a sandbox.
    pub inbound: Inbound,
    /// The document of a sandbox attached without one, as the operator wrote it.
    pub policy: Value,
    /// What a field that any document leaves out amounts to.
    pub fields: filter_policy::Defaults,
}

/// Who may start connections to a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inbound {
    /// The host itself.
    #[default]
    Host,
    /// Anybody who has a route to it.
    Any,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            inbound: Inbound::default(),
            policy: Value::Object(Map::new()),
            fields: filter_policy::Defaults::default(),
        }
    }
}

impl<'de> Deserialize<'de> for Defaults {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut document = Map::deserialize(deserializer)?;
        let inbound = match document.remove("inbound") {
            Some(value) => Inbound::deserialize(value)
                .map_err(|error| D::Error::custom(format!("`inbound`: {error}")))?,
            None => Inbound::default(),
        };
        Ok(Self { inbound, policy: Value::Object(document), fields: filter_policy::Defaults::default() })
    }
}

impl Defaults {
    /// Validates the document, and takes from it what has a default of its own; `[limits]` has its
    /// say where the document has none.
    pub(super) fn settle(&mut self, egress_connections: u32) -> Result<(), Wrong> {
        let built_in = filter_policy::Defaults { egress_connections, ..filter_policy::Defaults::default() };
        let policy = Policy::from_value(self.policy.clone(), &built_in).map_err(|invalid| {
            let key = invalid.errors.first().map(|problem| problem.pointer.replace('/', "."));
            let message = invalid.errors.into_iter().next().map(|problem| problem.message);
            Wrong::new(format!("defaults{}", key.unwrap_or_default()), message.unwrap_or_default())
        })?;
        self.fields = filter_policy::Defaults {
            egress_connections: policy.limits.egress_connections,
            dns: policy.dns,
            precedence: policy.precedence,
        };
        Ok(())
    }
}
