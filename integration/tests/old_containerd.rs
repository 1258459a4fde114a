//! containerd 1.6 (Debian 12) and 1.7 (Debian 13), configured as docs/containerd.md says, on our
//! snapshotter and our shim.

use std::time::{Duration, Instant};

use integration::cri::{Container, Cri};
use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use integration::setup::tools::{CLIENTS, CONTAINERD_1_6, CONTAINERD_1_7, Tool};

/// The two names under which clients can ask for our shim.
const RUNTIMES: [&str; 2] = [
    "io.containerd.xebec.v2",
    "/usr/local/bin/containerd-shim-xebec-v2",
];

#[test]
fn containerd_1_6_pulls_lazily_and_operates_containers_and_pods() {
    operate(&CONTAINERD_1_6, " Version:  1.6.", "xebec-by-path");
}

#[test]
fn containerd_1_7_pulls_lazily_and_operates_containers_and_pods() {
    operate(&CONTAINERD_1_7, " Version:  1.7.", "xebec-as-runc");
}

/// With a second handler of CRI that means our shim too, in the way that this version knows.
fn operate(containerd: &'static Tool, version_line: &str, second_handler: &str) {
    let options = HostOptions::default()
        .old_containerd(containerd)
        .tool(&CLIENTS);
    let host = NativeHost::start(options).expect("a native host starts");
    let versions = host.check(&["ctr", "version"]).unwrap();
    assert_eq!(versions.matches(version_line).count(), 2, "{versions}");
    host.push("pause").unwrap();
    let plain = host.push("redis").unwrap();
    let lazy = host.convert(&host.push("busybox").unwrap()).unwrap();

    pull_by_ctr(&host, &plain, &lazy);
    let ran = run(&host, RUNTIMES[0], &lazy);
    assert_eq!((ran.0, &*ran.1), (3, "by ctr\n"));
    let before = Inventory::of(&host).unwrap();
    for runtime in RUNTIMES {
        let ran = run(&host, runtime, &plain);
        assert_eq!((ran.0, &*ran.1), (3, "by ctr\n"), "{runtime}");
        operate_a_container(&host, runtime, &lazy);
    }
    drive_by_runcs_shim(&host, &lazy);
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "ctr left over: {left:#?}");
    let ctr = Ctr::new(&host);
    ctr.check(&["images", "rm", "--sync", &plain, &lazy])
        .unwrap();
    assert_eq!(lazy_layers(&host), 0);

    connect(&host).pull(&lazy, "").unwrap();
    assert_eq!(lazy_layers(&host), 1, "{}", host.log(Service::Snapshotter));
    operate_a_pod(&host, "xebec", &lazy);
    let before = Inventory::of(&host).unwrap();
    for handler in ["xebec", second_handler] {
        operate_a_pod(&host, handler, &lazy);
    }
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "pods left over: {left:#?}");
}

/// Lazy and streamed layers that the daemon has.
fn lazy_layers(host: &NativeHost) -> usize {
    let script =
        "xebec-snapshotter status --format json | jq '[.snapshots[] | select(.layer)] | length'";
    host.check_sh(script).unwrap().trim().parse().unwrap()
}

/// `ctr` itself sends no labels, so that what it pulls is unpacked; stargz-snapshotter's does.
fn pull_by_ctr(host: &NativeHost, plain: &str, lazy: &str) {
    Ctr::new(host).pull(plain, "xebec").unwrap();
    assert_eq!(lazy_layers(host), 0);
    let rpull = ["ctr-remote", "images", "rpull", "--plain-http"];
    let argv = [rpull.as_slice(), &["--snapshotter", "xebec", lazy]].concat();
    host.check(&argv).unwrap();
    assert_eq!(lazy_layers(host), 1, "{}", host.log(Service::Snapshotter));
}

/// A container's exit code and what it said.
fn run(host: &NativeHost, runtime: &'static str, image: &str) -> (i32, String) {
    let stack = Stack {
        runtime,
        ..Stack::XEBEC
    };
    let command = ["sh", "-c", "echo by ctr; exit 3"];
    let ran = Ctr::new(host).run(stack, image, "short", &command).unwrap();
    (ran.status, ran.stdout + &ran.stderr)
}

/// Entered, found again after a restart of containerd, and killed while there is none.
fn operate_a_container(host: &NativeHost, runtime: &'static str, image: &str) {
    let ctr = Ctr::new(host);
    let stack = Stack {
        runtime,
        ..Stack::XEBEC
    };
    ctr.start(stack, image, "c", &["sleep", "1000"]).unwrap();
    let task = ctr.task("c").unwrap().expect("a task");
    assert_eq!(task.1, "RUNNING");
    let exec = ctr
        .exec("c", &["sh", "-c", "echo in; echo err >&2; exit 5"])
        .unwrap();
    let told = (exec.status, &*exec.stdout, &*exec.stderr);
    assert_eq!(told, (5, "in\n", "err\n"), "{runtime}");
    let piped = host
        .sh("echo piped | ctr tasks exec --exec-id p c cat")
        .unwrap();
    assert_eq!(piped.stdout, "piped\n", "{runtime}: {piped:?}");

    host.kill(Service::Containerd).unwrap();
    host.start_services(&[Service::Containerd]).unwrap();
    assert_eq!(ctr.task("c").unwrap(), Some(task.clone()), "{runtime}");
    assert_eq!(ctr.exec("c", &["echo", "alive"]).unwrap().stdout, "alive\n");

    host.kill(Service::Containerd).unwrap();
    host.check(&["kill", "-KILL", &task.0.to_string()]).unwrap();
    host.start_services(&[Service::Containerd]).unwrap();
    ctr.wait_until_stopped("c").unwrap();
    // ctr itself succeeds and tells the task's status in a warning.
    let deleted = ctr.output(&["tasks", "rm", "c"]).unwrap();
    assert!(
        deleted.stderr.contains("exit code 137"),
        "{runtime}: {deleted:?}"
    );
    ctr.check(&["containers", "rm", "c"]).unwrap();
}

/// This containerd's own shim, whose options name our runtime.
fn drive_by_runcs_shim(host: &NativeHost, image: &str) {
    let stack = Stack {
        runtime: "io.containerd.runc.v2",
        ..Stack::XEBEC
    };
    let mut argv = stack.run_arguments().to_vec();
    let xebec = ["--runc-binary", "/usr/local/bin/xebec", "--rm"];
    argv.extend(xebec);
    argv.extend([image, "binary", "sh", "-c", "echo by binary; exit 3"]);
    let ran = host.run(&argv).unwrap();
    assert_eq!((ran.status, &*ran.stdout), (3, "by binary\n"), "{ran:?}");
}

/// CRI answers later than containerd's other services.
fn connect(host: &NativeHost) -> Cri {
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    let end = Instant::now() + Duration::from_mins(1);
    while let Err(error) = cri.containers() {
        assert!(Instant::now() < end, "CRI does not answer: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    cri
}

fn operate_a_pod(host: &NativeHost, handler: &str, image: &str) {
    let cri = connect(host);
    let name = format!("pod-{handler}");
    let pod = cri.run_pod(&name, handler).unwrap();
    let container = |name, command| {
        let container = Container {
            name,
            image,
            command,
        };
        let id = cri.create(&pod, &container).unwrap();
        cri.start(&id).unwrap();
        id
    };
    let main = container(
        "main",
        &["sh", "-c", "echo begun; sleep 1000 & wait"] as &[&str],
    );
    let short = container("short", &["sh", "-c", "echo said; exit 4"]);
    let ended = cri.wait_exit(&short).unwrap();
    assert_eq!((ended.exit_code, &*ended.reason), (4, "Error"), "{ended:?}");
    let log = format!("/var/log/pods/{name}/short.log");
    let log = host.read_file(log).unwrap();
    assert!(log.ends_with(" stdout F said\n"), "{handler}: {log:?}");

    host.kill(Service::Containerd).unwrap();
    host.start_services(&[Service::Containerd]).unwrap();
    let cri = connect(host);
    let ran = cri
        .exec_sync(&main, &["sh", "-c", "echo entered; exit 9"])
        .unwrap();
    let told = (ran.exit_code, &*ran.stdout);
    assert_eq!(told, (9, b"entered\n" as &[u8]), "{handler}: {ran:?}");
    cri.stop(&main, 0).unwrap();
    let ended = cri.wait_exit(&main).unwrap();
    assert_eq!(ended.exit_code, 137, "{handler}: {ended:?}");
    cri.stop_pod(&pod).unwrap();
    for id in [&main, &short] {
        cri.remove(id).unwrap();
    }
    cri.remove_pod(&pod).unwrap();
    assert_eq!(cri.containers().unwrap(), [""; 0]);
}
