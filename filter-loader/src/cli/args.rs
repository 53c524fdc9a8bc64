//! The grammar of the command line.

use std::{ffi::OsString, net::IpAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::policy::PolicyArgs;
use crate::protocol::{Addrs, Mac, SandboxId};

/// Decides what sandboxes may reach: a filter in the kernel on the interface of each.
#[derive(Parser, Debug)]
#[command(name = "sandbox-filter", version, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: /etc/sandbox-filter/config.toml, which may be missing]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How results are printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Args, Debug)]
pub struct OutputArgs {
    /// Print JSON, errors too; the same as -o json
    #[arg(long, global = true)]
    json: bool,
    /// How to print results
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    output: OutputFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

impl OutputArgs {
    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json || self.output == OutputFormat::Json
    }
}

/// Whether a command line that is not understood asks for JSON, so that its error is one too.
pub(super) fn asks_for_json(args: &[OsString]) -> bool {
    let args: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let is_flag = |arg: &&str| matches!(*arg, "--json" | "-ojson" | "-o=json" | "--output=json");
    args.iter().any(is_flag) || args.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the daemon in the foreground; it logs to stderr
    Run,
    /// Filter an interface from now on
    Attach(AttachArgs),
    /// Replace the policy of a sandbox
    Update(UpdateArgs),
    /// Take the filter off; the interface is unfiltered then
    Detach(IdArgs),
    /// List the sandboxes
    List(SocketArgs),
    /// Show a sandbox: its identity, its policy and its counters
    Show(ShowArgs),
    /// Show the numbers of a sandbox, or of all
    Stats(StatsArgs),
    /// Make all tokens of public URLs and controllers invalid; `show --tokens` has the new ones
    RotateTokens(SocketArgs),
    /// Validate a policy and print its compiled form; needs no daemon and no privileges
    Check(CheckArgs),
    /// The authority that sandboxes must trust where headers are set in their requests
    #[command(subcommand)]
    Ca(CaCommand),
    /// Examine the kernel, the privileges, and what is attached and enforced
    Doctor(SocketArgs),
    /// Remove every program, map, rule and route of the filter from this host
    Cleanup(CleanupArgs),
    /// Print the completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page of the program, or of one command
    Man(ManArgs),
}

/// Which daemon is asked.
#[derive(Args, Clone, Debug)]
pub struct SocketArgs {
    /// Control socket of the daemon [default: the configured one]
    #[arg(long, value_name = "PATH", env = "SANDBOX_FILTER_SOCKET")]
    pub socket: Option<PathBuf>,
}

/// `attach`
#[derive(Args, Debug)]
pub struct AttachArgs {
    /// Name of the sandbox: 1 to 63 of a-z and 0-9, with - and _ inside
    pub id: SandboxId,
    /// The sandbox's interface on this host
    #[arg(long)]
    pub iface: String,
    /// An address that the sandbox may use, or `any` for no check [default: as routes and neighbours say]
    #[arg(long = "addr", value_name = "IP", value_delimiter = ',')]
    pub addrs: Vec<Addr>,
    /// The MAC that the sandbox may use
    #[arg(long)]
    pub mac: Option<Mac>,
    /// Its policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Which daemon is asked.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// `update`
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// Name of the sandbox
    pub id: SandboxId,
    /// The empty policy, which clears every field
    #[arg(long, conflicts_with = "PolicyArgs")]
    pub clear: bool,
    /// The new policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Which daemon is asked.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Commands about one sandbox.
#[derive(Args, Debug)]
pub struct IdArgs {
    /// Name of the sandbox
    pub id: SandboxId,
    /// Which daemon is asked.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// `show`
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Which one.
    #[command(flatten)]
    pub id: IdArgs,
    /// Show its secrets too: the tokens of its public URLs and of the controller inside
    #[arg(long)]
    pub tokens: bool,
}

/// `stats`
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Name of the sandbox [default: all]
    pub id: Option<SandboxId>,
    /// Which daemon is asked.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// `check`
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Policy file; the same as --policy
    #[arg(conflicts_with = "PolicyArgs")]
    pub file: Option<PathBuf>,
    /// The policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `ca`
#[derive(Subcommand, Debug)]
pub enum CaCommand {
    /// Print its certificate, as PEM
    Export(SocketArgs),
    /// Replace it by a new one, and print that one's certificate; sandboxes must be given it
    Rotate(SocketArgs),
}

/// `cleanup`
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Even while sandboxes are attached
    #[arg(long)]
    pub force: bool,
}

/// `completions`
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Which command
    pub command: Option<String>,
}

/// A value of `--addr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addr {
    /// `any`
    Any,
    /// An address.
    Ip(IpAddr),
}

impl Addr {
    /// What all values together say.
    ///
    /// # Errors
    /// When `any` stands beside an address, or an address is not possible.
    pub fn collect(values: Vec<Self>) -> Result<Addrs, String> {
        if values.is_empty() {
            return Ok(Addrs::Learn);
        }
        if values.iter().all(|value| *value == Self::Any) {
            return Ok(Addrs::Any);
        }
        let addrs: Option<Vec<IpAddr>> = values.into_iter().map(Self::ip).collect();
        Addrs::list(addrs.ok_or("`--addr any` checks no address; leave the others out")?)
    }

    fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Any => None,
            Self::Ip(addr) => Some(addr),
        }
    }
}

impl FromStr for Addr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" {
            return Ok(Self::Any);
        }
        text.parse().map(Self::Ip).map_err(|_| "expected an IP address, or `any`".to_owned())
    }
}
