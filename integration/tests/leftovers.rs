//! A host that has run everything, and the machine after its end, have nothing left over.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use integration::paths::Paths;

#[test]
fn a_host_has_nothing_left_of_containers_that_are_gone() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let lazy = format!("{}/redis:lazy", Service::REGISTRY);
    host.check(&["xebec-snapshotter", "image", "convert", &image, &lazy])
        .unwrap();
    let cycle = || {
        for (number, image) in [&image, &lazy].into_iter().enumerate() {
            ctr.pull(image, "xebec").unwrap();
            let id = format!("c{number}");
            ctr.start(Stack::XEBEC, image, &id, &["sleep", "1000"])
                .unwrap();
            assert_eq!(ctr.exec(&id, &["true"]).unwrap().status, 0);
            ctr.remove(&id).unwrap();
            assert!(
                ctr.run(Stack::XEBEC, image, &id, &["redis-server", "--version"])
                    .unwrap()
                    .success()
            );
            ctr.check(&["images", "rm", "--sync", image]).unwrap();
        }
    };
    // The first time makes directories and caches that stay on purpose.
    cycle();
    let before = Inventory::of(&host).unwrap();
    cycle();
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
    let shims = host.sh("ls -A /run/containerd/s").unwrap().stdout;
    assert_eq!(shims, "", "sockets of shims stayed");
    let snapshots = ctr
        .check(&["snapshots", "--snapshotter", "xebec", "ls"])
        .unwrap();
    assert_eq!(snapshots.lines().count(), 1, "{snapshots}");
}

#[test]
fn a_host_whose_owner_is_killed_leaves_nothing_on_the_machine() {
    let paths = Paths::find().unwrap();
    let marker = "sleep 98765";
    let mut owner = Command::new(&paths.program)
        .args([
            "host",
            "native",
            "--",
            "sh",
            "-c",
            &format!("echo up; {marker}"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let process = wait_for(|| running(marker)).expect("the command is seen while it runs");
    let name = host_of(&process);
    assert!(
        paths.hosts().join(&name).is_dir(),
        "{name} has no scratch directory"
    );

    owner.kill().unwrap();
    owner.wait().unwrap();

    let gone = wait_for(|| (!paths.hosts().join(&name).exists()).then_some(()));
    assert!(gone.is_some(), "the scratch directory of {name} stayed");
    assert!(
        running(marker).is_none(),
        "a process of the host outlived its owner"
    );
    assert!(!cgroup_exists(
        Path::new("/sys/fs/cgroup"),
        &format!("xebec-host-{name}")
    ));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(&name),
        "a mount of the host stayed: {mounts}"
    );
}

/// Looks again and again, for at most 15 seconds.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let seen = look();
        if seen.is_some() || Instant::now() > end {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The /proc directory of the process with this command line.
fn running(command: &str) -> Option<PathBuf> {
    let wanted = command.replace(' ', "\0") + "\0";
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    processes
        .into_iter()
        .find(|process| fs::read(process.join("cmdline")).is_ok_and(|c| c == wanted.as_bytes()))
}

/// The name of the host that a process lives in, which its cgroup tells.
fn host_of(process: &Path) -> String {
    let cgroups = fs::read_to_string(process.join("cgroup")).unwrap();
    let after = cgroups
        .split("xebec-host-")
        .nth(1)
        .expect("the process is in a host's cgroup");
    after
        .split(['/', '\n'])
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn cgroup_exists(directory: &Path, name: &str) -> bool {
    let children = fs::read_dir(directory).into_iter().flatten().flatten();
    children
        .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
        .any(|child| child.file_name() == name || cgroup_exists(&child.path(), name))
}
