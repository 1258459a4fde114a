//! The command line: one file a command, each a screen over the library.

mod activation;
mod checkpoint;
mod checkpoint_images;
mod clone;
mod commands;
mod create;
mod criu;
mod delete;
mod duration;
mod events;
mod exec;
mod export;
mod features;
mod foreground;
mod generate;
mod globals;
mod import;
mod keeping;
mod kept;
mod kill;
mod list;
mod log;
mod metrics;
mod mounts;
mod notify;
mod page_server;
mod pause;
mod ps;
mod restore;
mod run;
mod signals;
mod size;
mod snapshotter;
mod spec;
mod spelling;
mod start;
mod state;
mod stored;
mod template;
mod template_images;
mod template_record;
mod update;
mod usage;

use std::env;

use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser};
use xebec_runtime::{ContainerId, Error, Result, Runtime};

use commands::Command;
use globals::Globals;
use log::Log;

const EXAMPLES: &str = "\
Examples:
  xebec spec                                write a config.json to start from
  xebec run --bundle /bundles/web web       create, start and wait for a container
  xebec create --bundle /bundles/web web    … or in two steps
  xebec start web
  xebec exec -t web sh                      a further process in it
  xebec delete --force web                  end it and remove what it left";

/// An OCI runtime, command-line compatible with runc.
#[derive(Debug, Parser)]
#[command(name = "xebec", version, disable_version_flag = true, args_override_self = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// What every command works with.
struct Context {
    runtime: Runtime,
    log: Log,
}

impl Context {
    /// The container of this name or, for a regular expression, every one that it matches.
    fn select(&self, name: &str, is_regex: bool) -> Result<Vec<ContainerId>> {
        if is_regex {
            self.runtime.matching(name)
        } else {
            Ok(vec![name.parse()?])
        }
    }
}

/// Commands that make a process in a container.
const LAUNCHING: [&str; 3] = ["create", "exec", "run"];

/// Parses the command line and carries it out.
pub(crate) fn main() -> u8 {
    // CRIU has found a link to this program.
    if env::args_os().next().is_some_and(|name| name == "tar") {
        return xebec_runtime::stand_in_for_tar();
    }
    // Before the command line is parsed, which would be done twice otherwise. A launching command's
    // name as the value of another's option costs an execution, and no more.
    let launches = |word: std::ffi::OsString| LAUNCHING.iter().any(|name| word == *name);
    if env::args_os().skip(1).any(launches)
        && let Err(e) = xebec_runtime::protect_own_binary()
    {
        return fail(&Log::to_stderr(), &e, ("", 1));
    }
    let (globals, command) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return usage::answer(&error),
    };
    let failure = command.failure();
    if let Err(e) = command.reserve_preserved() {
        return fail(&Log::to_stderr(), &e, failure);
    }
    let log = match globals.open_log() {
        Ok(log) => log,
        Err(e) => return fail(&Log::to_stderr(), &e, ("", 1)),
    };
    match command.carry_out(globals, &log) {
        Ok(code) => code,
        Err(e) => fail(&log, &e, failure),
    }
}

fn parse() -> clap::error::Result<(Globals, Command)> {
    // Nearly always it will do to define the command that is named. Whatever this cannot make sense
    // of, a request for help among it, is looked at again with everything defined.
    let named = env::args_os()
        .skip(1)
        .find_map(|word| Command::definition(word.to_str()?));
    if let Some(command) = named
        && let Ok(parsed) = parse_only(command)
    {
        return Ok(parsed);
    }
    let parsed = Cli::try_parse().or_else(|error| {
        let respelled = spelling::from_go(&Cli::command(), env::args_os());
        Cli::try_parse_from(respelled).map_err(|_| error)
    });
    parsed.map(|cli| (cli.globals, cli.command))
}

fn parse_only(command: clap::Command) -> clap::error::Result<(Globals, Command)> {
    let matches = Globals::augment_args(clap::Command::new("xebec"))
        .subcommand(command)
        .disable_help_subcommand(true)
        .try_get_matches()?;
    Ok((
        Globals::from_arg_matches(&matches)?,
        Command::from_arg_matches(&matches)?,
    ))
}

fn fail(log: &Log, error: &Error, (introduction, code): (&str, u8)) -> u8 {
    let reason = error.to_string();
    // Some of the library's errors have the introduction that every client expects.
    let reason = reason.strip_prefix(introduction).unwrap_or(&reason);
    log.fatal(&format!("{introduction}{reason}"));
    code
}
