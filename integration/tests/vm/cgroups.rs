//! Limits of every controller, their updates and events, and scopes of systemd's: one machine, one
//! script whose lines say what was seen.

use std::time::Duration;

use integration::command::Output;
use integration::hosts::{VmHost, VmOptions};
use serde_json::Value;

const SCRIPT: &str = include_str!("cgroups.sh");

/// What must be among the lines, word for word, in the order of the script.
const EXPECTED: &[&str] = &[
    // Every controller, by the file system.
    "fs memory.max 67108864",
    "fs memory.swap.max 33554432",
    "fs memory.low 16777216",
    "fs memory.high 62914560",
    "fs memory.oom.group 1",
    "fs cpu.weight 174",
    "fs cpu.max 40000 200000",
    "fs cpu.max.burst 1000",
    "fs cpuset.cpus 0-1",
    "fs cpuset.mems 0",
    "fs pids.max 50",
    "fs io.weight default 4950",
    "fs io.max rbps=1048576 wbps=max riops=max wiops=100",
    "fs hugetlb.2MB.max 4194304",
    "fs hugetlb.2MB.rsvd.max 4194304",
    "fs cgroup.max.depth 3",
    "fs unknown-device linux.resources.rdma[none]",
    "fs same-members true",
    // Updates: each option, and what depends on it.
    "update memory+swap 134217728 67108864",
    "update swap 134217728 33554432",
    "update swap-unlimited max",
    "update reservation 8388608",
    "update quota 50000 200000",
    "update period 50000 100000",
    "update burst 2000",
    "update shares 59",
    "update idle 1",
    "update cpus 1",
    "update mems 0",
    "update pids 60",
    "update pids-unlimited max",
    "update weight default 10000",
    "update file 1048576000",
    "update kernel-memory warned",
    "update below-use refused",
    "update unlimited max max",
    "update devices 0 1",
    "events oom",
    "events ended 0",
    "oom.group all",
    "sub 0 /lower",
    "sub outside refused",
    "non-leaf /init",
    // Scopes of the system's manager.
    "unit Slice=machine.slice",
    "unit Delegate=yes",
    "unit MemoryMax=67108864",
    "unit MemorySwapMax=33554432",
    "unit MemoryLow=16777216",
    "unit MemoryHigh=62914560",
    "unit CPUWeight=174",
    "unit CPUQuotaPerSecUSec=200ms",
    "unit CPUQuotaPeriodUSec=200ms",
    "unit AllowedCPUs=0-1",
    "unit AllowedMemoryNodes=0",
    "unit IOWeight=4950",
    "unit TasksMax=50",
    "unit DevicePolicy=strict",
    "unit DeviceAllow=/dev/char/10:229 rw",
    "unit OOMPolicy=kill",
    "unit TimeoutStopUSec=7s",
    "unit CollectMode=inactive-or-failed",
    "scope procs 1",
    "scope memory.max 67108864",
    "scope cpu.max.burst 1000",
    "scope hugetlb.2MB.max 4194304",
    "scope updated MemoryMax=134217728 134217728",
    "scope updated TasksMax=60 60",
    "scope reloaded 134217728 60",
    "scope devices 0 1",
    "scope frozen paused",
    "scope taken container's cgroup is not empty: 1 process(es) found",
    "scope exists UnitExists",
    "scope still active",
    "scope without processes [] stopped",
    "scope deleted not-found gone",
    "scope refused expected cgroupsPath to be of format",
    "killed at clone3 137 /run/xebec/web",
    "killed at clone3 left 0 0 not-found",
    "killed at recvfrom 137 /run/xebec/web",
    "killed at recvfrom left 0 0 not-found",
    "one 1 1",
    "bus 0 active",
    "bus 0 not-found",
    // Scopes of a user's manager.
    "user /user.slice/xebec-mine.scope",
    "user memory.max 33554432",
    "user pids.max 20",
    "user updated 67108864",
    "user exec 0",
    "user deleted gone",
    "user outside 0 7",
    "user no-permission 0",
    "user limits rootless needs no limits",
    // containerd with SystemdCgroup, through the shim.
    "shim /machine.slice/xebec-ctr.scope",
    "shim unit active 67108864",
    "shim exec 0",
    "shim deleted not-found",
];

#[test]
fn limits_hold_whoever_makes_the_cgroup() {
    let options = VmOptions {
        images: vec!["busybox".into()],
        deadline: Duration::from_mins(10),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", SCRIPT]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|line| !lines.iter().any(|said| said == *line))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:#?} in {output:#?}");
    statistics_are_as_runc_prints_them(&output);
}

/// The same members with figures of the same kind, of the same container by both.
fn statistics_are_as_runc_prints_them(output: &Output) {
    let document = |who: &str| -> Value {
        let line = output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(who));
        serde_json::from_str(line.unwrap_or_default()).unwrap_or_else(|e| panic!("{who}: {e}"))
    };
    let (ours, theirs) = (document("stats-xebec "), document("stats-runc "));
    let mut differences = Vec::new();
    compare("", &ours, &theirs, &mut differences);
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Members that are there or not by what happened so far.
const BY_CHANCE: [&str; 4] = ["/throttling", "/usage/max", "/cache", "/blkio/io"];

fn compare(path: &str, ours: &Value, theirs: &Value, differences: &mut Vec<String>) {
    let (Value::Object(a), Value::Object(b)) = (ours, theirs) else {
        if std::mem::discriminant(ours) != std::mem::discriminant(theirs) {
            differences.push(format!("{path}: {ours} and {theirs}"));
        }
        return;
    };
    for name in a.keys().chain(b.keys()) {
        let path = format!("{path}/{name}");
        match (a.get(name), b.get(name)) {
            (Some(ours), Some(theirs)) => compare(&path, ours, theirs, differences),
            _ if BY_CHANCE.iter().any(|part| path.contains(part)) => {}
            (ours, _) => differences.push(format!("{path}: only in {}", who(ours.is_some()))),
        }
    }
}

fn who(ours: bool) -> &'static str {
    if ours { "xebec's" } else { "runc's" }
}
