//! `explain`: what would become of a connection of a sandbox, or under a policy, on this host as it is now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use filter_common::Addr;
use filter_common::layout::{self, Budget, MAX_ADDRS, sandbox_flags};
use filter_inspector::host::Transport;
use filter_inspector::rules::Rules;

use super::core::Core;
use super::service::settings;
use crate::error::ControlError;
use crate::explain::probe::{self, Sender};
use crate::explain::{Host, Judge, Resolved, Ruling, Target, explain};
use crate::kernel::trial::Trial;
use crate::protocol::explain::{ExplainRequest, Explained};

/// The loopback device is there on every host, and the program is only run, never attached.
const LOOPBACK: u32 = 1;

impl Core {
    /// What would become of a connection.
    ///
    /// # Errors
    /// `not found`; `usage` if the target is none; what is wrong with a policy; or that the kernel refuses.
    pub fn explain(&self, request: ExplainRequest) -> Result<Explained, ControlError> {
        let target: Target = request.target.parse().map_err(ControlError::usage)?;
        let (entry, budget, rules, notes) = match (request.sandbox, request.policy) {
            (Some(id), None) => {
                let sandbox = self.registry.get(&id)?;
                let rules = {
                    let in_force = sandbox.in_force();
                    in_force.template.rules(in_force.generation)
                };
                let budget = self.kernel.sandboxes.activity(sandbox.slot)?.budget;
                (self.entry(&sandbox), budget, rules, Vec::new())
            }
            (None, Some(policy)) => {
                let template = self.templates.of(&Arc::new(self.policy(Some(policy))?), &self.guard());
                // No policy in force has this number.
                (nobody(), Budget::default(), template.rules(0), Vec::new())
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(ControlError::usage("name a sandbox or a policy, and not both"));
            }
        };
        let resolved = self.resolved(&target);
        let trial = Trial::new(&settings(&self.config), &entry, budget, &rules.compiled)?;
        let mut program = Program { trial, entry, notes };
        let mut explained = self.explained(&rules, &target, &resolved, &mut program)?;
        explained.steps.splice(0..0, program.notes);
        Ok(explained)
    }

    fn explained(
        &self,
        rules: &Rules,
        target: &Target,
        resolved: &Resolved,
        program: &mut Program,
    ) -> Result<Explained, ControlError> {
        explain(rules, &self.config.inspector.ports, target, resolved, program)
    }

    /// By the resolver that the inspector uses.
    fn resolved(&self, target: &Target) -> Resolved {
        let Host::Name(name) = &target.host else { return Resolved::Unknown };
        match self.inspection.resolver() {
            Some(resolver) => {
                Resolved::To(self.block_on(resolver.addresses(name)).map_err(|error| error.to_string()))
            }
            None => Resolved::Unknown,
        }
    }
}

/// A sandbox that nobody is, on an interface that is there.
fn nobody() -> layout::Sandbox {
    layout::Sandbox {
        tenant: 1,
        slot: 0,
        flags: sandbox_flags::ANY_ADDR,
        ifindex: LOOPBACK,
        addr_count: 0,
        mac: [0; 6],
        iface_mac: [2, 0, 0, 0, 0, 1],
        addrs: [Addr::UNSPECIFIED; MAX_ADDRS],
    }
}

/// The kernel program, on a copy of what it needs.
struct Program {
    trial: Trial,
    entry: layout::Sandbox,
    notes: Vec<String>,
}

impl Judge for Program {
    fn judge(&mut self, to: SocketAddr, transport: Transport) -> Result<Ruling, ControlError> {
        let sender = self.sender(to.ip());
        let frame = probe::frame(&sender, to, transport)
            .ok_or_else(|| ControlError::failed(format!("no packet can be for {to}")))?;
        let tried = self.trial.run(&frame)?;
        Ok(Ruling { reason: tried.reason, rule: tried.rule })
    }
}

impl Program {
    /// The sandbox, as what it would send to `to` shows it.
    fn sender(&mut self, to: IpAddr) -> Sender {
        let entry = &self.entry;
        let count = usize::try_from(entry.addr_count).unwrap_or(0);
        let own = entry.addrs.iter().take(count).map(|addr| IpAddr::from(*addr));
        let address = own.into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).unwrap_or_else(|| {
            if count > 0 {
                let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
                let note =
                    format!("the sandbox has no {family} address: whatever it sends from one is spoofed");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
            }
            match to {
                IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
                IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            }
        });
        // Where any will do, one that no interface has.
        let mac = if entry.flags & sandbox_flags::KNOWN_MAC == 0 { [2, 0, 0, 0, 0, 2] } else { entry.mac };
        Sender { mac, gateway: entry.iface_mac, address }
    }
}
