//! The gateway of public URLs, as the daemon runs it: what it asks is answered from registry, keeper and seed.

use std::sync::{Arc, OnceLock, Weak};

use filter_gateway::server::StartError;
use filter_gateway::{Counters, Directory, Gateway, Handle, Rate, Running, Secret, Settings};

use super::core::Core;
use super::registry::Sandbox;
use crate::config::Config;
use crate::error::ControlError;
use crate::protocol::SandboxId;
use crate::sandboxes::Sandboxes;

/// The gateway, once it runs.
#[derive(Default)]
pub struct Ingress(OnceLock<Handle>);

impl Ingress {
    /// Ends what callers have open to a sandbox that leaves.
    pub fn forget(&self, tenant: u32) {
        if let Some(gateway) = self.0.get() {
            gateway.forget(tenant);
        }
    }

    /// What the gateway has done, for metrics.
    pub fn counters(&self) -> Option<&Counters> {
        self.0.get().map(Handle::counters)
    }
}

/// Starts the gateway. Must be called within the runtime. That somebody else has its address is said and no more: what
/// is enforced does not depend on who is reached.
///
/// # Errors
/// If the certificate cannot be used.
pub fn start(core: &Arc<Core>, sandboxes: &Arc<Sandboxes>) -> Result<Option<Running>, ControlError> {
    let failed = |error: StartError| {
        ControlError::failed(format!("public URLs ([ingress]) cannot be served: {error}"))
    };
    let known = Known { core: Arc::downgrade(core), sandboxes: Arc::downgrade(sandboxes) };
    let gateway = match Gateway::bind(settings(&core.config), Arc::new(known)) {
        Ok(gateway) => gateway,
        Err(error @ StartError::Listen { .. }) => {
            tracing::error!(%error, "public URLs ([ingress].listen) are not served; free the address and restart");
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let running = gateway.run().map_err(failed)?;
    core.ingress.0.get_or_init(|| running.handle());
    let ingress = &core.config.ingress;
    tracing::info!(listen = ?ingress.listen, domain = ingress.domain, "public URLs are served");
    Ok(Some(running))
}

fn settings(config: &Config) -> Settings {
    let ingress = &config.ingress;
    let rate = config.limits.sandbox_traffic;
    Settings {
        listen: ingress.listen.clone(),
        domain: ingress.domain.trim_end_matches('.').to_ascii_lowercase(),
        tls: ingress.tls.cert.clone().zip(ingress.tls.key.clone()),
        controller_port: ingress.controller_port,
        trusted_proxies: ingress.trusted_proxies.clone(),
        client_rate: (rate.requests > 0).then_some(Rate { requests: rate.requests, per: rate.per }),
        sandbox_requests: ingress.sandbox_requests,
        connections: usize::try_from(ingress.connections).unwrap_or(usize::MAX),
        head_timeout: ingress.head_timeout,
        dial_timeout: ingress.dial_timeout,
        idle_timeout: ingress.idle_timeout,
    }
}

/// What the gateway knows of the daemon.
struct Known {
    core: Weak<Core>,
    sandboxes: Weak<Sandboxes>,
}

impl Directory for Known {
    fn sandbox(&self, id: &str) -> Option<Arc<filter_gateway::Sandbox>> {
        let core = self.core.upgrade()?;
        let sandbox = core.registry.find(&id.parse().ok()?)?;
        Some(sandbox.public.known(core.seed.round(), || self.describe(&core, &sandbox)))
    }
}

impl Known {
    fn describe(&self, core: &Core, sandbox: &Sandbox) -> (u64, filter_gateway::Sandbox) {
        let (tokens, round) = core.seed.tokens_and_round(&sandbox.id, sandbox.tenant);
        let is_open = sandbox.public.allow_public_traffic;
        let described = filter_gateway::Sandbox {
            id: sandbox.id.to_string(),
            tenant: sandbox.tenant,
            addrs: sandbox.addrs.clone(),
            traffic_token: (!is_open).then(|| Secret::new(tokens.traffic_access_token)),
            controller_token: self.is_secure(&sandbox.id).then(|| Secret::new(tokens.envd_access_token)),
            mask: sandbox.public.mask_request_host.clone(),
        };
        (round, described)
    }

    /// As whoever made it said; what is only attached has nobody who could have said that it need not be.
    fn is_secure(&self, id: &SandboxId) -> bool {
        let keeper = self.sandboxes.upgrade();
        let record = keeper.and_then(|keeper| keeper.record(id));
        record.is_none_or(|record| record.secure)
    }
}
