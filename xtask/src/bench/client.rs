//! The daemon's own routes on its control socket, timed.
//!
//! The product's own client is not used: xtask would then need the kernel programs to be built before it can
//! build them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use filter_tests::{Api, ApiRequest};
use serde_json::Value;

/// The daemon's own routes.
pub const ATTACHMENTS: &str = "/v1/attachments";

/// A request that is ready to be sent, so that writing it as JSON is not measured.
pub fn prepare(method: &str, path: &str, body: Option<&Value>) -> ApiRequest {
    // On the control socket nothing of it depends on where that is.
    Api::on("").request(method, path, body)
}

/// The request that replaces a policy.
pub fn update(id: &str, policy: &Value) -> ApiRequest {
    prepare("PUT", &format!("{ATTACHMENTS}/{id}/policy"), Some(policy))
}

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub struct Control(Api);

impl Control {
    /// A daemon's control socket.
    pub fn new(socket: PathBuf) -> Self {
        Self(Api::on(socket))
    }

    /// Asks, and gives what is answered.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.0.ask(method, path, body)?.success()
    }

    /// Asks, and says how long it took from connecting to the last byte of the answer.
    pub fn time(&self, request: &ApiRequest) -> Result<Duration> {
        let answer = self.0.send(request)?;
        let took = answer.took;
        answer.success()?;
        Ok(took)
    }
}
