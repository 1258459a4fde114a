//! Checkpoints that need another kernel than this machine's: one that tracks which memory is
//! written to, for dumps of what has changed, and one with AppArmor.

use integration::command::Output;

pub(super) const SCRIPT: &str = include_str!("checkpoint.sh");

const FACTS: [&str; 11] = [
    "status running",
    "xebec's by xebec: memory is right, profile xebec-first (enforce)",
    "xebec's by runc: memory is right, profile xebec-first (enforce)",
    "runc's by xebec: memory is right, profile xebec-second (enforce)",
    "not loaded: --lsm-profile apparmor:xebec-none: no such profile is loaded",
    "not loaded: status 1, lines 1",
    "not loaded: nothing is left",
    "afterwards: memory is right, profile xebec-second (enforce)",
    "had none: --lsm-profile apparmor:xebec-second: init is unconfined: criu gives a profile only to what was dumped with one",
    "had none: status 1, lines 1",
    "had none: nothing is left",
];

/// Bytes of the memory that is there from the start: three mebibytes as base64.
const EARLY: u64 = 4 << 20;
/// Most that a dump has of what has changed since: stack and heap of a shell.
const CHANGED_MAX: u64 = EARLY / 8;

pub(super) fn assert_told(output: &Output) {
    let [first, second, last] = pages(output);
    assert!(first >= EARLY, "{output:#?}");
    for later in [second, last] {
        assert!((1..=CHANGED_MAX).contains(&later), "{output:#?}");
    }
    for fact in FACTS {
        assert!(
            output.stdout.lines().any(|line| line == fact),
            "{fact} is missing in {output:#?}"
        );
    }
}

/// Bytes of memory in each dump of a chain.
fn pages(output: &Output) -> [u64; 3] {
    let mut lines = output.stdout.lines();
    let sizes = lines.find_map(|line| line.strip_prefix("pages "));
    let sizes = sizes.map(|sizes| sizes.split(' ').flat_map(str::parse).collect::<Vec<_>>());
    let sizes = sizes.and_then(|sizes| sizes.try_into().ok());
    sizes.unwrap_or_else(|| panic!("no pages in {output:#?}"))
}
