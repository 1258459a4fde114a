//! A worker that is killed before, during and after a checkpoint or a restore.

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, command, start_request};
use serde_json::json;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse, StartResponse};
use xebec_proto::task_types::Status;

use super::{
    IMAGES, checkpoint, count, counter, counting_shim, exit, goes_on, restored, start_counting,
};
use crate::{assert_restored, host, kill_worker, refused};

/// A fifo of the host.
const SCREEN: &str = "/tmp/screen";
/// Stands in for CRIU: says that it is there, and waits for a gate.
const GATED: &str = "#!/bin/sh
touch /srv/at-work
until [ -e /srv/gate ]; do sleep 0.02; done
exec /usr/sbin/criu \"$@\"
";

fn wait_for(host: &NativeHost, file: &str) {
    let script =
        format!("for i in $(seq 3000); do [ -e {file} ] && exit 0; sleep 0.02; done; exit 1");
    host.check_sh(&script).expect(file);
}

#[test]
fn a_restore_outlives_the_worker_that_was_asked_for_it_and_so_does_what_is_restored() {
    let host = host();
    let mut bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut shim = counting_shim(&host, &bundle, "c");
    let pid = shim.pid().unwrap();
    let () = shim
        .task
        .check("Checkpoint", &checkpoint("c", IMAGES, Some(exit())))
        .unwrap();
    shim.wait("c", "").unwrap();
    shim.delete("c", "").unwrap();
    let at = count(&host, &bundle);
    let script = "touch /srv/in-hook; until [ -e /srv/gate ]; do sleep 0.02; done";
    bundle.config["hooks"] = json!({ "createRuntime": [
        { "path": integration::bundle::busybox(), "args": ["sh", "-c", script] }
    ]});
    bundle.write().unwrap();
    host.check(&["mkfifo", SCREEN]).unwrap();
    let before = Inventory::of(&host).unwrap();

    let reader = host.spawn(&["head", "-n", "3", SCREEN]).unwrap();
    let request = CreateTaskRequest {
        stdout: SCREEN.into(),
        ..restored("c", &bundle, IMAGES)
    };
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    // What is prepared is kept.
    kill_worker(&host, pid);
    let start = shim.task.send("Start", &start_request("c", "")).unwrap();
    wait_for(&host, "/srv/in-hook");
    kill_worker(&host, pid);
    host.check(&["touch", "/srv/gate"]).unwrap();
    let started: StartResponse = shim.task.answer(start).unwrap().unwrap();
    assert_ne!(started.pid, 0);
    goes_on(&host, &bundle, at + 2);
    let said = reader.wait_with_output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let first: u64 = said.lines().next().unwrap().parse().unwrap();
    assert!(
        (at..=at + 2).contains(&first),
        "{at} is followed by {said:?}"
    );

    kill_worker(&host, pid);
    // Unlike an exec, this is asked again of the next worker.
    assert_eq!(shim.state("c", "").unwrap().pid, started.pid);
    shim.exec("c", "e", &["true"]).unwrap();
    shim.start_process("c", "e").unwrap();
    assert_eq!(shim.wait("c", "e").unwrap(), 0);
    shim.delete("c", "e").unwrap();
    let drain = host.spawn(&["cat", SCREEN]).unwrap();
    assert_eq!(shim.end("c").unwrap(), 137);
    drain.wait_with_output().unwrap();
    assert_restored(&host, &before);
    let lines = shim.events.lines_until("/tasks/delete", 3).unwrap();
    let starts = lines.iter().filter(|line| *line == "start").count();
    assert_eq!(starts, 2, "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("delete"));
}

#[test]
fn a_container_is_not_left_frozen_when_a_dump_loses_its_worker_or_all_who_make_it() {
    let host = host();
    let bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut start = command(&host, bundle.path(), "c", &["start"]);
    start.env(
        "PATH",
        "/srv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    host.write_file("/srv/bin/criu", GATED).unwrap();
    host.check_sh("chmod +x /srv/bin/criu").unwrap();
    let mut shim = Shim::started_by(&host, "c", start, b"").unwrap();
    let pid = shim.pid().unwrap();
    start_counting(&host, &mut shim, &bundle, "c");
    let before = Inventory::of(&host).unwrap();
    for spawner_too in [false, true] {
        let request = checkpoint("c", &format!("/srv/images-{spawner_too}"), None);
        let dump = shim.task.send("Checkpoint", &request).unwrap();
        wait_for(&host, "/srv/at-work");
        kill_worker(&host, pid);
        if spawner_too {
            host.check(&["pkill", "-KILL", "xebec-spawner"]).unwrap();
        }
        host.check(&["touch", "/srv/gate"]).unwrap();
        let (_, message) = refused(shim.task.answer::<()>(dump));
        assert!(message.contains("restarted during Checkpoint"), "{message}");
        assert_eq!(shim.state("c", "").unwrap().status(), Status::Running);
        goes_on(&host, &bundle, count(&host, &bundle) + 1);
        host.check(&["rm", "/srv/gate", "/srv/at-work"]).unwrap();
        host.check_sh("until ! pgrep -x criu; do sleep 0.05; done")
            .unwrap();
    }
    // Nothing is in the way of the next one.
    host.check(&["touch", "/srv/gate"]).unwrap();
    let () = shim
        .task
        .check("Checkpoint", &checkpoint("c", IMAGES, None))
        .unwrap();
    assert_restored(&host, &before);
    shim.end("c").unwrap();
}
