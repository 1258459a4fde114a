//! Entry point: see [`integration::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::cli::main()
}
