//! From files to a running container: what a start makes is made but init, which CRIU makes.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::{FileType, Mode, OFlags, mkdir, open};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use xebec_proto::criu::{Request, RequestType};

use super::checkpoint::{OpenDirectories, explain, joined, lend_tar, real_path, wait};
use super::clone::CloneParts;
use super::confinement::{Cell, Confinement, mover};
use super::create::{
    Blueprint, announce, confine, first_warnings, make, receive_terminal, run_creation_hooks,
};
use super::profile::{require_applied, require_loaded};
use super::{Runtime, pidfd};
use crate::cgroup::Cgroup;
use crate::checkpoint::{
    Answer, Mountpoint, RestoreOptions, Restored, Session, bind_destinations, external_mounts,
    has_cgroups, mountpoints, names_empty_directory, namespace_key, read_descriptors,
    restore_options,
};
use crate::error::{Error, Result};
use crate::launch::{
    Birth, ChildStdio, CriuJob, RootMount, TerminalReceiver, connect_console, start_criu,
};
use crate::pages::Filler;
use crate::request::{CreateRequest, Launched, Stdio};
use crate::rootfs::{Want, open_target};
use crate::state::{Lent, ProcessFacts, Record, StateDir};

const LOG: &str = "restore.log";
/// A directory of this name, which no container can have, takes the place of crun's.
const EMPTY: &str = ".empty";
/// Where, in the state directory, CRIU sees the root file system mounted.
const ROOT: &str = "criu-root";

pub(super) fn restore(
    runtime: &Runtime,
    request: CreateRequest,
    options: &RestoreOptions,
) -> Result<Launched> {
    require_loaded(options.lsm_profile.as_deref())?;
    let mut files = Files::open(options)?;
    let mounts = external_mounts(&options.criu.image_path)?;
    let made = make(runtime, request, |dir, record, blueprint, request| {
        // The root directory is there with the first container.
        files.empty = empty_directories(&runtime.options.root, &mounts)?;
        build(runtime, (dir, record), blueprint, request, (options, files))
    });
    made.map(|(launched, _)| launched)
}

/// What of a checkpoint is read by us.
pub(super) struct Files {
    directories: OpenDirectories,
    /// What init's standard streams were.
    streams: Vec<String>,
    /// There were cgroups below the container's.
    has_cgroups: bool,
    /// What stands for the empty directories of crun's.
    empty: Binds,
    /// Who fills the memory, if CRIU does not.
    filler: Option<Filler>,
    /// What a clone has besides images.
    pub(super) clone: Option<CloneParts>,
}

impl Files {
    pub(super) fn open(options: &RestoreOptions) -> Result<Self> {
        let images = &options.criu.image_path;
        Ok(Self {
            directories: OpenDirectories::open(&options.criu)?,
            streams: read_descriptors(images)?,
            has_cgroups: has_cgroups(images)?,
            empty: Binds::new(),
            filler: None,
            clone: None,
        })
    }
}

/// Makes the container; on failure the caller removes what the record names.
pub(super) fn build(
    runtime: &Runtime,
    (dir, record): (&StateDir, &mut Record),
    mut blueprint: Blueprint,
    container: CreateRequest,
    (how, mut files): (&RestoreOptions, Files),
) -> Result<Launched> {
    let mut warnings = first_warnings(&blueprint);
    let cell = confine(runtime, record, &mut blueprint, &mut warnings)?;
    if let Some(filter) = &blueprint.filter {
        dir.write_seccomp(&filter.to_bytes())?;
    }
    let receiver = pidfd::connect(container.pidfd_socket.as_deref())?;
    let has_terminal = blueprint.plan.process.terminal;
    let (console, terminal) = connect_console(container.console, has_terminal)?;
    let bundle = &blueprint.bundle;
    make_mountpoints(&mountpoints(&bundle.spec, &record.rootfs, &bundle.path))?;
    let root = dir.make_directory(ROOT)?;
    let mut opened = open_namespaces(&blueprint)?;
    let staging = match &mut files.clone {
        Some(clone) => {
            opened.extend(clone.open_files(&blueprint.bundle.spec)?);
            clone.stage(dir)?
        }
        None => None,
    };
    files.filler = filler(how, &blueprint.bundle.spec)?;
    let keys = opened.iter().map(|(key, _)| (*key).to_owned()).collect();
    let asked = question(&blueprint, record, (&cell, &root, keys), (how, &files))?;
    let streams = if has_terminal {
        Stdio::NONE
    } else {
        container.stdio
    };
    let (session, theirs) = Session::new()?;
    let tar = lend_tar(dir, &how.criu)?;
    let job = CriuJob::new(
        (&how.criu.program, tar.as_ref().and_then(Lent::directory)),
        theirs,
        opened.into_iter().map(|(_, file)| file).collect(),
        ChildStdio::new(streams)?,
        Some(RootMount {
            rootfs: c_path(&record.rootfs)?,
            at: c_path(&root)?,
            staging,
        }),
    )?;
    let job = (job, container.reparent);
    let criu = start(runtime, record, &mut blueprint.confinement, cell, job)?;
    let spec = &blueprint.bundle.spec;
    let mut init = 0;
    let answer = session.ask(&asked, &mut |notice| match notice.script.as_str() {
        "setup-namespaces" => {
            init = notice.pid;
            // Not the container's yet: a failure has to find no init that has ended.
            let coming = Record {
                pid: notice.pid,
                ..record.clone()
            };
            run_creation_hooks(spec, &coming, None)
        }
        "pre-resume" => {
            let filler = files.filler.take();
            before_resume(how, (filler, files.clone.as_mut()), init)
        }
        "orphan-pts-master" => hand_over(console.as_ref(), notice.file),
        _ => Ok(()),
    });
    drop(session);
    if !container.reparent {
        wait(criu.pidfd.as_fd())?;
    }
    drop(tar);
    dir.remove_directory(ROOT)?;
    if let Some(clone) = &files.clone {
        clone.unstage(dir)?;
    }
    let log = (files.directories.logs(LOG), files.clone.is_none());
    let launched = adopt(dir, record, restored_init(answer?, &log)?)?;
    if let Some((groups, plan)) = &blueprint.resctrl {
        groups.enter(plan, launched.pid)?;
    }
    let pid_file = container.pid_file.as_deref();
    let mut launched = announce(launched, receiver, pid_file, container.reparent)?;
    launched.terminal = receive_terminal(terminal);
    launched.warnings = warnings;
    Ok(launched)
}

/// Who fills the memory in CRIU's place, where that is worth it. In a user namespace nobody may, and
/// pages that are to be removed as they are read are CRIU's matter.
fn filler(how: &RestoreOptions, spec: &Spec) -> Result<Option<Filler>> {
    let criu = &how.criu;
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let mut kinds = namespaces.into_iter().flatten().map(LinuxNamespace::typ);
    if criu.lazy_pages || criu.auto_dedup || kinds.any(|kind| kind == LinuxNamespaceType::User) {
        return Ok(None);
    }
    let work = criu.work_path.as_ref().unwrap_or(&criu.image_path);
    Filler::prepare(&criu.image_path, work)
}

/// What is left to do when everything is there but memory, and init has not gone on.
fn before_resume(
    how: &RestoreOptions,
    (filler, clone): (Option<Filler>, Option<&mut CloneParts>),
    init: i32,
) -> Result<()> {
    require_applied(how.lsm_profile.as_deref(), init)?;
    filler.map_or(Ok(()), Filler::finish)?;
    clone.map_or(Ok(()), |clone| clone.before_resume(init))
}

/// What CRIU is asked for.
fn question(
    blueprint: &Blueprint,
    record: &Record,
    (cell, root, inherited): (&Cell, &Path, Vec<String>),
    (how, files): (&RestoreOptions, &Files),
) -> Result<Request> {
    let mut binds = binds(blueprint, &record.rootfs)?;
    binds.extend(files.empty.clone());
    binds.extend(files.clone.iter().flat_map(CloneParts::binds));
    let restored = Restored {
        spec: &blueprint.bundle.spec,
        root,
        binds,
        streams: files.streams.clone(),
        inherited,
        cgroup: cell.cgroup.as_ref().map(|cgroup| {
            let inside = cgroup.path().inner();
            format!("/{}", inside.display())
        }),
        has_cgroups: files.has_cgroups,
    };
    let mut options = restore_options(&restored, how, files.directories.numbers());
    if files.filler.is_some() {
        options.lazy_pages = Some(true);
    }
    let mut asked = Request {
        opts: Some(options),
        ..Request::default()
    };
    asked.set_type(RequestType::Restore);
    Ok(asked)
}

fn restored_init(answer: Answer, (log, kept): &(PathBuf, bool)) -> Result<i32> {
    match answer {
        Answer::Done { pid, .. } => Ok(pid),
        failed @ Answer::Failed { .. } => Err(explain(failed, log, *kept)),
    }
}

/// Starts CRIU in the container's cgroup, where all that it makes will be.
fn start(
    runtime: &Runtime,
    record: &Record,
    confinement: &mut Confinement,
    mut cell: Cell,
    (job, reparent): (CriuJob, bool),
) -> Result<Launched> {
    let mover = mover(record.unit.as_ref(), "");
    let birth = Birth {
        cgroup: cell.cgroup.as_ref().map(Cgroup::fd),
        mover: mover.as_deref(),
        reparent,
    };
    let criu = start_criu(&job, birth)?;
    confinement.release(cell.placeholder.take(), cell.cgroup.as_ref(), runtime)?;
    Ok(criu)
}

/// Takes the restored init for the container's.
fn adopt(dir: &StateDir, record: &mut Record, pid: i32) -> Result<Launched> {
    let gone = || Error::InitDied(format!("restored process {pid} is gone"));
    let raw = Pid::from_raw(pid).ok_or_else(gone)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| gone())?;
    record.pid = pid;
    record.start_time = ProcessFacts::of(pid).ok_or_else(gone)?.start_time;
    // CRIU gives the tree a clock of its own, where the kernel has that.
    if is_elsewhere(pid, "time") {
        record.namespaces |= libc::CLONE_NEWTIME as u64;
    }
    dir.write(record)?;
    Ok(Launched::new(pid, pidfd))
}

fn is_elsewhere(pid: i32, namespace: &str) -> bool {
    let own = fs::read_link(format!("/proc/self/ns/{namespace}"));
    let its = fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
    matches!((own, its), (Ok(own), Ok(its)) if own != its)
}

fn hand_over(console: Option<&TerminalReceiver>, master: Option<OwnedFd>) -> Result<()> {
    match (console, master) {
        (Some(receiver), Some(master)) => receiver
            .hand_over(master.as_fd())
            .map_err(Error::os("send the terminal")),
        // A terminal that nobody has asked for hangs up.
        _ => Ok(()),
    }
}

/// Opens the namespaces that CRIU is to find where they were.
fn open_namespaces(blueprint: &Blueprint) -> Result<Vec<(&'static str, OwnedFd)>> {
    let mut opened = Vec::new();
    for (kind, path) in joined(&blueprint.bundle.spec) {
        if let Some(key) = namespace_key(kind) {
            let file = File::open(path).map_err(Error::file("open", path))?;
            opened.push((key, file.into()));
        }
    }
    Ok(opened)
}

/// What mounts are called in images, and where their sources are.
type Binds = Vec<(String, PathBuf)>;

/// A place for each of the empty directories that crun has bound; there is none in the images of others.
fn empty_directories(root: &Path, mounts: &[String]) -> Result<Binds> {
    let mut binds = Binds::new();
    for key in mounts.iter().filter(|key| names_empty_directory(key)) {
        let empty = root.join(EMPTY);
        match mkdir(&empty, Mode::from_raw_mode(0o555)) {
            Ok(()) | Err(Errno::EXIST) => binds.push((key.clone(), empty)),
            Err(errno) => return Err(Error::file("mkdir", empty)(errno)),
        }
    }
    Ok(binds)
}

/// Destinations, with symlinks of the image followed, and sources of bind mounts.
fn binds(blueprint: &Blueprint, rootfs: &Path) -> Result<Binds> {
    let root = open_directory(rootfs)?;
    let (top, _) =
        real_path(&root, Path::new("/"))?.unwrap_or((String::new(), FileType::Directory));
    let bundle = &blueprint.bundle;
    let mut binds = Binds::new();
    for (destination, source) in bind_destinations(&bundle.spec, &bundle.path) {
        let real = real_path(&root, &destination)?;
        let inside = real.and_then(|(real, _)| Some(real.strip_prefix(&top)?.to_owned()));
        let named = inside.unwrap_or_else(|| destination.to_string_lossy().into_owned());
        binds.push((named, source));
    }
    Ok(binds)
}

/// Makes what mounts need, as a start does while it mounts.
fn make_mountpoints(points: &[Mountpoint]) -> Result<()> {
    for point in points {
        let failed = |errno| Error::file("create mountpoint", point.base.join(&point.path))(errno);
        let is_file = point.source.as_ref().is_some_and(|source| !source.is_dir());
        let want = if is_file { Want::File } else { Want::Directory };
        let base = open_directory(&point.base)?;
        let path = c_path(&point.path)?;
        open_target(base.as_fd(), &path, want, false).map_err(failed)?;
    }
    Ok(())
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(Error::file("open", path))
}

pub(super) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::InvalidArgument(format!("{}: zero byte in path", path.display())))
}
