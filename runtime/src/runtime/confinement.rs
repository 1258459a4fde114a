//! What keeps the processes of a container together: a cgroup that this runtime makes, a scope
//! that systemd makes, or nothing.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

use super::Runtime;
use super::lifecycle::left_out;
use crate::caller::Caller;
use crate::cgroup::systemd::{self, Place, Property, Systemd, Unit};
use crate::cgroup::{Cgroup, CgroupError, CgroupManager, CgroupPath, ResourcePlan, devices};
use crate::error::Result;
use crate::launch::Placeholder;
use crate::state::ContainerId;

/// Everything about it that is known before it exists.
#[derive(Debug)]
pub(super) struct Confinement {
    kind: Kind,
    resources: ResourcePlan,
    devices: devices::DeviceProgram,
}

#[derive(Debug)]
enum Kind {
    Nothing,
    Directory {
        path: CgroupPath,
        /// A caller without permission may do without.
        dispensable: bool,
    },
    Scope(Box<Scope>),
}

#[derive(Debug)]
struct Scope {
    path: CgroupPath,
    systemd: Systemd,
    place: Place,
    user: bool,
    properties: Vec<Property>,
    /// A limit of one process, which the placeholder would take up: it is set afterwards.
    late: (ResourcePlan, Vec<Property>),
}

/// What [`mover`] gives.
pub(super) type Mover = dyn Fn(i32) -> Result<()>;

/// What was made.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) cgroup: Option<Cgroup>,
    /// Holds a scope until there is an init in it.
    pub(super) placeholder: Option<Placeholder>,
}

impl Confinement {
    pub(super) fn draw(
        runtime: &Runtime,
        caller: Caller,
        spec: &Spec,
        id: &ContainerId,
    ) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let none = LinuxResources::default();
        let resources = linux.and_then(|l| l.resources().as_ref()).unwrap_or(&none);
        let wanted = linux
            .and_then(|l| l.cgroups_path().as_ref())
            .map(|path| path.to_string_lossy())
            .filter(|path| !path.is_empty());
        let wanted = wanted.as_deref();
        let mut plan = ResourcePlan::from_spec(resources)?;
        let manager = runtime.options.cgroup_manager;
        let found_out = || is_rootless(manager, caller);
        let rootless = runtime.options.rootless.unwrap_or_else(found_out);
        let kind = match manager {
            CgroupManager::Disabled => Kind::Nothing,
            CgroupManager::Cgroupfs => {
                let dispensable = rootless && wanted.is_none();
                match CgroupPath::resolve(wanted, id.as_str()) {
                    Err(CgroupError::NoHierarchy) if dispensable => Kind::Nothing,
                    path => Kind::Directory {
                        path: path?,
                        dispensable,
                    },
                }
            }
            CgroupManager::Systemd => {
                let late = plan.take_one_task();
                let scope = Scope::draw(spec, (resources, late), wanted, (id.as_str(), rootless))?;
                Kind::Scope(Box::new(scope))
            }
        };
        Ok(Self {
            kind,
            resources: plan,
            devices: devices::compile(resources.devices().as_deref().unwrap_or_default())?,
        })
    }

    fn path(&self) -> Option<&CgroupPath> {
        match &self.kind {
            Kind::Nothing => None,
            Kind::Directory { path, .. } => Some(path),
            Kind::Scope(scope) => Some(&scope.path),
        }
    }

    /// Full path of the cgroup; empty when there will be none.
    pub(super) fn full_path(&self) -> PathBuf {
        self.path().map(CgroupPath::full).unwrap_or_default()
    }

    /// Where the hierarchy of cgroups is mounted.
    pub(super) fn mount(&self) -> &Path {
        self.path()
            .map_or(Path::new("/sys/fs/cgroup"), CgroupPath::mount)
    }

    /// The unit that systemd will have for the container.
    pub(super) fn unit(&self) -> Option<Unit> {
        match &self.kind {
            Kind::Scope(scope) => Some(Unit {
                name: scope.place.unit.clone(),
                user: scope.user,
            }),
            _ => None,
        }
    }

    /// A cgroup with processes is never taken over; refused before the state names it, so that
    /// nobody can mistake it for the container's.
    pub(super) fn refuse_taken(&self) -> Result<()> {
        let Some(path) = self.path().filter(|path| path.full().exists()) else {
            return Ok(());
        };
        match Cgroup::open(path)?.pids(true)?.len() {
            0 => Ok(()),
            count => Err(CgroupError::NotEmpty { count }.into()),
        }
    }

    /// Makes it, without limits yet. After a failure nothing of it is left.
    pub(super) fn make(&mut self, id: &ContainerId) -> Result<Cell> {
        let (cgroup, placeholder) = match &mut self.kind {
            Kind::Nothing => (None, None),
            Kind::Directory { path, dispensable } => {
                let created = Cgroup::create(path, self.resources.controllers());
                (
                    without_permission(created, *dispensable, &self.resources)?,
                    None,
                )
            }
            Kind::Scope(scope) => {
                let (cgroup, placeholder) = scope.start(id.as_str())?;
                (Some(cgroup), Some(placeholder))
            }
        };
        Ok(Cell {
            cgroup,
            placeholder,
        })
    }

    /// Sets limits and devices; gives the cgroup to the container's root if it is to be `owner`'s.
    pub(super) fn limit(
        &self,
        cgroup: &Cgroup,
        runtime: &Runtime,
        caller: Caller,
        owner: Option<u32>,
    ) -> Result<Vec<String>> {
        let skipped = cgroup.apply(&self.resources, runtime.controllers_policy())?;
        // Elsewhere the kernel takes no device program, and lets nobody make a device either.
        if caller.privileged && !caller.in_user_namespace {
            cgroup.attach_devices(&self.devices)?;
        }
        if let Some(owner) = owner.filter(|_| caller.privileged) {
            cgroup.delegate(owner)?;
        }
        let warnings = self.resources.warnings().iter().map(ToString::to_string);
        Ok(warnings.chain(skipped.iter().map(left_out)).collect())
    }

    /// Ends the placeholder, in whose place init is now.
    pub(super) fn release(
        &mut self,
        placeholder: Option<Placeholder>,
        cgroup: Option<&Cgroup>,
        runtime: &Runtime,
    ) -> Result<()> {
        drop(placeholder);
        let (Kind::Scope(scope), Some(cgroup)) = (&mut self.kind, cgroup) else {
            return Ok(());
        };
        let (plan, properties) = std::mem::take(&mut scope.late);
        if !plan.is_empty() {
            scope
                .systemd
                .set_properties(&scope.place.unit, properties)?;
            cgroup.apply(&plan, runtime.controllers_policy())?;
        }
        Ok(())
    }
}

/// Without permission, and without need, a container stays in its caller's cgroup (as in runc).
fn without_permission(
    created: std::result::Result<Cgroup, CgroupError>,
    dispensable: bool,
    resources: &ResourcePlan,
) -> Result<Option<Cgroup>> {
    match created {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(CgroupError::Io { .. }) if dispensable && resources.controllers().is_empty() => {
            Ok(None)
        }
        Err(error @ CgroupError::Io { .. }) if dispensable => {
            Err(CgroupError::NoPermission(Box::new(error)).into())
        }
        Err(error) => Err(error.into()),
    }
}

impl Scope {
    fn draw(
        spec: &Spec,
        (resources, late): (&LinuxResources, ResourcePlan),
        wanted: Option<&str>,
        (id, user): (&str, bool),
    ) -> Result<Self> {
        let place = Place::parse(wanted, id, user)?;
        let mut properties = systemd::from_annotations(spec.annotations().iter().flatten())?;
        properties.extend(unit_properties(resources, user)?);
        properties.extend(systemd::oom_policy(resources));
        let (late_properties, properties) = properties.into_iter().partition(systemd::is_one_task);
        let mut systemd = Systemd::connect(user)?;
        // The system's manager is at the top of what can be seen.
        let mut inner = PathBuf::from("/");
        if user {
            inner.push(systemd.control_group()?);
        }
        inner.push(place.cgroup());
        Ok(Self {
            path: CgroupPath::resolve(inner.to_str(), id)?,
            systemd,
            place,
            user,
            properties,
            late: (late, late_properties),
        })
    }

    fn start(&mut self, id: &str) -> Result<(Cgroup, Placeholder)> {
        let placeholder = Placeholder::start()?;
        let started = self
            .systemd
            .start_scope(&self.place, id, placeholder.pid, &self.properties);
        let opened = match started {
            Err(error) if error.is_unit_exists() => return Err(error.into()),
            started => started.and_then(|()| Cgroup::open(&self.path)),
        };
        match opened {
            Ok(cgroup) => Ok((cgroup, placeholder)),
            Err(error) => {
                drop(placeholder);
                // The first error is the one to tell.
                let _ = self.systemd.stop(&self.place.unit);
                Err(error.into())
            }
        }
    }
}

/// What systemd is told about limits. Device programs are not the user's manager's to load.
fn unit_properties(
    resources: &LinuxResources,
    user: bool,
) -> std::result::Result<Vec<Property>, CgroupError> {
    let mut properties = systemd::from_resources(resources)?;
    if !user {
        properties.extend(systemd::from_devices(resources)?);
    }
    Ok(properties)
}

/// Changes the properties of a container's unit; devices only when rules are given.
pub(super) fn update_unit(unit: &Unit, resources: &LinuxResources) -> Result<()> {
    let has_rules = resources
        .devices()
        .as_ref()
        .is_some_and(|rules| !rules.is_empty());
    let properties = unit_properties(resources, unit.user || !has_rules)?;
    if properties.is_empty() {
        return Ok(());
    }
    Ok(Systemd::connect(unit.user)?.set_properties(&unit.name, properties)?)
}

/// Has the user's manager move processes into a unit, or into a cgroup `below` it, for who may not
/// do that: a caller from outside of what is the manager's.
pub(super) fn mover(unit: Option<&Unit>, below: &str) -> Option<Box<Mover>> {
    let unit = unit.filter(|unit| unit.user)?.clone();
    let below = below.to_owned();
    let admit = move |pid| Ok(Systemd::connect(true)?.admit(&unit.name, &below, pid)?);
    Some(Box::new(admit))
}

/// Takes the unit away from systemd, whose cgroup has no processes any more. A manager that is
/// gone, like that of a user who has logged out, has no unit either.
pub(super) fn forget_unit(unit: &Unit) {
    // What counts, whether the cgroup is gone, is seen afterwards.
    let _ = Systemd::connect(unit.user).and_then(|mut systemd| systemd.stop(&unit.name));
}

/// Whether permission to make cgroups is doubtful, and the user's manager is the one to ask; what
/// runc decides for `--rootless auto`.
fn is_rootless(manager: CgroupManager, caller: Caller) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    if !caller.in_user_namespace {
        return false;
    }
    // In a user namespace systemd may be the machine's, or one of the namespace's own.
    let owner = rustix::fs::stat(Path::new("/run/systemd/system")).map(|stat| stat.st_uid);
    manager != CgroupManager::Systemd || owner != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(kind: io::ErrorKind) -> std::result::Result<Cgroup, CgroupError> {
        Err(CgroupError::Io {
            action: "create cgroup".to_owned(),
            path: "/sys/fs/cgroup/c".into(),
            source: kind.into(),
        })
    }

    #[test]
    fn without_permission_a_cgroup_is_left_out_only_where_nothing_needs_it() {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"pids": {"limit": 3}}"#).expect("resources");
        let limits = ResourcePlan::from_spec(&resources).expect("a plan");
        let none = ResourcePlan::default();
        let denied = || refused(io::ErrorKind::PermissionDenied);
        assert!(matches!(
            without_permission(denied(), true, &none),
            Ok(None)
        ));
        let error = without_permission(denied(), true, &limits).expect_err("limits");
        assert!(
            error.to_string().starts_with("rootless needs no limits"),
            "{error}"
        );
        let error = without_permission(denied(), false, &none).expect_err("a path was given");
        assert!(error.to_string().starts_with("create cgroup"), "{error}");
    }
}
