//! Repositories over HTTP: what `git http-backend`, a CGI program (RFC 3875), says.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Shared, whole};
use crate::workers::lock;

/// Answers a request for a repository.
pub async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    ask(&shared, request)
        .await
        .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response())
}

async fn ask(shared: &Shared, request: Request) -> Result<Response> {
    let (head, body) = request.into_parts();
    let body = whole(body).await?;
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &*lock(&shared.repositories))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        // Somebody has to be there for a push to be taken.
        .env("REMOTE_USER", "somebody")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path().trim_start_matches("/git"))
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_LENGTH", body.len().to_string());
    for (variable, name) in [
        ("CONTENT_TYPE", header::CONTENT_TYPE.as_str()),
        ("HTTP_CONTENT_ENCODING", header::CONTENT_ENCODING.as_str()),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = head.headers.get(name) {
            command.env(variable, value.to_str()?);
        }
    }
    let mut backend = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start git")?;
    let mut stdin = backend.stdin.take().context("no standard input")?;
    let feeding = tokio::spawn(async move {
        // A backend that has heard enough reads no more.
        let _ = stdin.write_all(&body).await;
    });
    let output = backend.wait_with_output().await?;
    feeding.await?;
    ensure!(output.status.success(), "git http-backend ended with {}", output.status);
    answer(&output.stdout)
}

/// What a CGI program prints: a head, in which `Status` is the status, and a body (RFC 3875 section 6).
fn answer(printed: &[u8]) -> Result<Response> {
    let end = printed.windows(4).position(|window| window == b"\r\n\r\n").context("no head")?;
    let (head, body) = printed.split_at(end + 4);
    let mut status = StatusCode::OK;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(head)?.lines() {
        match line.split_once(": ") {
            Some(("Status", code)) => status = code.get(..3).unwrap_or_default().parse()?,
            Some((name, value)) => {
                headers.insert(name.parse::<header::HeaderName>()?, value.parse()?);
            }
            None => {}
        }
    }
    Ok((status, headers, body.to_vec()).into_response())
}
