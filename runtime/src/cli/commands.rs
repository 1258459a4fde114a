//! The commands: their names, what they do in a line, and where they are told.

use clap::error::ErrorKind;
use clap::{ArgMatches, Args as _, FromArgMatches, Subcommand};
use xebec_runtime::Result;

use super::globals::Globals;
use super::log::Log;
use super::{
    Context, checkpoint, clone, create, delete, events, exec, features, generate, kill, list,
    mounts, page_server, pause, ps, restore, run, spec, start, state, template, update,
};

/// Declares the enumeration, and what clap would derive for it; by hand, so that one command can be
/// defined without the others. The definitions of all are a good part of what `state` computes.
macro_rules! commands {
    ($($name:literal, $about:literal => $kind:ident($type:ty),)*) => {
        #[derive(Debug)]
        pub(super) enum Command { $($kind(Box<$type>),)* }

        impl Command {
            const NAMES: &[&str] = &[$($name,)*];

            /// The definition of one command.
            pub(super) fn definition(name: &str) -> Option<clap::Command> {
                match name {
                    $($name => Some(
                        // Last, as options that commands share bring their own description.
                        // As in Go, an option may be given again, and the last one counts.
                        <$type>::augment_args(clap::Command::new($name))
                            .about($about)
                            .args_override_self(true)
                    ),)*
                    _ => None,
                }
            }
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> clap::error::Result<Self> {
                match matches.subcommand() {
                    $(Some(($name, own)) => {
                        Ok(Self::$kind(Box::new(<$type>::from_arg_matches(own)?)))
                    })*
                    _ => Err(clap::Error::new(ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> clap::error::Result<()> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

commands! {
    "checkpoint", "Write a running container into files" => Checkpoint(checkpoint::Checkpoint),
    "clone", "Start a container from a template" => Clone(clone::CloneCommand),
    "create", "Create a container; its process waits for `start`" => Create(create::Create),
    "delete", "Delete a stopped container, or any with --force" => Delete(delete::Delete),
    "events", "Print statistics and out-of-memory kills of a container, as JSON"
        => Events(events::Events),
    "exec", "Run a further process in a running container" => Exec(exec::Exec),
    "features", "Print what this runtime supports, as JSON" => Features(features::Features),
    "kill", "Send a signal to a container" => Kill(kill::Kill),
    "list", "List containers" => List(list::List),
    "mounts", "Add mounts to a running container, or remove them" => Mounts(mounts::Mounts),
    "page-server", "Serve the memory of clones (started by `clone`)"
        => PageServer(page_server::PageServer),
    "pause", "Freeze all processes of a container" => Pause(pause::Pause),
    "ps", "List the processes of a container" => Ps(ps::Ps),
    "restore", "Make a running container of a checkpoint" => Restore(restore::Restore),
    "resume", "Thaw a paused container" => Resume(pause::Resume),
    "run", "Create and start a container, and wait for its end" => Run(run::Run),
    "spec", "Write a config.json to start from" => Spec(spec::SpecCommand),
    "start", "Start a created container's process" => Start(start::Start),
    "state", "Print a container's state, as JSON" => State(state::State),
    "template", "Make templates, which containers start from in no time"
        => Template(template::TemplateCommand),
    "update", "Change the limits of a container" => Update(update::Update),
    "completions", "Print shell completions" => Completions(generate::Completions),
    "man", "Write the manual pages" => Man(generate::Man),
}

impl Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        command
            .subcommand_required(true)
            .subcommands(Self::NAMES.iter().copied().filter_map(Self::definition))
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }
}

impl Command {
    /// What introduces a failure that is the runtime's own, not the container's, and its exit
    /// code: as runc has them.
    pub(super) fn failure(&self) -> (&'static str, u8) {
        match self {
            Self::Create(_) => ("xebec create failed: ", 1),
            Self::Run(_) => ("xebec run failed: ", 1),
            Self::Exec(_) => ("exec failed: ", 255),
            _ => ("", 1),
        }
    }

    /// Descriptors to be passed on are set apart before this process opens any of its own.
    pub(super) fn reserve_preserved(&self) -> Result<()> {
        xebec_runtime::reserve_preserved(match self {
            Self::Create(command) => command.creation.preserved(),
            Self::Run(command) => command.creation.preserved(),
            Self::Exec(command) => command.preserve_fds,
            _ => 0,
        })
    }

    pub(super) fn carry_out(self, globals: Globals, log: &Log) -> Result<u8> {
        let open = || -> Result<Context> {
            Ok(Context {
                runtime: globals.open_runtime()?,
                log: log.clone(),
            })
        };
        match self {
            Self::Checkpoint(command) => command.carry_out(open),
            Self::Clone(command) => command.carry_out(&open()?),
            Self::Completions(command) => command.carry_out(),
            Self::Create(command) => command.carry_out(&open()?),
            Self::Delete(command) => command.carry_out(&open()?),
            Self::Events(command) => command.carry_out(&open()?),
            Self::Exec(command) => command.carry_out(&open()?),
            Self::Features(command) => command.carry_out(),
            Self::Kill(command) => command.carry_out(&open()?),
            Self::List(command) => command.carry_out(&open()?),
            Self::Man(command) => command.carry_out(),
            Self::Mounts(command) => command.carry_out(&open()?),
            Self::PageServer(command) => command.carry_out(),
            Self::Pause(command) => command.carry_out(&open()?),
            Self::Ps(command) => command.carry_out(&open()?),
            Self::Restore(command) => command.carry_out(&open()?),
            Self::Resume(command) => command.carry_out(&open()?),
            Self::Run(command) => command.carry_out(&open()?),
            Self::Spec(command) => command.carry_out(),
            Self::Start(command) => command.carry_out(&open()?),
            Self::State(command) => command.carry_out(&open()?),
            Self::Template(command) => command.carry_out(&open()?),
            Self::Update(command) => command.carry_out(&open()?),
        }
    }
}
