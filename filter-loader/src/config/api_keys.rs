//! `[[api_keys]]`: who may use the control API over TCP, and how much.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::sections::Rate;

/// One key and what its holder may have.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key itself; this or `key_file`.
    pub key: Option<Secret>,
    /// A file that holds it.
    pub key_file: Option<PathBuf>,
    /// Numbers by name.
    pub tier: Option<Tier>,
    /// Overrides the tier's.
    pub concurrent_sandboxes: Option<u32>,
    /// Overrides the tier's.
    pub create_rate: Option<Rate>,
}

impl ApiKey {
    /// How many sandboxes the holder may have at the same time, 0 being no limit; none where nothing says so.
    pub fn concurrent_sandboxes(&self) -> Option<u32> {
        self.concurrent_sandboxes.or_else(|| Some(self.tier?.limits()?.0))
    }

    /// How fast the holder may create sandboxes; none where nothing says so.
    pub fn create_rate(&self) -> Option<Rate> {
        self.create_rate.or_else(|| Some(self.tier?.limits()?.1))
    }
}

/// Numbers by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// 20 sandboxes, one creation a second.
    Hobby,
    /// 100 sandboxes, five creations a second.
    Pro,
    /// Has no numbers: the entry states its own.
    Enterprise,
}

impl Tier {
    const fn limits(self) -> Option<(u32, Rate)> {
        const SECOND: Duration = Duration::from_secs(1);
        match self {
            Self::Hobby => Some((20, Rate { requests: 1, per: SECOND })),
            Self::Pro => Some((100, Rate { requests: 5, per: SECOND })),
            Self::Enterprise => None,
        }
    }
}

/// A key that no log and no debug output shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The key in clear.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
