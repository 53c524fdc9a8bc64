//! Third act: the limit on concurrent connections, to the connection.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Findings;
use super::paint::{Style, line, say, title};
use super::stage::{ALPHA, ECHO, MIRROR, PATIENCE, SHOP, Stage};

const LIMIT: usize = 2500;

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("3. The limit: 2,500 concurrent connections");
    wait_for_active(stage, 0).context("the connections of the acts before")?;
    let before = stage.echo.connections();

    let start = Instant::now();
    let mut held: Vec<TcpStream> = Vec::with_capacity(LIMIT);
    while held.len() < LIMIT {
        match stage.alpha.tcp_connect((SHOP, ECHO), PATIENCE).result {
            Ok(stream) => held.push(stream),
            Err(error) => {
                let what = format!("after {} of {LIMIT} connections of alpha: {error}", held.len());
                say(Style::Bad, &format!("  ? {what}"));
                findings.expect(false, what);
                return Ok(());
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    say(Style::Good, &format!("  ✓ alpha opened 2,500 in {took:.2} s"));

    // To an address that none of the others went to, so that its packets can be told apart.
    let one_more = stage.alpha.tcp_connect((MIRROR, ECHO), PATIENCE);
    let arrived = stage.internet.tcp_frames_to((MIRROR, ECHO))?;
    let seen = match one_more.errno() {
        Some(errno) => format!("{errno:?}"),
        None if one_more.is_ok() => "connected".into(),
        None => "silence".into(),
    };
    let refused = seen == "ECONNREFUSED" && arrived == 0;
    let ms = one_more.took.as_secs_f64() * 1000.0;
    line(&[
        (if refused { Style::Denied } else { Style::Bad }, format!("  ✗ the 2,501st: {seen} in {ms:.2} ms")),
        (Style::Faint, format!(", {arrived} packets arrived")),
    ]);
    findings.expect(refused, format!("the 2,501st connection: {seen}, {arrived} packets arrived"));
    let reached = stage.echo.connections() - before;
    findings.expect(reached == LIMIT as u64, format!("the server saw {reached} connections, not {LIMIT}"));

    let other = stage.beta.tcp_connect((SHOP, ECHO), PATIENCE);
    findings.expect(other.is_ok(), "beta could not connect while alpha was at its limit");
    drop(held.pop());
    wait_for_active(stage, LIMIT as u64 - 1).context("after one of them was closed")?;
    let again = stage.alpha.tcp_connect((SHOP, ECHO), PATIENCE);
    findings.expect(again.is_ok(), "alpha could not connect after it had closed one");
    if other.is_ok() && again.is_ok() {
        say(Style::Good, "  ✓ beta still connects, and alpha does again after it has closed one");
    }

    drop((held, again));
    match wait_for_active(stage, 0) {
        Ok(()) => say(Style::Good, "  ✓ all closed: alpha's count is 0 again"),
        Err(error) => findings.expect(false, format!("{error:#}")),
    }
    Ok(())
}

fn wait_for_active(stage: &Stage, wanted: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let show = stage.daemon.show(ALPHA)?;
        let active = show.pointer("/connections/active").and_then(Value::as_u64);
        if active == Some(wanted) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("alpha should have {wanted} connections, `show` says {}", show["connections"]);
        }
        sleep(Duration::from_millis(50));
    }
}
