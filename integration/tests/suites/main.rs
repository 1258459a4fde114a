//! containerd's own suites of tests, which know nothing of us, against our shim (`make suites`).

mod controllers;

use std::collections::BTreeMap;
use std::time::Duration;

use integration::hosts::{HostOptions, NativeHost};
use integration::paths::Paths;
use integration::setup::suites;

const IMAGES: &str = include_str!("images.sh");

/// Longest time of a suite on a busy machine.
const DEADLINE: Duration = Duration::from_mins(20);

/// What each test of a suite came to: `PASS`, `FAIL` or `SKIP`.
type Outcomes = BTreeMap<String, String>;

/// How names of tests begin that do not pass, and why.
type Exceptions<'a> = &'a [(&'a str, &'a str)];

fn host() -> NativeHost {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.check_sh(IMAGES).unwrap();
    let programs = suites::find(&Paths::find().unwrap()).unwrap();
    for name in ["client.test", "cri.test"] {
        std::fs::copy(programs.join(name), host.path(format!("/srv/{name}"))).unwrap();
    }
    host
}

/// Runs a suite to its end, and reads how each of its tests came out.
fn outcomes(host: &NativeHost, command: &str) -> (Outcomes, String) {
    let script = format!("cd /tmp && {command} 2>&1");
    let output = host.run_within(&["sh", "-c", &script], DEADLINE).unwrap();
    (parse(&output.stdout), output.stdout)
}

/// The outcomes in what `go test -v` says.
fn parse(log: &str) -> Outcomes {
    let results = log.lines().filter_map(|line| {
        let (outcome, rest) = line.trim().strip_prefix("--- ")?.split_once(": ")?;
        let (name, _) = rest.split_once(' ')?;
        Some((name.to_owned(), outcome.to_owned()))
    });
    results.collect()
}

/// The tests that came to something.
fn those(outcomes: &Outcomes, is_one: impl Fn(&str) -> bool) -> Vec<&str> {
    let those = outcomes.iter().filter(|(_, outcome)| is_one(outcome));
    those.map(|(name, _)| name.as_str()).collect()
}

fn passed(outcomes: &Outcomes) -> Vec<&str> {
    those(outcomes, |outcome| outcome == "PASS")
}

/// What should pass and does not, and what is excepted for no reason.
fn faults(wanted: &[&str], outcomes: &Outcomes, exceptions: Exceptions) -> Vec<String> {
    let fails = |name: &&&str| outcomes.get(**name).is_none_or(|outcome| outcome != "PASS");
    let failed: Vec<&str> = wanted.iter().filter(fails).copied().collect();
    let is_excepted = |name: &&&str| exceptions.iter().any(|(begin, _)| name.starts_with(begin));
    let faults = failed.iter().filter(|name| !is_excepted(name));
    let mut faults: Vec<String> = faults
        .map(|name| format!("{name}: {:?}", outcomes.get(*name)))
        .collect();
    let idle = |(begin, _): &&(&str, &str)| !failed.iter().any(|name| name.starts_with(begin));
    let idle = exceptions.iter().filter(idle);
    faults.extend(idle.map(|(begin, why)| format!("{begin} passes: {why}")));
    faults
}

/// What no shim passes here: names in registries, snapshotters, an `nc` that ends at SIGTERM.
const CLIENT_SKIP: &str = "TestBindLowPort|TestImagePull|TestExport|TestMigration|TestContentClient|TestSnapshotterClient";

#[test]
#[ignore = "make suites"]
fn clients_find_no_fault_that_runcs_shim_does_not_have() {
    let host = host();
    let [(runc, runc_log), (ours, log)] = ["runc", "xebec"].map(|name| {
        let command = format!(
            "TEST_RUNTIME=io.containerd.{name}.v2 /srv/client.test -no-criu -test.root -test.v \
             -test.parallel 4 -test.skip '{CLIENT_SKIP}'"
        );
        outcomes(&host, &command)
    });
    let wanted = passed(&runc);
    println!("{} tests passed with runc's shim", wanted.len());
    assert!(wanted.len() > 100, "{runc_log}");
    let faults = faults(&wanted, &ours, &[]);
    assert!(faults.is_empty(), "{faults:#?}\n{log}");
}

/// containerds of the suite's own and another configuration of ours, programs made to fail, `lsof`,
/// containerd's labels of images, a signal that may come before the container expects it.
const CRI_SKIP: &str = "Restart|Upgrade|NRI|Nri|PullTimeout|Reload100|NilCNI|CgroupWritable|Volatile|\
    RunPodSandbox|PodSandboxController|Issue10467|Issue10244|DrainExecIO|FailFast|TTYLeak|\
    ContainerdSandboxImage|StopCancellation";

const NO_CONTROLLERS: &str = "it needs controllers of cgroups that this machine has by version 1";
const NOT_RUNCS_NAME: &str =
    "under any name but runc's containerd cannot read the options that a pod with users needs";

/// What fails with every handler.
const CRI_EXCEPTIONS: [(&str, &str); 7] = [
    ("TestContainerStats", NO_CONTROLLERS),
    ("TestContainerConsumedStats", NO_CONTROLLERS),
    ("TestContainerListStats", NO_CONTROLLERS),
    ("TestUpdateContainerResources_MemoryLimit", NO_CONTROLLERS),
    (
        "TestImageVolumeBasic",
        "it looks for mounts of the snapshotter overlayfs",
    ),
    ("TestImageVolumeWithUserNamespace", NOT_RUNCS_NAME),
    ("TestIssue10598", "the corpus' nginx ends by itself"),
];

/// runc itself makes no pod here, for want of controllers: what has to pass is everything.
#[test]
#[ignore = "make suites"]
fn cri_finds_no_fault_under_either_name() {
    let host = host();
    for (handler, exceptions) in [
        ("xebec-as-runc", CRI_EXCEPTIONS.to_vec()),
        (
            "xebec",
            [
                &CRI_EXCEPTIONS[..],
                &[
                    ("TestPodUserNS", NOT_RUNCS_NAME),
                    ("TestUsernsVolumeCopyUp", NOT_RUNCS_NAME),
                ],
            ]
            .concat(),
        ),
    ] {
        let command = format!(
            "/srv/cri.test -cri-endpoint unix:///run/containerd/containerd.sock \
             -runtime-handler {handler} -test.v -test.skip '{CRI_SKIP}'"
        );
        let (outcomes, log) = outcomes(&host, &command);
        let number = passed(&outcomes).len();
        println!("{handler}: {number} tests passed");
        assert!(number > 40, "{log}");
        let wanted = those(&outcomes, |outcome| outcome != "SKIP");
        let faults = faults(&wanted, &outcomes, &exceptions);
        assert!(faults.is_empty(), "{faults:#?}\n{log}");
    }
}

#[test]
fn what_does_not_pass_is_a_fault_and_so_is_an_exception_that_passes() {
    let log = "--- PASS: A (0.1s)\n    --- PASS: A/b (0.0s)\n--- FAIL: C (1s)\n--- SKIP: E (0s)\n";
    let outcomes = parse(log);
    assert_eq!(passed(&outcomes), ["A", "A/b"]);
    let none: [&str; 0] = [];
    assert_eq!(faults(&["A", "A/b"], &outcomes, &[]), none);
    assert_eq!(faults(&["A", "C"], &outcomes, &[("C", "")]), none);
    let found = faults(&["A/b", "C", "D", "E"], &outcomes, &[("A", "why")]);
    let expected = [
        r#"C: Some("FAIL")"#,
        "D: None",
        r#"E: Some("SKIP")"#,
        "A passes: why",
    ];
    assert_eq!(found, expected);
}
