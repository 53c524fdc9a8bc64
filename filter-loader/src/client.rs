//! The client of the control socket, as commands use it: one request, one answer, blocking.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, runtime, time::timeout};

use crate::{
    api::error::Refusal,
    error::ControlError,
    protocol::{AttachRequest, Authority, MAX_DOCUMENT, SandboxId, Show, Stats, Summary},
};

/// How long an answer may take: putting a policy with a million prefixes in force takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the daemon is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the daemon at this socket; it connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: PATIENCE }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Filters an interface from now on.
    ///
    /// # Errors
    /// As every method here: [`ErrorCode::Unreachable`](crate::error::ErrorCode::Unreachable) when nobody
    /// listens; otherwise what the daemon answers, or that it did not.
    pub fn attach(&self, request: &AttachRequest) -> Result<Show, ControlError> {
        self.ask(Method::POST, "/v1/attachments", Some(request))
    }

    /// Replaces a policy.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn update(&self, id: &SandboxId, policy: &Value) -> Result<Show, ControlError> {
        self.ask(Method::PUT, &format!("/v1/attachments/{id}/policy"), Some(policy))
    }

    /// Takes the filter off.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn detach(&self, id: &SandboxId) -> Result<(), ControlError> {
        self.send(Method::DELETE, &format!("/v1/attachments/{id}"), Bytes::new()).map(drop)
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn list(&self) -> Result<Vec<Summary>, ControlError> {
        self.ask(Method::GET, "/v1/attachments", None::<&()>)
    }

    /// One sandbox, with its secrets if they are wanted.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn show(&self, id: &SandboxId, with_tokens: bool) -> Result<Show, ControlError> {
        self.ask(Method::GET, &format!("/v1/attachments/{id}?tokens={with_tokens}"), None::<&()>)
    }

    /// The numbers of one sandbox, or of all.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn stats(&self, id: Option<&SandboxId>) -> Result<Stats, ControlError> {
        let query = id.map(|id| format!("?id={id}")).unwrap_or_default();
        self.ask(Method::GET, &format!("/v1/stats{query}"), None::<&()>)
    }

    /// Makes every token of before invalid.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn rotate_tokens(&self) -> Result<(), ControlError> {
        self.send(Method::POST, "/v1/tokens/rotate", Bytes::new()).map(drop)
    }

    /// What the daemon finds of its own health.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn doctor(&self) -> Result<Value, ControlError> {
        self.ask(Method::GET, "/v1/doctor", None::<&()>)
    }

    /// The authority that sandboxes must trust where headers are set.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn authority(&self) -> Result<Authority, ControlError> {
        self.ask(Method::GET, "/v1/ca", None::<&()>)
    }

    /// Puts a new one in its place.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn rotate_authority(&self) -> Result<Authority, ControlError> {
        self.ask(Method::POST, "/v1/ca/rotate", None::<&()>)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ControlError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| {
                ControlError::failed(format!("the request cannot be written as JSON: {error}"))
            })?,
            None => Vec::new(),
        };
        if body.len() > MAX_DOCUMENT {
            let message = format!("the request is longer than {} MiB; split the policy", MAX_DOCUMENT >> 20);
            return Err(ControlError::usage(message));
        }
        let answer = self.send(method, path, body.into())?;
        serde_json::from_slice(&answer).map_err(strange)
    }

    fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ControlError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ControlError::failed(format!("cannot talk to the daemon: {error}")))?;
        let (status, answer) = runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
            match timeout(self.patience, exchange(stream, method, path, body)).await {
                Ok(answer) => answer.map_err(|error| interrupted(&error)),
                Err(_) => Err(self.too_late()),
            }
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        let refusal: Refusal = serde_json::from_slice(&answer).map_err(strange)?;
        let plain =
            if status == StatusCode::BAD_REQUEST { ControlError::usage } else { ControlError::failed };
        Err(refusal.error.unwrap_or_else(|| plain(refusal.message)))
    }

    fn unreachable(&self, error: &io::Error) -> ControlError {
        let socket = self.socket.display();
        let message = if error.kind() == io::ErrorKind::PermissionDenied {
            format!("no permission to open {socket}; run this as the user that the daemon runs as")
        } else {
            format!(
                "no daemon answers at {socket} ({error}); start it with `sandbox-filter run`, or name its \
                 socket with --socket"
            )
        };
        ControlError::unreachable(message)
    }

    fn too_late(&self) -> ControlError {
        ControlError::failed(format!(
            "the daemon did not answer within {}; `sandbox-filter show` says whether it did what was asked",
            humantime::format_duration(self.patience)
        ))
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "sandbox-filter")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    drop(sender);
    connection.abort();
    Ok((status, answer))
}

fn interrupted(error: &dyn Display) -> ControlError {
    ControlError::failed(format!("the connection to the daemon broke: {error}; its log says why"))
}

fn strange(error: serde_json::Error) -> ControlError {
    ControlError::failed(format!(
        "the daemon's answer cannot be understood ({error}); use a client and a daemon of the same release"
    ))
}
