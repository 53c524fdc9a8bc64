//! `learn`: everything is allowed for a while, and what was done becomes a policy.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    args::{LearnArgs, LearnFormat},
    output::{Human, Printer, Style},
};
use crate::{
    client::{self, Client},
    error::ControlError,
    learn::Learned,
};

/// Within this the last events have come.
const LAST: Duration = Duration::from_millis(500);

/// What is printed: the policy in either format, or both as JSON.
#[derive(Serialize)]
struct Written {
    policy: Value,
    remarks: Vec<String>,
    #[serde(skip)]
    text: String,
}

/// Learns for as long as it was asked to, or until interrupted; the sandbox has its own policy again then.
///
/// # Errors
/// When the daemon refuses or goes away.
pub fn learn(args: &LearnArgs, client: &Client, printer: &Printer) -> Result<ExitCode, ControlError> {
    let mut learned = Learned::default();
    client::runtime()?.block_on(listen(args, client, &mut learned))?;
    let text = match args.format {
        LearnFormat::Toml => learned.toml(),
        LearnFormat::Yaml => learned.yaml(),
    };
    printer.print(&Written { policy: learned.policy(), remarks: learned.remarks(), text })
}

async fn listen(args: &LearnArgs, client: &Client, learned: &mut Learned) -> Result<(), ControlError> {
    let failed = |error| ControlError::failed(format!("cannot wait for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    if io::stderr().is_terminal() {
        let _ = writeln!(
            io::stderr(),
            "{} is allowed everything; Ctrl-C puts its policy in force again",
            args.id
        );
    }
    let mut ended = Ok(());
    let stop = async {
        let time = async {
            match args.time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        ended = client.end_learning(&args.id).await;
        sleep(LAST).await;
    };
    client.learn(&args.id, |told| learned.take(&told), stop).await?;
    ended
}

impl Human for Written {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        out.write_all(self.text.as_bytes())
    }
}
