//! What `explain` asks and answers.

use std::{borrow::Cow, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::SandboxId;

/// Asks what would become of a connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// From this sandbox, under the policy that it has.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub sandbox: Option<SandboxId>,
    /// Or under this policy, from nobody in particular.
    #[serde(default)]
    #[schema(value_type = Option<crate::api::schema::PolicyDocument>)]
    pub policy: Option<Value>,
    /// To a URL, a host, `host:port`, or `ip:port`, with `/udp` behind it for UDP.
    pub target: String,
}

/// What would become of it, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explained {
    /// `allow` or `deny`.
    #[schema(value_type = String)]
    pub decision: Cow<'static, str>,
    /// Why, as counters and events have it.
    #[schema(value_type = String)]
    pub reason: Cow<'static, str>,
    /// The entry of the policy that decides, as a JSON pointer; none where no entry does.
    pub rule: Option<String>,
    /// The name that it is for.
    pub name: Option<String>,
    /// The address that it goes to, or would go to.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    pub proto: Cow<'static, str>,
    /// The generation of the sandbox's policy; none where it is nobody's.
    pub generation: Option<u64>,
    /// How it came to that, in order.
    pub steps: Vec<String>,
}

impl Explained {
    /// Whether the connection would be made.
    pub fn is_allowed(&self) -> bool {
        self.decision == "allow"
    }
}
