//! Command lines that cannot be used, and those that ask for help.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};

use super::globals::Globals;

/// Exit code of runc for a command that it does not have.
const NO_SUCH_COMMAND: u8 = 3;

/// Prints what the parser has to say; help and version go to stdout and are no failure.
pub(super) fn answer(error: &clap::Error) -> u8 {
    let code = match error.kind() {
        ErrorKind::DisplayHelp => 0,
        ErrorKind::DisplayVersion => return print_version(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A stdout that is closed is no reason to fail.
            let _ = super::Cli::command().print_help();
            return 0;
        }
        ErrorKind::InvalidSubcommand => {
            if let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) {
                eprintln!("No help topic for '{name}'");
            }
            NO_SUCH_COMMAND
        }
        _ => 1,
    };
    if code != 0 {
        record(error);
    }
    let _ = error.print();
    code
}

/// Logs the error where the readable part of the command line says, for those who read nothing else.
fn record(error: &clap::Error) {
    let globals = super::Cli::command()
        .ignore_errors(true)
        .try_get_matches()
        .and_then(|matches| Globals::from_arg_matches(&matches));
    let Ok(Ok(log)) = globals.map(|globals| globals.open_log()) else {
        return;
    };
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default();
    log.record(reason.strip_prefix("error: ").unwrap_or(reason));
}

/// The lines that clients look for: name and version, commit, the newest specification.
fn print_version() -> u8 {
    let commit = option_env!("XEBEC_COMMIT").filter(|commit| !commit.is_empty());
    let text = format!(
        "xebec version {}\ncommit: {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        commit.unwrap_or("unknown"),
        xebec_runtime::SPEC_VERSION
    );
    match super::list::print(&text) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}
