//! The documents of the routes, as clients see them. E2B's keep E2B's names; what is added stands beside them.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::protocol::report::rfc3339;

/// What a sandbox is told to be made of. Members that E2B has and this server has no use for are taken and left
/// alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// What it is made from; means something to the provider alone.
    #[serde(rename = "templateID")]
    #[schema(rename = "templateID", min_length = 1, max_length = 256)]
    pub template_id: String,
    /// How long it lives, in seconds.
    #[schema(minimum = 0, maximum = 86400)]
    pub timeout: Option<u64>,
    /// Whether its controller asks for a token. Sandboxes made at `/v2/sandboxes` always do.
    pub secure: Option<bool>,
    /// `false` denies whatever `network.allowOut` does not allow.
    #[serde(rename = "allow_internet_access", alias = "allowInternetAccess")]
    pub allow_internet_access: Option<bool>,
    /// What it may reach, and who may reach it.
    #[schema(value_type = Option<NetworkConfig>)]
    pub network: Option<Value>,
    /// What its owner says about it.
    pub metadata: Option<BTreeMap<String, String>>,
    /// What its processes find in their environment.
    pub env_vars: Option<BTreeMap<String, String>>,
}

/// The network of a new sandbox: E2B's members, and those of [`PolicyDocument`].
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "documentation: `network` has the code")]
pub struct NetworkConfig {
    /// Allowed destinations: addresses, CIDRs, domains, `*.domain`, `*`.
    allow_out: Option<Vec<String>>,
    /// Denied destinations: addresses and CIDRs. `0.0.0.0/0` is everything, IPv6 included.
    deny_out: Option<Vec<String>>,
    /// Header transforms by host.
    #[schema(value_type = Option<Object>)]
    rules: Option<Value>,
    /// Whether public URLs work without the traffic token; fixed when the sandbox is made.
    allow_public_traffic: Option<bool>,
    /// The `Host` that the sandbox sees on its public URLs; fixed when the sandbox is made.
    mask_request_host: Option<String>,
    /// Resolvers that are opened while a domain is allowed.
    dns_servers: Option<Vec<String>>,
}

/// The network of a running sandbox, as a whole: what is left out is cleared.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "documentation: `network` has the code")]
pub struct NetworkUpdate {
    /// Allowed destinations: addresses, CIDRs, domains, `*.domain`, `*`.
    allow_out: Option<Vec<String>>,
    /// Denied destinations: addresses and CIDRs. `0.0.0.0/0` is everything, IPv6 included.
    deny_out: Option<Vec<String>>,
    /// Header transforms by host.
    #[schema(value_type = Option<Object>)]
    rules: Option<Value>,
    /// `false` denies whatever `allowOut` does not allow.
    #[schema(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    /// Resolvers that are opened while a domain is allowed.
    dns_servers: Option<Vec<String>>,
}

/// A policy: see the reference in the README.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "documentation: `filter_policy::Policy` has the code")]
pub struct PolicyDocument {
    /// `false` denies whatever `allowOut` does not allow.
    pub(super) allow_internet_access: Option<bool>,
    /// Allowed destinations: addresses, CIDRs, domains, `*.domain`, `*`.
    allow_out: Option<Vec<String>>,
    /// Denied destinations: addresses and CIDRs. `0.0.0.0/0` is everything, IPv6 included.
    deny_out: Option<Vec<String>>,
    /// Header transforms by host.
    #[schema(value_type = Option<Object>)]
    rules: Option<Value>,
    /// Whether public URLs work without the traffic token.
    allow_public_traffic: Option<bool>,
    /// The `Host` that the sandbox sees on its public URLs.
    mask_request_host: Option<String>,
    /// `{"egressConnections": N}`
    #[schema(value_type = Option<Object>)]
    limits: Option<Value>,
    /// `{"mode": "open" | "strict", "servers": […]}`
    #[schema(value_type = Option<Object>)]
    dns: Option<Value>,
    /// `allow-first` or `deny-first`
    precedence: Option<String>,
    /// `deny`
    quic: Option<String>,
}

/// A sandbox, to whoever has just made it or connected to it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// What it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its name.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// E2B's; always the same here.
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    /// What SDKs may ask of the controller inside.
    pub envd_version: &'static str,
    /// The token of the controller inside; none where it asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// The token of public URLs.
    pub traffic_access_token: String,
    /// Public URLs are `<port>-<id>.<domain>`.
    pub domain: String,
}

/// One of a list of sandboxes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// What it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its name.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// E2B's; always the same here.
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    /// When it was made.
    #[serde(serialize_with = "rfc3339::serialize")]
    #[schema(value_type = String, format = DateTime)]
    pub started_at: SystemTime,
    /// When it ends.
    #[serde(serialize_with = "rfc3339::serialize")]
    #[schema(value_type = String, format = DateTime)]
    pub end_at: SystemTime,
    /// Of the provider's making; not known here.
    pub cpu_count: u32,
    /// Of the provider's making; not known here.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Of the provider's making; not known here.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// `running`
    pub state: &'static str,
    /// What SDKs may ask of the controller inside.
    pub envd_version: &'static str,
    /// What its owner says about it.
    pub metadata: BTreeMap<String, String>,
}

/// A sandbox in full.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// What lists have of it.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// The token of the controller inside; none where it asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Public URLs are `<port>-<id>.<domain>`.
    pub domain: String,
    /// What becomes of it when its time is over.
    pub lifecycle: Lifecycle,
    /// What is enforced.
    #[serde(flatten)]
    pub enforced: Enforced,
}

/// What becomes of a sandbox when its time is over.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// `false`
    pub auto_resume: bool,
    /// `kill`
    pub on_timeout: &'static str,
}

/// The network of a sandbox as it is enforced.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Enforced {
    /// Whether everything is reachable that nothing denies.
    pub allow_internet_access: bool,
    /// The policy, in canonical form.
    #[schema(value_type = Object)]
    pub network: Value,
    /// The number of the policy in force.
    pub generation: u64,
    /// Its hash.
    pub policy_hash: String,
    /// Whether the kernel judges every packet by it.
    pub enforced: bool,
}

/// Another time to live.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Timeout {
    /// In seconds from now.
    #[schema(minimum = 0, maximum = 86400)]
    pub timeout: u64,
}

/// Connecting to a sandbox.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Connect {
    /// In seconds from now; it only ever puts the end off.
    #[schema(minimum = 0, maximum = 86400)]
    pub timeout: Option<u64>,
}
