//! `sandbox-filter`: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    filter_loader::cli::main()
}
