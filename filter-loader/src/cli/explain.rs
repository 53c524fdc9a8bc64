//! `explain`: asks the daemon, or answers by itself where there is none and the policy is at hand.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use filter_inspector::rules::Rules;
use filter_policy::{Matcher, Policy, compile};
use serde_json::Value;

use super::{
    args::ExplainArgs,
    output::{Human, Printer, Style},
    policy,
    table::printable,
};
use crate::{
    client::Client,
    config::Config,
    error::{ControlError, ErrorCode},
    explain::{Dry, Host, Resolved, Target, explain as explain_by},
    protocol::explain::{ExplainRequest, Explained},
};

/// The exit code that says `deny`.
const DENIED: u8 = 10;

/// Explains, and exits 0 where the connection is allowed and 10 where it is not.
///
/// # Errors
/// When what is asked is not well-formed, or the daemon is needed and does not answer.
pub fn explain(
    args: &ExplainArgs,
    config: &Config,
    client: &Client,
    printer: &Printer,
) -> Result<ExitCode, ControlError> {
    let (sandbox, target) = match (args.places.as_slice(), &args.policy) {
        ([id, target], None) => (Some(id.parse().map_err(ControlError::usage)?), target),
        ([target], Some(_)) => (None, target),
        ([_, _, ..], Some(_)) => return Err(ControlError::usage("name a sandbox or a policy, and not both")),
        (_, None) => {
            return Err(ControlError::usage("name a sandbox and a target, or --policy FILE and a target"));
        }
        (_, Some(_)) => {
            return Err(ControlError::usage("name a target: a URL, host, host:port, or ip:port[/udp]"));
        }
    };
    // Whatever is wrong with it is said before anybody is asked.
    let parsed: Target = target.parse().map_err(ControlError::usage)?;
    let policy = args.policy.as_deref().map(policy::read).transpose()?;
    let request = ExplainRequest { sandbox, policy, target: target.clone() };
    let explained = match (client.explain(&request), request.policy) {
        (Err(error), Some(policy)) if error.code == ErrorCode::Unreachable => alone(policy, &parsed, config)?,
        (answer, _) => answer?,
    };
    printer.print(&explained)?;
    Ok(if explained.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

/// Without a daemon: by the program's functions in this process, knowing neither the host's addresses nor names'.
fn alone(policy: Value, target: &Target, config: &Config) -> Result<Explained, ControlError> {
    let policy = Arc::new(Policy::from_value(policy, &config.defaults.fields)?);
    let guard = Arc::new(config.guard(&[]));
    let compiled = Arc::new(compile(&policy, &guard));
    let names = Arc::new(Matcher::new(&policy));
    let rules = Rules { generation: 0, policy, names, compiled: compiled.clone(), guard };
    let ports = &config.inspector.ports;
    let mut explained =
        explain_by(&rules, ports, target, &Resolved::Unknown, &mut Dry::new(&compiled, ports))?;
    let note = match target.host {
        Host::Name(_) => "no daemon answers: judged by the configuration here",
        Host::Address(_) => {
            "no daemon answers: judged by the program's own functions outside the kernel; the host's own addresses, \
             which are guarded too, are not known"
        }
    };
    explained.steps.insert(0, note.to_owned());
    Ok(explained)
}

impl Human for Explained {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let decision = if self.is_allowed() { style.good(&self.decision) } else { style.bad(&self.decision) };
        writeln!(out, "{decision}  {}", style.bold(&printable(&self.reason)))?;
        let address = self.address.map(|address| address.to_string());
        let generation = self.generation.map(|generation| generation.to_string());
        for (what, value) in [
            ("rule", self.rule.as_deref()),
            ("name", self.name.as_deref()),
            ("address", address.as_deref()),
            ("port", Some(format!("{}/{}", self.port, self.proto).as_str())),
            ("generation", generation.as_deref()),
        ] {
            if let Some(value) = value {
                writeln!(out, "{} {}", style.bold(&format!("{what:<10}")), printable(value))?;
            }
        }
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(out, "{:>2}. {}", number + 1, printable(step))?;
        }
        Ok(())
    }
}
