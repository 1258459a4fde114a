//! The shim by itself: called as containerd calls it, and as nobody should.

mod bad_input;
mod checkpoint;
mod crowds;
mod insight;
mod loggers;
mod logs;
mod sandbox;
mod spans;
mod tasks;
mod ways_in;
mod workers;

use std::time::{Duration, Instant};

use integration::bundle::Bundle;
use integration::hosts::{HostOptions, NativeHost};
use integration::leftovers::Inventory;
use integration::shim::Shim;
use serde_json::json;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse};
use xebec_proto::ttrpc::Status;

/// Codes of gRPC.
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

fn host() -> NativeHost {
    NativeHost::start(HostOptions::bare()).expect("a native host starts")
}

fn bundle<'a>(host: &'a NativeHost, id: &str, argv: &[&str]) -> Bundle<'a> {
    Bundle::create(host, format!("/bundles/{id}"), argv).expect("a bundle")
}

/// The shim of a container `c` that sleeps; it has done everything once.
fn sleeper(host: &NativeHost) -> Shim {
    let bundle = bundle(host, "c", &["sleep", "1000"]);
    let mut shim = Shim::start(host, bundle.path(), "c", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    shim.create("c", bundle.path()).unwrap();
    let init = shim.start_process("c", "").unwrap();
    wait_for_program(host, init, "sleep");
    shim
}

/// What a refused call was refused with.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: integration::Result<Result<T, Status>>) -> (i32, String) {
    match answer.expect("an answer comes") {
        Err(status) => (status.code, status.message),
        Ok(answer) => panic!("not refused: {answer:?}"),
    }
}

/// Waits until a process, which may be a moment before its `execve`, is that program.
fn wait_for_program(host: &NativeHost, pid: u32, program: &str) {
    let end = Instant::now() + Duration::from_mins(1);
    let path = format!("/proc/{pid}/cmdline");
    while !host.read_file(&path).unwrap().starts_with(program) {
        assert!(Instant::now() < end, "{pid} never became {program}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills the worker of a shim; its supervisor is `pid`.
fn kill_worker(host: &NativeHost, pid: u32) {
    let script = format!(
        "for p in $(cat /proc/{pid}/task/{pid}/children); do
           grep -qx xebec-worker /proc/$p/comm && kill -9 $p && echo killed
         done; true"
    );
    assert_eq!(host.check_sh(&script).unwrap(), "killed\n");
}

/// Has the creation of a container wait half-way, for [`create_by_two_workers`].
fn gated(bundle: &mut Bundle<'_>) {
    let script = "touch /tmp/in-hook; until [ -e /tmp/gate ]; do sleep 0.02; done";
    bundle.config["hooks"] = json!({ "createRuntime": [
        { "path": integration::bundle::busybox(), "args": ["sh", "-c", script] }
    ]});
    bundle.write().unwrap();
}

/// Creates a [`gated`] container, and kills the worker half-way.
fn create_by_two_workers(host: &NativeHost, shim: &mut Shim, request: &CreateTaskRequest) {
    let supervisor = shim.pid().unwrap();
    let stream = shim.task.send("Create", request).unwrap();
    host.check_sh("until [ -e /tmp/in-hook ]; do sleep 0.02; done")
        .unwrap();
    kill_worker(host, supervisor);
    host.check(&["touch", "/tmp/gate"]).unwrap();
    let _: CreateTaskResponse = shim.task.answer(stream).unwrap().unwrap();
    host.check(&["rm", "/tmp/gate", "/tmp/in-hook"]).unwrap();
}

/// Open descriptors of a process of the host.
fn descriptors(host: &NativeHost, pid: u32) -> usize {
    let script = format!("ls /proc/{pid}/fd | wc -l");
    host.check_sh(&script).unwrap().trim().parse().unwrap()
}

#[track_caller]
fn assert_restored(host: &NativeHost, before: &Inventory) {
    let left = before.wait_until_restored(host).expect("an inventory");
    assert!(left.is_empty(), "left over: {left:#?}");
}
