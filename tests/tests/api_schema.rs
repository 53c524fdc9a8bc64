//! What the API says of itself, held against what it does: schemathesis makes requests out of the description.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod api_common;

use std::process::Stdio;

use anyhow::Result;
use api_common::{API, KEY, Stand};
use filter_tests::python;

/// What is checked of every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth";

#[test]
fn the_api_does_what_it_says() -> Result<()> {
    let home = python("schemathesis-4.32.5", &["schemathesis==4.32.5"])?;
    let stand = Stand::new()?;
    let mut command = stand.topology.host().command(home.join("bin/schemathesis"))?;
    command
        .current_dir(stand.daemon.state_dir())
        .args(["run", &format!("http://{API}/openapi.json"), "--checks", CHECKS])
        .args(["-H", &format!("X-API-Key: {KEY}"), "--max-examples", "12", "--seed", "1"])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "20",
            "--no-color",
            "--max-time",
            "40",
        ])
        .args(["--generation-database", "none", "--suppress-health-check", "all"])
        .stdin(Stdio::null());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(said.contains("passed"), "{said}");
    Ok(())
}
