//! containerd's own client on our shim and our snapshotter.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::time::Duration;

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;

fn host() -> NativeHost {
    NativeHost::start(HostOptions::default()).expect("a native host starts")
}

/// Lazy layers that the snapshotter has; an ordinary pull has none.
fn remote_snapshots(ctr: Ctr<'_>) -> usize {
    let list = ctr
        .check(&["snapshots", "--snapshotter", "xebec", "ls"])
        .unwrap();
    list.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .filter(|key| {
            let info = ctr
                .check(&["snapshots", "--snapshotter", "xebec", "info", key])
                .unwrap();
            info.contains("containerd.io/snapshot/remote")
        })
        .count()
}

/// The images of the corpus and what the command of each prints first.
const READY: [(&str, &str); 7] = [
    ("python3-numpy", "ready 204"),
    ("nodejs", "ready"),
    ("openjdk", "openjdk version"),
    ("nginx", "nginx version"),
    ("redis", "Redis server"),
    ("ruby", "ready {\"a\":1}"),
    ("manyfiles", "ready"),
];

#[test]
fn every_image_of_the_corpus_runs_lazily_and_streamed() {
    let host = host();
    let ctr = Ctr::new(&host);
    for (name, ready) in READY {
        let image = host.push(name).unwrap();
        let lazy = host.convert(&image).unwrap();

        ctr.pull(&lazy, "xebec").unwrap();
        assert!(remote_snapshots(ctr) > 0, "{name} was not pulled lazily");
        let ran = ctr.run(Stack::XEBEC, &lazy, "lazy", &[]).unwrap();
        let said = ran.stdout.clone() + &ran.stderr;
        assert!(
            ran.success() && said.contains(ready),
            "{name}, lazily: {ran:?}"
        );
        ctr.check(&["images", "rm", "--sync", &lazy]).unwrap();
        assert_eq!(
            remote_snapshots(ctr),
            0,
            "lazy layers of {name} outlived their image"
        );

        ctr.pull(&image, "xebec").unwrap();
        assert!(remote_snapshots(ctr) > 0, "{name} was not streamed");
        let ran = ctr.run(Stack::XEBEC, &image, "streamed", &[]).unwrap();
        let said = ran.stdout.clone() + &ran.stderr;
        assert!(
            ran.success() && said.contains(ready),
            "{name}, streamed: {ran:?}"
        );
        ctr.check(&["images", "rm", "--sync", &image]).unwrap();
        assert_eq!(
            remote_snapshots(ctr),
            0,
            "streamed layers of {name} outlived their image"
        );
    }
}

/// Events of containerd as they come, without those of images and content.
struct Events {
    process: Child,
}

impl Events {
    fn follow(host: &NativeHost) -> Self {
        let process = host.spawn(&["ctr", "events"]).unwrap();
        // It says nothing when it listens, so an event of our own tells.
        std::thread::sleep(Duration::from_millis(500));
        Self { process }
    }

    /// Topics of tasks up to and including `last`, in their order.
    fn until(mut self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        for line in BufReader::new(self.process.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let topic = line
                .split_whitespace()
                .find(|word| word.starts_with("/tasks/"));
            topics.extend(topic.map(str::to_owned));
            if topic == Some(last) {
                break;
            }
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        topics
    }
}

#[test]
fn a_running_container_is_operated_through_containerd() {
    let host = host();
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    ctr.pull(&image, "xebec").unwrap();
    assert!(
        ctr.run(Stack::XEBEC, &image, "warm-up", &["true"])
            .unwrap()
            .success()
    );
    let before = Inventory::of(&host).unwrap();
    let events = Events::follow(&host);

    ctr.start(Stack::XEBEC, &image, "c", &["sleep", "1000"])
        .unwrap();
    let (pid, status) = ctr.task("c").unwrap().expect("a task");
    assert_eq!(status, "RUNNING");
    let exec = ctr
        .exec("c", &["sh", "-c", "echo in; echo err >&2; exit 5"])
        .unwrap();
    assert_eq!(
        (exec.status, &*exec.stdout, &*exec.stderr),
        (5, "in\n", "err\n")
    );
    let absent = ctr.exec("c", &["nothere"]).unwrap();
    assert!(
        absent.stderr.contains("executable file not found in $PATH"),
        "{absent:?}"
    );
    let piped = host
        .sh("echo piped | ctr tasks exec --exec-id p c cat")
        .unwrap();
    assert_eq!(piped.stdout, "piped\n", "{piped:?}");

    assert!(
        ctr.check(&["tasks", "ps", "c"])
            .unwrap()
            .contains(&pid.to_string())
    );
    let metrics = ctr.check(&["tasks", "metrics", "c"]).unwrap();
    assert!(
        metrics.contains("cpu.usage_usec") || metrics.contains("ID"),
        "{metrics}"
    );

    ctr.check(&["tasks", "pause", "c"]).unwrap();
    assert_eq!(ctr.task("c").unwrap().unwrap().1, "PAUSED");
    ctr.check(&["tasks", "resume", "c"]).unwrap();
    assert_eq!(ctr.task("c").unwrap().unwrap().1, "RUNNING");

    ctr.check(&["tasks", "kill", "--signal", "SIGKILL", "c"])
        .unwrap();
    ctr.wait_until_stopped("c").unwrap();
    let deleted = ctr.output(&["tasks", "rm", "c"]).unwrap();
    // ctr itself succeeds and tells the task's status in a warning.
    assert!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
    ctr.check(&["containers", "rm", "c"]).unwrap();

    let topics = events.until("/tasks/delete");
    let lifecycle = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
    ];
    let mut rest = topics.iter();
    for topic in lifecycle {
        assert!(
            rest.any(|seen| seen == topic),
            "{topic} is missing or out of order in {topics:?}"
        );
    }
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn what_cannot_start_is_refused_with_runcs_words_and_leaves_nothing() {
    let host = host();
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    ctr.pull(&image, "xebec").unwrap();
    assert!(
        ctr.run(Stack::XEBEC, &image, "warm-up", &["true"])
            .unwrap()
            .success()
    );
    let before = Inventory::of(&host).unwrap();
    for (command, says) in [
        (
            "nothere",
            "exec: \"nothere\": executable file not found in $PATH",
        ),
        (
            "/nothere",
            "exec: \"/nothere\": stat /nothere: no such file or directory",
        ),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        let refused = ctr.run(Stack::XEBEC, &image, "bad", &[command]).unwrap();
        let is_said = refused.stderr.replace('\\', "").contains(says);
        assert!(!refused.success() && is_said, "{command}: {refused:?}");
        let list = ctr.check(&["containers", "ls", "--quiet"]).unwrap();
        assert_eq!(list, "", "{command} left its container");
    }
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn shim_and_runtime_also_serve_under_runcs_name() {
    let host = host();
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    ctr.pull(&image, "xebec").unwrap();

    let by_path = Stack {
        runtime: "/usr/local/bin/containerd-shim-xebec-v2",
        ..Stack::XEBEC
    };
    let ran = ctr
        .run(by_path, &image, "path", &["echo", "by path"])
        .unwrap();
    assert_eq!((ran.status, &*ran.stdout), (0, "by path\n"), "{ran:?}");

    // containerd's own shim drives our runtime as it drives runc.
    let mut argv = Stack {
        runtime: "io.containerd.runc.v2",
        ..Stack::XEBEC
    }
    .run_arguments()
    .to_vec();
    argv.extend([
        "--runc-binary",
        "/usr/local/bin/xebec",
        "--rm",
        &image,
        "binary",
    ]);
    argv.extend(["sh", "-c", "echo by binary; exit 3"]);
    let ran = host.run(&argv).unwrap();
    assert_eq!((ran.status, &*ran.stdout), (3, "by binary\n"), "{ran:?}");

    let terminal = "script -qec 'ctr run --cpu-shares 0 --snapshotter xebec --runtime \
                    io.containerd.xebec.v2 -t --rm IMAGE tty sh -c \"test -t 0 && tty\"' /dev/null";
    let ran = host.sh(&terminal.replace("IMAGE", &image)).unwrap();
    assert!(
        ran.success() && ran.stdout.contains("/dev/pts/0"),
        "{ran:?}"
    );
}

#[test]
fn snapshots_are_pulled_mounted_measured_compared_and_committed() {
    let host = host();
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let lazy = host.convert(&image).unwrap();
    for image in [&image, &lazy] {
        ctr.pull(image, "xebec").unwrap();
        mount_image(&host, image);
        let parent = compare_changes(&host, image);
        commit_a_layer(&host, &parent);
        ctr.check(&["images", "rm", "--sync", image]).unwrap();
    }
    let list = snapshots(ctr, &["ls"]);
    assert_eq!(list.lines().count(), 1, "{list}");
}

/// `ctr snapshots`, which has to succeed.
#[track_caller]
fn snapshots(ctr: Ctr<'_>, arguments: &[&str]) -> String {
    let mut all = vec!["snapshots", "--snapshotter", "xebec"];
    all.extend(arguments);
    ctr.check(&all).unwrap()
}

fn mount_image(host: &NativeHost, image: &str) {
    let script = "mkdir -p /mnt/image
                  ctr images mount --snapshotter xebec IMAGE /mnt/image
                  test -s /mnt/image/usr/bin/redis-server
                  ctr images unmount --snapshotter xebec --rm /mnt/image";
    host.check_sh(&script.replace("IMAGE", image)).unwrap();
}

/// What a container changed is measured and told as a layer; the chain ID below it.
fn compare_changes(host: &NativeHost, image: &str) -> String {
    let ctr = Ctr::new(host);
    ctr.start(Stack::XEBEC, image, "c", &["sleep", "1000"])
        .unwrap();
    let script = "echo changed > /etc/motd; mkdir /new; rm /etc/passwd";
    assert_eq!(ctr.exec("c", &["sh", "-c", script]).unwrap().status, 0);
    let list = snapshots(ctr, &["ls"]);
    let mut lines = list.lines();
    assert!(
        lines.any(|l| l.starts_with("c ") && l.contains("Active")),
        "{list}"
    );
    let usage = snapshots(ctr, &["usage", "c"]);
    assert!(usage.lines().any(|line| line.starts_with("c ")), "{usage}");
    let diff = "ctr snapshots --snapshotter xebec diff c | tar -tzf - | sort";
    let diff = host.check_sh(diff).unwrap();
    for path in ["etc/.wh.passwd", "etc/motd", "new/"] {
        let is_told = diff.lines().any(|line| line == path);
        assert!(is_told, "{path} is missing in the diff:\n{diff}");
    }
    let parent = "ctr snapshots --snapshotter xebec info c | jq -r .Parent";
    let parent = host.check_sh(parent).unwrap();
    ctr.remove("c").unwrap();
    parent.trim().to_owned()
}

/// A layer made by hand: prepared on the image, changed, committed, and read as a parent.
fn commit_a_layer(host: &NativeHost, parent: &str) {
    let ctr = Ctr::new(host);
    snapshots(ctr, &["prepare", "work", parent]);
    let change = "mkdir -p /mnt/w
                  ctr snapshots --snapshotter xebec mounts /mnt/w work > /tmp/m
                  sh -e /tmp/m; echo committed > /mnt/w/etc/motd; umount /mnt/w";
    host.check_sh(change).unwrap();
    snapshots(ctr, &["commit", "done", "work"]);
    // Not a view: `ctr` keeps those by no label, so that containerd may collect one at any time, and
    // its collector leaves the name among the parent's children, which then cannot be removed.
    snapshots(ctr, &["prepare", "look", "done"]);
    let look = "ctr snapshots --snapshotter xebec mounts /mnt/w look > /tmp/m
                sh -e /tmp/m; cat /mnt/w/etc/motd
                test -s /mnt/w/usr/bin/redis-server; umount /mnt/w";
    assert_eq!(host.check_sh(look).unwrap(), "committed\n");
    snapshots(ctr, &["rm", "look"]);
    snapshots(ctr, &["rm", "done"]);
}

#[test]
fn containers_outlive_a_restart_of_containerd() {
    let host = host();
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    ctr.pull(&image, "xebec").unwrap();
    ctr.start(Stack::XEBEC, &image, "c", &["sleep", "1000"])
        .unwrap();
    let before = ctr.task("c").unwrap();
    host.kill(Service::Containerd).unwrap();
    host.start_services(&[Service::Containerd]).unwrap();
    assert_eq!(ctr.task("c").unwrap(), before);
    assert_eq!(ctr.exec("c", &["echo", "alive"]).unwrap().stdout, "alive\n");
    ctr.remove("c").unwrap();
}
