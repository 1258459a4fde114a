//! Options as programs written in Go spell them: `-bundle DIR`, `--detach=true`, `--b DIR`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use clap::{Arg, Command};

/// Rewrites the options of a command line into clap's spelling, as far as `cli` knows them.
pub(super) fn from_go(cli: &Command, words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.fuse();
    let mut rewritten: Vec<_> = words.by_ref().take(1).collect();
    let mut command = None;
    while let Some(word) = words.next() {
        if let Some(option) = word.as_bytes().strip_prefix(b"-")
            && let Some(option) = OsStr::from_bytes(option).to_str()
        {
            let option = option.strip_prefix('-').unwrap_or(option);
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let Some(known) = find(command.unwrap_or(cli), name).or_else(|| find(cli, name)) else {
                rewritten.push(word);
                continue;
            };
            let takes_value = known.get_action().takes_values();
            rewritten.extend(respell(known, value));
            if takes_value && value.is_none() {
                rewritten.extend(words.next());
            }
            continue;
        }
        let passes_on = command.is_some_and(has_words_of_its_own);
        if command.is_none() {
            command = word.to_str().and_then(|name| cli.find_subcommand(name));
        }
        rewritten.push(word);
        if passes_on {
            break;
        }
    }
    rewritten.extend(words);
    rewritten
}

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let is_named = |arg: &&Arg| {
        let short = arg.get_short().map(|short| short.to_string());
        arg.get_long() == Some(name) || short.as_deref() == Some(name)
    };
    command.get_arguments().find(is_named)
}

/// `--name` with its value; nothing for a switch that is off.
fn respell(option: &Arg, value: Option<&str>) -> Option<OsString> {
    let name = match (option.get_long(), option.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => return None,
    };
    match value {
        Some(value) if option.get_action().takes_values() => Some(format!("{name}={value}").into()),
        Some("false" | "0") => None,
        _ => Some(name.into()),
    }
}

/// After the container's name these commands take the words of another program.
fn has_words_of_its_own(command: &Command) -> bool {
    command.get_positionals().any(Arg::is_trailing_var_arg_set)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn respelled(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        let words = from_go(&Cli::command(), words);
        let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn options_in_gos_spelling_are_understood() {
        for (go, ours) in [
            (
                "xebec -root /r run -bundle /b --detach=true web",
                "xebec --root /r run --bundle /b --detach web",
            ),
            (
                "xebec -systemd-cgroup=false run --b /b -d=false web",
                "xebec run --bundle /b web",
            ),
            ("xebec --log=/l state web", "xebec --log=/l state web"),
            ("xebec run -bogus web", "xebec run -bogus web"),
            ("xebec -bundle", "xebec -bundle"),
        ] {
            assert_eq!(respelled(go), ours);
        }
    }

    #[test]
    fn what_belongs_to_the_program_is_left_alone() {
        for line in [
            "xebec exec --tty web prog -tty --detach=true",
            "xebec ps web -env",
            "xebec exec --env -tty web",
        ] {
            assert_eq!(respelled(line), line);
        }
    }
}
