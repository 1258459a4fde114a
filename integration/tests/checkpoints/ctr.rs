//! `ctr tasks checkpoint`, `ctr containers checkpoint` and `restore`.

use integration::ctr::{Ctr, Stack};
use integration::events::{Event, Events};
use integration::hosts::{NativeHost, Service};
use integration::leftovers::Inventory;

use super::{COUNTER, goes_on, host};

/// Starts a container that counts, with its output in a file.
fn start(host: &NativeHost, image: &str, id: &str) {
    let mut argv = Stack::XEBEC.run_arguments().to_vec();
    let log = format!("file:///srv/{id}.out");
    argv.extend(["-d", "--log-uri", &log, image, id, "sh", "-c", COUNTER]);
    host.check(&argv).unwrap();
    goes_on(host, &output(id), 3);
}

/// What prints the last number that a container has said.
fn output(id: &str) -> String {
    format!("tail -n 1 /srv/{id}.out")
}

/// What prints the number on a container's root file system.
fn counted(id: &str) -> String {
    format!("ctr tasks exec --exec-id count {id} cat /count")
}

#[test]
fn a_container_becomes_files_and_an_image_and_is_restored_from_it() {
    let (host, image) = host("busybox");
    let ctr = Ctr::new(&host);
    let before = Inventory::of(&host).unwrap();
    start(&host, &image, "a");
    ctr.check(&["tasks", "checkpoint", "--image-path", "/srv/i1", "a"])
        .unwrap();
    host.check_sh("test -s /srv/i1/inventory.img && test -s /srv/i1/descriptors.json")
        .unwrap();
    ctr.check(&["tasks", "exec", "--exec-id", "mark", "a", "touch", "/mark"])
        .unwrap();
    let me = ctr
        .check(&["tasks", "exec", "--exec-id", "me", "a", "cat", "/me"])
        .unwrap();
    let dump = [
        "containers",
        "checkpoint",
        "--rw",
        "--task",
        "--image",
        "a",
        "ckpt:1",
    ];
    ctr.check(&dump).unwrap();
    let at = goes_on(&host, &output("a"), 0);
    goes_on(&host, &output("a"), at + 2);
    // ctr names what it makes of a checkpoint by the second.
    host.check(&["sleep", "1"]).unwrap();
    ctr.check(&[
        "tasks",
        "checkpoint",
        "--exit",
        "--image-path",
        "/srv/i2",
        "a",
    ])
    .unwrap();
    ctr.wait_until_stopped("a").unwrap();
    ctr.remove("a").unwrap();

    ctr.check(&["containers", "restore", "--rw", "--live", "b", "ckpt:1"])
        .unwrap();
    assert_eq!(ctr.task("b").unwrap().unwrap().1, "RUNNING");
    // It goes on from its image.
    let from = goes_on(&host, &counted("b"), 0);
    goes_on(&host, &counted("b"), from + 2);
    let again = "ctr tasks exec --exec-id rm b rm /me; until ctr tasks exec --exec-id me b cat /me 2>/dev/null; do :; done";
    assert_eq!(host.check_sh(again).unwrap(), me);
    ctr.check(&["tasks", "exec", "--exec-id", "mark", "b", "ls", "/mark"])
        .unwrap();
    ctr.check(&["tasks", "pause", "b"]).unwrap();
    assert_eq!(ctr.task("b").unwrap().unwrap().1, "PAUSED");
    ctr.check(&["tasks", "resume", "b"]).unwrap();
    ctr.remove("b").unwrap();
    // Directories of containerd's own, into which it has unpacked the checkpoint.
    let is_containerds = |line: &str| line.contains("/ctrd-checkpoint");
    let left = before
        .wait_until_restored_but(&host, is_containerds)
        .unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn what_is_restored_outlives_containerd_and_the_worker_and_its_exit_is_told_once() {
    let (host, image) = host("busybox");
    let ctr = Ctr::new(&host);
    start(&host, &image, "a");
    let dump = [
        "containers",
        "checkpoint",
        "--rw",
        "--task",
        "--image",
        "a",
        "ckpt:1",
    ];
    ctr.check(&dump).unwrap();
    ctr.remove("a").unwrap();
    ctr.check(&["containers", "restore", "--rw", "--live", "b", "ckpt:1"])
        .unwrap();
    let pid = ctr.task("b").unwrap().unwrap().0;
    let mut at = goes_on(&host, &counted("b"), 0);
    for who in ["worker", "containerd"] {
        if who == "worker" {
            let workers = host.processes("xebec-worker").unwrap();
            assert_eq!(host.kill_processes(&workers).unwrap(), 1);
        } else {
            host.kill(Service::Containerd).unwrap();
            host.start_services(&[Service::Containerd]).unwrap();
        }
        assert_eq!(
            ctr.task("b").unwrap(),
            Some((pid, "RUNNING".into())),
            "{who}"
        );
        at = goes_on(&host, &counted("b"), at + 2);
    }
    let events = Events::follow(&host).unwrap();
    ctr.check(&["tasks", "kill", "-s", "9", "b"]).unwrap();
    ctr.wait_until_stopped("b").unwrap();
    ctr.remove("b").unwrap();
    let told = events.all(&host).unwrap();
    let exits = told
        .iter()
        .filter(|event| event.topic == "/tasks/exit" && event.process == "b");
    assert_eq!(exits.count(), 1, "{told:#?}");
}

#[test]
fn what_containerd_is_told_of_a_checkpoint_is_what_runcs_shim_tells_and_that_there_was_one() {
    let (host, image) = host("busybox");
    let ctr = Ctr::new(&host);
    // Nothing that runc could fail to stop.
    let waits = "mkfifo /fifo; echo 3; read x <> /fifo";
    ctr.pull(&image, "overlayfs").unwrap();
    let [ours, runcs] = [Stack::XEBEC, Stack::RUNC].map(|stack| {
        let events = Events::follow(&host).unwrap();
        let mut argv = stack.run_arguments().to_vec();
        let log = "file:///srv/c.out";
        argv.extend(["-d", "--log-uri", log, &image, "c", "sh", "-c", waits]);
        host.check(&argv).unwrap();
        goes_on(&host, &output("c"), 2);
        let dump = [
            "containers",
            "checkpoint",
            "--rw",
            "--task",
            "--image",
            "c",
            "ckpt:1",
        ];
        ctr.check(&dump).unwrap();
        ctr.check(&[
            "tasks",
            "checkpoint",
            "--exit",
            "--image-path",
            "/srv/i",
            "c",
        ])
        .unwrap();
        ctr.wait_until_stopped("c").unwrap();
        ctr.remove("c").unwrap();
        ctr.check(&["containers", "restore", "--rw", "--live", "d", "ckpt:1"])
            .unwrap();
        ctr.remove("d").unwrap();
        host.check_sh("ctr images rm --sync ckpt:1; rm -r /srv/c.out /srv/i")
            .unwrap();
        let told = events.all(&host).unwrap();
        let line =
            |event: &Event| format!("{} {} {:?}", event.topic, event.container, event.status);
        told.iter().map(line).collect::<Vec<_>>()
    });
    let dumps = ours
        .iter()
        .filter(|event| event.starts_with("/tasks/checkpointed"));
    assert_eq!(dumps.count(), 2, "{ours:?}");
    // runc's shim does not tell all deletions of containers that a checkpoint has ended.
    let beyond = ["/tasks/checkpointed", "/tasks/delete"];
    let [ours, runcs] = [ours, runcs].map(|mut told| {
        told.retain(|event| !beyond.iter().any(|topic| event.starts_with(topic)));
        told
    });
    assert_eq!(ours, runcs);
}
