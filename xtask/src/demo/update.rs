//! Second act: the policy changes while transfers run. The one that it no longer allows is cut, the other goes on.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Findings;
use super::paint::{Style, line, say, title};
use super::stage::{ALPHA, MIRROR, SHOP, Stage, alpha_policy};
use super::transfer::Transfer;

/// One column.
const TICK: Duration = Duration::from_millis(100);
const BEFORE: usize = 5;
const AFTER: usize = 8;

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("2. A policy update under two running transfers of alpha (kB in every 100 ms)");
    let transfers = [Transfer::start(&stage.alpha, SHOP)?, Transfer::start(&stage.alpha, MIRROR)?];
    let mut samples: [Vec<u64>; 2] = Default::default();
    let mut sample = |times| {
        for _ in 0..times {
            sleep(TICK);
            for (transfer, samples) in transfers.iter().zip(&mut samples) {
                samples.push(transfer.take());
            }
        }
    };

    sample(BEFORE);
    let narrow = json!({ "allowOut": [format!("{SHOP}/32")], "denyOut": ["0.0.0.0/0"] });
    let start = Instant::now();
    stage.daemon.update(ALPHA, &narrow)?;
    let updated = start.elapsed();
    sample(AFTER);

    say(Style::Faint, &format!("  {:<16}{:<w$}│ allowOut: [\"{SHOP}/32\"]", "", "before", w = BEFORE * 6));
    for (transfer, samples) in transfers.iter().zip(&samples) {
        let (before, after) = samples.split_at(BEFORE);
        line(&[
            (Style::Plain, format!("  {:<16}", transfer.from.to_string())),
            (Style::Good, columns(before)),
            (Style::Plain, "│".into()),
            (if transfer.end().is_none() { Style::Good } else { Style::Denied }, columns(after)),
            (Style::Plain, ending(transfer, start)),
        ]);
    }
    say(Style::Plain, &format!("  `update` took {:.0} ms until enforced.", updated.as_secs_f64() * 1000.0));

    let [kept, cut] = &transfers;
    findings.expect(
        kept.end().is_none() && samples.iter().take(1).flatten().all(|bytes| *bytes > 0),
        "the transfer that is still allowed stopped",
    );
    let in_time =
        cut.end().is_some_and(|(when, _)| when.duration_since(start) < Duration::from_secs(1) + updated);
    findings.expect(in_time, "the transfer that is no longer allowed was not cut within a second");
    let reset = |how: &std::io::Result<()>| {
        how.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    };
    findings.expect(cut.end().is_none_or(|(_, how)| reset(how)), "the transfer that was cut saw no reset");

    drop(transfers);
    stage.daemon.update(ALPHA, &alpha_policy())
}

fn columns(samples: &[u64]) -> String {
    samples.iter().map(|bytes| format!("{:>5} ", bytes / 1000)).collect()
}

fn ending(transfer: &Transfer, start: Instant) -> String {
    match transfer.end() {
        None => "goes on".into(),
        Some((when, how)) => {
            let error = how.as_ref().err().and_then(std::io::Error::raw_os_error);
            let name =
                error.map_or("the end".into(), |number| format!("{:?}", nix::errno::Errno::from_raw(number)));
            format!("{name} after {:.0} ms", when.saturating_duration_since(start).as_secs_f64() * 1000.0)
        }
    }
}
