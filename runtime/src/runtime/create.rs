//! From a bundle to a container: checks and plans first, then everything that must be undone if
//! a later step fails.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::Mode;

use super::clone::{CloneRequest, Source};
use super::confinement::{Cell, Confinement, mover};
use super::foundation::{Foundation, lay};
use super::lifecycle::{destroy, run_poststart};
use super::{Runtime, pidfd};
use crate::cgroup::Cgroup;
use crate::error::{ChildFailure, Error, Result, Step};
use crate::launch::{
    Agent, Birth, ChildHookIo, ChildStdio, FinishJob, InitJob, InitLaunch, connect_console,
    launch_init, run_hooks, selinux_is_enabled, settle,
};
use crate::netdev::{self, Moved};
use crate::plan::{
    CapabilityPlan, FieldError, LabelPlan, LaunchPlan, PlanContext, ResctrlPlan, RootChange,
};
use crate::publish::publish;
use crate::request::{CreateRequest, Launched};
use crate::resctrl::Membership;
use crate::rootfs::{RootTree, mount_id};
use crate::seccomp::{Cache, Filter};
use crate::signals::receive_descriptor;
use crate::spec::{Bundle, check_spec, ignored_fields, load_bundle};
use crate::state::{
    AgentAddress, ContainerId, NOTIFY_SOCKET, ProcessFacts, Record, StateDir, Status, rfc3339,
};
use crate::template::{Guard, INSIDE as GENERATION_INSIDE, has_generation, wanted};

/// Directory of compiled seccomp programs below the state root; no container can have its name.
const SECCOMP_CACHE: &str = "@seccomp";

/// What a container reads that is no clone.
const FIRST_GENERATION: &str = "0\n";

/// Everything about a container that is known before it exists.
pub(super) struct Blueprint {
    pub(super) bundle: Bundle,
    pub(super) plan: LaunchPlan,
    pub(super) foundation: Foundation,
    pub(super) filter: Option<Filter>,
    pub(super) confinement: Confinement,
    /// Groups of resctrl, and what they are to allow.
    pub(super) resctrl: Option<(Membership, ResctrlPlan)>,
}

pub(super) fn create(runtime: &Runtime, request: CreateRequest, gated: bool) -> Result<Launched> {
    launch(runtime, request, gated).map(|(launched, _)| launched)
}

pub(super) fn run(runtime: &Runtime, request: CreateRequest) -> Result<Launched> {
    let id = request.id.clone();
    let (launched, record) = launch(runtime, request, false)?;
    if let Err(error) = run_poststart(&record) {
        let dir = StateDir::open(&runtime.options.root, &id)?;
        dir.lock()?;
        // The hook's failure is what the caller has to hear of.
        let _ = destroy(&dir, &record);
        return Err(error);
    }
    Ok(launched)
}

fn launch(runtime: &Runtime, request: CreateRequest, gated: bool) -> Result<(Launched, Record)> {
    make(
        runtime,
        request,
        |dir, record, blueprint, mut request| match wanted_clone(
            &mut request,
            &blueprint.bundle.spec,
            gated,
        )? {
            Some(clone) => Source::open(&clone)?.build(runtime, (dir, record), blueprint, request),
            None => build(runtime, dir, record, blueprint, request, gated),
        },
    )
}

/// The clone that a container's annotations ask for, where its caller has them looked at.
fn wanted_clone(
    request: &mut CreateRequest,
    spec: &Spec,
    gated: bool,
) -> Result<Option<CloneRequest>> {
    let Some(access) = request.templates.take() else {
        return Ok(None);
    };
    let Some(wanted) = wanted(spec.annotations())? else {
        return Ok(None);
    };
    if gated {
        let template = wanted.name;
        return Err(Error::Unsupported(format!(
            "a clone of the template {template} runs at once and cannot wait for its start: run it"
        )));
    }
    Ok(Some(access.request(wanted)))
}

/// Makes a container whose processes come from `build`.
pub(super) fn make(
    runtime: &Runtime,
    request: CreateRequest,
    build: impl FnOnce(&StateDir, &mut Record, Blueprint, CreateRequest) -> Result<Launched>,
) -> Result<(Launched, Record)> {
    let blueprint = draw(runtime, &request)?;
    let dir = StateDir::create(&runtime.options.root, &request.id)?;
    if let Err(error) = blueprint.confinement.refuse_taken() {
        dir.remove()?;
        return Err(error);
    }
    let mut record = new_record(&request, &blueprint);
    let built = dir
        .write_cgroup(&record.cgroup)
        .and_then(|()| {
            if request.notify {
                dir.make_readiness()
            } else {
                Ok(())
            }
        })
        .and_then(|()| {
            if has_generation(&record.annotations) {
                dir.write_generation(FIRST_GENERATION)
            } else {
                Ok(())
            }
        })
        .and_then(|()| dir.write(&record))
        .and_then(|()| build(&dir, &mut record, blueprint, request));
    match built {
        Ok(launched) => Ok((launched, record)),
        Err(error) => {
            // What cannot be removed now is found by `delete --force`; the cause comes first.
            let _ = destroy(&dir, &record);
            Err(error)
        }
    }
}

/// Reads, checks and plans; changes nothing but the cache of seccomp programs.
fn draw(runtime: &Runtime, request: &CreateRequest) -> Result<Blueprint> {
    let mut bundle = load_bundle(&request.bundle, request.config.as_deref())?;
    bundle.warnings.extend(ignored_fields(&bundle.spec));
    add_for_caller(&mut bundle.spec, runtime, request);
    let mut namespaces = check_spec(&bundle.file, &bundle.spec)?;
    let refuse = |e: FieldError| Error::Spec {
        file: bundle.file.display().to_string(),
        field: e.field,
        reason: e.reason,
    };
    let foundation = lay(&bundle.spec, &mut namespaces)?.map_err(refuse)?;
    let confinement = Confinement::draw(runtime, foundation.caller, &bundle.spec, &request.id)?;
    let context = PlanContext {
        id: &request.id,
        bundle: &bundle.path,
        cgroup_path: &confinement.full_path(),
        cgroup_mount: confinement.mount(),
        no_pivot: request.no_pivot,
        no_new_keyring: request.no_new_keyring,
        in_user_namespace: foundation.caller.in_user_namespace,
        enters_mounts: foundation.caller.enters_mounts,
    };
    let mut plan = LaunchPlan::new(&bundle.spec, namespaces, context).map_err(refuse)?;
    plan.process.resize(request.console_size);
    check_labels(&plan.process.labels)?;
    let resctrl = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.intel_rdt().as_ref())
        .map(ResctrlPlan::from_spec)
        .transpose()
        .map_err(refuse)?;
    let groups = match &resctrl {
        Some(plan) => Membership::of(plan, &request.id)?,
        None => None,
    };
    Ok(Blueprint {
        filter: filter(&runtime.options.root, &bundle.spec)?,
        resctrl: groups.zip(resctrl),
        bundle,
        plan,
        foundation,
        confinement,
    })
}

/// Where the directory of the readiness socket is inside a container, as with runc.
const NOTIFY_INSIDE: &str = "/run/notify";

/// What the caller gives the process besides its configuration.
fn add_for_caller(spec: &mut Spec, runtime: &Runtime, request: &CreateRequest) {
    let mut env = request.extra_env.clone();
    if request.notify {
        let source = StateDir::readiness_directory(&runtime.options.root, &request.id);
        bind_own(spec, NOTIFY_INSIDE, source);
        env.push(format!("NOTIFY_SOCKET={NOTIFY_INSIDE}/{NOTIFY_SOCKET}"));
    }
    if has_generation(spec.annotations()) {
        let source = StateDir::generation_directory(&runtime.options.root, &request.id);
        bind_own(spec, GENERATION_INSIDE, source);
    }
    if let Some(process) = spec.process_mut() {
        process.env_mut().get_or_insert_default().extend(env);
    }
    if request.own_cgroup
        && let Some(linux) = spec.linux_mut()
        && let Some(path) = linux.cgroups_path().as_deref()
    {
        let own = renamed_cgroup(path, &request.id);
        linux.set_cgroups_path(Some(own));
    }
}

/// Shows the container something of its own state.
fn bind_own(spec: &mut Spec, destination: &str, source: PathBuf) {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source))
        .set_options(Some(options.to_vec()));
    spec.mounts_mut().get_or_insert_default().push(mount);
}

/// A path of a cgroup, or systemd's `SLICE:PREFIX:NAME`, with another name in the end.
fn renamed_cgroup(path: &Path, id: &ContainerId) -> PathBuf {
    let text = path.to_string_lossy();
    let end = text.rfind(['/', ':']).map_or(0, |at| at + 1);
    PathBuf::from(format!("{}{id}", &text[..end]))
}

/// A label that nobody would look at is refused, as by runc.
pub(super) fn check_labels(labels: &LabelPlan) -> Result<()> {
    if labels.selinux.is_some() && !selinux_is_enabled() {
        return Err(Error::Unsupported(
            "selinux label is specified in config, but selinux is disabled or not supported".into(),
        ));
    }
    Ok(())
}

fn filter(root: &Path, spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let guard = Guard::of(spec.annotations()).map_err(Error::InvalidArgument)?;
    let guarded = guard.map(|guard| guard.guarded(profile));
    let Some(profile) = guarded.as_ref().or(profile) else {
        return Ok(None);
    };
    Ok(Some(
        Cache::open(root.join(SECCOMP_CACHE)).get_or_compile(profile)?,
    ))
}

fn new_record(request: &CreateRequest, blueprint: &Blueprint) -> Record {
    let spec = &blueprint.bundle.spec;
    let hooks = spec.hooks().as_ref();
    let rootfs = blueprint.plan.rootfs.path.to_string_lossy().into_owned();
    Record {
        id: request.id.clone(),
        bundle: blueprint.bundle.path.clone(),
        config: request
            .config
            .is_some()
            .then(|| blueprint.bundle.file.clone()),
        rootfs: PathBuf::from(rootfs),
        root_mount: None,
        created: rfc3339(SystemTime::now()),
        owner: rustix::process::getuid().as_raw(),
        annotations: spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        cgroup: blueprint.confinement.full_path(),
        unit: blueprint.confinement.unit(),
        namespaces: blueprint.plan.namespaces.all(),
        private_pids: blueprint.plan.namespaces.create & libc::CLONE_NEWPID as u64 != 0,
        keyring: !request.no_new_keyring,
        common: blueprint.plan.common.clone(),
        seccomp_agent: agent_address(blueprint),
        resctrl: blueprint.resctrl.as_ref().map(|(groups, _)| groups.clone()),
        pid: 0,
        start_time: 0,
        poststart: hooks
            .and_then(|h| h.poststart().clone())
            .unwrap_or_default(),
        poststop: hooks.and_then(|h| h.poststop().clone()).unwrap_or_default(),
    }
}

/// Who is to be told of the container's processes, if their filter has a listener.
fn agent_address(blueprint: &Blueprint) -> Option<AgentAddress> {
    blueprint.filter.as_ref().filter(|filter| filter.notify)?;
    let linux = blueprint.bundle.spec.linux().as_ref()?;
    let profile = linux.seccomp().as_ref()?;
    Some(AgentAddress {
        path: profile.listener_path().clone()?,
        metadata: profile.listener_metadata().clone(),
    })
}

/// Without a mount namespace of the container's own its root is the host's mount, too: whoever
/// cleans up has to find it.
fn note_root_mount(dir: &StateDir, record: &mut Record, job: &InitJob) -> Result<()> {
    let (RootChange::Chroot, RootTree::Clone(root)) = (job.plan.root_change, &job.trees.root)
    else {
        return Ok(());
    };
    record.root_mount = Some(mount_id(root)?);
    dir.write(record)
}

/// What the configuration alone gives cause to warn of.
pub(super) fn first_warnings(blueprint: &Blueprint) -> Vec<String> {
    let process = blueprint.bundle.spec.process().iter();
    let mut warnings = blueprint.bundle.warnings.clone();
    warnings.extend(blueprint.plan.rootfs.warnings.iter().cloned());
    warnings.extend(process.flat_map(CapabilityPlan::warnings));
    warnings
}

/// Makes the cgroup and sets its limits; the record no longer names what is not the container's.
pub(super) fn confine(
    runtime: &Runtime,
    record: &mut Record,
    blueprint: &mut Blueprint,
    warnings: &mut Vec<String>,
) -> Result<Cell> {
    let confinement = &mut blueprint.confinement;
    let cell = match confinement.make(&record.id) {
        Ok(cell) => cell,
        Err(error) => {
            // What is there belongs to somebody else: the clean-up must not touch it.
            record.cgroup = PathBuf::new();
            record.unit = None;
            return Err(error);
        }
    };
    if let Some(cgroup) = &cell.cgroup {
        let (caller, owner) = (blueprint.foundation.caller, blueprint.plan.cgroup_owner);
        warnings.extend(confinement.limit(cgroup, runtime, caller, owner)?);
    } else {
        record.cgroup = PathBuf::new();
    }
    Ok(cell)
}

/// Makes the container; on failure the caller removes what the record names.
fn build(
    runtime: &Runtime,
    dir: &StateDir,
    record: &mut Record,
    mut blueprint: Blueprint,
    request: CreateRequest,
    gated: bool,
) -> Result<Launched> {
    let mut warnings = first_warnings(&blueprint);
    let mut cell = confine(runtime, record, &mut blueprint, &mut warnings)?;
    if let Some(filter) = &blueprint.filter {
        dir.write_seccomp(&filter.to_bytes())?;
    }
    let agent = record
        .seccomp_agent
        .as_ref()
        .map(Agent::connect)
        .transpose()?;
    let resctrl = blueprint.resctrl;
    let spec = blueprint.bundle.spec;
    let pid_file = request.pid_file.clone();
    let receiver = pidfd::connect(request.pidfd_socket.as_deref())?;
    let reparent = request.reparent;
    let laid = (blueprint.plan, blueprint.foundation);
    let flags = blueprint.filter.as_ref().map(|filter| filter.flags);
    let (job, terminal) = init_job(dir, laid, blueprint.filter, request, gated)?;
    note_root_mount(dir, record, &job)?;
    let child_hooks = job.hook_io.as_ref().map(ChildHookIo::share).transpose()?;
    let record = RefCell::new(record);
    let mut moved = None;
    let mut confinement = blueprint.confinement;
    let mut placeholder = cell.placeholder.take();
    let mover = mover(record.borrow().unit.as_ref(), "");
    let mut launch = InitLaunch {
        birth: Birth {
            cgroup: cell.cgroup.as_ref().map(Cgroup::fd),
            mover: mover.as_deref(),
            reparent,
        },
        on_pid: &mut |pid| {
            confinement.release(placeholder.take(), cell.cgroup.as_ref(), runtime)?;
            let mut record = record.borrow_mut();
            record.pid = pid;
            record.start_time = ProcessFacts::of(pid).map_or(0, |facts| facts.start_time);
            dir.write(&record)
        },
        on_mounted: &mut |pid| {
            if let Some((groups, plan)) = &resctrl {
                groups.enter(plan, pid)?;
            }
            moved = move_devices(&spec, pid)?;
            run_creation_hooks(&spec, &record.borrow(), child_hooks.as_ref())
        },
        agent: agent.as_ref(),
        view: &|| record.borrow().view(Status::Creating),
    };
    let launched = launch_init(job, &mut launch).map_err(|error| match &child_hooks {
        Some(io) => io.explain(error),
        None => explain_scheduler(error, &spec),
    })?;
    let mut launched = announce(launched, receiver, pid_file.as_deref(), reparent)?;
    if let Some(moved) = moved {
        moved.keep();
    }
    launched.terminal = receive_terminal(terminal);
    launched.warnings = warnings;
    launched.note_filter(flags);
    Ok(launched)
}

/// A deadline scheduler wants every processor (`sched_setattr(2)`), which a cpuset takes from it.
fn explain_scheduler(error: Error, spec: &Spec) -> Error {
    let refused = |failure: &ChildFailure| {
        failure.step == Step::Scheduling
            && failure.errno == libc::EPERM
            && failure.detail == "scheduler"
    };
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let cpus = resources.and_then(|r| r.cpu().as_ref()?.cpus().as_ref());
    match error {
        Error::Init(failure) if refused(&failure) && cpus.is_some() => {
            Error::Unsupported("process scheduler can't be used together with AllowedCPUs".into())
        }
        other => other,
    }
}

fn move_devices(spec: &Spec, pid: i32) -> Result<Option<Moved>> {
    match spec.linux() {
        Some(linux) => netdev::move_devices(linux, pid),
        None => Ok(None),
    }
}

/// The runtime's own hooks of a creation; then the child's have their states.
pub(super) fn run_creation_hooks(
    spec: &Spec,
    record: &Record,
    child_hooks: Option<&ChildHookIo>,
) -> Result<()> {
    let creating = record.view(Status::Creating);
    if let Some(hooks) = spec.hooks() {
        // The older kind is still what most users of hooks configure.
        #[allow(deprecated)]
        let prestart = hooks.prestart();
        run_hooks("prestart", prestart.as_ref(), &creating, &record.bundle)?;
        let list = hooks.create_runtime().as_ref();
        run_hooks("createRuntime", list, &creating, &record.bundle)?;
    }
    match child_hooks {
        Some(io) => io.fill(&creating, &record.view(Status::Created)),
        None => Ok(()),
    }
}

fn init_job(
    dir: &StateDir,
    (mut plan, foundation): (LaunchPlan, Foundation),
    filter: Option<Filter>,
    request: CreateRequest,
    gated: bool,
) -> Result<(InitJob, Option<OwnedFd>)> {
    let (console, terminal) = connect_console(request.console, plan.process.terminal)?;
    let has_child_hooks = !plan.create_container.is_empty() || !plan.start_container.is_empty();
    let finish = FinishJob {
        stdio: ChildStdio::new(request.stdio)?,
        console,
        gate: if gated { Some(dir.make_gate()?) } else { None },
        filter,
        preserve_fds: request.preserve_fds,
        common: plan.common.clone(),
        lend_descriptors: !foundation.caller.privileged,
        late_rlimits: !plan.namespaces.has(libc::CLONE_NEWUSER as u64),
        proc: None,
        default_umask: Mode::from_raw_mode(0o022),
    };
    let (joined, trees) = foundation.open(&mut plan)?;
    let job = InitJob {
        trees,
        joined,
        hook_io: if has_child_hooks {
            Some(ChildHookIo::new()?)
        } else {
            None
        },
        finish,
        lock: dir.raw_fd(),
        plan,
    };
    Ok((job, terminal))
}

/// The master that a launched process has sent; it has by the time that it is launched.
pub(super) fn receive_terminal(socket: Option<OwnedFd>) -> Option<OwnedFd> {
    receive_descriptor(socket?.as_fd()).ok()
}

/// Tells of a new process whoever has asked for that; one that cannot be told of is ended.
pub(super) fn announce(
    launched: Launched,
    receiver: Option<OwnedFd>,
    pid_file: Option<&Path>,
    reparented: bool,
) -> Result<Launched> {
    let told =
        pidfd::send(receiver, &launched).and_then(|()| write_pid_file(pid_file, launched.pid));
    settle(launched, told, reparented)
}

/// Writes a pid as text, the way clients of runc read it: complete or not there.
fn write_pid_file(file: Option<&Path>, pid: i32) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    publish(file, 0o644, pid.to_string().as_bytes()).map_err(Error::file("write", file))
}
