//! The cgroup library against a real cgroup2 hierarchy.
//!
//! These tests need root and a writable cgroup2 mount, as the test hosts do, and make their
//! cgroups below one of their own. Where the hierarchy lacks a controller (hybrid machines),
//! they check that its absence is told; the VM host has all of them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use xebec_runtime::cgroup::{
    Cgroup, CgroupError, CgroupPath, Controllers, ControllersPolicy, ResourcePlan, devices,
};

/// A cgroup that is emptied and removed whatever happens to the test.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = format!("/xebec-test-{}/{name}", std::process::id());
        let path = CgroupPath::resolve(Some(&path), name).expect("a cgroup2 mount");
        Self(Cgroup::create(&path, Controllers::NONE).expect("create"))
    }

    fn sleeper(&self) -> Child {
        let child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep");
        self.0.add(child.id() as i32).expect("add");
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove();
        if let Some(parent) = self.0.full_path().parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

#[test]
fn a_killed_cgroup_empties_and_is_removed_with_its_children() {
    let scratch = Scratch::new("kill");
    std::fs::create_dir(scratch.0.full_path().join("child")).expect("child cgroup");
    let mut child = scratch.sleeper();
    assert_eq!(scratch.0.pids(true).expect("pids"), [child.id() as i32]);
    scratch.0.kill().expect("kill");
    assert!(!child.wait().expect("wait").success());
    scratch.0.remove().expect("remove");
    assert!(!scratch.0.exists());
    scratch.0.remove().expect("removing twice is no error");
}

#[test]
fn removal_waits_for_the_dying_and_gives_up_on_the_living() {
    let scratch = Scratch::new("busy");
    let mut child = scratch.sleeper();
    let start = Instant::now();
    assert!(matches!(
        scratch.0.remove(),
        Err(CgroupError::Timeout { .. })
    ));
    assert!(start.elapsed() >= Duration::from_secs(4));
    scratch.0.kill().expect("kill");
    scratch
        .0
        .remove()
        .expect("remove without waiting for the child first");
    child.wait().expect("wait");
}

#[test]
fn a_cgroup_in_use_is_not_taken_over() {
    let scratch = Scratch::new("used");
    let mut child = scratch.sleeper();
    let again = Cgroup::create(scratch.0.path(), Controllers::NONE);
    assert!(
        matches!(again, Err(CgroupError::NotEmpty { count: 1 })),
        "{again:?}"
    );
    scratch.0.kill().expect("kill");
    child.wait().expect("wait");
    scratch.0.freeze().expect("freeze");
    let again = Cgroup::create(scratch.0.path(), Controllers::NONE);
    assert!(
        matches!(again, Err(CgroupError::UnexpectedlyFrozen)),
        "{again:?}"
    );
    scratch.0.thaw().expect("thaw");
    Cgroup::create(scratch.0.path(), Controllers::NONE).expect("idle and thawed");
}

#[test]
fn a_frozen_process_stands_still_until_it_is_thawed() {
    let scratch = Scratch::new("freeze");
    let mut child = scratch.sleeper();
    scratch.0.freeze().expect("freeze");
    assert!(scratch.0.is_frozen().expect("state"));
    scratch.0.thaw().expect("thaw");
    assert!(!scratch.0.is_frozen().expect("state"));
    scratch.0.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn the_device_program_is_enforced_and_replaced() {
    let scratch = Scratch::new("devices");
    let deny: Vec<_> =
        serde_json::from_str(r#"[{"allow":false,"access":"rwm"}]"#).expect("valid JSON");
    let allow: Vec<_> = serde_json::from_str(
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"rw"}]"#,
    )
    .expect("valid JSON");
    let script = format!(
        "echo $$ > {}/cgroup.procs && : < /dev/null && ! (: < /dev/kmsg) 2>/dev/null",
        scratch.0.full_path().display()
    );
    let run = || {
        Command::new("sh")
            .arg("-c")
            .arg(&script)
            .status()
            .expect("sh")
            .success()
    };
    scratch
        .0
        .attach_devices(&devices::compile(&deny).expect("compile"))
        .expect("attach");
    assert!(run(), "/dev/null is to be readable and /dev/kmsg not");
    scratch
        .0
        .attach_devices(&devices::compile(&allow).expect("compile"))
        .expect("replace");
    assert!(!run(), "/dev/kmsg is to be readable now");
}

#[test]
fn a_limit_without_its_controller_is_an_error_or_a_named_omission() {
    let scratch = Scratch::new("limits");
    let resources: LinuxResources =
        serde_json::from_str(r#"{"rdma":{"nothing0":{"hcaHandles":1}}}"#).expect("valid JSON");
    let plan = ResourcePlan::from_spec(&resources).expect("plan");
    if scratch
        .0
        .enable(Controllers::RDMA)
        .expect("enable")
        .contains(Controllers::RDMA)
    {
        let error = scratch
            .0
            .apply(&plan, ControllersPolicy::Require)
            .expect_err("no such device");
        assert!(
            error.to_string().contains("linux.resources.rdma[nothing0]"),
            "{error}"
        );
        return;
    }
    let error = scratch
        .0
        .apply(&plan, ControllersPolicy::Require)
        .expect_err("no controller");
    assert!(
        error.to_string().contains("\"rdma\" is not available"),
        "{error}"
    );
    let skipped = scratch
        .0
        .apply(&plan, ControllersPolicy::IgnoreMissing)
        .expect("ignored");
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].controller, "rdma");
}

#[test]
fn statistics_count_what_a_process_used_and_leave_out_what_the_host_lacks() {
    let scratch = Scratch::new("stats");
    let script = format!(
        "echo $$ > {}/cgroup.procs; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
        scratch.0.full_path().display()
    );
    assert!(
        Command::new("sh")
            .arg("-c")
            .arg(&script)
            .status()
            .expect("sh")
            .success()
    );
    let stats = scratch.0.stats().expect("stats");
    let cpu = stats.cpu.expect("cpu.stat is always there");
    assert!(
        cpu.usage_usec > 0 && cpu.usage_usec >= cpu.user_usec,
        "{cpu:?}"
    );
    let have = scratch.0.controllers().expect("controllers");
    assert_eq!(stats.memory.is_some(), have.contains(Controllers::MEMORY));
    assert_eq!(stats.pids.is_some(), have.contains(Controllers::PIDS));
    let events = scratch.0.oom_events().expect("open");
    assert_eq!(events.is_some(), have.contains(Controllers::MEMORY));
}

#[test]
fn a_delegated_cgroup_belongs_to_the_user_and_its_limits_do_not() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("delegate");
    scratch.0.delegate(1234).expect("delegate");
    let owner = |file: &str| {
        std::fs::metadata(scratch.0.full_path().join(file))
            .expect("metadata")
            .uid()
    };
    for (file, uid) in [("", 1234), ("cgroup.procs", 1234), ("cgroup.freeze", 0)] {
        assert_eq!(owner(file), uid, "{file:?}");
    }
}

fn plan(json: &str) -> ResourcePlan {
    let resources: LinuxResources = serde_json::from_str(json).expect("valid JSON");
    ResourcePlan::from_spec(&resources).expect("plan")
}

#[test]
fn limits_reach_their_files_or_name_their_controller() {
    let scratch = Scratch::new("values");
    let wanted = plan(
        r#"{"memory":{"limit":67108864,"swap":100663296,"reservation":33554432},
            "pids":{"limit":50},
            "cpu":{"shares":512,"quota":50000,"period":100000,"burst":60000,"cpus":"0"}}"#,
    );
    let have = scratch.0.enable(Controllers::CPUSET).expect("enable");
    let applied = scratch.0.apply(&wanted, ControllersPolicy::Require);
    if !have.contains(wanted.controllers()) {
        let error = applied.expect_err("not every controller is there");
        assert!(
            matches!(error, CgroupError::ControllerMissing { .. }),
            "{error}"
        );
        return;
    }
    // A burst above the quota is refused whatever the order of the writes.
    let error = applied.expect_err("burst > quota").to_string();
    assert!(
        error.contains("linux.resources.cpu.quota: write \"50000 100000\""),
        "{error}"
    );
    let wanted = plan(
        r#"{"memory":{"limit":67108864,"swap":100663296,"reservation":33554432},
            "pids":{"limit":50},
            "cpu":{"shares":512,"quota":50000,"period":100000,"burst":20000,"cpus":"0"}}"#,
    );
    assert!(
        scratch
            .0
            .apply(&wanted, ControllersPolicy::Require)
            .expect("apply")
            .is_empty()
    );
    let table = [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.swap.max", "33554432"),
        ("pids.max", "50"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "20000"),
        ("cpuset.cpus", "0"),
    ];
    for (file, value) in table {
        let got = std::fs::read_to_string(scratch.0.full_path().join(file)).expect(file);
        assert_eq!(got.trim(), value, "{file}");
    }
    // Lowering and raising quota and burst together works in either direction.
    for (quota, burst) in [(10_000, 5_000), (90_000, 80_000)] {
        let json = format!(r#"{{"cpu":{{"quota":{quota},"burst":{burst}}}}}"#);
        scratch
            .0
            .apply(&plan(&json), ControllersPolicy::Require)
            .expect(&json);
    }
}

#[test]
fn an_oom_kill_is_counted() {
    use std::os::unix::process::ExitStatusExt;
    let scratch = Scratch::new("oom");
    let limit = plan(r#"{"memory":{"limit":16777216,"swap":16777216}}"#);
    let applied = scratch.0.apply(&limit, ControllersPolicy::Require);
    if scratch.0.oom_events().expect("open").is_none() {
        assert!(
            matches!(applied, Err(CgroupError::ControllerMissing { .. })),
            "{applied:?}"
        );
        return;
    }
    applied.expect("apply");
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec tail /dev/zero",
        scratch.0.full_path().display()
    );
    let status = Command::new("sh")
        .arg("-c")
        .arg(&script)
        .status()
        .expect("sh");
    assert_eq!(status.signal(), Some(9), "{status}");
    let events = scratch
        .0
        .memory_events()
        .expect("read")
        .expect("memory controller");
    assert!(events.oom_kill >= 1, "{events:?}");
    let memory = scratch
        .0
        .stats()
        .expect("stats")
        .memory
        .expect("memory controller");
    assert_eq!(memory.usage_limit, 16_777_216);
    assert!(
        memory.stat.contains_key("anon") && memory.max_usage.is_some(),
        "{memory:?}"
    );
    let checked = plan(r#"{"memory":{"limit":1,"checkBeforeUpdate":true}}"#);
    let refused = scratch.0.apply(&checked, ControllersPolicy::Require);
    assert!(
        matches!(refused, Err(CgroupError::LimitBelowUsage { .. })) || memory.usage == 0,
        "{refused:?}"
    );
}

#[test]
fn a_parent_with_processes_is_named_and_nothing_is_left() {
    let parent = Scratch::new("inner");
    let offered = parent.0.enable(Controllers::NONE).expect("enable");
    let mut child = parent.sleeper();
    let path = parent.0.path().below("a/b").expect("a path below");
    let created = Cgroup::create(&path, Controllers::MEMORY);
    if offered.contains(Controllers::MEMORY) {
        let error = created.expect_err("memory cannot be enabled beside a process");
        assert!(
            matches!(error, CgroupError::InternalProcesses { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("memory"), "{error}");
        assert!(
            !parent.0.full_path().join("a").exists(),
            "the directories are to be removed"
        );
    } else {
        created
            .expect("nothing to enable")
            .remove()
            .expect("remove");
    }
    parent.0.kill().expect("kill");
    child.wait().expect("wait");
}
