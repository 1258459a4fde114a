//! Container + request → CRIU's options. Pure.
//!
//! The keys are runc's, so that either runtime restores the other's images: an external mount is
//! called by its destination, a masked file by the null device, a namespace `extRootNetNS`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxNamespaceType, Mount, Spec};
use xebec_proto::criu::{
    self, CgroupRoot, ExternalMount, InheritFd, JoinNamespace, Options, PageServer,
};

use super::options::{CgroupsMode, CheckpointRequest, CriuOptions, NetworkLock, RestoreOptions};

/// Annotation that names CRIU's configuration file for a container; empty for none.
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// The configuration file unless an annotation says otherwise; CRIU goes without one that is not
/// there.
const CONFIG_FILE: &str = "/etc/criu/runc.conf";
/// How masked files are called in images.
const MASKED: &str = "/dev/null";
/// What crun binds over masked directories, below its own directory; a masked file it calls by its path.
const EMPTY_DIRECTORY: &str = "/.empty-directory";
/// CRIU's level for everything but its innermost steps, as runc has it, and for what is amiss alone:
/// the lines between are a tenth of the time.
const VERBOSE: i32 = 4;
const BRIEF: i32 = 2;

/// Open directories, by their numbers in this process: CRIU finds them through `/proc`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directories {
    pub(crate) images: i32,
    pub(crate) work: Option<i32>,
}

/// What is to be known of a container that is dumped.
#[derive(Debug)]
pub(crate) struct Dumped<'a> {
    pub(crate) spec: &'a Spec,
    /// Path of the root file system on the host.
    pub(crate) rootfs: &'a Path,
    pub(crate) pid: i32,
    /// Where its bind mounts really are, with symlinks of the image followed.
    pub(crate) binds: Vec<String>,
    /// Those masked paths that are files.
    pub(crate) masked_files: Vec<String>,
    /// Namespaces that are not the container's own ([`external_namespace`]).
    pub(crate) external: Vec<String>,
    /// The cgroup to freeze, if the container has one.
    pub(crate) cgroup: Option<&'a Path>,
    /// Settings of the host's may ask for more than the request does ([`config_files`]).
    pub(crate) configured: bool,
}

/// What is to be known of a container that is restored.
#[derive(Debug)]
pub(crate) struct Restored<'a> {
    pub(crate) spec: &'a Spec,
    /// A mount of the root file system.
    pub(crate) root: &'a Path,
    /// Destinations, as in [`Dumped::binds`], and sources of bind mounts.
    pub(crate) binds: Vec<(String, PathBuf)>,
    /// What init's standard streams were.
    pub(crate) streams: Vec<String>,
    /// Keys of namespaces that exist and of other files that CRIU inherits, from number 4 on.
    pub(crate) inherited: Vec<String>,
    /// The cgroup as `/proc/PID/cgroup` shows it.
    pub(crate) cgroup: Option<String>,
    /// There were cgroups below the container's.
    pub(crate) has_cgroups: bool,
}

/// Options of a dump.
pub(crate) fn dump_options(
    container: &Dumped<'_>,
    request: &CheckpointRequest,
    directories: Directories,
) -> Options {
    let common = &request.criu;
    let mut options = common_options(common, container.spec, directories);
    options.log_file = Some("dump.log".to_owned());
    options.root = Some(container.rootfs.to_string_lossy().into_owned());
    options.pid = Some(container.pid);
    options.leave_running = Some(request.leave_running);
    options.tcp_skip_in_flight = Some(request.tcp_skip_in_flight);
    if let Some(lock) = network_lock(container, common) {
        options.set_network_lock(lock);
    }
    options.external.clone_from(&container.external);
    options.freeze_cgroup = container
        .cgroup
        .map(|path| path.to_string_lossy().into_owned());
    // What is in the images does no harm to who restores without it; runc cannot do without.
    options.set_manage_cgroups_mode(mode(common.cgroups, criu::CgroupsMode::Soft));
    options.ps = request.page_server.as_ref().map(|server| PageServer {
        address: Some(server.address.clone()),
        port: Some(server.port.into()),
    });
    if let Some(parent) = &request.parent_path {
        options.parent_img = Some(parent.to_string_lossy().into_owned());
        options.track_mem = Some(true);
    }
    if request.pre_dump {
        // Only memory is looked at: what files are is asked in the last step.
        options.track_mem = Some(true);
        return options;
    }
    let binds = container.binds.iter().map(|at| (at.as_str(), at.as_str()));
    let masks = container
        .masked_files
        .iter()
        .map(|at| (at.as_str(), MASKED));
    options.ext_mnt = binds.chain(masks).map(external_mount).collect();
    options.ext_mnt.extend(devices(container.spec));
    options
}

/// Options of a restore.
pub(crate) fn restore_options(
    container: &Restored<'_>,
    wanted: &RestoreOptions,
    directories: Directories,
) -> Options {
    let common = &wanted.criu;
    let mut options = common_options(common, container.spec, directories);
    options.log_file = Some("restore.log".to_owned());
    options.root = Some(container.root.to_string_lossy().into_owned());
    options.evasive_devices = Some(true);
    options.rst_sibling = Some(true);
    options.lsm_profile.clone_from(&wanted.lsm_profile);
    options
        .lsm_mount_context
        .clone_from(&wanted.lsm_mount_context);
    // Managed cgroups cost a mount of the whole hierarchy: worth it only where some of them are
    // below the container's.
    let auto = if container.has_cgroups {
        criu::CgroupsMode::Soft
    } else {
        criu::CgroupsMode::Ignore
    };
    options.set_manage_cgroups_mode(mode(common.cgroups, auto));
    options.cg_root = container
        .cgroup
        .as_deref()
        .map(cgroup_root)
        .into_iter()
        .collect();
    let binds = container.binds.iter();
    let binds = binds.map(|(at, source)| external_mount((at, &source.to_string_lossy())));
    options.ext_mnt = binds.collect();
    options.ext_mnt.push(external_mount((MASKED, MASKED)));
    let masked = masked_paths(container.spec).map(|path| external_mount((path, MASKED)));
    options.ext_mnt.extend(masked);
    options.ext_mnt.extend(devices(container.spec));
    options.join_ns = joined(container.spec);
    let streams = container.streams.iter().zip(0..);
    let pipes = streams.filter(|(name, _)| name.starts_with("pipe:"));
    let inherited = pipes.chain(container.inherited.iter().zip(4..));
    options.inherit_fd = inherited
        .map(|(key, fd)| InheritFd {
            key: key.clone(),
            fd,
        })
        .collect();
    options
}

fn common_options(common: &CriuOptions, spec: &Spec, directories: Directories) -> Options {
    Options {
        images_dir_fd: directories.images,
        work_dir_fd: directories.work,
        log_level: Some(if common.verbose { VERBOSE } else { BRIEF }),
        notify_scripts: Some(true),
        manage_cgroups: Some(true),
        orphan_pts_master: Some(true),
        shell_job: Some(common.shell_job),
        ext_unix_sk: Some(common.ext_unix_sk),
        tcp_established: Some(common.tcp_established),
        tcp_close: common.tcp_close.then_some(true),
        file_locks: Some(common.file_locks),
        link_remap: Some(common.link_remap),
        auto_dedup: Some(common.auto_dedup),
        lazy_pages: Some(common.lazy_pages),
        empty_ns: Some(common.empty_namespaces),
        config_file: config_file(spec),
        ..Options::default()
    }
}

/// How the network is locked; it is noted in the images, and a restore does as they say. A lock keeps
/// packets from connections that are dumped. Where none can be, it would only lose what clients send
/// meanwhile, and its rules would stay in a network that is there after the container.
fn network_lock(container: &Dumped<'_>, common: &CriuOptions) -> Option<criu::NetworkLock> {
    let keeps_none = !common.tcp_established && !container.configured;
    let lock = common
        .network_lock
        .or(keeps_none.then_some(NetworkLock::Skip))?;
    Some(match lock {
        NetworkLock::Iptables => criu::NetworkLock::Iptables,
        NetworkLock::Nftables => criu::NetworkLock::Nftables,
        NetworkLock::Skip => criu::NetworkLock::Skip,
    })
}

/// Files that CRIU takes settings from for a container, if they are there; the last one counts most.
pub(crate) fn config_files(spec: &Spec, home: Option<&Path>) -> Vec<PathBuf> {
    let own = home.map(|home| home.join(".criu/default.conf"));
    let default = std::iter::once(PathBuf::from("/etc/criu/default.conf"));
    let given = config_file(spec).map(PathBuf::from);
    default.chain(own).chain(given).collect()
}

fn config_file(spec: &Spec) -> Option<String> {
    let annotations = spec.annotations().as_ref();
    match annotations.and_then(|all| all.get(CONFIG_ANNOTATION)) {
        Some(file) if file.is_empty() => None,
        Some(file) => Some(file.clone()),
        None => Some(CONFIG_FILE.to_owned()),
    }
}

fn mode(wanted: CgroupsMode, auto: criu::CgroupsMode) -> criu::CgroupsMode {
    match wanted {
        CgroupsMode::Auto => auto,
        CgroupsMode::Ignore => criu::CgroupsMode::Ignore,
        CgroupsMode::Soft => criu::CgroupsMode::Soft,
        CgroupsMode::Full => criu::CgroupsMode::Full,
        CgroupsMode::Strict => criu::CgroupsMode::Strict,
    }
}

fn external_mount((key, value): (&str, &str)) -> ExternalMount {
    ExternalMount {
        key: key.to_owned(),
        val: value.to_owned(),
    }
}

/// Whether this, in crun's images, is an empty directory of its host.
pub(crate) fn names_empty_directory(key: &str) -> bool {
    key.ends_with(EMPTY_DIRECTORY)
}

pub(crate) fn masked_paths(spec: &Spec) -> impl Iterator<Item = &str> {
    let linux = spec.linux().as_ref();
    let masked = linux.and_then(|linux| linux.masked_paths().as_ref());
    masked.into_iter().flatten().map(String::as_str)
}

/// Device nodes are external in case they are binds of the host's, as in a user namespace.
fn devices(spec: &Spec) -> Vec<ExternalMount> {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.devices().as_ref());
    let paths = listed.into_iter().flatten().map(LinuxDevice::path);
    paths
        .map(|path| path.to_string_lossy())
        .chain(DEFAULT_DEVICES.map(Into::into))
        .map(|path| external_mount((&path, &path)))
        .collect()
}

const DEFAULT_DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

fn cgroup_root(path: &str) -> CgroupRoot {
    CgroupRoot {
        ctrl: Some(String::new()),
        path: path.to_owned(),
    }
}

/// The key of a namespace that exists before the container and after it.
pub(crate) fn namespace_key(kind: LinuxNamespaceType) -> Option<&'static str> {
    match kind {
        LinuxNamespaceType::Network => Some("extRootNetNS"),
        LinuxNamespaceType::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// How CRIU is told that a namespace is not the container's own.
pub(crate) fn external_namespace(kind: LinuxNamespaceType, inode: u64) -> Option<String> {
    let name = match kind {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Pid => "pid",
        _ => return None,
    };
    Some(format!("{name}[{inode}]:{}", namespace_key(kind)?))
}

/// Namespaces that CRIU enters by itself, by path.
fn joined(spec: &Spec) -> Vec<JoinNamespace> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_ref());
    let join = |kind: LinuxNamespaceType, path: &PathBuf| {
        let name = match kind {
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::Mount => "mnt",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Time => "time",
            _ => return None,
        };
        Some(JoinNamespace {
            ns: name.to_owned(),
            ns_file: path.to_string_lossy().into_owned(),
        })
    };
    all.into_iter()
        .flatten()
        .filter_map(|namespace| join(namespace.typ(), namespace.path().as_ref()?))
        .collect()
}

/// Destinations and sources of what is bound from the host; relative sources start at the bundle.
pub(crate) fn bind_destinations(spec: &Spec, bundle: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| is_bind(mount));
    let named = binds.filter_map(|mount| {
        let source = bundle.join(mount.source().as_ref()?);
        Some((mount.destination().clone(), source))
    });
    named.collect()
}

fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|option| option == "bind" || option == "rbind")
}

/// A directory or file that a mount needs and that CRIU does not make.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mountpoint {
    /// Where paths start: the root file system, or the source of a bind that it lies in.
    pub(crate) base: PathBuf,
    /// Below that.
    pub(crate) path: PathBuf,
    /// What is bound there, which may be a file.
    pub(crate) source: Option<PathBuf>,
}

/// The mountpoints that have to be there before CRIU mounts: those in the root file system and in
/// what is bound. It fills the file systems that it makes by itself.
pub(crate) fn mountpoints(spec: &Spec, rootfs: &Path, bundle: &Path) -> Vec<Mountpoint> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let source_of = |mount: &Mount| {
        let source = mount.source().as_ref().filter(|_| is_bind(mount))?;
        Some(bundle.join(source))
    };
    let plan = |(index, mount): (usize, &Mount)| {
        let destination = mount.destination();
        let above = mounts[..index].iter().rev().find(|other| {
            let other = other.destination();
            other != destination && other != Path::new("/") && destination.starts_with(other)
        });
        let (base, path) = match above {
            None => (rootfs.to_owned(), destination.strip_prefix("/").ok()?),
            Some(above) => (
                source_of(above)?,
                destination.strip_prefix(above.destination()).ok()?,
            ),
        };
        Some(Mountpoint {
            base,
            path: path.to_owned(),
            source: source_of(mount),
        })
    };
    mounts.iter().enumerate().filter_map(plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: serde_json::Value) -> Spec {
        serde_json::from_value(text).expect("a configuration")
    }

    fn example() -> Spec {
        spec(serde_json::json!({
            "ociVersion": "1.2.0",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                {"destination": "/data", "source": "/srv/data", "options": ["rbind", "ro"]},
                {"destination": "/data/secret", "type": "bind", "source": "secret"},
            ],
            "linux": {
                "namespaces": [
                    {"type": "pid"},
                    {"type": "network", "path": "/run/netns/a"},
                    {"type": "ipc", "path": "/proc/7/ns/ipc"},
                ],
                "maskedPaths": ["/proc/keys"],
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            },
        }))
    }

    fn dumped(spec: &Spec) -> Dumped<'_> {
        Dumped {
            spec,
            rootfs: Path::new("/b/rootfs"),
            pid: 7,
            binds: vec!["/data".to_owned()],
            masked_files: vec!["/proc/kcore".to_owned()],
            external: external_namespace(LinuxNamespaceType::Network, 42)
                .into_iter()
                .collect(),
            cgroup: Some(Path::new("/sys/fs/cgroup/c")),
            configured: false,
        }
    }

    fn request(parent: Option<&str>, pre_dump: bool) -> CheckpointRequest {
        CheckpointRequest {
            id: "c".parse().expect("valid"),
            criu: CriuOptions::new("/images"),
            parent_path: parent.map(PathBuf::from),
            pre_dump,
            leave_running: false,
            tcp_skip_in_flight: false,
            page_server: None,
            status: None,
        }
    }

    const DIRECTORIES: Directories = Directories {
        images: 5,
        work: None,
    };

    fn value_of<'a>(options: &'a Options, key: &str) -> Option<&'a str> {
        let mut all = options.ext_mnt.iter();
        all.find(|mount| mount.key == key)
            .map(|mount| mount.val.as_str())
    }

    #[test]
    fn a_dump_names_what_is_not_the_containers_own_as_runc_does() {
        let spec = example();
        let options = dump_options(&dumped(&spec), &request(None, false), DIRECTORIES);
        assert_eq!(options.external, ["net[42]:extRootNetNS"]);
        assert_eq!(value_of(&options, "/data"), Some("/data"));
        assert_eq!(value_of(&options, "/proc/kcore"), Some("/dev/null"));
        assert_eq!(value_of(&options, "/dev/fuse"), Some("/dev/fuse"));
        assert_eq!(options.manage_cgroups_mode(), criu::CgroupsMode::Soft);
        assert_eq!(options.config_file(), "/etc/criu/runc.conf");
        assert_eq!(options.track_mem, None);
    }

    #[test]
    fn a_dump_of_memory_names_no_mounts_and_tracks_changes() {
        let spec = example();
        let options = dump_options(&dumped(&spec), &request(Some("../0"), true), DIRECTORIES);
        assert!(options.ext_mnt.is_empty());
        assert_eq!(options.parent_img(), "../0");
        assert_eq!(options.track_mem, Some(true));
    }

    #[test]
    fn the_network_is_locked_where_connections_may_be_kept() {
        let spec = example();
        let lock = |established, configured, wanted| {
            let mut request = request(None, false);
            request.criu.tcp_established = established;
            request.criu.network_lock = wanted;
            let container = Dumped {
                configured,
                ..dumped(&spec)
            };
            dump_options(&container, &request, DIRECTORIES).network_lock
        };
        assert_eq!(
            lock(false, false, None),
            Some(criu::NetworkLock::Skip as i32)
        );
        assert_eq!(lock(true, false, None), None);
        assert_eq!(lock(false, true, None), None);
        let nftables = Some(criu::NetworkLock::Nftables as i32);
        assert_eq!(lock(false, true, Some(NetworkLock::Nftables)), nftables);
        let files = config_files(&spec, Some(Path::new("/root")));
        let last = PathBuf::from("/etc/criu/runc.conf");
        assert_eq!((files.len(), files.last()), (3, Some(&last)));
    }

    #[test]
    fn an_annotation_names_the_configuration_or_none() {
        let with = |file: &str| {
            let annotations = serde_json::json!({CONFIG_ANNOTATION: file});
            config_file(&spec(serde_json::json!({
                "ociVersion": "1.2.0", "annotations": annotations,
            })))
        };
        assert_eq!(with("/etc/mine.conf").as_deref(), Some("/etc/mine.conf"));
        assert_eq!(with(""), None);
    }

    #[test]
    fn a_restore_gives_pipes_and_namespaces_by_their_numbers() {
        let spec = example();
        let restored = Restored {
            spec: &spec,
            root: Path::new("/run/xebec/c/criu-root"),
            binds: vec![("/data".to_owned(), PathBuf::from("/srv/data"))],
            streams: ["/dev/null", "pipe:[8]", "pipe:[9]"]
                .map(str::to_owned)
                .to_vec(),
            inherited: vec!["extRootNetNS".to_owned()],
            cgroup: Some("/c".to_owned()),
            has_cgroups: false,
        };
        let mut wanted = RestoreOptions {
            criu: CriuOptions::new("/images"),
            lsm_profile: None,
            lsm_mount_context: None,
        };
        let options = restore_options(&restored, &wanted, DIRECTORIES);
        assert_eq!(options.manage_cgroups_mode(), criu::CgroupsMode::Ignore);
        let inherited: Vec<_> = options
            .inherit_fd
            .iter()
            .map(|inherited| (inherited.key.as_str(), inherited.fd))
            .collect();
        assert_eq!(
            inherited,
            [("pipe:[8]", 1), ("pipe:[9]", 2), ("extRootNetNS", 4)]
        );
        assert_eq!(value_of(&options, "/data"), Some("/srv/data"));
        assert_eq!(value_of(&options, "/proc/keys"), Some("/dev/null"));
        assert_eq!(options.join_ns.len(), 1);
        assert_eq!(options.join_ns[0].ns, "ipc");
        assert_eq!(options.cg_root[0].path, "/c");
        let with_cgroups = Restored {
            has_cgroups: true,
            ..restored
        };
        let options = restore_options(&with_cgroups, &wanted, DIRECTORIES);
        assert_eq!(options.manage_cgroups_mode(), criu::CgroupsMode::Soft);
        wanted.criu.cgroups = CgroupsMode::Strict;
        let options = restore_options(&with_cgroups, &wanted, DIRECTORIES);
        assert_eq!(options.manage_cgroups_mode(), criu::CgroupsMode::Strict);
    }

    #[test]
    fn mountpoints_are_made_in_the_root_and_in_what_is_bound_but_not_in_file_systems() {
        let made = mountpoints(&example(), Path::new("/b/rootfs"), Path::new("/b"));
        let made: Vec<_> = made
            .iter()
            .map(|point| (point.base.to_str(), point.path.to_str()))
            .collect();
        assert_eq!(
            made,
            [
                (Some("/b/rootfs"), Some("proc")),
                (Some("/b/rootfs"), Some("dev")),
                (Some("/b/rootfs"), Some("data")),
                (Some("/srv/data"), Some("secret")),
            ]
        );
    }
}
