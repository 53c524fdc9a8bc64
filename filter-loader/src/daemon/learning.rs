//! Allowing a sandbox everything for a while, to learn what it does.
//!
//! What is written down stays the policy that was asked for, so that whatever ends the learning (a command, a client
//! that goes away, the end of this daemon, the start of the next one) puts that in force again.

use std::sync::Arc;

use super::core::Core;
use super::registry::Sandbox;
use crate::error::ControlError;
use crate::protocol::SandboxId;

impl Core {
    /// Puts a policy in force that denies nothing but what the platform guards. Web connections go to the inspector,
    /// so that they are told with their names.
    ///
    /// # Errors
    /// `not found`; `conflict` if somebody is learning already; what is in force stays then.
    pub fn begin_learning(&self, id: &SandboxId) -> Result<(), ControlError> {
        let sandbox = self.registry.get(id)?;
        let mut in_force = sandbox.in_force();
        if in_force.wanted.is_some() {
            return Err(ControlError::conflict(format!("it is being learned already what {id} does")));
        }
        let before = in_force.template.policy.clone();
        let template = self.template(before.observing())?;
        in_force.wanted = Some(before);
        let generation = in_force.generation;
        self.replace(&sandbox, &mut in_force, template).inspect_err(|_| {
            if in_force.generation == generation {
                in_force.wanted = None;
            }
        })?;
        tracing::warn!(sandbox = %id, "everything is allowed, to learn what it does");
        Ok(())
    }

    /// Puts the policy in force again that was before, unless that was done, or an update has replaced it.
    ///
    /// # Errors
    /// If it cannot be; the sandbox is allowed everything then until this is tried again.
    pub fn end_learning(&self, id: &SandboxId) -> Result<(), ControlError> {
        match self.registry.get(id) {
            Ok(sandbox) => self.restore(&sandbox),
            // Gone, and everything of it.
            Err(_) => Ok(()),
        }
    }

    /// Ends all learning, before nobody is left to do it.
    ///
    /// # Errors
    /// The first; the others are ended all the same.
    pub fn end_all_learning(&self) -> Result<(), ControlError> {
        let ended: Vec<_> = self.registry.all().iter().map(|sandbox| self.restore(sandbox)).collect();
        ended.into_iter().collect()
    }

    fn restore(&self, sandbox: &Sandbox) -> Result<(), ControlError> {
        let mut in_force = sandbox.in_force();
        let Some(wanted) = in_force.wanted.take() else { return Ok(()) };
        let (generation, again) = (in_force.generation, Arc::clone(&wanted));
        let restored =
            self.template(again).and_then(|template| self.replace(sandbox, &mut in_force, template));
        restored.inspect_err(|_| {
            if in_force.generation == generation {
                in_force.wanted = Some(wanted);
            }
        })?;
        tracing::info!(sandbox = %sandbox.id, "its own policy is in force again");
        Ok(())
    }
}
