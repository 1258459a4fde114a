//! Containers that become files, and containers again, by the shim's own calls.

mod failures;
mod others;
mod workers;

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, create_request, exec_request, kill_request, wait_request};
use xebec_proto::runc_options::CheckpointOptions;
use xebec_proto::task::{
    CheckpointTaskRequest, CreateTaskRequest, CreateTaskResponse, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResumeRequest, WaitResponse,
};
use xebec_proto::task_types::Status;
use xebec_proto::types::Mount;

use crate::{FAILED_PRECONDITION, assert_restored, bundle, host, refused};

/// Counts on a file of the root file system, and on standard output.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i; echo $i > /tmp/next; busybox mv /tmp/next /tmp/count; sleep 0.05; done";
/// The same by processes of which none ends: runc stops them at a moment at which CRIU may not be
/// able to seize one that waits for its child's beginning.
const PATIENT: &str = "i=0; sleep 100000 | while true; do i=$((i+1)); echo $i; echo $i >> /tmp/count; read -t 0.05 x; done";
/// Where the output of [`counting`] goes.
const OUT: &str = "/srv/out";
const IMAGES: &str = "/srv/images";

fn counter<'a>(host: &'a NativeHost, id: &str) -> Bundle<'a> {
    bundle(host, id, &["sh", "-c", COUNTER])
}

/// A creation whose output is appended to [`OUT`].
fn counting(id: &str, bundle: &Bundle<'_>) -> CreateTaskRequest {
    CreateTaskRequest {
        stdout: format!("file://{OUT}"),
        ..create_request(id, bundle.path())
    }
}

/// The same from a checkpoint.
fn restored(id: &str, bundle: &Bundle<'_>, images: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        checkpoint: images.into(),
        ..counting(id, bundle)
    }
}

/// A checkpoint with the options that a client sends, or with none, after which the container goes on.
fn checkpoint(id: &str, images: &str, options: Option<CheckpointOptions>) -> CheckpointTaskRequest {
    CheckpointTaskRequest {
        id: id.into(),
        path: images.into(),
        options: options.map(|options| xebec_proto::pack(&options)),
    }
}

/// Options of a checkpoint with which the container ends.
fn exit() -> CheckpointOptions {
    CheckpointOptions {
        exit: true,
        ..CheckpointOptions::default()
    }
}

/// The shim of a container that counts already.
fn counting_shim(host: &NativeHost, bundle: &Bundle<'_>, id: &str) -> Shim {
    let mut shim = Shim::start(host, bundle.path(), id, b"").unwrap();
    shim.warm_up(id, bundle.path()).unwrap();
    start_counting(host, &mut shim, bundle, id);
    shim
}

fn start_counting(host: &NativeHost, shim: &mut Shim, bundle: &Bundle<'_>, id: &str) {
    let _: CreateTaskResponse = shim.task.check("Create", &counting(id, bundle)).unwrap();
    shim.start_process(id, "").unwrap();
    goes_on(host, bundle, 2);
}

fn count(host: &NativeHost, bundle: &Bundle<'_>) -> u64 {
    let file = format!("{}/rootfs/tmp/count", bundle.path());
    let told = host.read_file(file).unwrap();
    told.lines().last().unwrap().parse().unwrap()
}

/// Waits until the counter has passed `beyond`.
#[track_caller]
fn goes_on(host: &NativeHost, bundle: &Bundle<'_>, beyond: u64) {
    let file = format!("{}/rootfs/tmp/count", bundle.path());
    let script = format!(
        "for i in $(seq 600); do n=$(tail -n 1 {file} 2>/dev/null || echo 0); [ \"${{n:-0}}\" -gt {beyond} ] && \
         exit 0; sleep 0.05; done; cat {file}; exit 1"
    );
    host.check_sh(&script).expect("the counter goes on");
}

#[test]
fn a_container_goes_on_where_its_checkpoint_was_made() {
    let host = host();
    let bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut shim = Shim::start(&host, bundle.path(), "c", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    let before = Inventory::of(&host).unwrap();
    start_counting(&host, &mut shim, &bundle, "c");
    let () = shim
        .task
        .check("Checkpoint", &checkpoint("c", IMAGES, Some(exit())))
        .unwrap();
    assert_eq!(shim.wait("c", "").unwrap(), 137);
    assert_eq!(shim.delete("c", "").unwrap(), 137);
    let at = count(&host, &bundle);
    let said = host.read_file(OUT).unwrap();
    host.check(&["rm", OUT]).unwrap();

    let request = restored("c", &bundle, IMAGES);
    let created: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    assert_eq!(created.pid, 0);
    is_only_prepared(&mut shim);
    let pid = shim.start_process("c", "").unwrap();
    assert_eq!(shim.state("c", "").unwrap().pid, pid);
    goes_on(&host, &bundle, at + 2);
    // No line is lost, and none is told twice.
    let said = said + &host.read_file(OUT).unwrap();
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    is_a_container_like_any_other(&host, &mut shim, &bundle);

    let lines = shim.events.lines_until("/tasks/delete", 3).unwrap();
    let first = ["create", "start", "checkpointed", "exit c 137", "delete"];
    assert_eq!(lines[3..8], first);
    let second = ["create", "start", "exec-added", "exec-started", "exit e 0"];
    assert_eq!(lines[8..13], second);
    let rest = ["paused", "checkpointed", "resumed", "exit c 137", "delete"];
    assert_eq!(lines[13..], rest);
    assert_restored(&host, &before);
}

/// Between its creation and its start.
fn is_only_prepared(shim: &mut Shim) {
    let state = shim.state("c", "").unwrap();
    assert_eq!((state.pid, state.status()), (0, Status::Created));
    let pids: PidsResponse = shim
        .task
        .check("Pids", &PidsRequest { id: "c".into() })
        .unwrap();
    assert_eq!(
        pids.processes.len(),
        1,
        "a containerd that comes back sees a leak"
    );
    let nobody = (FAILED_PRECONDITION, "process not created".to_owned());
    for all in [false, true] {
        let request = KillRequest {
            all,
            ..kill_request("c", "", 9)
        };
        assert_eq!(refused(shim.task.call::<()>("Kill", &request)), nobody);
    }
    let request = exec_request("c", "early", &["true"]);
    assert_eq!(refused(shim.task.call::<()>("Exec", &request)), nobody);
}

fn is_a_container_like_any_other(host: &NativeHost, shim: &mut Shim, bundle: &Bundle<'_>) {
    shim.exec("c", "e", &["true"]).unwrap();
    shim.start_process("c", "e").unwrap();
    assert_eq!(shim.wait("c", "e").unwrap(), 0);
    shim.delete("c", "e").unwrap();
    let () = shim
        .task
        .check("Pause", &PauseRequest { id: "c".into() })
        .unwrap();
    // One that its owner has paused stays so.
    let again = checkpoint("c", "/srv/again", None);
    let () = shim.task.check("Checkpoint", &again).unwrap();
    assert_eq!(shim.state("c", "").unwrap().status(), Status::Paused);
    let () = shim
        .task
        .check("Resume", &ResumeRequest { id: "c".into() })
        .unwrap();
    goes_on(host, bundle, count(host, bundle) + 1);
    assert_eq!(shim.end("c").unwrap(), 137);
}

#[test]
fn a_checkpoint_that_is_deleted_before_its_start_has_left_nothing() {
    let host = host();
    let bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut shim = counting_shim(&host, &bundle, "c");
    let before = Inventory::of(&host).unwrap();
    let () = shim
        .task
        .check("Checkpoint", &checkpoint("c", IMAGES, None))
        .unwrap();
    let request = CreateTaskRequest {
        rootfs: vec![Mount {
            r#type: "bind".into(),
            source: format!("{}/rootfs", bundle.path()),
            options: vec!["rbind".into()],
            ..Mount::default()
        }],
        ..restored("d", &crate::bundle(&host, "d", &["true"]), IMAGES)
    };
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    let waiting = shim.task.send("Wait", &wait_request("d", "")).unwrap();
    assert_eq!(shim.delete("d", "").unwrap(), 137);
    let waited: WaitResponse = shim.task.answer(waiting).unwrap().unwrap();
    assert_eq!(waited.exit_status, 137);
    assert_restored(&host, &before);
    goes_on(&host, &bundle, count(&host, &bundle) + 1);
    shim.end("c").unwrap();
}
