//! The configuration file: every key with its default, read and validated as a whole.
//!
//! [`sections`] has the tables of the file as types, [`defaults`] and [`api_keys`] those that need
//! more than a derive, `check` what a value of the right type may still be wrong about. Nothing here
//! opens a socket or touches the kernel.

mod check;
mod values;

pub mod api_keys;
pub mod defaults;
pub mod error;
pub mod sections;

#[cfg(test)]
mod tests;

use std::{fs, io, path::Path};

use filter_policy::Guard;
use serde::Deserialize;

use self::{
    api_keys::ApiKey,
    defaults::Defaults,
    error::ConfigError,
    sections::{
        Api, Dns, Events, GuardList, Ingress, Inspector, Kernel, Limits, Metrics, Paths, Provider, Timeouts,
        Transform,
    },
};

/// Where the file is unless `--config` names another.
pub const DEFAULT_PATH: &str = "/etc/sandbox-filter/config.toml";

/// The whole configuration.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// `[paths]`
    pub paths: Paths,
    /// `[defaults]`
    pub defaults: Defaults,
    /// `[guard]`
    pub guard: GuardList,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[dns]`
    pub dns: Dns,
    /// `[inspector]`
    pub inspector: Inspector,
    /// `[transform]`
    pub transform: Transform,
    /// `[ingress]`
    pub ingress: Ingress,
    /// `[api]`
    pub api: Api,
    /// `[[api_keys]]`
    pub api_keys: Vec<ApiKey>,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[events]`
    pub events: Events,
    /// `[provider]`
    pub provider: Provider,
}

impl Config {
    /// Reads the file that is named, or the one at [`DEFAULT_PATH`]; only the latter may be missing.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, has an unknown key or a value that is not possible.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of a file; the path is for messages only.
    ///
    /// # Errors
    /// When the text is no TOML, has an unknown key or a value that is not possible.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let document =
            toml::Deserializer::parse(text).map_err(|error| ConfigError::syntax(path, text, &error))?;
        let mut config: Self = serde_path_to_error::deserialize(document)
            .map_err(|error| ConfigError::value(path, text, &error))?;
        check::check(&config).map_err(|wrong| wrong.in_file(path))?;
        config.defaults.settle(config.limits.egress_connections).map_err(|wrong| wrong.in_file(path))?;
        Ok(config)
    }

    /// What is guarded on a host that has these addresses.
    pub fn guard(&self, host: &[std::net::IpAddr]) -> Guard {
        Guard::new(&self.guard.open, &self.guard.deny, host)
    }
}
