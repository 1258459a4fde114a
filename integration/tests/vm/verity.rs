//! The snapshotter's store on a file system with fs-verity, which this machine's kernel lacks: one
//! image by each back end, and bits that change on the disk below.

use std::time::Duration;

use integration::hosts::{Service, VmHost, VmOptions};

const SCRIPT: &str = include_str!("verity.sh");

/// What is true of each back end.
const OF_BOTH: [&str; 8] = [
    "says complete files are sealed (fs-verity)",
    "reads right while it is fetched",
    "attributes V",
    "write: Operation not permitted",
    "reads right when it is sealed",
    "was BusyBox v1",
    "fails: Input/output error",
    "loses little; wrong bytes: 0",
];

const FACTS: [&str; 8] = [
    "a container reads right",
    "the kernel names it",
    "fuse reads right when it is fetched again",
    "fuse refused 1",
    "fuse keeps 0",
    "kernel evicted, keeps 0",
    "kernel reads right when it is fetched again",
    "kernel keeps 0",
];

#[test]
fn sealed_files_show_a_damaged_block_to_nobody_and_are_fetched_again() {
    let options = VmOptions {
        images: vec!["busybox".into()],
        services: vec![Service::Registry, Service::Containerd],
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", SCRIPT]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    for mode in ["fuse", "kernel"] {
        for fact in OF_BOTH {
            let fact = format!("{mode} {fact}");
            assert!(lines.contains(&&*fact), "{fact} is missing in {output:#?}");
        }
    }
    for fact in FACTS {
        assert!(lines.contains(&fact), "{fact} is missing in {output:#?}");
    }
}
