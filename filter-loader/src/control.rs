//! What the daemon can do to an interface, as the API and the keeper of sandboxes ask for it.
//!
//! It stands between them and the kernel-facing half of the crate, so that they can be tried without a kernel.

use std::pin::Pin;

use serde_json::Value;

use crate::{
    error::ControlError,
    protocol::{AttachRequest, Authority, Changed, SandboxId, Show, Stats, Summary, UpdateRequest},
};

/// An answer that takes its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + Send + 'a>>;

/// The operations on attached interfaces.
pub trait Control: Send + Sync + 'static {
    /// Says what is wrong with a policy, and changes nothing.
    fn validate(&self, policy: Option<Value>) -> Answer<'_, ()>;
    /// Filters an interface; returns when the policy is enforced.
    fn attach(&self, request: AttachRequest) -> Answer<'_, Show>;
    /// Replaces a policy; returns when the new one is enforced.
    fn update(&self, request: UpdateRequest) -> Answer<'_, Changed>;
    /// Takes the programs off.
    fn detach(&self, id: SandboxId) -> Answer<'_, ()>;
    /// All sandboxes.
    fn list(&self) -> Answer<'_, Vec<Summary>>;
    /// One sandbox, with its secrets if they are wanted.
    fn show(&self, id: SandboxId, with_tokens: bool) -> Answer<'_, Show>;
    /// The numbers of one sandbox, or of all.
    fn stats(&self, id: Option<SandboxId>) -> Answer<'_, Stats>;
    /// Makes every token of before invalid.
    fn rotate_tokens(&self) -> Answer<'_, ()>;
    /// What only the daemon knows of its own health.
    fn doctor(&self) -> Answer<'_, Value>;
    /// The authority that sandboxes must trust where headers are set.
    fn authority(&self) -> Answer<'_, Authority>;
    /// Puts a new one in its place.
    fn rotate_authority(&self) -> Answer<'_, Authority>;
}
