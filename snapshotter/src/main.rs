//! `xebec-snapshotter`: parses the command line and runs the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    xebec_snapshotter::cli::main()
}
