//! The native host: namespaces of this machine around the forky root file system.
//!
//! [`plan`] says what a host consists of, [`init`] builds it as its first process, [`enter`] is
//! the way in for commands. [`NativeHost`] is what tests use.

pub(crate) mod enter;
pub(crate) mod init;
pub(crate) mod plan;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

pub(crate) use self::enter::ENTER;
use self::plan::{Bind, NativePlan};
use super::keeper::{Keeper, Payload};
use super::services::{Flavour, Service, Services, config};
use super::site::Site;
use crate::command::{self, DEADLINE, Output, tail};
use crate::corpus;
use crate::error::{Error, Result};
use crate::paths::{PRODUCT, Paths};
use crate::proxy::{Proxy, Shape};
use crate::setup::rootfs;
use crate::setup::tools::Tool;

/// Where the product's binaries are in a host; links of [`LOCAL_PROGRAMS`] point there.
const BINARIES: &str = "/opt/xebec";
/// Comes before Debian's own directories in a host's `PATH`.
const LOCAL_PROGRAMS: &str = "/usr/local/bin";
/// Where programs of peers are in a host.
const PEERS: &str = "/opt/peers";
/// Where the corpus is in a host.
const CORPUS: &str = "/srv/corpus";

/// What a native host is to be like.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Daemons that run once the host is there.
    pub services: Vec<Service>,
    /// Absent cgroup controllers are no error: this machine has them on v1 hierarchies.
    pub ignore_missing_controllers: bool,
    /// Files written before any service starts, over those that the host has anyway.
    pub files: Vec<(PathBuf, String)>,
    /// Programs that the host has beside its own, or in the place of them.
    pub tools: Vec<&'static Tool>,
    /// Where logs are kept after the host's end; by default they end with it.
    pub keep_logs: Option<PathBuf>,
}

impl Default for HostOptions {
    /// The plain registry, the snapshotter and containerd.
    fn default() -> Self {
        Self {
            services: vec![Service::Registry, Service::Snapshotter, Service::Containerd],
            ..Self::bare()
        }
    }
}

impl HostOptions {
    /// No services at all.
    pub fn bare() -> Self {
        Self {
            services: Vec::new(),
            ignore_missing_controllers: true,
            files: Vec::new(),
            tools: Vec::new(),
            keep_logs: None,
        }
    }

    /// These services and no others.
    pub fn with(services: &[Service]) -> Self {
        Self {
            services: services.to_vec(),
            ..Self::bare()
        }
    }

    /// Programs beside the host's own.
    #[must_use]
    pub fn tool(mut self, tool: &'static Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// containerd 1.6 or 1.7 with its client instead of the host's, configured by the
    /// documentation's words.
    #[must_use]
    pub fn old_containerd(self, containerd: &'static Tool) -> Self {
        self.tool(containerd)
            .file("/etc/containerd/config.toml", config::old_containerd())
    }

    /// One more file, or other content for one that the host has anyway.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }
}

/// A running native host. It ends, and everything of it is removed, when this is dropped or when
/// this process dies, however it dies.
#[derive(Debug)]
pub struct NativeHost {
    services: Mutex<Services>,
    site: Site,
    keeper: Keeper,
}

impl NativeHost {
    /// Starts a host and its services.
    pub fn start(options: HostOptions) -> Result<Self> {
        let paths = Paths::find()?;
        let keeper = Keeper::start(
            &paths,
            "native",
            Payload::Native(plan(&paths, &options.tools)?),
        )?;
        let site = Site::Inside {
            pid: keeper.pid,
            program: paths.program.clone(),
            ignore_missing_controllers: options.ignore_missing_controllers,
        };
        let logs = options
            .keep_logs
            .unwrap_or_else(|| keeper.scratch.join("logs"));
        let services = Services::prepare(site.clone(), Flavour::Native, &logs)?;
        let host = Self {
            services: Mutex::new(services),
            site,
            keeper,
        };
        for (path, content) in &options.files {
            host.write_file(path, content)?;
        }
        host.start_services(&options.services)?;
        Ok(host)
    }

    /// Runs a command to its end, at most [`DEADLINE`]; a bad exit status is no error here.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.run_within(argv, DEADLINE)
    }

    /// Runs a command to its end, at most `deadline`.
    pub fn run_within<S: AsRef<OsStr>>(&self, argv: &[S], deadline: Duration) -> Result<Output> {
        command::output(self.command(argv).stdin(Stdio::null()), deadline)
    }

    /// Runs a command that has to succeed; its standard output.
    pub fn check<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        command::check(self.command(argv).stdin(Stdio::null()), DEADLINE)
    }

    /// Runs a shell script to its end.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-c", script])
    }

    /// Runs a shell script that has to succeed, failing commands in it included.
    pub fn check_sh(&self, script: &str) -> Result<String> {
        self.check(&["sh", "-ec", script])
    }

    /// Starts a command with piped standard streams; killing the child kills the command.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Child> {
        let mut command = self.command(argv);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().map_err(Error::system(format!(
            "start `{}`",
            command::show(&command)
        )))
    }

    /// A command that will run in the host, for whoever wants to set it up further.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        self.site.command(argv)
    }

    /// As [`Self::command`], in a working directory of the host.
    pub fn command_in<S: AsRef<OsStr>>(&self, directory: &Path, argv: &[S]) -> Command {
        self.site.command_in(directory, argv)
    }

    /// Writes a file of the host, making the directories above it.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        self.site.write(path, content)
    }

    /// Reads a file of the host.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = self.site.path(path);
        std::fs::read_to_string(&path).map_err(Error::file("read", &path))
    }

    /// What this process calls a path of the host, for sockets and plain files.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.site.path(path)
    }

    /// The host's first process, as this pid namespace numbers it.
    pub fn pid(&self) -> i32 {
        self.keeper.pid
    }

    /// Runs `work` on a thread in the host's network namespace; sockets made there stay there.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.site.in_network(work)
    }

    /// A proxy in the host's network namespace, from a free loopback port to `target`.
    pub fn proxy(&self, target: SocketAddr, shape: Shape) -> Result<Proxy> {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        self.in_network(move || Proxy::start(listen, target, shape))?
    }

    /// Puts an image of the corpus into the registry as NAME:v1; its reference there.
    pub fn push(&self, image: &str) -> Result<String> {
        let source = format!("oci:{CORPUS}/{image}:{image}");
        let reference = format!("{}/{image}:v1", Service::REGISTRY);
        let target = format!("docker://{reference}");
        let argv = [
            "skopeo",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            &source,
            &target,
        ];
        self.check(&argv)?;
        Ok(reference)
    }

    /// Makes an eStargz image of one in the plain registry (NAME:v1); its reference, NAME:lazy.
    pub fn convert(&self, image: &str) -> Result<String> {
        let lazy = format!("{}:lazy", image.trim_end_matches(":v1"));
        self.check(&["xebec-snapshotter", "image", "convert", image, &lazy])?;
        Ok(lazy)
    }

    /// A link to the plain registry, and the reference of one of its images by way of it.
    pub fn through_link(&self, image: &str, shape: Shape) -> Result<(Proxy, String)> {
        let registry = Service::REGISTRY
            .parse()
            .map_err(|error| Error::invalid("the registry's address", error))?;
        let link = self.proxy(registry, shape)?;
        let image = image.replacen(Service::REGISTRY, &link.address().to_string(), 1);
        Ok((link, image))
    }

    /// Starts services that are not running; waits until they answer.
    pub fn start_services(&self, services: &[Service]) -> Result<()> {
        self.services().start(services)
    }

    /// Ends a service with SIGTERM and waits for its end.
    pub fn stop(&self, service: Service) -> Result<()> {
        self.services().stop(service, Signal::TERM)
    }

    /// Ends a service with SIGKILL and waits for its end.
    pub fn kill(&self, service: Service) -> Result<()> {
        self.services().stop(service, Signal::KILL)
    }

    /// The log of one service so far.
    pub fn log(&self, service: Service) -> String {
        self.services().log(service)
    }

    /// The directory of all logs.
    pub fn log_directory(&self) -> PathBuf {
        self.services().logs().to_owned()
    }

    /// The ends of all logs, for the report of a failure.
    pub fn logs(&self) -> String {
        let services = self.services();
        let mut text = String::new();
        for service in Service::ALL {
            let log = services.log(service);
            if !log.is_empty() {
                text.extend(["--- ", service.name(), "\n", tail(&log, 16 << 10), "\n"]);
            }
        }
        text
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes of that name (`comm`), as the host numbers them.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>> {
        let proc = self.path("/proc");
        let entries = std::fs::read_dir(&proc).map_err(Error::file("list", &proc))?;
        let has_name = |pid: &u32| {
            std::fs::read_to_string(proc.join(format!("{pid}/comm")))
                .is_ok_and(|comm| comm.trim_end() == name)
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(has_name)
            .collect())
    }

    /// Ends processes of the host with SIGKILL; how many of them were still there.
    pub fn kill_processes(&self, pids: &[u32]) -> Result<usize> {
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let script = format!(
            "for p in {}; do kill -9 $p && echo; done; true",
            pids.join(" ")
        );
        Ok(self.check_sh(&script)?.lines().count())
    }

    /// The pid out here of a process of the host.
    pub fn outer_pid(&self, inner: i32) -> Result<i32> {
        let unknown = || Error::Host {
            host: "native",
            reason: format!("it has no process {inner}"),
        };
        let proc = Path::new("/proc");
        let entries = std::fs::read_dir(proc).map_err(Error::file("list", proc))?;
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid| inner_pid(*pid) == Some(inner) && self.is_ancestor_of(*pid))
            .ok_or_else(unknown)
    }

    fn is_ancestor_of(&self, mut pid: i32) -> bool {
        while pid > 1 {
            if pid == self.pid() {
                return true;
            }
            match status_field(pid, "PPid:").and_then(|text| text.parse().ok()) {
                Some(parent) => pid = parent,
                None => return false,
            }
        }
        false
    }
}

/// The pid that a process has one pid namespace further in.
fn inner_pid(pid: i32) -> Option<i32> {
    status_field(pid, "NSpid:")?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

impl Drop for NativeHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

fn plan(paths: &Paths, tools: &[&Tool]) -> Result<NativePlan> {
    let shown = |source: &Path, target: &Path, writable| Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        writable,
    };
    let mut binds = vec![shown(&paths.repository, &paths.repository, true)];
    let mut links = Vec::new();
    if paths.binaries.is_dir() {
        binds.push(shown(&paths.binaries, Path::new(BINARIES), false));
        for name in PRODUCT {
            let command = Path::new(LOCAL_PROGRAMS).join(name);
            links.push((command, Path::new(BINARIES).join(name)));
        }
    }
    if let Some(peers) = &paths.peers {
        binds.push(shown(peers, Path::new(PEERS), false));
        for entry in std::fs::read_dir(peers).map_err(Error::file("list", peers))? {
            let name = entry.map_err(Error::file("list", peers))?.file_name();
            let command = Path::new(LOCAL_PROGRAMS).join(&name);
            links.push((command, Path::new(PEERS).join(name)));
        }
    }
    for tool in tools {
        let shown_at = tool.place();
        binds.push(shown(&tool.find(paths)?, &shown_at, false));
        for name in tool.names() {
            links.push((Path::new(LOCAL_PROGRAMS).join(name), shown_at.join(name)));
        }
    }
    let corpus = corpus::directory(paths);
    if corpus.is_dir() {
        binds.push(shown(&corpus, Path::new(CORPUS), false));
    }
    Ok(NativePlan {
        rootfs: rootfs::find(paths)?,
        binds,
        links,
    })
}
