//! What a worker's standstill and death change for a process and its streams: nothing.

use std::fs::File;
use std::io::{Read as _, Write as _};

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, create_request, exec_request};
use serde_json::json;
use xebec_proto::task::{CreateTaskRequest, ExecProcessRequest, ResizePtyRequest};

use crate::{assert_restored, bundle, create_by_two_workers, descriptors, gated, host, sleeper};

/// Fifos of the host.
const IN: &str = "/tmp/keyboard";
const OUT: &str = "/tmp/screen";

const SCRIPT: &str = "echo ready; read x; echo $x; read x; test -t 0 && stty size; exit 4";

fn signal_worker(host: &NativeHost, signal: &str) {
    let flag = format!("-{signal}");
    host.check(&["pkill", &flag, "xebec-worker"]).unwrap();
}

#[track_caller]
fn expect(from: &mut File, expected: &str) {
    let mut said = vec![0; expected.len()];
    from.read_exact(&mut said).unwrap();
    assert_eq!(String::from_utf8_lossy(&said), expected);
}

#[test]
fn streams_need_no_worker_and_the_next_one_has_the_terminal() {
    let host = host();
    let mut shim = sleeper(&host);
    let pid = shim.pid().unwrap();
    host.check(&["mkfifo", IN, OUT]).unwrap();
    let before = Inventory::of(&host).unwrap();
    let open = descriptors(&host, pid);
    for terminal in [true, false] {
        talk(&host, &mut shim, terminal);
        assert_eq!(shim.wait("c", "e").unwrap(), 4);
        assert_eq!(shim.delete("c", "e").unwrap(), 4);
    }
    assert_restored(&host, &before);
    assert_eq!(descriptors(&host, pid), open);
    shim.end("c").unwrap();
}

#[test]
fn who_talks_with_a_container_sees_no_end_when_the_worker_that_creates_it_is_killed() {
    let host = host();
    let mut shim = sleeper(&host);
    let pid = shim.pid().unwrap();
    host.check(&["mkfifo", IN, OUT]).unwrap();
    let script = "read x; echo heard $x";
    let mut bundle = bundle(&host, "spoken", &["sh", "-c", script]);
    gated(&mut bundle);
    for (terminal, overflow) in [
        (false, None),
        (true, None),
        (false, Some("block")),
        (false, Some("drop")),
        (true, Some("spill")),
    ] {
        bundle.config["process"]["terminal"] = json!(terminal);
        bundle.config["annotations"] = match overflow {
            Some(policy) => json!({ "io.xebec.log.overflow": policy }),
            None => json!({}),
        };
        bundle.write().unwrap();
        let before = Inventory::of(&host).unwrap();
        let open = descriptors(&host, pid);
        let reader = host.spawn(&["cat", OUT]).unwrap();
        let typist = host.spawn(&["sh", "-c", "echo typed > /tmp/keyboard"]);
        let request = CreateTaskRequest {
            terminal,
            stdin: IN.into(),
            stdout: OUT.into(),
            ..create_request("spoken", bundle.path())
        };
        create_by_two_workers(&host, &mut shim, &request);
        shim.start_process("spoken", "").unwrap();
        assert_eq!(shim.wait("spoken", "").unwrap(), 0);
        shim.delete("spoken", "").unwrap();
        assert!(typist.unwrap().wait_with_output().unwrap().status.success());
        let said = reader.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout);
        let expected = if terminal {
            "typed\r\nheard typed\r\n"
        } else {
            "heard typed\n"
        };
        assert_eq!(said, expected, "{overflow:?}");
        assert_restored(&host, &before);
        assert_eq!(descriptors(&host, pid), open);
    }
    shim.end("c").unwrap();
}

/// Talks with an exec while the worker stands still, and after it has been killed.
fn talk(host: &NativeHost, shim: &mut Shim, terminal: bool) {
    let request = ExecProcessRequest {
        terminal,
        stdin: IN.into(),
        stdout: OUT.into(),
        ..exec_request("c", "e", &["sh", "-c", SCRIPT])
    };
    let () = shim.task.check("Exec", &request).unwrap();
    shim.start_process("c", "e").unwrap();
    let mut keyboard = File::options().write(true).open(host.path(IN)).unwrap();
    let mut screen = File::open(host.path(OUT)).unwrap();
    expect(&mut screen, if terminal { "ready\r\n" } else { "ready\n" });

    signal_worker(host, "STOP");
    keyboard.write_all(b"typed\n").unwrap();
    let answer = if terminal {
        "typed\r\ntyped\r\n"
    } else {
        "typed\n"
    };
    expect(&mut screen, answer);

    signal_worker(host, "KILL");
    let resize = ResizePtyRequest {
        id: "c".into(),
        exec_id: "e".into(),
        width: 90,
        height: 30,
    };
    let () = shim.task.check("ResizePty", &resize).unwrap();
    keyboard.write_all(b"\n").unwrap();
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, if terminal { "\r\n30 90\r\n" } else { "" });
}
