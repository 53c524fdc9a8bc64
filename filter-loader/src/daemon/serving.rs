//! The operations as the API asks for them, and the API where it is served.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::core::Core;
use super::service::blocking;
use super::tokens::Seed;
use crate::api::keys::Keys;
use crate::api::listen::{self, Bounds, ControlSocket, Tcp};
use crate::api::{self, Api};
use crate::control::{Answer, Control};
use crate::error::ControlError;
use crate::limits::Limiter;
use crate::protocol::{AttachRequest, Authority, Changed, SandboxId, Show, Stats, Summary, UpdateRequest};
use crate::sandboxes::{Allowance, Sandboxes, provider};

/// The keeper of the sandboxes that the API makes, with the configured provider.
pub(super) fn keeper(core: &Arc<Core>) -> Result<Sandboxes, ControlError> {
    let config = &core.config;
    let provider = provider::configured(config, &core.netlink)?;
    Sandboxes::new(Arc::new(Service(core.clone())), provider, &config.paths.state_dir)
}

/// Serves the API on the control socket and, where it is configured, on TCP.
pub(super) async fn serve_api(
    core: &Arc<Core>,
    sandboxes: &Arc<Sandboxes>,
    stop: &watch::Receiver<bool>,
) -> Result<JoinSet<()>, ControlError> {
    let config = &core.config;
    let limits = &config.limits;
    let api = Arc::new(Api {
        control: Arc::new(Service(core.clone())),
        sandboxes: sandboxes.clone(),
        host: Allowance {
            concurrent: (limits.concurrent_sandboxes > 0).then_some(limits.concurrent_sandboxes),
            rate: Limiter::new(limits.create_rate).map(Arc::new),
        },
        domain: config.ingress.domain.clone(),
    });
    let told = || {
        let mut stop = stop.clone();
        async move {
            // Gone or told: both mean to stop.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    };
    let mut serving = JoinSet::new();
    if let Some(address) = config.api.listen {
        let listener = Tcp::bind(address, Bounds::default()).map_err(|error| {
            ControlError::failed(format!("cannot listen at {address} ([api].listen): {error}"))
        })?;
        let keys = Keys::new(config, &Seed::of_owners(&config.paths.state_dir)?);
        if keys.is_empty() {
            tracing::warn!(%address, "nobody can use the API over TCP: there are no [[api_keys]]");
        }
        let router = api::for_keys(api.clone(), Arc::new(keys));
        serving.spawn(listen::serve(Bounds::default(), listener, router, told()));
    }
    // The last one: whoever finds it there finds everything.
    let socket = ControlSocket::bind(&config.paths.socket)?;
    serving.spawn(listen::serve(Bounds::default(), socket, api::for_operator(api), told()));
    Ok(serving)
}

/// The operations, each on a thread of its own.
struct Service(Arc<Core>);

impl Service {
    fn run<'a, T: Send + 'static>(
        &'a self,
        work: impl FnOnce(&Core) -> Result<T, ControlError> + Send + 'static,
    ) -> Answer<'a, T> {
        Box::pin(blocking(&self.0, work))
    }
}

impl Control for Service {
    fn validate(&self, policy: Option<Value>) -> Answer<'_, ()> {
        self.run(move |core| core.policy(policy).map(drop))
    }

    fn attach(&self, request: AttachRequest) -> Answer<'_, Show> {
        self.run(move |core| core.attach(request))
    }

    fn update(&self, request: UpdateRequest) -> Answer<'_, Changed> {
        self.run(move |core| core.update(request))
    }

    fn detach(&self, id: SandboxId) -> Answer<'_, ()> {
        self.run(move |core| core.detach(&id))
    }

    fn list(&self) -> Answer<'_, Vec<Summary>> {
        self.run(Core::list)
    }

    fn show(&self, id: SandboxId, with_tokens: bool) -> Answer<'_, Show> {
        self.run(move |core| core.show(&id, with_tokens))
    }

    fn stats(&self, id: Option<SandboxId>) -> Answer<'_, Stats> {
        self.run(move |core| core.stats(id.as_ref()))
    }

    fn rotate_tokens(&self) -> Answer<'_, ()> {
        self.run(|core| core.seed.rotate())
    }

    fn doctor(&self) -> Answer<'_, Value> {
        self.run(crate::doctor::of_daemon)
    }

    fn authority(&self) -> Answer<'_, Authority> {
        self.run(|core| Ok(core.authority()))
    }

    fn rotate_authority(&self) -> Answer<'_, Authority> {
        self.run(Core::rotate_authority)
    }
}
