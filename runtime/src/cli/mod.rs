//! The command line: one file a command, each a screen over the library.

mod create;
mod delete;
mod duration;
mod events;
mod exec;
mod features;
mod foreground;
mod generate;
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

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xebec_runtime::{Error, Result, Runtime, RuntimeOptions};

use log::{Level, Log, LogFormat};

const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

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
#[command(name = "xebec", version = VERSION, disable_version_flag = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// Options that every command takes, before or after its name.
#[derive(Args, Debug)]
struct Globals {
    /// Directory of the containers' state
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/xebec")]
    root: PathBuf,
    /// Write the log to this file too (errors always go to stderr)
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Least severe lines to log
    #[arg(long, global = true, value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// The same as --log-level debug
    #[arg(long, global = true)]
    debug: bool,
    /// Let systemd make the cgroups
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Ignore permission errors on cgroups: true, false or auto
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rootless: Rootless,
    /// Warn instead of fail when a limit needs a cgroup controller that the host lacks
    #[arg(long, global = true, env = "XEBEC_IGNORE_MISSING_CONTROLLERS",
        value_parser = clap::builder::FalseyValueParser::new())]
    ignore_missing_controllers: bool,
}

/// Values of `--rootless`, as runc takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Rootless {
    Auto,
    True,
    False,
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
        eprintln!("{e}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    if let Err(e) = cli.command.check_preserved() {
        eprintln!("{e}");
        return ExitCode::from(cli.command.failure_code());
    }
    let level = if cli.globals.debug {
        Level::Debug
    } else {
        cli.globals.log_level
    };
    let log = match Log::open(cli.globals.log.as_deref(), cli.globals.log_format, level) {
        Ok(log) => log,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let failure = cli.command.failure_code();
    match cli.command.carry_out(cli.globals, &log) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            log.fatal(&e.to_string());
            ExitCode::from(failure)
        }
    }
}

impl Command {
    /// Exit code of a failure that is the runtime's own, not the container's: as runc's.
    fn failure_code(&self) -> u8 {
        if matches!(self, Self::Exec(_)) {
            255
        } else {
            1
        }
    }

    /// Descriptors to be passed on must be there before this process opens any of its own.
    fn check_preserved(&self) -> Result<()> {
        let count = match self {
            Self::Create(create::Create { creation }) | Self::Run(run::Run { creation, .. }) => {
                creation.preserve_fds
            }
            Self::Exec(exec) => exec.preserve_fds,
            _ => 0,
        };
        xebec_runtime::check_preserved(count)
    }

    fn carry_out(self, globals: Globals, log: &Log) -> Result<u8> {
        match self {
            Self::Features(command) => return command.carry_out(),
            Self::Spec(command) => return command.carry_out(),
            Self::Generate(command) => return command.carry_out(),
            _ => {}
        }
        let context = Context {
            runtime: open(globals)?,
            log: log.clone(),
        };
        match self {
            Self::Create(command) => command.carry_out(&context),
            Self::Delete(command) => command.carry_out(&context),
            Self::Events(command) => command.carry_out(&context),
            Self::Exec(command) => command.carry_out(&context),
            Self::Kill(command) => command.carry_out(&context),
            Self::List(command) => command.carry_out(&context),
            Self::Pause(command) => command.carry_out(&context),
            Self::Ps(command) => command.carry_out(&context),
            Self::Resume(command) => command.carry_out(&context),
            Self::Run(command) => command.carry_out(&context),
            Self::Start(command) => command.carry_out(&context),
            Self::State(command) => command.carry_out(&context),
            Self::Update(command) => command.carry_out(&context),
            Self::Features(_) | Self::Spec(_) | Self::Generate(_) => Ok(0),
        }
    }
}

fn open(globals: Globals) -> Result<Runtime> {
    if globals.systemd_cgroup {
        return Err(Error::Unsupported(
            "--systemd-cgroup: this version makes cgroups by the file system only".into(),
        ));
    }
    Runtime::open(RuntimeOptions {
        root: globals.root,
        ignore_missing_controllers: globals.ignore_missing_controllers,
    })
}
