//! The tests that need controllers of cgroups, in a machine that has them all by version 2.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};
use integration::paths::Paths;
use integration::setup::suites;

use super::{IMAGES, Outcomes, faults, parse, passed};

/// Metrics, limits and their updates, kills of all in a cgroup, users of a container's own.
const CLIENT: &str = "TestContainerMetrics|TestDeletedContainerMetrics|TestTaskUpdate|TestShimInCgroup|\
    TestShimOOMScore|TestContainerPids|TestContainerKillAll|TestContainerKillInit|TestContainerUpdate|\
    TestUserNamespaces|TestIDMappedOverlay";
const CRI: &str = "Stats|TestUpdateContainerResources|TestPrivilegedContainerCgroup|TestContainerEvents|\
    TestSharedPid|TestPodUserNS|TestUsernsVolumeCopyUp";

/// How the log of a run of a suite begins.
const BEGINNING: &str = "suite: ";

/// Runs both suites against each shim; each log is preceded by its name.
fn script() -> String {
    let images = IMAGES;
    format!(
        "{images}
        for name in runc xebec; do
            echo '{BEGINNING}'client $name
            TEST_RUNTIME=io.containerd.$name.v2 /job/files/client.test -no-criu -test.root -test.v \
                -test.run '{CLIENT}' 2>&1 || true
        done
        for name in runc xebec-as-runc xebec; do
            echo '{BEGINNING}'cri $name
            /job/files/cri.test -cri-endpoint unix:///run/containerd/containerd.sock \
                -runtime-handler $name -test.v -test.run '{CRI}' 2>&1 || true
        done"
    )
}

/// The outcomes of the run of that name.
fn of(log: &str, name: &str) -> Outcomes {
    let mut runs = log.split(BEGINNING);
    let run = runs.find_map(|run| run.strip_prefix(name)?.strip_prefix('\n'));
    run.map(parse).unwrap_or_default()
}

#[test]
#[ignore = "make suites"]
fn what_needs_controllers_passes_wherever_it_passes_with_runcs_shim() {
    let programs = suites::find(&Paths::find().unwrap()).unwrap();
    let options = VmOptions {
        images: ["busybox", "pause", "nginx"].map(String::from).to_vec(),
        files: ["client.test", "cri.test"]
            .map(|name| programs.join(name))
            .to_vec(),
        deadline: Duration::from_mins(40),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", &script()]).expect("a VM host runs a job");
    let log = &output.stdout;
    for (suite, least, ours) in [
        ("client", 8, &["xebec"][..]),
        ("cri", 6, &["xebec-as-runc", "xebec"]),
    ] {
        let runc = of(log, &format!("{suite} runc"));
        let wanted = passed(&runc);
        println!("{suite}: with runc's shim passed {wanted:?}");
        assert!(wanted.len() >= least, "{output:#?}");
        for name in ours {
            let faults = faults(&wanted, &of(log, &format!("{suite} {name}")), &[]);
            assert!(faults.is_empty(), "{suite} {name}: {faults:#?}\n{log}");
        }
    }
}
