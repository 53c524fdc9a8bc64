//! `bench control`: what it takes to make sandboxes, change what they may reach and end them, by how many there are
//! already; and how much memory one takes that does nothing.
//!
//! Everything goes through the API, from connecting to the last byte of the answer, which comes when the policy is
//! enforced. Sandboxes are network namespaces of the daemon's own making; making the namespace and its wire is part
//! of the figures. For memory, interfaces that are there already are attached, so that it is the filter's alone.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::{Options, machine, report};

mod churn;
mod memory;
mod operations;
mod stand;
mod usage;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// How many sandboxes there are meanwhile
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100, 1_100])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000))]
    sandboxes: Vec<u32>,
    /// Make and end so many sandboxes before anything is measured, to see that nothing is left of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    churn: u32,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Making, updating, ending
    Operations,
    /// An idle sandbox
    Memory,
}

impl Args {
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures and prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    machine::warn_if_busy()?;
    let mut findings = vec![machine::describe(&[])?];
    println!("{}\n", findings.concat());
    let mut say = |finding: String| {
        println!("{finding}\n");
        findings.push(finding);
    };
    if args.churn > 0 {
        say(churn::run(args.churn, binary)?);
    }
    // First, while the kernel is not still clearing up behind others.
    if args.wants(Part::Memory) {
        say(memory::of_an_idle_sandbox(binary)?);
    }
    if args.wants(Part::Operations) {
        say(operations::by_number_of_sandboxes(&args.sandboxes, args.options.rounds(40), binary)?);
    }
    if let Some(path) = &args.options.write {
        report::replace(path, "control", &findings.join("\n\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The value that so many percent of all are below.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::NAN)
}
