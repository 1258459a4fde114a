//! Checked configuration → launch plan. Pure: reads nothing, changes nothing.
//!
//! A plan holds C strings, masks and numbers in the form the system calls take, so that the child
//! has nothing left to compute.

mod capabilities;
mod hooks;
mod idmaps;
mod mounts;
pub(crate) mod options;
mod process;
mod resctrl;
mod root_change;
mod rootfs;
mod scheduling;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, Linux, LinuxPersonalityDomain, Mount, Spec};
use serde::{Deserialize, Serialize};

pub(crate) use capabilities::CapabilityPlan;
pub(crate) use hooks::{HookPlan, plan as plan_hooks};
pub(crate) use idmaps::IdMaps;
pub(crate) use mounts::{
    BindPlan, FilesystemPlan, FsParam, IdmapSource, MountContext, MountIdmap, MountLabel,
    MountPlan, MountSource, OldMount, ProcTarget, Reach, RemountPlan, SourceSymlink, mount_flags,
    relative_target, super_flag, takes_label,
};
pub(crate) use process::{LabelPlan, ProcessPlan, Program};
pub(crate) use resctrl::ResctrlPlan;
pub(crate) use root_change::RootChange;
pub(crate) use rootfs::{DevicePlan, RootfsPlan, SysctlPlan};
pub(crate) use scheduling::{AffinityPlan, BitSet, MemoryPolicyPlan};

use crate::spec::Namespaces;
use crate::state::ContainerId;

/// A container to be launched.
#[derive(Debug)]
pub(crate) struct LaunchPlan {
    pub(crate) namespaces: Namespaces,
    /// Maps of a new user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Text for `timens_offsets` of a new time namespace.
    pub(crate) time_offsets: Option<String>,
    /// The network namespace is new: its loopback device is to be set up.
    pub(crate) loopback: bool,
    /// User of the host that gets the cgroup, when the container may make cgroups of its own.
    pub(crate) cgroup_owner: Option<u32>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// What every process of the container gets.
    pub(crate) common: CommonPlan,
    /// A new session keyring.
    pub(crate) keyring: Option<KeyringPlan>,
    pub(crate) root_change: RootChange,
    pub(crate) rootfs: RootfsPlan,
    pub(crate) process: ProcessPlan,
    /// Hooks that the child runs before it pivots.
    pub(crate) create_container: Vec<HookPlan>,
    /// Hooks that the child runs before it executes the program.
    pub(crate) start_container: Vec<HookPlan>,
    /// The parent has something to do once all is mounted: hooks to run, devices to move.
    pub(crate) parent_is_needed: bool,
}

/// What the container's configuration says about each of its processes, init or not; kept in the
/// record for those that come later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommonPlan {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) personality: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_policy: Option<MemoryPolicyPlan>,
}

impl CommonPlan {
    /// There is nothing to set.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A session keyring of the container's own.
#[derive(Debug)]
pub(crate) struct KeyringPlan {
    pub(crate) name: CString,
    /// Rights to add, so that later processes find it (`keyctl_setperm(3)`); none for those, who
    /// take it as it is.
    pub(crate) rights: u32,
}

impl KeyringPlan {
    /// The keyring that init makes. In a user namespace its owner is nobody's self: others need
    /// the right to search it.
    fn new(id: &ContainerId, user_namespace: bool) -> Result<Self, FieldError> {
        const USER_SEARCH: u32 = 0x8_0000;
        const OTHER_SEARCH: u32 = 0x8;
        Ok(Self {
            rights: if user_namespace {
                OTHER_SEARCH
            } else {
                USER_SEARCH
            },
            ..Self::existing(id)?
        })
    }

    /// The keyring that init has made, for a later process.
    pub(crate) fn existing(id: &ContainerId) -> Result<Self, FieldError> {
        Ok(Self {
            name: c_string("id", format!("_ses.{id}").as_bytes())?,
            rights: 0,
        })
    }
}

/// What a plan depends on besides the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanContext<'a> {
    pub(crate) id: &'a ContainerId,
    pub(crate) bundle: &'a Path,
    /// The container's cgroup as the host sees it.
    pub(crate) cgroup_path: &'a Path,
    /// Where the hierarchy of cgroups is mounted.
    pub(crate) cgroup_mount: &'a Path,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    /// The caller lives in a user namespace.
    pub(crate) in_user_namespace: bool,
    /// The caller may enter mount namespaces, and what it makes there is the host's to see.
    pub(crate) enters_mounts: bool,
}

/// A field that cannot be used; the caller knows the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl FieldError {
    fn new(field: &str, reason: &str) -> Self {
        Self {
            field: field.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The same error, seen from one level further out.
    fn within(self, outer: &str) -> Self {
        Self {
            field: format!("{outer}.{}", self.field),
            reason: self.reason,
        }
    }
}

/// Annotation of crun's, which podman sets for `--group-add keep-groups`.
pub(crate) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

impl LaunchPlan {
    /// Plans a configuration that [`crate::spec::check_spec`] has accepted.
    pub(crate) fn new(
        spec: &Spec,
        namespaces: Namespaces,
        context: PlanContext<'_>,
    ) -> Result<Self, FieldError> {
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| FieldError::new("linux", "is missing"))?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| FieldError::new("process", "is missing"))?;
        let mut process = ProcessPlan::from_spec(process).map_err(|e| e.within("process"))?;
        let annotations = spec.annotations().as_ref();
        process.keep_groups = annotations.is_some_and(|all| all.contains_key(KEEP_GROUPS));
        if namespaces.create & libc::CLONE_NEWUSER as u64 != 0 {
            idmaps::check(linux)?;
            idmaps::check_user(linux, &process)?;
        }
        let hooks = spec.hooks().as_ref();
        let rootfs = plan_rootfs(spec, linux, &namespaces, &process, context)?;
        let name = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        Ok(Self {
            id_maps: IdMaps::from_spec(linux)
                .filter(|_| namespaces.create & libc::CLONE_NEWUSER as u64 != 0),
            time_offsets: time_offsets(linux),
            loopback: namespaces.create & libc::CLONE_NEWNET as u64 != 0,
            hostname: name(spec.hostname()),
            domainname: name(spec.domainname()),
            common: common(linux)?,
            keyring: (!context.no_new_keyring)
                .then(|| KeyringPlan::new(context.id, namespaces.has(libc::CLONE_NEWUSER as u64)))
                .transpose()?,
            root_change: RootChange::of(
                &namespaces,
                &rootfs,
                hooks,
                context.no_pivot,
                context.enters_mounts,
            ),
            cgroup_owner: cgroup_owner(linux, &namespaces, &rootfs, process.uid),
            rootfs,
            create_container: hooks::plan(
                "createContainer",
                hooks.and_then(|h| h.create_container().as_ref()),
                &[],
            )?,
            start_container: hooks::plan(
                "startContainer",
                hooks.and_then(|h| h.start_container().as_ref()),
                process.env.strings(),
            )?,
            parent_is_needed: parent_is_needed(hooks, linux)?,
            process,
            namespaces,
        })
    }

    /// The child must wait after mounting: someone has something to do.
    pub(crate) fn waits_for_parent(&self) -> bool {
        self.parent_is_needed || !self.create_container.is_empty()
    }
}

/// Whether the runtime has work while the container is created; its hooks are checked now, while
/// nothing is there yet.
fn parent_is_needed(hooks: Option<&Hooks>, linux: &Linux) -> Result<bool, FieldError> {
    let moves_devices = linux.net_devices().as_ref().is_some_and(|d| !d.is_empty());
    let has_hooks = match hooks {
        Some(hooks) => hooks::check_for_the_runtime(hooks)?,
        None => false,
    };
    Ok(has_hooks || moves_devices || linux.intel_rdt().is_some())
}

/// Plans a list of mounts; an error names the entry.
pub(crate) fn plan_mounts(
    list: &[Mount],
    context: &MountContext<'_>,
) -> Result<Vec<MountPlan>, FieldError> {
    let plan = |(index, mount)| {
        mounts::plan_mount(mount, context).map_err(|e| rootfs::mount_field(mount, index, &e))
    };
    list.iter().enumerate().map(plan).collect()
}

fn plan_rootfs(
    spec: &Spec,
    linux: &Linux,
    namespaces: &Namespaces,
    process: &ProcessPlan,
    context: PlanContext<'_>,
) -> Result<RootfsPlan, FieldError> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| FieldError::new("root", "is missing"))?;
    let propagation = root_propagation(linux, context.no_pivot)
        .map_err(|reason| FieldError::new("linux.rootfsPropagation", reason))?;
    let mount_context = MountContext {
        namespaces,
        cgroup_path: context.cgroup_path,
        cgroup_mount: context.cgroup_mount,
        label: MountLabel::of(spec)?,
        propagation,
        bundle: context.bundle,
        uid_mappings: linux.uid_mappings().as_deref().unwrap_or_default(),
        gid_mappings: linux.gid_mappings().as_deref().unwrap_or_default(),
        joined_user: namespaces
            .join
            .iter()
            .find(|join| join.flag == libc::CLONE_NEWUSER as u64)
            .map(|join| join.path.as_path()),
    };
    let list = spec.mounts().as_deref().unwrap_or_default();
    let mut mounts = plan_mounts(list, &mount_context)?;
    let within = |e: FieldError| e.within("linux");
    // Without `.` and a slash at the end: the state shows it.
    let path: PathBuf = context.bundle.join(root.path()).components().collect();
    mounts::find_sources_inside(&mut mounts, &path);
    Ok(RootfsPlan {
        path: c_string("root.path", path.as_os_str().as_bytes())?,
        readonly: root.readonly().unwrap_or(false),
        propagation,
        own_dev: rootfs::has_own_dev(&mounts),
        warnings: rootfs::mount_warnings(list),
        mounts,
        devices: rootfs::plan_devices(linux.devices().as_deref().unwrap_or_default())
            .map_err(within)?,
        bind_devices: context.in_user_namespace || namespaces.has(libc::CLONE_NEWUSER as u64),
        sysctls: rootfs::plan_sysctls(linux).map_err(within)?,
        masked: rootfs::plan_paths("maskedPaths", linux.masked_paths().as_ref()).map_err(within)?,
        readonly_paths: rootfs::plan_paths("readonlyPaths", linux.readonly_paths().as_ref())
            .map_err(within)?,
        cwd: mounts::relative_target(Path::new(OsStr::from_bytes(process.cwd.as_bytes())))?,
    })
}

/// Propagation of the root (`MS_*`, and whether it is for whole trees), or why it cannot be.
fn root_propagation(linux: &Linux, no_pivot: bool) -> Result<(u64, bool), &'static str> {
    let propagation = match linux.rootfs_propagation().as_deref() {
        None | Some("") => (libc::MS_SLAVE, true),
        Some(word) => options::propagation(word).ok_or("is no propagation type")?,
    };
    if no_pivot && propagation.0 == libc::MS_PRIVATE {
        return Err("[r]private is not safe without pivot_root");
    }
    Ok(propagation)
}

/// Delegation needs a user and a cgroup namespace, and the hierarchy mounted writable.
fn cgroup_owner(
    linux: &Linux,
    namespaces: &Namespaces,
    rootfs: &RootfsPlan,
    uid: u32,
) -> Option<u32> {
    let isolated = namespaces.create & libc::CLONE_NEWUSER as u64 != 0
        && namespaces.create & libc::CLONE_NEWCGROUP as u64 != 0;
    let writable = rootfs.mounts.iter().any(|mount| match &mount.source {
        MountSource::Filesystem(fs) => {
            fs.kind.as_c_str() == c"cgroup2" && fs.attrs & libc::MOUNT_ATTR_RDONLY == 0
        }
        MountSource::Bind(_) | MountSource::Remount(_) => false,
    });
    if !(isolated && writable) {
        return None;
    }
    linux.uid_mappings().iter().flatten().find_map(|map| {
        let offset = uid.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}

fn time_offsets(linux: &Linux) -> Option<String> {
    let offsets = linux.time_offsets().as_ref().filter(|o| !o.is_empty())?;
    let lines = offsets.iter().map(|(clock, offset)| {
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        format!("{clock} {secs} {nanosecs}\n")
    });
    Some(lines.collect())
}

fn common(linux: &Linux) -> Result<CommonPlan, FieldError> {
    const PER_LINUX32: u64 = 8;
    let policy = linux.memory_policy().as_ref();
    Ok(CommonPlan {
        personality: linux.personality().as_ref().map(|p| match p.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
        }),
        memory_policy: policy
            .map(MemoryPolicyPlan::from_spec)
            .transpose()
            .map_err(|e| e.within("linux"))?,
    })
}

/// A C string, or an error that names the field.
fn c_string(field: &str, bytes: &[u8]) -> Result<CString, FieldError> {
    CString::new(bytes).map_err(|_| FieldError::new(field, "contains a zero byte"))
}
