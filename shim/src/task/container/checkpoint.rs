//! A running container becomes files.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::Any;
use xebec_proto::events;
use xebec_proto::runc_options::CheckpointOptions;
use xebec_proto::task::CheckpointTaskRequest;

use super::Container;
use crate::error::{Context, Error, Result};
use crate::log;
use crate::supervisor::message::{Checkpoint, Images};
use crate::task::service::Shim;
use crate::task::state::{Operation, State};

/// The names under which containerd's clients send the same options.
const OPTIONS: [&str; 2] = [
    "containerd.runc.v1.CheckpointOptions",
    "containerd.linux.runc.CheckpointOptions",
];
/// Directory of CRIU's logs in the bundle, unless a client names another one.
const WORK: &str = "criu-work";

/// Where CRIU writes its logs.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) path: PathBuf,
    /// Nobody else looks for them there.
    is_ours: bool,
}

impl Work {
    /// What a client has `asked` for, or else one of our own.
    pub(super) fn of(bundle: &Path, asked: &Path) -> Work {
        let ours = bundle.join(WORK);
        let is_ours = asked.as_os_str().is_empty() || asked == ours;
        let path = if is_ours { ours } else { asked.to_owned() };
        Work { path, is_ours }
    }

    pub(super) fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.path).context(|| format!("mkdir {}", self.path.display()))
    }

    /// Removes it if it is ours; what is left goes with the bundle.
    pub(super) async fn remove(self, shim: &Shim) {
        if !self.is_ours {
            return;
        }
        let removed = shim.blocking(move || {
            fs::remove_dir_all(&self.path).context(|| format!("remove {}", self.path.display()))
        });
        if let Err(error) = removed.await {
            log::warn(format_args!("{error}"));
        }
    }
}

/// Keeps CRIU's log of a failure in the bundle, and ends the error with its path, as containerd's own
/// shim does.
pub(super) fn explain(error: Error, work: &Work, log: &str, bundle: &Path) -> Error {
    let written = work.path.join(log);
    let kept = bundle.join(format!("criu-{log}"));
    let Error::Runtime { operation, message } = error else {
        return error;
    };
    let message = match fs::copy(&written, &kept) {
        Ok(_) => {
            let gone = format!(" (log file: {})", written.display());
            let text = message
                .lines()
                .next()
                .unwrap_or_default()
                .replace(&gone, "");
            format!("{text} path= {}", kept.display())
        }
        // CRIU has not come to write any.
        Err(_) => message,
    };
    Error::Runtime { operation, message }
}

impl Container {
    /// Dumps the container, which then ends or goes on as its client asks.
    pub(in crate::task) async fn checkpoint(
        &self,
        shim: &Shim,
        request: &CheckpointTaskRequest,
    ) -> Result<()> {
        let options = decode(request.options.as_ref())?;
        if request.path.is_empty() {
            let text = "checkpoint: the request names no path".to_owned();
            return Err(Error::InvalidArgument(text));
        }
        let _turn = self.init.turn.lock().await;
        self.init.check(Operation::Checkpoint)?;
        self.init.refuse_if_ended()?;
        let work = Work::of(&self.bundle, Path::new(&options.work_path));
        let checkpoint = plan(options, request.path.clone().into(), work.path.clone())?;
        work.make()?;
        self.keep_dumping(shim, true);
        let dumped = self.engine.checkpoint(&self.id, &self.bundle, checkpoint);
        let dumped = dumped.await;
        self.keep_dumping(shim, false);
        let dumped = dumped.map_err(|error| explain(error, &work, "dump.log", &self.bundle));
        work.remove(shim).await;
        dumped?;
        let event = events::TaskCheckpointed {
            container_id: self.id.clone(),
            checkpoint: request.path.clone(),
        };
        self.publish(shim, Vec::new(), "/tasks/checkpointed", &event);
        Ok(())
    }

    /// A successor has to know that somebody might have left the container frozen.
    fn keep_dumping(&self, shim: &Shim, dumping: bool) {
        self.dumping.set(dumping);
        shim.link.commit_soon(vec![self.keep()]);
    }

    /// An earlier worker died during a dump. Whoever has made that has come to its end, one way or
    /// another; a container that was running goes on.
    pub(super) async fn end_dump(&self, shim: &Shim) {
        shim.link.commit_soon(vec![self.keep()]);
        if self.init.state() != State::Running {
            return;
        }
        let (engine, id) = (self.engine.clone(), self.id.clone());
        let thawed = shim.blocking(move || match engine.status(&id)?.as_str() {
            "paused" => engine.resume(&id),
            _ => Ok(()),
        });
        if let Err(error) = thawed.await {
            log::with(&[("id", &self.id)]).error(format_args!("after a checkpoint: {error}"));
        }
    }
}

/// Decodes what a client asks for; nothing at all means that the container goes on.
fn decode(any: Option<&Any>) -> Result<CheckpointOptions> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(CheckpointOptions::default());
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if !OPTIONS.contains(&name) {
        let text = format!("checkpoint options of type {:?}", any.type_url);
        return Err(Error::InvalidArgument(text));
    }
    CheckpointOptions::decode(any.value.as_slice())
        .map_err(|error| Error::InvalidArgument(format!("checkpoint options: {error}")))
}

/// What the runtime is asked for.
fn plan(options: CheckpointOptions, path: PathBuf, work: PathBuf) -> Result<Checkpoint> {
    let others = options.empty_namespaces.iter();
    if let Some(other) = others.into_iter().find(|name| *name != "network") {
        let text =
            format!("checkpoint options: empty namespace {other:?}: network is the only one");
        return Err(Error::InvalidArgument(text));
    }
    let modes = ["", "soft", "full", "strict", "ignore"];
    if !modes.contains(&options.cgroups_mode.as_str()) {
        let mode = options.cgroups_mode;
        let text =
            format!("checkpoint options: cgroups mode {mode:?}: soft, full, strict or ignore");
        return Err(Error::InvalidArgument(text));
    }
    Ok(Checkpoint {
        images: Images { path, work },
        leave_running: !options.exit,
        tcp_established: options.open_tcp,
        ext_unix_sk: options.external_unix_sockets,
        shell_job: options.terminal,
        file_locks: options.file_locks,
        empty_network: !options.empty_namespaces.is_empty(),
        cgroups_mode: options.cgroups_mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn any(name: &str, options: &CheckpointOptions) -> Any {
        Any {
            type_url: name.to_owned(),
            value: options.encode_to_vec(),
        }
    }

    #[test]
    fn options_have_two_names_and_nothing_means_that_the_container_goes_on() {
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "ignore".into(),
            ..CheckpointOptions::default()
        };
        for name in OPTIONS {
            let any = any(&format!("types.containerd.io/{name}"), &options);
            let decoded = decode(Some(&any)).unwrap();
            let planned = plan(decoded, "/i".into(), "/w".into()).unwrap();
            assert!(!planned.leave_running && planned.tcp_established && planned.empty_network);
            assert!(!planned.file_locks && !planned.shell_job && !planned.ext_unix_sk);
            assert_eq!(planned.cgroups_mode, "ignore");
        }
        for nothing in [None, Some(&Any::default())] {
            let planned = plan(decode(nothing).unwrap(), "/i".into(), "/w".into()).unwrap();
            assert!(planned.leave_running);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let broken = Any {
            type_url: OPTIONS[0].into(),
            value: vec![0xff],
        };
        let namespace = CheckpointOptions {
            empty_namespaces: vec!["pid".into()],
            ..CheckpointOptions::default()
        };
        let mode = CheckpointOptions {
            cgroups_mode: "some".into(),
            ..CheckpointOptions::default()
        };
        for (any, part) in [
            (any("acme.Options", &namespace), "acme.Options"),
            (broken, "checkpoint options: "),
            (any(OPTIONS[0], &namespace), "empty namespace \"pid\""),
            (any(OPTIONS[1], &mode), "cgroups mode \"some\""),
        ] {
            let planned = decode(Some(&any)).and_then(|it| plan(it, "/i".into(), "/w".into()));
            let error = planned.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_failure_ends_with_the_path_of_criu_s_log_if_there_is_one() {
        let bundle = tempfile::tempdir().unwrap();
        let work = Work::of(bundle.path(), Path::new(""));
        assert!(work.is_ours && !Work::of(bundle.path(), Path::new("/w")).is_ours);
        work.make().unwrap();
        let failed = || Error::Runtime {
            operation: "checkpoint",
            message: format!(
                "criu failed: x (log file: {}/dump.log)",
                work.path.display()
            ),
        };
        let untouched = explain(failed(), &work, "dump.log", bundle.path());
        assert_eq!(untouched.to_string(), failed().to_string());
        fs::write(work.path.join("dump.log"), "why").unwrap();
        let explained = explain(failed(), &work, "dump.log", bundle.path()).to_string();
        let kept = bundle.path().join("criu-dump.log");
        let end = format!("criu failed: x path= {}", kept.display());
        assert!(explained.ends_with(&end), "{explained}");
        assert_eq!(fs::read_to_string(kept).unwrap(), "why");
    }
}
