//! The command line: one file a command, each a screen over the library.

mod create;
mod delete;
mod duration;
mod events;
mod exec;
mod features;
mod foreground;
mod generate;
mod globals;
mod kill;
mod list;
mod log;
mod metrics;
mod pause;
mod ps;
mod run;
mod signals;
mod size;
mod spec;
mod start;
mod state;
mod update;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xebec_runtime::{ContainerId, Error, Result, Runtime};

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
#[command(name = "xebec", version, disable_version_flag = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container; its process waits for `start`
    Create(create::Create),
    /// Delete a stopped container, or any with --force
    Delete(delete::Delete),
    /// Print statistics and out-of-memory kills of a container, as JSON
    Events(events::Events),
    /// Run a further process in a running container
    Exec(Box<exec::Exec>),
    /// Print what this runtime supports, as JSON
    Features(features::Features),
    /// Send a signal to a container
    Kill(kill::Kill),
    /// List containers
    List(list::List),
    /// Freeze all processes of a container
    Pause(pause::Pause),
    /// List the processes of a container
    Ps(ps::Ps),
    /// Thaw a paused container
    Resume(pause::Resume),
    /// Create and start a container, and wait for its end
    Run(run::Run),
    /// Write a config.json to start from
    Spec(spec::SpecCommand),
    /// Start a created container's process
    Start(start::Start),
    /// Print a container's state, as JSON
    State(state::State),
    /// Change the limits of a container
    Update(Box<update::Update>),
    #[command(flatten)]
    Generate(generate::Generate),
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
pub(crate) fn main() -> ExitCode {
    // Before the command line is parsed, which would be done twice otherwise. A launching command's
    // name as the value of another's option costs an execution, and no more.
    let launches = |word: std::ffi::OsString| LAUNCHING.iter().any(|name| word == *name);
    if std::env::args_os().skip(1).any(launches)
        && let Err(e) = xebec_runtime::protect_own_binary()
    {
        return fail(&Log::to_stderr(), &e, ("", 1));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    let failure = cli.command.failure();
    if let Err(e) = cli.command.check_preserved() {
        return fail(&Log::to_stderr(), &e, failure);
    }
    let log = match cli.globals.open_log() {
        Ok(log) => log,
        Err(e) => return fail(&Log::to_stderr(), &e, ("", 1)),
    };
    match cli.command.carry_out(cli.globals, &log) {
        Ok(code) => ExitCode::from(code),
        Err(e) => fail(&log, &e, failure),
    }
}

fn fail(log: &Log, error: &Error, (introduction, code): (&str, u8)) -> ExitCode {
    let reason = error.to_string();
    // Some of the library's errors have the introduction that every client expects.
    let reason = reason.strip_prefix(introduction).unwrap_or(&reason);
    log.fatal(&format!("{introduction}{reason}"));
    ExitCode::from(code)
}

impl Command {
    /// What introduces a failure that is the runtime's own, not the container's, and its exit
    /// code: as runc has them.
    fn failure(&self) -> (&'static str, u8) {
        match self {
            Self::Create(_) => ("xebec create failed: ", 1),
            Self::Run(_) => ("xebec run failed: ", 1),
            Self::Exec(_) => ("exec failed: ", 255),
            _ => ("", 1),
        }
    }

    /// Descriptors to be passed on must be there before this process opens any of its own.
    fn check_preserved(&self) -> Result<()> {
        let count = match self {
            Self::Create(create::Create { creation, .. })
            | Self::Run(run::Run { creation, .. }) => creation.preserve_fds,
            Self::Exec(exec) => exec.preserve_fds,
            _ => 0,
        };
        xebec_runtime::check_preserved(count)
    }

    fn carry_out(self, globals: Globals, log: &Log) -> Result<u8> {
        let open = || -> Result<Context> {
            Ok(Context {
                runtime: globals.open_runtime()?,
                log: log.clone(),
            })
        };
        match self {
            Self::Create(command) => command.carry_out(&open()?),
            Self::Delete(command) => command.carry_out(&open()?),
            Self::Events(command) => command.carry_out(&open()?),
            Self::Exec(command) => command.carry_out(&open()?),
            Self::Features(command) => command.carry_out(),
            Self::Generate(command) => command.carry_out(),
            Self::Kill(command) => command.carry_out(&open()?),
            Self::List(command) => command.carry_out(&open()?),
            Self::Pause(command) => command.carry_out(&open()?),
            Self::Ps(command) => command.carry_out(&open()?),
            Self::Resume(command) => command.carry_out(&open()?),
            Self::Run(command) => command.carry_out(&open()?),
            Self::Spec(command) => command.carry_out(),
            Self::Start(command) => command.carry_out(&open()?),
            Self::State(command) => command.carry_out(&open()?),
            Self::Update(command) => command.carry_out(&open()?),
        }
    }
}
