//! A real `xebec-snapshotter` process on a temporary root, with a client.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use xebec_proto::snapshots::snapshots_client::SnapshotsClient;
use xebec_proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
    UsageResponse, ViewSnapshotRequest,
};
use xebec_proto::types::Mount;

/// What the daemon must manage to do at start, whatever it finds on disk.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(1);
/// A debug build on a busy machine gets this much more.
const PATIENCE: Duration = Duration::from_mins(2);

/// The daemon and the directory it works in; both go with this.
pub(crate) struct Daemon {
    dir: TempDir,
    child: Child,
    /// From the start of the process until its socket answered.
    pub(crate) start_time: Duration,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn start_in(dir: TempDir) -> Self {
        Self::start_with(dir, &[]).await
    }

    pub(crate) async fn start_with(dir: TempDir, arguments: &[&str]) -> Self {
        let mut command = command(dir.path());
        command.args(arguments);
        Self::start_by(dir, command).await
    }

    pub(crate) async fn start_by(dir: TempDir, mut command: Command) -> Self {
        own_mounts();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.path().join("log"))
            .unwrap();
        let started = Instant::now();
        let child = command.stderr(log).spawn().unwrap();
        let mut daemon = Self {
            dir,
            child,
            start_time: Duration::ZERO,
        };
        while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
            assert!(
                started.elapsed() < PATIENCE,
                "no socket; log:\n{}",
                daemon.log()
            );
            let exited = daemon.child.try_wait().unwrap();
            assert!(
                exited.is_none(),
                "ended: {exited:?}; log:\n{}",
                daemon.log()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        daemon.start_time = started.elapsed();
        daemon
    }

    /// Sends SIGKILL and starts a successor on what is left.
    pub(crate) async fn kill_and_restart(self) -> Self {
        Self::start_in(self.kill()).await
    }

    /// Sends SIGKILL; the directory stays.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Sends SIGTERM and waits; the directory stays.
    pub(crate) async fn terminate(mut self) -> (ExitStatus, TempDir) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        // Not by waiting in the kernel: the client's connection needs this thread to say goodbye.
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        (
            status,
            std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap()),
        )
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Names of the directories of ordinary layers.
    pub(crate) fn layer_dirs(&self) -> Vec<String> {
        let dirs = std::fs::read_dir(root(self.dir.path()).join("snapshots")).unwrap();
        let mut names: Vec<_> = dirs
            .map(|dir| dir.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display()));
        Client(SnapshotsClient::new(
            endpoint.unwrap().connect().await.unwrap(),
        ))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        unmount_below(self.dir());
        for keeper in keepers(self.dir()) {
            let _ = rustix::process::kill_process(keeper, rustix::process::Signal::KILL);
        }
    }
}

/// Gives this thread, and what it starts from now on, mounts of its own. Whoever copies the machine's
/// mounts (other tests do, for hosts and containers) would keep in use what is unmounted here.
pub(crate) fn own_mounts() {
    static OWN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let here = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let mut own = OWN.lock().unwrap();
    if own.contains(&here()) {
        return;
    }
    // SAFETY: descriptors stay shared; root and working directory alone become the thread's own.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let downwards = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downwards).unwrap();
    own.push(here());
}

/// The mounts that this thread sees.
pub(crate) fn mount_table() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Takes away whatever is mounted below `dir`.
fn unmount_below(dir: &Path) {
    let table = mount_table();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// The keepers of daemons that serve `dir`: at most one, one hopes.
pub(crate) fn keepers(dir: &Path) -> Vec<rustix::process::Pid> {
    let is_keeper = |pid: &String| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with("xebec-keeper\0") && line.contains(dir.to_str().unwrap())
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    let names = processes.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(is_keeper)
        .filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        .collect()
}

pub(crate) fn root(dir: &Path) -> PathBuf {
    dir.join("root")
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("s.sock")
}

/// The command that serves `dir`.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    // A strict umask must not show in what containers get.
    command
        .args([
            "-c",
            "umask 077 && exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_xebec-snapshotter"),
        ])
        .args(["serve", "--log", "debug", "--root"])
        .arg(root(dir))
        .arg("--address")
        .arg(socket(dir))
        .stdin(Stdio::null());
    command
}

/// Runs a command that is expected to end by itself; its exit code and standard error.
pub(crate) fn ended(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (child.wait().unwrap().code(), text)
}

/// The generated client, with requests that fit on a line.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) SnapshotsClient<Channel>);

pub(crate) fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

impl Client {
    pub(crate) async fn prepare(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_labelled(key, parent, &[]).await
    }

    pub(crate) async fn prepare_labelled(
        &mut self,
        key: &str,
        parent: &str,
        pairs: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent, labels) = (key.into(), parent.into(), labels(pairs));
        let request = PrepareSnapshotRequest {
            snapshotter: "xebec".into(),
            key,
            parent,
            labels,
        };
        Ok(self.0.prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.into(), parent.into());
        let request = ViewSnapshotRequest {
            key,
            parent,
            ..Default::default()
        };
        Ok(self.0.view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(self.0.mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        let (name, key) = (name.into(), key.into());
        let labels = labels(&[("by", "commit")]);
        let request = CommitSnapshotRequest {
            name,
            key,
            labels,
            ..Default::default()
        };
        self.0.commit(request).await.map(drop)
    }

    pub(crate) async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        self.0.remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(self.0.stat(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn usage(&mut self, key: &str) -> Result<UsageResponse, Status> {
        let request = UsageRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(self.0.usage(request).await?.into_inner())
    }

    /// Names that the filters find, in the batches in which they arrive.
    pub(crate) async fn list(&mut self, filters: &[&str]) -> Result<Vec<Vec<String>>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = ListSnapshotsRequest {
            filters,
            ..Default::default()
        };
        let mut stream = self.0.list(request).await?.into_inner();
        let mut batches = Vec::new();
        while let Some(batch) = stream.message().await? {
            batches.push(batch.info.into_iter().map(|info| info.name).collect());
        }
        Ok(batches)
    }

    pub(crate) async fn names(&mut self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.unwrap().concat()
    }

    pub(crate) async fn cleanup(&mut self) -> Result<(), Status> {
        self.0.cleanup(CleanupRequest::default()).await.map(drop)
    }

    /// A committed snapshot with one file, named after itself.
    pub(crate) async fn layer(&mut self, name: &str, parent: &str) {
        let key = format!("{name}-work");
        let mounts = self.prepare(&key, parent).await.unwrap();
        std::fs::write(upper(&mounts[0]).join(name), name).unwrap();
        self.commit(name, &key).await.unwrap();
    }
}

/// The directory that takes the changes of a mount.
pub(crate) fn upper(mount: &Mount) -> PathBuf {
    let found = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    PathBuf::from(found.unwrap_or(&mount.source))
}

/// The code of a refused request.
pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("must be refused").code()
}

/// The value of a mount's option.
pub(crate) fn option<'a>(mount: &'a Mount, name: &str) -> &'a str {
    let value = |option: &'a String| option.strip_prefix(name)?.strip_prefix('=');
    mount
        .options
        .iter()
        .find_map(value)
        .unwrap_or_else(|| panic!("no {name} in {mount:?}"))
}

/// A mount made as containerd makes it; undone when this goes.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(dir: &Path, mount: &Mount) -> Self {
        let point = tempfile::tempdir_in(dir).unwrap().keep();
        assert_eq!(mount.r#type, "overlay");
        let data = std::ffi::CString::new(mount.options.join(",")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", &point, "overlay", flags, data.as_c_str()).unwrap();
        Self(point)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
