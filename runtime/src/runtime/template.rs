//! From a running container to a template: a checkpoint, and what clones need besides.

use std::fs::{self, DirBuilder, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use xebec_proto::criu::{Request, RequestType};

use super::Runtime;
use super::checkpoint::{LOG, OpenDirectories, converse, look_at, real_path};
use super::clone::has_own_network;
use super::query::cgroup_of;
use super::restore::open_directory;
use super::standstill::Pause;
use crate::checkpoint::{
    CheckpointRequest, CriuOptions, Dumped, NetworkLock, check_policy, dump_options,
    external_namespace, streams_of, write_descriptors,
};
use crate::error::{Error, Result};
use crate::plan::options;
use crate::rootfs::copy_filesystem;
use crate::spec::{Bundle, load_bundle};
use crate::state::{ContainerId, Record, StateDir, Status, rfc3339};
use crate::template::{
    Guard, KeptFilesystem, MemoryMode, Template, TemplateDir, Templates, VERSION, flatten,
};

/// A running container that is to become a template.
#[derive(Clone, Debug)]
pub struct TemplateRequest {
    /// The container.
    pub id: ContainerId,
    /// Directory of the templates.
    pub templates: PathBuf,
    /// The template's name.
    pub name: ContainerId,
    /// Allow clones to share memory though the container ran without the rules that make that
    /// exact.
    pub allow_share: bool,
    /// CRIU's program; a bare name is looked for in `PATH`.
    pub criu: PathBuf,
    /// Allow unix sockets whose peer is outside the container.
    pub ext_unix_sk: bool,
    /// Keep file locks.
    pub file_locks: bool,
}

/// The container while it is dumped.
struct Source {
    record: Record,
    bundle: Bundle,
    status: Status,
    filesystems: Vec<KeptFilesystem>,
}

pub(super) fn create(runtime: &Runtime, request: &TemplateRequest) -> Result<Template> {
    let state = StateDir::open(&runtime.options.root, &request.id)?;
    state.lock()?;
    let record = state.record()?;
    let status = state.status(&record);
    if !matches!(status, Status::Running | Status::Paused) {
        let reason = format!("no template can be made of a container in {status} state");
        return Err(Error::Status(reason));
    }
    let bundle = load_bundle(&record.bundle, record.config.as_deref())?;
    let source = Source {
        filesystems: filesystems(&bundle.spec, record.pid)?,
        record,
        bundle,
        status,
    };
    let store = Templates::new(request.templates.clone());
    store.create(&request.name, |template| fill(template, request, &source))
}

/// Fills the directory of a template.
fn fill(template: &TemplateDir, request: &TemplateRequest, source: &Source) -> Result<Template> {
    let images = template.images(MemoryMode::Eager);
    make_directory(&images)?;
    dump(template, request, source)?;
    let guard = Guard::of(&source.record.annotations).map_err(Error::InvalidArgument)?;
    let guarded = guard.is_some();
    let mut modes = vec![MemoryMode::Eager];
    let (mut own_memory, mut shared_memory) = (pages_in(&images)?, 0);
    if guarded || request.allow_share {
        let flat = template.images(MemoryMode::Share);
        make_directory(&flat)?;
        let flattened = flatten(&images, &flat, &template.page_file())?;
        (own_memory, shared_memory) = (flattened.own, flattened.shared);
        modes.push(MemoryMode::Share);
    }
    let mut files = std::collections::BTreeMap::new();
    for mode in &modes {
        files.extend(template.facts(*mode)?);
    }
    Ok(Template {
        version: VERSION,
        name: request.name.clone(),
        created: rfc3339(SystemTime::now()),
        bundle: source.bundle.path.clone(),
        modes,
        guarded,
        own_memory,
        shared_memory,
        hot_memory: 0,
        ext_unix_sk: request.ext_unix_sk,
        file_locks: request.file_locks,
        filesystems: source.filesystems.clone(),
        files,
        config: source.bundle.spec.clone(),
    })
}

/// Has CRIU dump the container, and keeps what is in its file systems, both while it stands still.
fn dump(template: &TemplateDir, request: &TemplateRequest, source: &Source) -> Result<()> {
    let (record, spec) = (&source.record, &source.bundle.spec);
    if record.cgroup.as_os_str().is_empty() {
        let reason = "a template needs a container with a cgroup, to make it stand still";
        return Err(Error::Unsupported(reason.to_owned()));
    }
    let cgroup = cgroup_of(record)?;
    let images = template.images(MemoryMode::Eager);
    let mut criu = CriuOptions::new(&images);
    criu.program.clone_from(&request.criu);
    criu.work_path = Some(template.path.clone());
    criu.tcp_close = true;
    criu.network_lock = Some(NetworkLock::Skip);
    criu.ext_unix_sk = request.ext_unix_sk;
    criu.file_locks = request.file_locks;
    check_policy(&criu)?;
    let directories = OpenDirectories::make(&criu)?;
    let mut container = look_at(record, spec, Some(&cgroup))?;
    separate(&mut container, source)?;
    let checkpoint = CheckpointRequest {
        id: request.id.clone(),
        criu,
        parent_path: None,
        pre_dump: false,
        leave_running: true,
        tcp_skip_in_flight: false,
        page_server: None,
        status: None,
    };
    let options = dump_options(&container, &checkpoint, directories.numbers());
    let mut asked = Request {
        opts: Some(options),
        ..Request::default()
    };
    asked.set_type(RequestType::Dump);
    write_descriptors(&images, &streams_of(record.pid)?)?;
    // From here on nothing returns before the container goes on.
    let mut pause = Pause::of(Some(&cgroup), source.status);
    pause.begin()?;
    let log = directories.logs(LOG);
    let dumped = keep_filesystems(template, source).and_then(|()| {
        converse((&checkpoint.criu, None), (&asked, None), &log, &mut |_| {
            Ok(())
        })
    });
    let thawed = pause.end();
    dumped.and(thawed)
}

/// What a clone has of its own, and CRIU is therefore not to dump.
fn separate(container: &mut Dumped<'_>, source: &Source) -> Result<()> {
    let kept = source.filesystems.iter();
    container
        .binds
        .extend(kept.map(|kept| kept.destination.clone()));
    if has_own_network(&source.bundle.spec) {
        let path = format!("/proc/{}/ns/net", source.record.pid);
        let inode = fs::metadata(&path)
            .map_err(Error::file("stat", &path))?
            .ino();
        let external = external_namespace(LinuxNamespaceType::Network, inode);
        container.external.extend(external);
    }
    Ok(())
}

/// The file systems in memory that we fill faster than CRIU does. Those of a user namespace, or
/// with a label of SELinux's, it has to make itself.
fn filesystems(spec: &Spec, pid: i32) -> Result<Vec<KeptFilesystem>> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let mut namespaces = namespaces.into_iter().flatten();
    let labelled = linux.is_some_and(|linux| linux.mount_label().is_some());
    if labelled || namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return Ok(Vec::new());
    }
    let root = open_directory(&root_of(pid))?;
    let mut kept = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        if mount.typ().as_deref() != Some("tmpfs") {
            continue;
        }
        let options = options::parse(mount.options().as_deref().unwrap_or_default());
        if let Some((destination, _)) = real_path(&root, mount.destination())? {
            kept.push(KeptFilesystem {
                destination,
                options: options.data.join(","),
            });
        }
    }
    Ok(kept)
}

fn keep_filesystems(template: &TemplateDir, source: &Source) -> Result<()> {
    for (index, kept) in source.filesystems.iter().enumerate() {
        let place = template.filesystem(index);
        make_directory(&place)?;
        let inside = kept.destination.trim_start_matches('/');
        let path = root_of(source.record.pid).join(inside);
        let content = File::open(&path).map_err(Error::file("open", &path))?;
        let copy = File::open(&place).map_err(Error::file("open", &place))?;
        copy_filesystem(content.as_fd(), copy.as_fd()).map_err(Error::file("copy", path))?;
    }
    Ok(())
}

fn root_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// Bytes of pages in a directory of images.
fn pages_in(images: &Path) -> Result<u64> {
    let failed = |e| Error::file("read", images)(e);
    let mut total = 0;
    for entry in fs::read_dir(images).map_err(failed)? {
        let entry = entry.map_err(|e| Error::file("read", images)(e))?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            total += entry
                .metadata()
                .map_err(|e| Error::file("stat", entry.path())(e))?
                .len();
        }
    }
    Ok(total)
}

fn make_directory(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(Error::file("mkdir", path))
}
