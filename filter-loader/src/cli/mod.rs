//! The command line: reads it, asks the daemon or does the work itself, prints what came of it.
//!
//! [`args`] is the grammar, [`policy`] turns flags and files into a policy document, [`check`] is the
//! one command with work of its own, [`output`] prints documents as JSON or as tables, and `wiring`
//! is where commands reach into the kernel-facing half of the crate.

pub mod args;
pub mod check;
pub mod output;
pub mod policy;
pub mod table;
mod wiring;

mod views;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};
use serde_json::Value;

use self::{
    args::{AttachArgs, CaCommand, Cli, Command, SocketArgs, UpdateArgs},
    output::{Detached, Printer, Rotated},
};
use crate::{client::Client, config::Config, error::ControlError, protocol::AttachRequest};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

/// Runs a command line, the program's name first.
pub fn run(args: Vec<OsString>) -> ExitCode {
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let printer = Printer::new(cli.output.is_json());
            dispatch(cli, &printer).unwrap_or_else(|error| printer.error(&error))
        }
        Err(error) => refuse(&error, &args),
    }
}

/// Help and version, which clap reports as errors too, and errors in its grammar.
fn refuse(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let is_help = !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help {
        // Nobody is left to tell when the terminal is gone.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    Printer::new(args::asks_for_json(args)).error(&ControlError::usage(one_line(error)))
}

/// What clap says, without the usage that it adds.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or(&text);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let words: Vec<_> = said.trim_start_matches("error:").split_whitespace().collect();
    format!("{}; --help shows what is possible", words.join(" "))
}

fn dispatch(cli: Cli, printer: &Printer) -> Result<ExitCode, ControlError> {
    let config = || Config::load(cli.config.as_deref()).map_err(ControlError::from);
    let client = |socket: SocketArgs| -> Result<Client, ControlError> {
        match socket.socket {
            Some(path) => Ok(Client::new(path)),
            None => Ok(Client::new(config()?.paths.socket)),
        }
    };
    match cli.command {
        Command::Run => wiring::run(config()?),
        Command::Attach(args) => {
            let socket = args.socket.clone();
            let request = attach_request(args)?;
            let mut attached = client(socket)?.attach(&request)?;
            if !printer.is_json() {
                // On a terminal they would be read over a shoulder; `show --tokens` has them.
                attached.tokens = None;
            }
            printer.print(&attached)
        }
        Command::Update(args) => {
            let (id, socket) = (args.id.clone(), args.socket.clone());
            let policy = new_policy(args)?;
            printer.print(&client(socket)?.update(&id, &policy)?)
        }
        Command::Detach(args) => {
            client(args.socket)?.detach(&args.id)?;
            printer.print(&Detached { id: args.id, detached: true })
        }
        Command::List(socket) => printer.print(&client(socket)?.list()?),
        Command::Show(args) => printer.print(&client(args.id.socket)?.show(&args.id.id, args.tokens)?),
        Command::Stats(args) => printer.print(&client(args.socket)?.stats(args.id.as_ref())?),
        Command::RotateTokens(socket) => {
            client(socket)?.rotate_tokens()?;
            printer.print(&Rotated { rotated: true })
        }
        Command::Check(args) => printer.print(&check::check(&args, &config()?)?),
        Command::Ca(CaCommand::Export(socket)) => printer.print(&client(socket)?.authority()?),
        Command::Ca(CaCommand::Rotate(socket)) => printer.print(&client(socket)?.rotate_authority()?),
        Command::Doctor(socket) => {
            let config = config()?;
            let path = socket.socket.unwrap_or_else(|| config.paths.socket.clone());
            wiring::doctor(&config, &Client::new(path), printer)
        }
        Command::Cleanup(args) => wiring::cleanup(&config()?, args.force, printer),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "sandbox-filter", &mut script);
            printer.raw(&script)
        }
        Command::Man(args) => printer.raw(&manual(args.command.as_deref())?),
    }
}

fn attach_request(args: AttachArgs) -> Result<AttachRequest, ControlError> {
    let policy = args.policy.document()?;
    let addrs = args::Addr::collect(args.addrs).map_err(ControlError::usage)?;
    Ok(AttachRequest { id: args.id, iface: args.iface, addrs, mac: args.mac, policy })
}

fn new_policy(args: UpdateArgs) -> Result<Value, ControlError> {
    let policy = if args.clear { Some(serde_json::json!({})) } else { args.policy.document()? };
    let Some(policy) = policy else {
        return Err(ControlError::usage(
            "an update needs a policy: name a file with --policy, or rules with flags such as --deny-out; \
             --clear is the empty policy",
        ));
    };
    policy::refuse_fixed(&policy)?;
    Ok(policy)
}

/// The manual page of the program or of one of its commands.
fn manual(command: Option<&str>) -> Result<Vec<u8>, ControlError> {
    let mut root = Cli::command();
    root.build();
    let page = match command {
        None => root,
        Some(name) => root.find_subcommand(name).cloned().ok_or_else(|| {
            ControlError::usage(format!("no command `{name}`; `sandbox-filter --help` lists them"))
        })?,
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut roff)
        .map_err(|error| ControlError::failed(format!("the manual cannot be written: {error}")))?;
    Ok(roff)
}
