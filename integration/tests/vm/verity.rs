//! The snapshotter's store on a file system with fs-verity, which this machine's kernel lacks: one
//! image by each back end, and bits that change on the disk below.

use integration::command::Output;

pub(super) const SCRIPT: &str = include_str!("verity.sh");

/// What is true of each back end, and of FUSE where the kernel reads the store's files by itself.
const OF_EACH: [&str; 9] = [
    "says complete files are sealed (fs-verity)",
    "reads right while it is fetched",
    "attributes V",
    "write: Operation not permitted",
    "reads right when it is sealed",
    "was BusyBox v1",
    "fails: Input/output error",
    "loses little; wrong bytes: 0",
    "reads right when it is fetched again",
];

const FACTS: [&str; 6] = [
    "a container reads right",
    "the kernel names it",
    "fuse refused 1",
    "fuse keeps 0",
    "kernel evicted, keeps 0",
    "kernel keeps 0",
];

pub(super) fn assert_told(output: &Output) {
    let lines: Vec<_> = output.stdout.lines().collect();
    for mode in ["fuse", "passthrough", "kernel"] {
        for fact in OF_EACH {
            let fact = format!("{mode} {fact}");
            assert!(lines.contains(&&*fact), "{fact} is missing in {output:#?}");
        }
    }
    for fact in FACTS {
        assert!(lines.contains(&fact), "{fact} is missing in {output:#?}");
    }
}
