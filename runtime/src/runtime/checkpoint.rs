//! From a running container to files: freeze it, have CRIU dump it, and let it go on or end.

use std::env;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use xebec_proto::criu::{Features, Request, RequestType};

use super::Runtime;
use super::query::cgroup_of;
use super::standstill::Pause;
use crate::cgroup::Cgroup;
use crate::checkpoint::{
    Answer, CheckpointRequest, CriuOptions, Directories, Dumped, Notice, Session, TAR,
    bind_destinations, cause, check_policy, config_files, dump_options, external_namespace,
    masked_paths, name_network, namespace_key, streams_of, write_descriptors,
};
use crate::error::{Error, Result};
use crate::launch::{Birth, ChildStdio, CriuJob, start_criu};
use crate::request::Stdio;
use crate::rootfs::open_inside;
use crate::spec::load_bundle;
use crate::state::{Lent, Record, StateDir, Status};
use crate::template::{INSIDE as GENERATION_INSIDE, has_generation};

pub(super) const LOG: &str = "dump.log";

pub(super) fn checkpoint(
    runtime: &Runtime,
    mut request: CheckpointRequest,
    keep: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    check_policy(&request.criu)?;
    let dir = StateDir::open(&runtime.options.root, &request.id)?;
    dir.lock()?;
    let record = dir.record()?;
    let status = dir.status(&record);
    if !matches!(status, Status::Running | Status::Paused) {
        let reason = format!("container cannot be checkpointed in {status} state");
        return Err(Error::Status(reason));
    }
    let bundle = load_bundle(&record.bundle, record.config.as_deref())?;
    let directories = OpenDirectories::make(&request.criu)?;
    check_parent(&request)?;
    require_features(&request)?;
    let cgroup = if record.cgroup.as_os_str().is_empty() {
        None
    } else {
        Some(cgroup_of(&record)?)
    };
    let container = look_at(&record, &bundle.spec, cgroup.as_ref())?;
    let network = network_to_enter(&record, &container, &request, cgroup.as_ref())?;
    if !request.pre_dump {
        let streams = streams_of(record.pid)?;
        write_descriptors(&request.criu.image_path, &streams)?;
    }
    let mut dump = Dump {
        tar: lend_tar(&dir, &request.criu)?,
        status_file: request.status.take(),
        request: &request,
        directories: &directories,
        container,
        pause: Pause::of(cgroup.as_ref(), status),
        begun: false,
    };
    let dumped = dump.carry_out(network, keep);
    if dumped.is_ok() && dump.ends() {
        return Ok(());
    }
    // What went wrong is what the caller has to hear of.
    let thawed = dump.pause.end();
    dumped.and(thawed)
}

/// A dump in the making.
struct Dump<'a> {
    request: &'a CheckpointRequest,
    directories: &'a OpenDirectories,
    container: Dumped<'a>,
    tar: Option<Lent>,
    status_file: Option<OwnedFd>,
    pause: Pause<'a>,
    /// Whether CRIU has come to look at the container.
    begun: bool,
}

impl Dump<'_> {
    /// Whether the container ends with it.
    fn ends(&self) -> bool {
        !self.request.leave_running && !self.request.pre_dump
    }

    fn carry_out(
        &mut self,
        network: Option<OwnedFd>,
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if self.request.pre_dump {
            // Of this, CRIU tells nothing before it looks at the processes.
            self.pause.begin()?;
        }
        let inside = network.is_some();
        let dumped = self.converse(network, keep);
        if inside && !self.begun && dumped.is_err() {
            // What CRIU has to find out about the kernel once it cannot find out in every network.
            return self.converse(None, keep);
        }
        dumped
    }

    /// Has CRIU dump, from inside of a network if one is given.
    fn converse(
        &mut self,
        network: Option<OwnedFd>,
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let request = self.request;
        let key = namespace_key(LinuxNamespaceType::Network).filter(|_| network.is_some());
        let asked = self.question(key);
        let ends = self.ends();
        converse(
            (&request.criu, self.tar.as_ref()),
            (&asked, network),
            &self.directories.logs(LOG),
            &mut |event| match event {
                Event::Notice(notice) if notice.script == "pre-dump" => {
                    self.begun = true;
                    self.pause.begin()
                }
                // All images are complete, and the container has not ended.
                Event::Notice(notice) if notice.script == "post-dump" => {
                    if let Some(key) = key {
                        name_network(&request.criu.image_path, key)?;
                    }
                    keep()
                }
                Event::Notice(notice) => tell_readiness(&notice, &mut self.status_file),
                // It is done with the processes, if not with itself.
                Event::Answer(Answer::Done { .. }) if ends => Ok(()),
                Event::Answer(_) => self.pause.end(),
            },
        )
    }

    /// What CRIU is asked for, without the network of this key if it looks from inside of that.
    fn question(&self, inside: Option<&str>) -> Request {
        let mut options = dump_options(&self.container, self.request, self.directories.numbers());
        if let Some(key) = inside {
            options.external.retain(|name| !name.ends_with(key));
        }
        let mut asked = Request {
            opts: Some(options),
            ..Request::default()
        };
        asked.set_type(if self.request.pre_dump {
            RequestType::PreDump
        } else {
            RequestType::Dump
        });
        asked
    }
}

/// The network that CRIU looks at a container from, if it does not have to look at the network itself
/// ([`name_network`]): one that the container has joined with all of its processes. Where
/// connections are kept, it is locked from outside; pages are sent by the host's network.
fn network_to_enter(
    record: &Record,
    container: &Dumped<'_>,
    request: &CheckpointRequest,
    cgroup: Option<&Cgroup>,
) -> Result<Option<OwnedFd>> {
    let criu = &request.criu;
    let connected = criu.tcp_established || criu.lazy_pages || request.page_server.is_some();
    let (false, Some(cgroup)) = (
        connected || container.configured || request.pre_dump,
        cgroup,
    ) else {
        return Ok(None);
    };
    let path = network_of(record.pid);
    let network = File::open(&path).map_err(Error::file("open", &path))?;
    let inode = network.metadata().map_err(Error::file("stat", path))?.ino();
    let is_joined = external_namespace(LinuxNamespaceType::Network, inode)
        .is_some_and(|name| container.external.contains(&name));
    let is_it = |pid| fs::metadata(network_of(pid)).map(|found| found.ino() == inode);
    let mut others = cgroup
        .pids(true)?
        .into_iter()
        .filter(|pid| *pid != record.pid);
    // Who is gone meanwhile is in no network.
    let enters = is_joined && others.all(|pid| is_it(pid).unwrap_or(true));
    Ok(enters.then(|| network.into()))
}

fn network_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// The directories of a request, held open.
#[derive(Debug)]
pub(super) struct OpenDirectories {
    images: OwnedFd,
    work: Option<OwnedFd>,
    log_path: PathBuf,
}

impl OpenDirectories {
    /// Opens those of a dump, which are made when they are missing: only their owner may look
    /// into what a process knew.
    pub(super) fn make(criu: &CriuOptions) -> Result<Self> {
        for directory in [Some(&criu.image_path), criu.work_path.as_ref()] {
            let Some(directory) = directory else { continue };
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(Error::file("mkdir", directory))?;
        }
        Self::open(criu)
    }

    /// Opens those of a restore.
    pub(super) fn open(criu: &CriuOptions) -> Result<Self> {
        let opened = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(path, flags, Mode::empty()).map_err(Error::file("open", path))
        };
        Ok(Self {
            images: opened(&criu.image_path)?,
            work: criu.work_path.as_deref().map(opened).transpose()?,
            log_path: criu.work_path.as_ref().unwrap_or(&criu.image_path).clone(),
        })
    }

    pub(super) fn numbers(&self) -> Directories {
        Directories {
            images: self.images.as_raw_fd(),
            work: self.work.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// Where CRIU's log of this name is.
    pub(super) fn logs(&self, name: &str) -> PathBuf {
        self.log_path.join(name)
    }
}

/// Images to begin with are named by a path that holds wherever all of them are moved to.
fn check_parent(request: &CheckpointRequest) -> Result<()> {
    let Some(parent) = &request.parent_path else {
        return Ok(());
    };
    if parent.is_absolute() {
        let reason = "--parent-path must be relative".to_owned();
        return Err(Error::InvalidArgument(reason));
    }
    let real = request.criu.image_path.join(parent);
    match fs::metadata(&real) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::file("open", real)(Errno::NOTDIR)),
        Err(e) => Err(Error::file("open", real)(e)),
    }
}

/// What not every kernel has is asked for first, so that the answer says what is missing.
fn require_features(request: &CheckpointRequest) -> Result<()> {
    let (track, lazy) = (request.pre_dump, request.criu.lazy_pages);
    if !track && !lazy {
        return Ok(());
    }
    let mut asked = Request {
        features: Some(Features {
            mem_track: track.then_some(true),
            lazy_pages: lazy.then_some(true),
            pidfd_store: None,
        }),
        ..Request::default()
    };
    asked.set_type(RequestType::FeatureCheck);
    let features = features_of(&request.criu, &asked)?;
    let wanted = [
        ("MemTrack", track, features.mem_track()),
        ("LazyPages", lazy, features.lazy_pages()),
    ];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter_map(|(name, wanted, there)| (wanted && !there).then_some(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    Err(Error::Unsupported(format!(
        "criu is missing features: [{missing}]"
    )))
}

fn features_of(criu: &CriuOptions, asked: &Request) -> Result<Features> {
    match ask((criu, None), (asked, None), &mut |_| Ok(()))?.0 {
        Answer::Done { features, .. } => Ok(features),
        Answer::Failed { request, errno, .. } => {
            Err(Error::Criu(format!("type {request} errno {errno}")))
        }
    }
}

/// CRIU is no process of the container's.
const OUR_OWN: Birth<'static> = Birth {
    cgroup: None,
    mover: None,
    reparent: false,
};

/// Has CRIU find the program that stands in for `tar`, if there is one.
pub(super) fn lend_tar(dir: &StateDir, criu: &CriuOptions) -> Result<Option<Lent>> {
    let program = criu.tar.as_deref();
    program.map(|program| dir.lend(program, TAR)).transpose()
}

/// What CRIU says.
pub(super) enum Event<'a> {
    Notice(Notice),
    Answer(&'a Answer),
}

/// Has CRIU serve one request, in a network that is not ours if one is given; its answer and exit code.
fn ask(
    (criu, tar): (&CriuOptions, Option<&Lent>),
    (asked, network): (&Request, Option<OwnedFd>),
    on_event: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<(Answer, Option<i32>)> {
    let (session, theirs) = Session::new()?;
    let streams = ChildStdio::new(Stdio::NONE)?;
    let program = (criu.program.as_path(), tar.and_then(Lent::directory));
    let job = CriuJob::new(program, theirs, Vec::new(), streams, None)?.within(network);
    let process = start_criu(&job, OUR_OWN)?;
    // Its end of the session has to be its alone, or its death would not be noticed.
    drop(job);
    let answer = session.ask(asked, &mut |notice| on_event(Event::Notice(notice)));
    let heard = answer
        .as_ref()
        .map(|answer| on_event(Event::Answer(answer)));
    drop(session);
    let code = wait(process.pidfd.as_fd())?;
    heard.unwrap_or(Ok(()))?;
    Ok((answer?, code))
}

/// Has CRIU dump, in a network that is not ours if one is given.
pub(super) fn converse(
    criu: (&CriuOptions, Option<&Lent>),
    (asked, network): (&Request, Option<OwnedFd>),
    log: &Path,
    on_event: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let (answer, code) = ask(criu, (asked, network), on_event)?;
    match answer {
        failed @ Answer::Failed { .. } => Err(explain(failed, log, true)),
        // After a dump of memory alone it would go on with the next one.
        Answer::Done { .. } if code == Some(0) || asked.r#type() == RequestType::PreDump => Ok(()),
        Answer::Done { .. } => Err(Error::Criu(format!(
            "it ended badly (log file: {})",
            log.display()
        ))),
    }
}

/// The words for a request that failed: CRIU's answer, the cause from its log, and where that is if
/// it is kept.
pub(super) fn explain(answer: Answer, log: &Path, kept: bool) -> Error {
    let Answer::Failed {
        request,
        errno,
        words,
    } = answer
    else {
        return Error::Criu("it ended without an answer".to_owned());
    };
    let cause = cause(log).or_else(|| (!words.is_empty()).then_some(words));
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    // What has no path ends with this process.
    let log = if kept && !log.starts_with("/proc/self/fd") {
        format!(" (log file: {})", log.display())
    } else {
        String::new()
    };
    Error::Criu(format!("type {request} errno {errno}{cause}{log}"))
}

/// Waits for a child; its exit code, unless a signal ended it.
pub(super) fn wait(pidfd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let ended = || waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(ended).map_err(Error::os("wait for criu"))?;
    Ok(status.and_then(|status| status.exit_status()))
}

fn tell_readiness(notice: &Notice, status: &mut Option<OwnedFd>) -> Result<()> {
    match status.take_if(|_| notice.script == "status-ready") {
        Some(status) => rustix::io::write(&status, &[0])
            .map(drop)
            .map_err(Error::os("write to the status descriptor")),
        None => Ok(()),
    }
}

/// Finds out what CRIU has to be told of a container.
pub(super) fn look_at<'a>(
    record: &'a Record,
    spec: &'a Spec,
    cgroup: Option<&Cgroup>,
) -> Result<Dumped<'a>> {
    let root = PathBuf::from(format!("/proc/{}/root", record.pid));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(&root, flags, Mode::empty()).map_err(Error::file("open", root))?;
    let mut binds = Vec::new();
    for (destination, _) in bind_destinations(spec, &record.bundle) {
        binds.extend(real_path(&root, &destination)?.map(|(path, _)| path));
    }
    if has_generation(&record.annotations) {
        binds.push(GENERATION_INSIDE.to_owned());
    }
    let mut masked_files = Vec::new();
    for path in masked_paths(spec) {
        let found = real_path(&root, Path::new(path))?;
        let file = found.filter(|(_, kind)| *kind != FileType::Directory);
        masked_files.extend(file.map(|(path, _)| path));
    }
    Ok(Dumped {
        spec,
        rootfs: &record.rootfs,
        pid: record.pid,
        binds,
        masked_files,
        external: external_namespaces(spec)?,
        cgroup: cgroup.map(|_| record.cgroup.as_path()),
        configured: config_files(spec, env::home_dir().as_deref())
            .iter()
            .any(|file| file.exists()),
    })
}

/// Where a path of the container leads inside of it, and to what; none if to nothing.
pub(super) fn real_path(root: &OwnedFd, path: &Path) -> Result<Option<(String, FileType)>> {
    let inside = path.strip_prefix("/").unwrap_or(path);
    let Ok(inside) = CString::new(inside.as_os_str().as_bytes()) else {
        return Ok(None);
    };
    let found = match open_inside(root.as_fd(), &inside, OFlags::PATH, false) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(Error::file("open", path)(errno)),
    };
    let kind = fstat(&found).map_err(Error::file("stat", path))?.st_mode;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let real = fs::read_link(&link).map_err(Error::file("readlink", link))?;
    let real = real.to_string_lossy().into_owned();
    Ok(Some((real, FileType::from_raw_mode(kind))))
}

fn external_namespaces(spec: &Spec) -> Result<Vec<String>> {
    let mut external = Vec::new();
    for (kind, path) in joined(spec) {
        let found = File::open(path).and_then(|file| file.metadata());
        let inode = found.map_err(Error::file("open", path))?.ino();
        external.extend(external_namespace(kind, inode));
    }
    Ok(external)
}

/// The namespaces that a configuration joins by path.
pub(super) fn joined(spec: &Spec) -> impl Iterator<Item = (LinuxNamespaceType, &Path)> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_ref());
    let named = all.into_iter().flatten().filter_map(|namespace| {
        let path = namespace.path().as_deref()?;
        Some((namespace.typ(), path))
    });
    named.filter(|(_, path)| !path.as_os_str().is_empty())
}
