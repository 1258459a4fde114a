//! Terminals, and programs in the place of the library.

use std::fs::File;
use std::io::{Read as _, Write as _};

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, create_request};
use serde_json::json;
use xebec_proto::runc_options::Options;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse, ResizePtyRequest};

use super::{IMAGES, PATIENT, checkpoint, count, counter, counting, exit, goes_on, restored};
use crate::{UNKNOWN, assert_restored, bundle, host, kill_worker, refused};

/// Fifos of the host.
const KEYBOARD: &str = "/tmp/keyboard";
const SCREEN: &str = "/tmp/screen";

#[track_caller]
fn expect(from: &mut File, expected: &str) {
    let mut said = vec![0; expected.len()];
    from.read_exact(&mut said).unwrap();
    assert_eq!(String::from_utf8_lossy(&said), expected);
}

/// Opens the terminal's streams and has the answer to a line.
fn talk(host: &NativeHost, word: &str) -> (File, File) {
    let mut keyboard = File::options()
        .write(true)
        .open(host.path(KEYBOARD))
        .unwrap();
    let mut screen = File::open(host.path(SCREEN)).unwrap();
    keyboard.write_all(format!("{word}\n").as_bytes()).unwrap();
    expect(&mut screen, &format!("got {word}\r\n"));
    (keyboard, screen)
}

#[test]
fn a_restored_container_has_its_terminal_again() {
    let host = host();
    let script =
        "stty -echo; echo ready; while read x; do echo got $x; test $x = size && stty size; done";
    let mut bundle = bundle(&host, "c", &["sh", "-c", script]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write().unwrap();
    host.check(&["mkfifo", KEYBOARD, SCREEN]).unwrap();
    host.sh("criu check").unwrap();
    let mut shim = Shim::start(&host, bundle.path(), "c", b"").unwrap();
    let pid = shim.pid().unwrap();
    let request = CreateTaskRequest {
        terminal: true,
        stdin: KEYBOARD.into(),
        stdout: SCREEN.into(),
        ..create_request("c", bundle.path())
    };
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    expect(&mut File::open(host.path(SCREEN)).unwrap(), "ready\r\n");
    drop(talk(&host, "one"));
    let before = Inventory::of(&host).unwrap();
    let () = shim
        .task
        .check("Checkpoint", &checkpoint("c", IMAGES, Some(exit())))
        .unwrap();
    shim.wait("c", "").unwrap();
    shim.delete("c", "").unwrap();

    let request = CreateTaskRequest {
        checkpoint: IMAGES.into(),
        ..request
    };
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    let (mut keyboard, mut screen) = talk(&host, "two");
    kill_worker(&host, pid);
    let resize = ResizePtyRequest {
        id: "c".into(),
        width: 90,
        height: 30,
        ..ResizePtyRequest::default()
    };
    let () = shim.task.check("ResizePty", &resize).unwrap();
    keyboard.write_all(b"size\n").unwrap();
    expect(&mut screen, "got size\r\n30 90\r\n");
    shim.kill("c", "", 9).unwrap();
    assert_eq!(shim.wait("c", "").unwrap(), 137);
    shim.delete("c", "").unwrap();
    drop((keyboard, screen));
    assert!(before.wait_until_restored(&host).unwrap().is_empty());
}

#[test]
fn programs_dump_and_restore_when_they_are_the_engine() {
    let host = host();
    host.sh("criu check").unwrap();
    for engine in ["runc", "xebec"] {
        let bundle = bundle(&host, engine, &["sh", "-c", PATIENT]);
        let mut shim = Shim::start(&host, bundle.path(), engine, b"").unwrap();
        shim.warm_up(engine, bundle.path()).unwrap();
        let before = Inventory::of(&host).unwrap();
        let _: CreateTaskResponse = shim
            .task
            .check("Create", &by(engine, counting(engine, &bundle)))
            .unwrap();
        shim.start_process(engine, "").unwrap();
        goes_on(&host, &bundle, 2);
        let images = format!("/srv/{engine}.ckpt");
        let request = checkpoint(engine, &images, None);
        let () = shim.task.check("Checkpoint", &request).unwrap();
        goes_on(&host, &bundle, count(&host, &bundle) + 1);
        let images = format!("/srv/{engine}.end");
        let request = checkpoint(engine, &images, Some(exit()));
        let () = shim.task.check("Checkpoint", &request).unwrap();
        assert_eq!(shim.wait(engine, "").unwrap(), 137);
        shim.delete(engine, "").unwrap();
        let at = count(&host, &bundle);

        let request = by(engine, restored(engine, &bundle, &images));
        let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
        shim.start_process(engine, "").unwrap();
        goes_on(&host, &bundle, at + 2);
        assert_eq!(shim.end(engine).unwrap(), 137);
        assert_restored(&host, &before);
    }
}

/// A creation by another program.
fn by(engine: &str, request: CreateTaskRequest) -> CreateTaskRequest {
    CreateTaskRequest {
        options: Some(xebec_proto::pack(&Options {
            binary_name: engine.into(),
            ..Options::default()
        })),
        ..request
    }
}

#[test]
fn what_a_program_says_of_its_failure_is_told() {
    let host = host();
    let bundle = counter(&host, "c");
    let mut shim = Shim::start(&host, bundle.path(), "c", b"").unwrap();
    let request = by("crun", counting("c", &bundle));
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    goes_on(&host, &bundle, 2);
    // Debian's crun wants a library that hosts do not have.
    let refused = refused(
        shim.task
            .call::<()>("Checkpoint", &checkpoint("c", IMAGES, Some(exit()))),
    );
    let words = "OCI runtime checkpoint failed: could not load `libcriu.so.2`: ";
    assert_eq!(refused.0, UNKNOWN);
    assert!(refused.1.starts_with(words), "{refused:?}");
    goes_on(&host, &bundle, count(&host, &bundle) + 1);
    shim.end("c").unwrap();
}
