//! Headers that the filter sets in requests to a host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use zeroize::Zeroizing;

use crate::{
    host::HostPattern,
    problem::code,
    read::{At, Node, Problems},
    secret::{self, Part, SecretName},
};

const MAX_HOSTS: usize = 10;
const MAX_HOST: usize = 128;
const MAX_HEADERS: usize = 20;
const MAX_HEADER_NAME: usize = 64;
const MAX_HEADER_VALUE: usize = 2048;
const MAX_SECRETS: usize = 32;

/// Names that frame a message or are about one connection only (RFC 9110 section 7.6.1), and the
/// name that routes it: setting them would let a policy contradict what the filter itself sends.
/// Every `proxy-…` name is refused as well.
const FORBIDDEN_HEADERS: [&str; 8] =
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// What is changed in requests to one host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Transform {
    /// In requests by which scheme.
    pub scheme: Scheme,
    /// Headers that are set, by their names in lower case.
    pub headers: BTreeMap<String, HeaderValue>,
}

/// In requests by which scheme headers are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scheme {
    /// `https`: over TLS, to a server that has proved who it is.
    #[default]
    Https,
    /// `http`: in the clear as well, for anybody on the way to see.
    Http,
}

/// The value of a header: likely a secret, so that it is never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderValue {
    text: Zeroizing<String>,
    parts: Vec<Part>,
}

impl Transform {
    /// Whether a request is any other for it.
    pub fn changes_something(&self) -> bool {
        !self.headers.is_empty()
    }

    fn secrets(&self) -> BTreeSet<&SecretName> {
        self.headers.values().flat_map(HeaderValue::secrets).collect()
    }
}

impl Scheme {
    pub(crate) const WORDS: &[(&str, Self)] = &[("https", Self::Https), ("http", Self::Http)];

    /// The word in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

impl HeaderValue {
    /// The value in clear, with the names of secrets where secrets belong.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the value is put together from.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The secrets that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Secret(name) => Some(name),
            Part::Text(_) => None,
        })
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads `rules`: a map from host to a list of at most one `{transform: {headers: {…}}, scheme}`.
pub(crate) fn read_rules(
    node: &Node<'_>,
    problems: &mut Problems,
) -> Option<BTreeMap<HostPattern, Transform>> {
    let members = node.members(problems)?;
    if members.len() > MAX_HOSTS {
        problems.add(&node.at, code::OUT_OF_RANGE, format!("at most {MAX_HOSTS} hosts may have rules"));
    }
    let mut rules = BTreeMap::new();
    for (text, list) in members {
        let host = read_host(text, &list.at, problems);
        let transform = read_host_rules(&list, problems);
        let (Some(host), Some(transform)) = (host, transform) else { continue };
        if rules.insert(host, transform).is_some() {
            problems.add(&list.at, code::DUPLICATE_FIELD, format!("the host `{text}` has rules already"));
        }
    }
    Some(rules)
}

fn read_host(text: &str, at: &At<'_>, problems: &mut Problems) -> Option<HostPattern> {
    if text.len() > MAX_HOST {
        let message = format!("a host of `rules` has at most {MAX_HOST} bytes");
        problems.add(at, code::OUT_OF_RANGE, message);
        return None;
    }
    match HostPattern::parse(text) {
        Ok(host) => Some(host),
        Err(error) => {
            problems.add(at, code::INVALID_RULE_HOST, format!("invalid host {text}: {error}"));
            None
        }
    }
}

/// No rule, a rule without transform and a transform without headers all change nothing.
fn read_host_rules(list: &Node<'_>, problems: &mut Problems) -> Option<Transform> {
    let mut transform = Transform::default();
    let mut count = 0;
    for rule in list.items(problems)? {
        count += 1;
        if let Some(fields) = rule.fields(&["transform", "scheme"], problems) {
            fields.read("transform", &mut transform.headers, problems, read_transform);
            fields.read("scheme", &mut transform.scheme, problems, |node, problems| {
                node.choice(Scheme::WORDS, problems)
            });
        }
    }
    if transform.secrets().len() > MAX_SECRETS {
        let message = format!("the headers of a host name at most {MAX_SECRETS} secrets");
        problems.add(&list.at, code::OUT_OF_RANGE, message);
    }
    if count > 1 {
        problems.add(&list.at, code::OUT_OF_RANGE, "a host has at most 1 transform");
    }
    Some(transform)
}

fn read_transform(node: &Node<'_>, problems: &mut Problems) -> Option<BTreeMap<String, HeaderValue>> {
    let mut headers = BTreeMap::new();
    let fields = node.fields(&["headers"], problems)?;
    fields.read("headers", &mut headers, problems, read_headers);
    Some(headers)
}

fn read_headers(node: &Node<'_>, problems: &mut Problems) -> Option<BTreeMap<String, HeaderValue>> {
    let members = node.members(problems)?;
    if members.len() > MAX_HEADERS {
        problems.add(&node.at, code::OUT_OF_RANGE, format!("a transform sets at most {MAX_HEADERS} headers"));
    }
    let mut headers = BTreeMap::new();
    for (text, value) in members {
        let name = read_header_name(text, &value.at, problems);
        let content = read_header_value(&value, problems);
        let (Some(name), Some(content)) = (name, content) else { continue };
        if headers.insert(name, content).is_some() {
            problems.add(&value.at, code::DUPLICATE_FIELD, format!("the header `{text}` is set already"));
        }
    }
    Some(headers)
}

fn read_header_name(text: &str, at: &At<'_>, problems: &mut Problems) -> Option<String> {
    let name = text.to_ascii_lowercase();
    let problem = if name.is_empty() || !name.bytes().all(is_token) {
        (code::INVALID_HEADER, "a header name is an HTTP token".to_owned())
    } else if name.len() > MAX_HEADER_NAME {
        (code::OUT_OF_RANGE, format!("a header name has at most {MAX_HEADER_NAME} bytes"))
    } else if FORBIDDEN_HEADERS.contains(&name.as_str()) || name.starts_with("proxy-") {
        (code::INVALID_HEADER, format!("the header `{text}` must not be set"))
    } else {
        return Some(name);
    };
    problems.add(at, problem.0, problem.1);
    None
}

/// Problems with a value never quote it.
fn read_header_value(node: &Node<'_>, problems: &mut Problems) -> Option<HeaderValue> {
    let value = node.str(problems)?;
    if value.len() > MAX_HEADER_VALUE {
        let message = format!("a header value has at most {MAX_HEADER_VALUE} bytes");
        problems.add(&node.at, code::OUT_OF_RANGE, message);
        return None;
    }
    if value.chars().any(char::is_control) {
        problems.add(&node.at, code::INVALID_HEADER, "a header value has no control characters");
        return None;
    }
    match secret::split(value) {
        Ok(parts) => Some(HeaderValue { text: value.to_owned().into(), parts }),
        Err(secret::BadName) => {
            let message = "a secret is named `${secrets.NAME}`, where NAME is 1 to 128 of A-Z, a-z, 0-9, `-`, `_` \
                and `.`, and begins with none of `.`";
            problems.add(&node.at, code::INVALID_HEADER, message);
            None
        }
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
