//! `start`: finds or makes the shim of a container and prints where it listens.
//!
//! The socket accepts connections before anything is printed: it is bound here and inherited by
//! the shim, which is this same process image after a fork. Nothing is executed again.

mod client;
mod params;
mod socket;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::options::Options;
use crate::supervisor::{self, Identity};
use crate::sys::{self, Fork};
use crate::task::Record;
use crate::{link, log};
use socket::Bound;
pub use socket::remove_stale;

/// Runs the `start` action. Returns in the caller's process; the daemon never returns.
pub fn start(mut args: Args) -> Result<()> {
    let mut stdin = Vec::new();
    std::io::stdin()
        .read_to_end(&mut stdin)
        .context(|| "read standard input".into())?;
    let options = params::options_from_stdin(&stdin, &mut args)?;
    let options = Options::decode(options.as_ref())?;
    link::container_id(&args.id)?;
    let bundle = bundle(&args)?;
    let group = params::group(&bundle, &args.id)?;
    let directory = args.socket_directory.as_deref();
    let directory = directory.unwrap_or(Path::new(socket::DIRECTORY));
    let path = socket::path(directory, &args.address, &args.namespace, &group);
    if !bundle.join("config.json").exists() {
        // A sandbox: nothing but this says how it is to be made.
        let (options, socket) = (options.clone(), path.clone());
        Record { options, socket }.write(&bundle)?;
    }
    if let Bound::New(listener) = socket::bind(&path)? {
        // Before the fork: the parent may be gone once it has its answer.
        let score = oom_score_of_parent();
        match sys::fork().context(|| "fork the daemon".into())? {
            Fork::Parent(_) => {}
            Fork::Child => become_daemon(&args, &options, &bundle, &path, listener, score),
        }
    }
    answer(&path, &bundle, &args)
}

/// The bundle: containerd runs every action inside it.
pub fn bundle(args: &Args) -> Result<PathBuf> {
    match &args.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => std::env::current_dir().context(|| "find the bundle".into()),
    }
}

/// Prints the address. containerd 1.6 takes a plain line only; later ones, which can be told by
/// a variable that they set, take JSON with the version of the protocol.
fn answer(path: &Path, bundle: &Path, args: &Args) -> Result<()> {
    let address = format!("unix://{}", path.display());
    let understands_json = std::env::var_os("MAX_SHIM_VERSION").is_some();
    let version = understands_json.then(|| version(args));
    if version.is_none_or(|version| version < 3) {
        leave_address(bundle, &address)?;
    }
    std::io::stdout()
        .write_all(answer_text(&address, version).as_bytes())
        .context(|| "print the address".into())
}

/// Before 2.0 containerd does not note where its shims listen: when it is restarted it looks into
/// this file of theirs.
fn leave_address(bundle: &Path, address: &str) -> Result<()> {
    let file = bundle.join("address");
    let unfinished = bundle.join(".address");
    std::fs::write(&unfinished, address)
        .and_then(|()| std::fs::rename(&unfinished, &file))
        .context(|| format!("write {}", file.display()))
}

/// The version of the protocol for who has called: the running program counts before the file of
/// that name, which a package may have replaced meanwhile.
fn version(args: &Args) -> u32 {
    let running = rustix::process::getppid()
        .map(|pid| PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero())));
    let named = Path::new(&args.publish_binary);
    client::highest_version(&[running.as_deref().unwrap_or(named), named])
}

fn answer_text(address: &str, version: Option<u32>) -> String {
    match version {
        Some(version) => {
            let answer = serde_json::json!({
                "version": version, "address": address, "protocol": "ttrpc"
            });
            answer.to_string()
        }
        None => address.to_owned(),
    }
}

/// Turns the forked child into the daemon.
fn become_daemon(
    args: &Args,
    options: &Options,
    bundle: &Path,
    socket: &Path,
    listener: UnixListener,
    oom_score: std::io::Result<i32>,
) -> ! {
    let prepare = move || -> Result<Identity> {
        rustix::process::setsid().context(|| "leave containerd's session".into())?;
        redirect(bundle)?;
        std::env::set_current_dir("/").context(|| "leave the bundle".into())?;
        log::name_namespace(&args.namespace);
        if args.debug {
            log::enable_debug();
        }
        protect(oom_score);
        if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
            sys::share_no_core().context(|| "create a core scheduling cookie".into())?;
        }
        if !options.shim_cgroup.is_empty() {
            join_cgroup(&options.shim_cgroup)?;
        }
        Ok(Identity {
            namespace: args.namespace.clone(),
            containerd: containerd_ttrpc(args),
            socket: socket.to_owned(),
        })
    };
    let code = match prepare().and_then(|identity| supervisor::run(identity, listener)) {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("shim: {error}"));
            // The address may be out already; a socket without a server must not stay.
            remove_stale(socket);
            1
        }
    };
    std::process::exit(code)
}

/// Where events go: as containerd says, or beside its main socket.
fn containerd_ttrpc(args: &Args) -> PathBuf {
    let named = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let address = [named, args.events.clone()]
        .into_iter()
        .find(|address| !address.is_empty())
        .unwrap_or_else(|| format!("{}.ttrpc", args.address));
    PathBuf::from(without_scheme(&address))
}

/// The path in the address of a socket.
pub fn without_scheme(address: &str) -> &str {
    address.strip_prefix("unix://").unwrap_or(address)
}

/// Lets go of containerd's pipes: it waits for their end. Errors go to the `log` fifo, opened
/// for both directions so that neither its absence of a reader nor a restart of containerd
/// blocks or kills the daemon.
fn redirect(bundle: &Path) -> Result<()> {
    let what = || "redirect the standard streams".to_owned();
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context(what)?;
    rustix::stdio::dup2_stdin(&null).context(what)?;
    rustix::stdio::dup2_stdout(&null).context(what)?;
    let log = open_log(&bundle.join("log"));
    rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null)).context(what)
}

fn open_log(path: &Path) -> Option<File> {
    let nonblocking = libc::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nonblocking)
        .open(path)
        .ok()
}

/// The score by which the OOM killer weighs containerd.
fn oom_score_of_parent() -> std::io::Result<i32> {
    let parent = rustix::process::getppid().ok_or(std::io::ErrorKind::NotFound)?;
    let path = format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero());
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(std::io::Error::other)
}

/// Makes the daemon as unattractive to the OOM killer as containerd, but for one point.
fn protect(oom_score: std::io::Result<i32>) {
    let adjusted = oom_score.and_then(|theirs| {
        let ours = (theirs + 1).min(1000).to_string();
        std::fs::write("/proc/self/oom_score_adj", ours)
    });
    if let Err(error) = adjusted {
        // Lowering needs a capability that some hosts do not give to root.
        log::debug(format_args!("adjust the OOM score: {error}"));
    }
}

fn join_cgroup(path: &str) -> Result<()> {
    let join = || -> xebec_runtime::cgroup::Result<()> {
        use xebec_runtime::cgroup::{Cgroup, CgroupPath, Controllers};
        let path = CgroupPath::resolve(Some(path), "")?;
        Cgroup::create(&path, Controllers::default())?.add(std::process::id() as i32)
    };
    join().map_err(|error| Error::InvalidArgument(format!("ShimCgroup {path:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::answer_text;

    #[test]
    fn the_answer_is_json_or_a_plain_line() {
        let json: serde_json::Value =
            serde_json::from_str(&answer_text("unix:///s", Some(3))).unwrap();
        assert_eq!(json["version"], 3);
        assert_eq!(json["address"], "unix:///s");
        assert_eq!(json["protocol"], "ttrpc");
        assert_eq!(answer_text("unix:///s", None), "unix:///s");
    }
}
