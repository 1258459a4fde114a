//! The command line that containerd gives a shim.

use std::path::PathBuf;

use crate::bootstrap;
use crate::error::{Error, Result};

/// Name of the action that serves pages of clones.
pub const PAGE_SERVER: &str = "page-server";

/// What the program is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start (or find) the shim of a container and print its address.
    Start,
    /// Clean up after a shim that is gone and print a `DeleteResponse`.
    Delete,
    /// Print a `RuntimeInfo`.
    Info,
    /// Print the version.
    Version,
    /// Print what a running shim knows.
    Debug,
    /// Print how the program is used.
    Help,
    /// Wait, as the process that holds the namespaces of a pod.
    Pause,
    /// Serve pages of clones whose state is below the directory that follows.
    PageServer,
}

/// The parsed command line. Absent text is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// containerd's own program.
    pub publish_binary: String,
    /// Container id.
    pub id: String,
    /// Bundle; the current directory when absent.
    pub bundle: Option<PathBuf>,
    /// Socket of the shim to ask; only `debug` uses it.
    pub socket: Option<PathBuf>,
    /// Verbose log.
    pub debug: bool,
    /// containerd's ttrpc socket, where a bootstrap message names it.
    pub events: String,
    /// Directory of the shims' sockets, where a bootstrap message names it.
    pub socket_directory: Option<PathBuf>,
    /// What follows the action; only `page-server` looks at it.
    pub rest: Vec<String>,
}

/// Flags are Go style: `-flag value`, `-flag=value`, with one dash or two, all before the action.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Args> {
    let mut args = Args {
        action: Action::Version,
        namespace: String::new(),
        address: String::new(),
        publish_binary: String::new(),
        id: String::new(),
        bundle: None,
        socket: None,
        debug: false,
        events: String::new(),
        socket_directory: None,
        rest: Vec::new(),
    };
    let mut action = None;
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            action = action.or(Some(action_named(&word)?));
            args.rest = words.collect();
            break;
        };
        let (name, mut inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "debug" => args.debug = truth(name, inline.as_deref())?,
            "v" | "version" => action = Some(Action::Version),
            "h" | "help" => action = Some(Action::Help),
            "info" => action = Some(Action::Info),
            _ => {
                let value = inline
                    .take()
                    .or_else(|| words.next())
                    .ok_or_else(|| Error::InvalidArgument(format!("flag -{name} needs a value")))?;
                set(&mut args, name, value)?;
            }
        }
    }
    args.action = action.ok_or_else(|| {
        Error::InvalidArgument(
            "no action: expected start, delete, debug, -info, -v or --help".into(),
        )
    })?;
    Ok(args)
}

fn action_named(word: &str) -> Result<Action> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "debug" => Ok(Action::Debug),
        "pause" => Ok(Action::Pause),
        PAGE_SERVER => Ok(Action::PageServer),
        _ => Err(Error::InvalidArgument(format!("unknown action {word:?}"))),
    }
}

fn truth(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(Error::InvalidArgument(format!(
            "flag -{name}: {other:?} is not a boolean"
        ))),
    }
}

fn set(args: &mut Args, name: &str, value: String) -> Result<()> {
    match name {
        "namespace" => args.namespace = value,
        "address" => args.address = value,
        "publish-binary" => args.publish_binary = value,
        "id" => args.id = value,
        "bundle" => args.bundle = Some(PathBuf::from(value)),
        // The daemon derives its socket itself; the flag is accepted for callers that pass it.
        "socket" => args.socket = Some(PathBuf::from(bootstrap::without_scheme(&value))),
        "debug-socket" => {}
        _ => return Err(Error::InvalidArgument(format!("unknown flag -{name}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Action, parse};

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn containerds_start_line_is_understood_in_every_spelling() {
        for line in [
            "-namespace k8s -address /c.sock -publish-binary /ctd -id x1 -debug start",
            "--namespace k8s --address /c.sock --publish-binary /ctd --id x1 --debug start",
            "-namespace=k8s -address=/c.sock --publish-binary=/ctd -id=x1 -debug=true start",
        ] {
            let args = parse(words(line)).unwrap();
            assert_eq!(args.action, Action::Start, "{line}");
            assert_eq!(args.namespace, "k8s");
            assert_eq!(args.address, "/c.sock");
            assert_eq!(args.publish_binary, "/ctd");
            assert_eq!(args.id, "x1");
            assert!(args.debug);
        }
    }

    #[test]
    fn the_other_actions_are_recognised() {
        let delete = parse(words("-id x -bundle /b delete")).unwrap();
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(delete.bundle.unwrap().to_str(), Some("/b"));
        assert_eq!(parse(words("-info")).unwrap().action, Action::Info);
        let debug = parse(words("-socket unix:///s -debug debug")).unwrap();
        assert_eq!(debug.action, Action::Debug);
        assert_eq!(debug.socket.unwrap().to_str(), Some("/s"));
        assert_eq!(parse(words("--help")).unwrap().action, Action::Help);
        assert_eq!(parse(words("-v")).unwrap().action, Action::Version);
        let server = parse(words("page-server /run/x --guarded")).unwrap();
        assert_eq!(server.action, Action::PageServer);
        assert_eq!(server.rest, ["/run/x", "--guarded"]);
    }

    #[test]
    fn wrong_lines_name_what_is_wrong() {
        for (line, part) in [
            ("-id x", "no action"),
            ("-id", "-id needs a value"),
            ("-colour red start", "-colour"),
            ("-debug=maybe start", "maybe"),
            ("restart", "restart"),
        ] {
            let error = parse(words(line)).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
