//! From flags or a file to the policy document that goes to the daemon.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use filter_policy::{Defaults, Format, Policy};
use serde_json::{Map, Value, json};

use crate::{
    error::{ControlError, Problem},
    protocol::MAX_DOCUMENT,
};

/// Fields that cannot change after `attach`, in both spellings, with the canonical one.
const FIXED: [(&str, &str); 4] = [
    ("allowPublicTraffic", "allowPublicTraffic"),
    ("allow_public_traffic", "allowPublicTraffic"),
    ("maskRequestHost", "maskRequestHost"),
    ("mask_request_host", "maskRequestHost"),
];

/// A policy: a file, or flags that mirror its fields.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = true)]
#[command(next_help_heading = "Policy")]
pub struct PolicyArgs {
    /// Policy as JSON, YAML or TOML; - is standard input
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Allow these addresses, CIDRs or domains
    #[arg(long, value_name = "DESTINATION", num_args = 1.., value_delimiter = ',', conflicts_with = "policy")]
    allow_out: Vec<String>,
    /// Deny these addresses or CIDRs; 0.0.0.0/0 is all of IPv4 and IPv6
    #[arg(long, value_name = "CIDR", num_args = 1.., value_delimiter = ',', conflicts_with = "policy")]
    deny_out: Vec<String>,
    /// Deny everything that --allow-out does not allow
    #[arg(long, conflicts_with = "policy")]
    no_internet: bool,
    /// Concurrent egress connections
    #[arg(long, value_name = "N", conflicts_with = "policy")]
    egress_connections: Option<u64>,
    /// What wins where both allow and deny are about an address
    #[arg(long, value_name = "ORDER", conflicts_with = "policy")]
    precedence: Option<PrecedenceArg>,
    /// Which names may be resolved while a domain rule exists
    #[arg(long, value_name = "MODE", conflicts_with = "policy")]
    dns_mode: Option<DnsModeArg>,
    /// Resolvers that are opened while a domain rule exists
    #[arg(long, value_name = "IP", num_args = 1.., value_delimiter = ',', conflicts_with = "policy")]
    dns_server: Vec<String>,
    /// The public URL needs the traffic token (attach only)
    #[arg(long, conflicts_with = "policy")]
    no_public_traffic: bool,
    /// Host header on the public URL; ${PORT} stands for the port (attach only)
    #[arg(long, value_name = "HOST", conflicts_with = "policy")]
    mask_request_host: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecedenceArg {
    AllowFirst,
    DenyFirst,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DnsModeArg {
    Open,
    Strict,
}

impl PolicyArgs {
    /// The document that the file holds or the flags amount to; none where neither is there.
    ///
    /// # Errors
    /// When the file cannot be read, and when the policy is refused.
    pub fn document(&self) -> Result<Option<Value>, ControlError> {
        match &self.policy {
            Some(path) => read(path).map(Some),
            None => self.flags(),
        }
    }

    fn flags(&self) -> Result<Option<Value>, ControlError> {
        let mut document = Map::new();
        let mut put = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                document.insert(field.to_owned(), value);
            }
        };
        let list = |list: &[String]| (!list.is_empty()).then(|| json!(list));
        put("allowInternetAccess", self.no_internet.then_some(false.into()));
        put("allowOut", list(&self.allow_out));
        put("denyOut", list(&self.deny_out));
        put("limits", self.egress_connections.map(|limit| json!({ "egressConnections": limit })));
        put("dns", self.dns());
        put("precedence", self.precedence.as_ref().map(word));
        put("allowPublicTraffic", self.no_public_traffic.then_some(false.into()));
        put("maskRequestHost", self.mask_request_host.as_deref().map(Value::from));
        if document.is_empty() {
            return Ok(None);
        }
        let document = Value::Object(document);
        Policy::from_value(document.clone(), &Defaults::default())?;
        Ok(Some(document))
    }

    fn dns(&self) -> Option<Value> {
        let mut dns = Map::new();
        if let Some(mode) = &self.dns_mode {
            dns.insert("mode".to_owned(), word(mode));
        }
        if !self.dns_server.is_empty() {
            dns.insert("servers".to_owned(), json!(self.dns_server));
        }
        (!dns.is_empty()).then_some(Value::Object(dns))
    }
}

/// The spelling of a choice, which on the command line is that of the document.
fn word(choice: &impl ValueEnum) -> Value {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).into()
}

/// Reads a policy file, or standard input when it is called `-`, and validates it.
///
/// # Errors
/// When the file cannot be read, and when the policy is refused.
pub fn read(path: &Path) -> Result<Value, ControlError> {
    let shown = path.display();
    let is_stdin = path == Path::new("-");
    let text = if is_stdin { bounded(io::stdin().lock()) } else { File::open(path).and_then(bounded) }
        .map_err(|error| ControlError::usage(format!("cannot read the policy {shown}: {error}")))?;
    if text.len() > MAX_DOCUMENT {
        let message = format!("the policy {shown} is longer than {} MiB; split it", MAX_DOCUMENT >> 20);
        return Err(ControlError::usage(message));
    }
    let format = Format::guess((!is_stdin).then_some(path), &text);
    // The daemon fills in what the document leaves out, so that it gets the document itself; but only
    // validation finds everything that is wrong with the text, a member that stands twice included.
    Policy::parse(&text, format, &Defaults::default())?;
    value(&text, format)
        .ok_or_else(|| ControlError::failed(format!("the policy {shown} cannot be read as JSON values")))
}

/// One byte more than is accepted tells that there is more.
fn bounded(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAX_DOCUMENT as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a text that has been validated.
fn value(text: &str, format: Format) -> Option<Value> {
    match format {
        Format::Json => serde_json::from_str(text).ok(),
        Format::Toml => toml::from_str(text).ok(),
        Format::Yaml => {
            let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
            serde_saphyr::from_str_with_options(text, options).ok()
        }
    }
}

/// Refuses the update of what only `attach` sets.
///
/// # Errors
/// When the document names such a field, whatever its value.
pub fn refuse_fixed(document: &Value) -> Result<(), ControlError> {
    let named = FIXED.iter().filter(|(spelling, _)| document.get(spelling).is_some());
    let problems: Vec<Problem> = named
        .map(|(_, field)| Problem {
            code: "fixed_at_attach".to_owned(),
            message: format!("`{field}` is fixed when the sandbox is attached; leave it out of the update"),
            pointer: format!("/{field}"),
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(ControlError::invalid_policy(problems)) }
}
