//! From a template to a running container: a restore into namespaces and a cgroup of its own.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Runtime;
use super::create::{Blueprint, make};
use super::restore::{Files, build, c_path};
use crate::checkpoint::{CriuOptions, RestoreOptions, namespace_key};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::launch::{StagedFilesystem, Staging};
use crate::pages::{PageClient, PageProgram};
use crate::request::{CreateRequest, Launched};
use crate::spec::{Bundle, load_bundle};
use crate::state::{ContainerId, Record, StateDir};
use crate::sys::{self, MountAttr, clone_tree_with};
use crate::template::{
    Fit, MemoryMode, PAGE_FILE, Template, TemplateDir, Templates, has_generation, signal,
};

const RANDOM: &str = "/dev/urandom";
const OWN_NETWORK: &str = "/proc/self/ns/net";
/// What CRIU writes, in the state directory, unless the caller wants to have it.
const WORK: &str = "criu-work";
/// Where, in the state directory, CRIU finds file systems to bind.
const STAGING: &str = "criu-staging";

/// How a container is made of a template.
#[derive(Clone, Debug)]
pub struct CloneRequest {
    /// Directory of the templates.
    pub templates: PathBuf,
    /// The template's name.
    pub template: ContainerId,
    /// Where the memory comes from.
    pub memory: MemoryMode,
    /// In the mode `uffd`, the pages that a first request was seen to need come before it.
    pub hot: bool,
    /// CRIU's program; a bare name is looked for in `PATH`.
    pub criu: PathBuf,
    /// Directory that keeps CRIU's log and statistics.
    pub work_path: Option<PathBuf>,
    /// Who serves the memory in the mode `uffd`.
    pub page_program: Option<PageProgram>,
    /// How much of the container's configuration has to be the template's.
    pub fit: Fit,
}

pub(super) fn clone(
    runtime: &Runtime,
    mut container: CreateRequest,
    request: &CloneRequest,
) -> Result<Launched> {
    let source = Source::open(request)?;
    if container.bundle.as_os_str().is_empty() {
        container.bundle.clone_from(&source.record.bundle);
        container.own_cgroup = true;
    }
    let made = make(runtime, container, |dir, record, blueprint, container| {
        source.build(runtime, (dir, record), blueprint, container)
    });
    made.map(|(launched, _)| launched)
}

/// Refuses a container that could be no clone, before anything is made of it.
pub(super) fn check(bundle: &Path, request: &CloneRequest) -> Result<()> {
    Source::find(request)?.compare(&load_bundle(bundle, None)?)
}

/// A template that is to be cloned.
pub(super) struct Source<'a> {
    template: TemplateDir,
    record: Template,
    request: &'a CloneRequest,
}

impl<'a> Source<'a> {
    fn find(request: &'a CloneRequest) -> Result<Self> {
        let store = Templates::new(request.templates.clone());
        let (template, record) = store.open(&request.template)?;
        let mode = request.memory;
        if !record.modes.contains(&mode.images()) {
            let name = &record.name;
            return Err(Error::InvalidArgument(format!(
                "template {name} was not made for the memory mode {mode}"
            )));
        }
        Ok(Self {
            template,
            record,
            request,
        })
    }

    pub(super) fn open(request: &'a CloneRequest) -> Result<Self> {
        let found = Self::find(request)?;
        found
            .template
            .verify(&found.record, request.memory, false)?;
        Ok(found)
    }

    fn compare(&self, bundle: &Bundle) -> Result<()> {
        let fit = self.request.fit;
        let Some(field) = fit.misfit(&self.record.config, &bundle.spec) else {
            return Ok(());
        };
        let name = &self.record.name;
        Err(Error::Spec {
            file: bundle.file.display().to_string(),
            field: field.to_owned(),
            reason: match field {
                "mounts" => format!("these are not the mounts of the template {name}"),
                _ => format!("this is not as in the template {name}"),
            },
        })
    }

    /// Makes the clone; on failure the caller removes what the record names.
    pub(super) fn build(
        &self,
        runtime: &Runtime,
        (dir, container): (&StateDir, &mut Record),
        blueprint: Blueprint,
        request: CreateRequest,
    ) -> Result<Launched> {
        self.compare(&blueprint.bundle)?;
        let (template, mode) = (&self.template, self.request.memory);
        let mut parts = CloneParts::open(template, &self.record, mode)?;
        let mut options = restore_options(template, &self.record, self.request);
        let annotations = blueprint.bundle.spec.annotations();
        parts.signal = signal(annotations).map_err(Error::InvalidArgument)?;
        if has_generation(annotations) {
            dir.write_generation(&generation(template)?)?;
        }
        let work = match &options.criu.work_path {
            Some(_) => None,
            None => Some(dir.make_directory(WORK)?),
        };
        options.criu.work_path = options.criu.work_path.take().or(work.clone());
        let mut files = Files::open(&options)?;
        if mode == MemoryMode::Uffd {
            let program = self.request.page_program.as_ref();
            let hot = self.request.hot && self.record.hot_memory > 0;
            let asked = (&options, &blueprint);
            parts.pages = Some(page_client(runtime, program, asked, hot)?);
        }
        files.clone = Some(parts);
        let launched = build(
            runtime,
            (dir, container),
            blueprint,
            request,
            (&options, files),
        )?;
        if let Some(work) = work {
            fs::remove_dir_all(&work).map_err(Error::file("remove", work))?;
        }
        Ok(launched)
    }
}

fn restore_options(
    template: &TemplateDir,
    record: &Template,
    request: &CloneRequest,
) -> RestoreOptions {
    let mut criu = CriuOptions::new(template.images(request.memory));
    criu.program.clone_from(&request.criu);
    criu.work_path.clone_from(&request.work_path);
    criu.lazy_pages = request.memory == MemoryMode::Uffd;
    // A connection has one end only, and that is the first container's.
    criu.tcp_close = true;
    criu.ext_unix_sk = record.ext_unix_sk;
    criu.file_locks = record.file_locks;
    RestoreOptions {
        criu,
        lsm_profile: None,
        lsm_mount_context: None,
    }
}

/// What a clone reads: its number, and random digits that no other clone has, on no machine.
fn generation(template: &TemplateDir) -> Result<String> {
    let mut random = [0; 16];
    File::open(RANDOM)
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(Error::file("read", RANDOM))?;
    let number = template.next_generation()?;
    Ok(format!("{number} {}\n", hex(&random)))
}

/// Has the server of pages expect CRIU.
fn page_client(
    runtime: &Runtime,
    program: Option<&PageProgram>,
    (options, blueprint): (&RestoreOptions, &Blueprint),
    hot: bool,
) -> Result<PageClient> {
    let invalid = |reason: &str| Error::InvalidArgument(reason.to_owned());
    let program = program
        .ok_or_else(|| invalid("no program is given to serve pages in the memory mode uffd"))?;
    if !has_own(&blueprint.bundle.spec, LinuxNamespaceType::Pid) {
        let reason = "the memory mode uffd needs a pid namespace, so that all ends with init";
        return Err(invalid(reason));
    }
    let path = &options.criu.image_path;
    let images = File::open(path).map_err(Error::file("open", path))?;
    let work = options.criu.work_path.as_deref().unwrap_or(Path::new("."));
    PageClient::new(&runtime.options.root, program, (work, images.as_fd()), hot)
}

/// What a clone has besides images.
pub(super) struct CloneParts {
    filesystems: Vec<Filesystem>,
    page_file: Option<OwnedFd>,
    /// The server of its pages, until that knows of its init.
    pub(super) pages: Option<PageClient>,
    /// The directory that file systems are staged in, once it is known.
    staging: PathBuf,
    /// What tells its init that it is a clone.
    signal: Option<i32>,
}

/// A file system in memory.
struct Filesystem {
    destination: String,
    options: CString,
    content: Option<OwnedFd>,
}

impl CloneParts {
    fn open(template: &TemplateDir, record: &Template, mode: MemoryMode) -> Result<Self> {
        let open = |(index, kept): (usize, &crate::template::KeptFilesystem)| {
            let path = template.filesystem(index);
            let content = File::open(&path).map_err(Error::file("open", path))?;
            Ok(Filesystem {
                destination: kept.destination.clone(),
                options: c_path(Path::new(&kept.options))?,
                content: Some(content.into()),
            })
        };
        let filesystems = record.filesystems.iter().enumerate().map(open);
        let page_file = match mode {
            MemoryMode::Eager | MemoryMode::Uffd => None,
            MemoryMode::Share => Some(open_page_file(&template.page_file())?),
        };
        Ok(Self {
            filesystems: filesystems.collect::<Result<_>>()?,
            page_file,
            pages: None,
            staging: PathBuf::new(),
            signal: None,
        })
    }

    /// The files that CRIU is to inherit, with its keys for them.
    pub(super) fn open_files(&mut self, spec: &Spec) -> Result<Vec<(&'static str, OwnedFd)>> {
        let mut opened = Vec::new();
        let key = namespace_key(LinuxNamespaceType::Network);
        if let (Some(key), true) = (key, has_own_network(spec)) {
            opened.push((key, new_network()?));
        }
        let key = PAGE_FILE.trim_start_matches('/');
        opened.extend(self.page_file.take().map(|file| (key, file)));
        Ok(opened)
    }

    /// What the child makes before it becomes CRIU.
    pub(super) fn stage(&mut self, dir: &StateDir) -> Result<Option<Staging>> {
        if self.filesystems.is_empty() {
            return Ok(None);
        }
        self.staging = dir.make_directory(STAGING)?;
        let mut filesystems = Vec::new();
        for (index, filesystem) in self.filesystems.iter_mut().enumerate() {
            if let Some(content) = filesystem.content.take() {
                filesystems.push(StagedFilesystem {
                    at: c_path(&self.staging.join(index.to_string()))?,
                    options: filesystem.options.clone(),
                    content,
                });
            }
        }
        Ok(Some(Staging {
            at: c_path(&self.staging)?,
            filesystems,
        }))
    }

    /// The staging directory is of no more use.
    pub(super) fn unstage(&self, dir: &StateDir) -> Result<()> {
        if self.filesystems.is_empty() {
            return Ok(());
        }
        dir.remove_directory(STAGING)
    }

    /// What has to be done before anything of the clone goes on: init is told that it is one, and
    /// who serves its memory, whose init it is.
    pub(super) fn before_resume(&mut self, init: i32) -> Result<()> {
        let pages = self.pages.take();
        if self.signal.is_none() && pages.is_none() {
            return Ok(());
        }
        let failed = |errno| Error::os("open the clone's init")(errno);
        let raw = Pid::from_raw(init).ok_or_else(|| failed(Errno::SRCH))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(failed)?;
        if let Some(pages) = pages {
            pages.started(pidfd.as_fd())?;
        }
        match self.signal {
            None => Ok(()),
            Some(signal) => sys::pidfd_send_signal(pidfd.as_fd(), signal)
                .map_err(Error::os("send the clone's signal")),
        }
    }

    /// Where CRIU finds what it binds.
    pub(super) fn binds(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let all = self.filesystems.iter().enumerate();
        all.map(|(index, filesystem)| {
            let at = self.staging.join(index.to_string());
            (filesystem.destination.clone(), at)
        })
    }
}

/// Whether the configuration asks for a network namespace that is not there yet.
pub(super) fn has_own_network(spec: &Spec) -> bool {
    has_own(spec, LinuxNamespaceType::Network)
}

fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_ref());
    all.into_iter().flatten().any(|namespace| {
        let path = namespace.path().as_deref();
        namespace.typ() == kind && path.is_none_or(|path| path.as_os_str().is_empty())
    })
}

/// A new network namespace; this process is in it for a moment.
fn new_network() -> Result<OwnedFd> {
    let open = || File::open(OWN_NETWORK).map_err(Error::file("open", OWN_NETWORK));
    let home = open()?;
    sys::unshare(libc::CLONE_NEWNET as u64).map_err(Error::os("unshare the network"))?;
    let made = sys::loopback_up()
        .map_err(Error::os("set up loopback device"))
        .and_then(|()| open());
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(Error::os("go back to the network"))?;
    made.map(OwnedFd::from)
}

/// Opens the page file through a mount that is read-only and attached nowhere: a privileged clone
/// finds it behind its mappings, and must not write to it.
fn open_page_file(path: &Path) -> Result<OwnedFd> {
    let failed = |errno| Error::file("open", path)(errno);
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        ..MountAttr::default()
    };
    let name = c_path(path)?;
    let view = clone_tree_with(CWD, &name, OpenTreeFlags::empty(), &attr).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let by_number = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&view));
    openat(CWD, by_number, flags, Mode::empty()).map_err(failed)
}
