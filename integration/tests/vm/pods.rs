//! Pods as a kubelet with systemd's cgroup driver runs them: through CRI, each container a scope in
//! the slice of its pod; by our shim under both names, and by runc's to compare.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

const SCRIPT: &str = include_str!("pods.sh");

/// What must be said of each handler.
const EXPECTED: &[&str] = &[
    "units active kubepods-burstable-pod1.slice active kubepods-burstable-pod1.slice",
    "limits 67108864 67108864 134217728",
    "ended 137 Error",
    "stopped and removed 0",
    "greedy-exec 137",
];

/// What a kubelet must be told of a container that was too greedy; runc's own shim of this version
/// tells it only on a fast machine.
const GREEDY: &str = "greedy 137 OOMKilled";

#[test]
fn a_pod_below_a_slice_is_a_scope_of_systemds_for_each_container() {
    let options = VmOptions {
        images: vec!["busybox".into(), "pause".into()],
        deadline: Duration::from_mins(10),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", SCRIPT]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    let missing: Vec<_> = ["xebec", "xebec-as-runc", "runc"]
        .iter()
        .flat_map(|handler| EXPECTED.iter().map(move |fact| format!("{handler} {fact}")))
        .chain([format!("xebec {GREEDY}"), format!("xebec-as-runc {GREEDY}")])
        .filter(|line| !lines.contains(&line.as_str()))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:#?} in {output:#?}");
}
