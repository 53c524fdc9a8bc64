//! What is wrong with a configuration file: which file, where in it, and what to write instead.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::error::ControlError;

/// Why a configuration is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The text is no TOML.
    #[error("{}, line {line}: the file is no valid TOML: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist, or a value that it cannot have.
    #[error("{}{}: `{key}`: {message}", .path.display(), .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// The key with its tables.
        key: String,
        /// What is wrong.
        message: String,
    },
}

impl ConfigError {
    pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let line = line(text, error).unwrap_or(1);
        Self::Syntax { path: path.to_owned(), line, message: one_line(error.message()) }
    }

    pub(super) fn value(
        path: &Path,
        text: &str,
        error: &serde_path_to_error::Error<toml::de::Error>,
    ) -> Self {
        // Only the message: the rest of the error quotes the line, in which a key may stand.
        let message = one_line(error.inner().message());
        Self::Value {
            path: path.to_owned(),
            line: line(text, error.inner()),
            key: error.path().to_string(),
            message,
        }
    }
}

impl From<ConfigError> for ControlError {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// A value of the right type that is not possible.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) key: String,
    pub(super) message: String,
}

impl Wrong {
    pub(super) fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }

    pub(super) fn in_file(self, path: &Path) -> ConfigError {
        ConfigError::Value { path: path.to_owned(), line: None, key: self.key, message: self.message }
    }
}

fn line(text: &str, error: &toml::de::Error) -> Option<usize> {
    let before = text.get(..error.span()?.start)?;
    Some(before.matches('\n').count() + 1)
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
