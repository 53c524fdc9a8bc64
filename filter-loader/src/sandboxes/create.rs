//! Making a sandbox: all of it, or nothing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng;
use serde_json::Value;

use super::{
    Sandboxes,
    provider::Order,
    record::{Owner, Port, Record, VERSION},
    table::Gate,
};
use crate::{
    error::{ControlError, ErrorCode},
    limits::{Limiter, Refused},
    protocol::{Addrs, AttachRequest, SandboxId, Show},
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct NewSandbox {
    /// Whose it shall be.
    pub owner: Owner,
    /// What it is made from.
    pub template_id: String,
    /// What its owner says about it.
    pub metadata: BTreeMap<String, String>,
    /// For its processes; kept nowhere.
    pub env_vars: BTreeMap<String, String>,
    /// Whether its controller asks for a token.
    pub secure: bool,
    /// How long it lives.
    pub timeout: Duration,
    /// What it may reach; the configured default where there is none.
    pub policy: Option<Value>,
}

/// How many there may be, and how fast they may come: of one owner, or of the whole host.
#[derive(Clone, Debug, Default)]
pub struct Allowance {
    /// At the same time; no limit where there is none.
    pub concurrent: Option<u32>,
    /// How fast.
    pub rate: Option<Arc<Limiter>>,
}

/// Why there is no new sandbox.
#[derive(Debug)]
pub enum CreateError {
    /// There are as many as there may be.
    TooMany(u32),
    /// They come too fast.
    TooFast(Refused),
    /// Anything else.
    Control(ControlError),
}

impl From<ControlError> for CreateError {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl Sandboxes {
    /// Makes a sandbox; returns when it runs and its policy is enforced.
    ///
    /// # Errors
    /// Nothing of it is there then, or what is left is taken away as soon as that works.
    pub async fn create(
        self: &Arc<Self>,
        new: NewSandbox,
        owners: &Allowance,
        hosts: &Allowance,
    ) -> Result<(Record, Show), CreateError> {
        self.control.validate(new.policy.clone()).await?;
        let started_at = SystemTime::now();
        let NewSandbox { owner, template_id, metadata, env_vars, secure, timeout, policy } = new;
        let (record, gate) = self.admit(owners, hosts, |id| Record {
            version: VERSION,
            id,
            owner,
            template_id,
            metadata,
            secure,
            started_at,
            end_at: started_at + timeout,
            port: None,
        })?;
        let id = record.id.clone();
        // Should its interface go before it runs, that is heard of afterwards.
        let _turn = gate.lock().await;
        match self.make(record, env_vars, policy).await {
            Ok(made) => {
                self.table().run(&id);
                self.next_end.notify_one();
                Ok(made)
            }
            Err(error) => {
                self.take_back(&id).await;
                Err(error.into())
            }
        }
    }

    /// Takes a place, if there is one.
    fn admit(
        &self,
        owners: &Allowance,
        hosts: &Allowance,
        record: impl FnOnce(SandboxId) -> Record,
    ) -> Result<(Record, Gate), CreateError> {
        let mut table = self.table();
        let mut id = new_id()?;
        while table.knows(&id) {
            id = new_id()?;
        }
        let record = record(id);
        let there = [
            (owners.concurrent, table.count(&record.owner)),
            (hosts.concurrent, u32::try_from(table.len()).unwrap_or(u32::MAX)),
        ];
        for (limit, count) in there {
            if let Some(limit) = limit
                && count >= limit
            {
                return Err(CreateError::TooMany(limit));
            }
        }
        for rate in [&owners.rate, &hosts.rate].into_iter().flatten() {
            rate.check().map_err(CreateError::TooFast)?;
        }
        let gate = table.admit(record.clone());
        Ok((record, gate))
    }

    async fn make(
        self: &Arc<Self>,
        mut record: Record,
        env_vars: BTreeMap<String, String>,
        policy: Option<Value>,
    ) -> Result<(Record, Show), ControlError> {
        let id = record.id.clone();
        let reserved = self.provider.reserve(&id)?;
        if let Some(port) = &reserved {
            if !self.table().set_port(&id, port.clone()) {
                self.provider.release(port);
                return Err(of_another(&id, &format!("interface {}", port.iface)));
            }
            record.port = Some(port.clone());
        }
        // Written down first: should the daemon end now, the next one takes away what there is.
        self.save(record.clone()).await?;
        let order = Order {
            id: id.clone(),
            template_id: record.template_id.clone(),
            metadata: record.metadata.clone(),
            env_vars,
        };
        let port = self.provider.create(order, reserved).await?;
        if record.port.as_ref() != Some(&port) {
            // Not written down then, so that it is not taken away with this one.
            if !self.table().set_port(&id, port.clone()) {
                return Err(of_another(&id, &format!("interface {}", port.iface)));
            }
            record.port = Some(port.clone());
            self.save(record.clone()).await?;
        }
        let Port { iface, addrs, mac } = port.clone();
        let addrs = Addrs::list(addrs).map_err(ControlError::failed)?;
        let attached = self.control.attach(AttachRequest { id: id.clone(), iface, addrs, mac, policy }).await;
        let show = attached.map_err(|error| {
            if error.code == ErrorCode::Conflict { of_another(&id, &error.message) } else { error }
        })?;
        self.provider.start(port).await?;
        Ok((record, show))
    }
}

/// What the provider has made is not the new sandbox's alone. Whose else it is, is the operator's to know.
fn of_another(id: &SandboxId, what: &str) -> ControlError {
    tracing::error!(sandbox = %id, what, "the provider made what belongs to another sandbox");
    ControlError::failed("the provider made a sandbox with an interface or an address that another one has")
}

/// As E2B's look: an `i` and 19 letters or digits.
fn new_id() -> Result<SandboxId, ControlError> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    const LENGTH: usize = 19;
    let mut random = rand::rng();
    let letters = (0..LENGTH).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
    let id: String = std::iter::once('i').chain(letters).collect();
    id.parse().map_err(ControlError::failed)
}
