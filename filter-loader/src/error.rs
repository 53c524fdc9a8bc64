//! What a command or a request fails with, and the exit code that says so.

use std::fmt;

use filter_policy::Invalid;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// The kind of a failure. Scripts rely on the words and on the exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// It was tried and did not work.
    Failed,
    /// The request, the command line or the configuration is not well-formed.
    Usage,
    /// The policy is refused.
    InvalidPolicy,
    /// No sandbox has this id.
    NotFound,
    /// The id, the interface or an address belongs to another sandbox, or the state to another daemon.
    Conflict,
    /// The policy in force is not the one that the change was meant for.
    PreconditionFailed,
    /// No daemon answers.
    Unreachable,
}

impl ErrorCode {
    /// The exit code of a command that fails with it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage | Self::InvalidPolicy => 2,
            Self::NotFound => 3,
            Self::Conflict | Self::PreconditionFailed => 4,
            Self::Unreachable => 5,
        }
    }
}

/// One thing that is wrong with a policy, as it travels to a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// One of [`filter_policy::code`].
    pub code: String,
    /// A sentence.
    pub message: String,
    /// Where, as a JSON pointer.
    pub pointer: String,
}

impl From<filter_policy::Problem> for Problem {
    fn from(problem: filter_policy::Problem) -> Self {
        Self { code: problem.code.to_owned(), message: problem.message, pointer: problem.pointer }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        located(&self.pointer, &self.message, f)
    }
}

/// Why a command or a request failed: what users read, on the terminal or as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Error, ToSchema)]
pub struct ControlError {
    /// Its kind.
    pub code: ErrorCode,
    /// One sentence that says what to do.
    pub message: String,
    /// Where in the policy, as a JSON pointer; only with [`ErrorCode::InvalidPolicy`].
    pub pointer: Option<String>,
    /// Everything that is wrong with the policy, of which `message` and `pointer` are the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl ControlError {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), pointer: None, problems: Vec::new() }
    }

    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Failed, message)
    }

    /// What was asked for is not well-formed.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Usage, message)
    }

    /// No sandbox has this id.
    pub fn not_found(id: impl fmt::Display) -> Self {
        let message = format!("no sandbox `{id}` is attached; `sandbox-filter list` names those that are");
        Self::new(ErrorCode::NotFound, message)
    }

    /// Something else has what was asked for.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// Somebody changed the policy meanwhile.
    pub fn precondition_failed() -> Self {
        let message = "the policy in force is another one by now; look at it and decide again";
        Self::new(ErrorCode::PreconditionFailed, message)
    }

    /// No daemon answers.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unreachable, message)
    }

    /// The policy is refused, for these reasons.
    pub fn invalid_policy(problems: Vec<Problem>) -> Self {
        let (message, pointer) = match problems.first() {
            Some(first) => (first.message.clone(), Some(first.pointer.clone())),
            None => ("the policy is refused".to_owned(), None),
        };
        Self { code: ErrorCode::InvalidPolicy, message, pointer, problems }
    }
}

impl From<Invalid> for ControlError {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_policy(invalid.errors.into_iter().map(Problem::from).collect())
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        located(self.pointer.as_deref().unwrap_or_default(), &self.message, f)
    }
}

/// The message, after the place where there is one.
fn located(pointer: &str, message: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if pointer.is_empty() { f.write_str(message) } else { write!(f, "{pointer}: {message}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_code_has_its_word_and_exit_code() {
        for (code, word, exit) in [
            (ErrorCode::Failed, "failed", 1),
            (ErrorCode::Usage, "usage", 2),
            (ErrorCode::InvalidPolicy, "invalid_policy", 2),
            (ErrorCode::NotFound, "not_found", 3),
            (ErrorCode::Conflict, "conflict", 4),
            (ErrorCode::PreconditionFailed, "precondition_failed", 4),
            (ErrorCode::Unreachable, "unreachable", 5),
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), json!(word));
            assert_eq!(code.exit_code(), exit);
        }
    }

    #[test]
    fn a_refused_policy_leads_with_its_first_problem_and_keeps_all() {
        let document = json!({ "allowOut": ["https://x"], "denyOut": ["nonsense"] });
        let invalid = filter_policy::Policy::from_value(document, &Default::default()).unwrap_err();
        let error = ControlError::from(invalid);
        assert_eq!(error.code, ErrorCode::InvalidPolicy);
        assert_eq!(error.pointer.as_deref(), Some("/allowOut/0"));
        assert_eq!(error.to_string(), "/allowOut/0: invalid allowed address https://x");
        assert_eq!(error.problems.len(), 2);
        assert_eq!(error.problems[1].pointer, "/denyOut/0");
    }

    #[test]
    fn the_json_has_a_pointer_even_where_there_is_none() {
        let json = serde_json::to_value(ControlError::conflict("taken")).unwrap();
        assert_eq!(json, json!({ "code": "conflict", "message": "taken", "pointer": null }));
    }
}
