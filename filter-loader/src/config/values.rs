//! How single values are written in the file where serde alone would not read them so.

use std::{fmt::Display, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};

/// Addresses and CIDRs; a bare address is the net of itself alone.
pub(super) fn nets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| net(text).ok_or_else(|| D::Error::custom(not_a_net(text)))).collect()
}

fn net(text: &str) -> Option<IpNet> {
    let bare = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(bare)
}

fn not_a_net(text: &str) -> String {
    format!("`{text}` is no address or CIDR; write it like \"10.0.0.0/8\"")
}

/// A value that the empty string leaves out.
pub(super) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| D::Error::custom(format!("`{text}`: {error}")))
}
