//! Programs that read a container's output themselves (`binary://`), and files (`file://`).

use std::time::{Duration, Instant};

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, create_request};
use serde_json::json;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse};

use crate::{
    FAILED_PRECONDITION, UNKNOWN, assert_restored, bundle, create_by_two_workers, gated, host,
    kill_worker, refused,
};

/// Notes what it was told, says that it is ready, and writes down what it reads.
const LOGGER: &str = r#"#!/bin/bash
echo "begin $CONTAINER_NAMESPACE $CONTAINER_ID $*" >> /srv/log/calls
exec 5>&-
cat <&3 >> /srv/log/out & cat <&4 >> /srv/log/err &
wait
echo end >> /srv/log/calls
"#;

/// Reads standard output alone, in one process.
const MORTAL: &str = "#!/bin/bash\nexec 5>&-\nexec cat <&3 >> /srv/log/out\n";

/// Never ready, and ready but never at its end.
const LAZY: &str = "#!/bin/bash\nexec sleep 1000\n";
const STUBBORN: &str = "#!/bin/bash\nexec 5>&-\nexec sleep 1000\n";

const TALK: &[&str] = &["sh", "-c", "echo spoken; echo cried >&2"];

/// A host with the programs, and a shim that has done everything once.
fn shim<'a>(host: &'a NativeHost, argv: &[&str]) -> (Bundle<'a>, Shim) {
    for (name, script) in [
        ("logger", LOGGER),
        ("mortal", MORTAL),
        ("lazy", LAZY),
        ("stubborn", STUBBORN),
    ] {
        let path = format!("/srv/{name}");
        host.write_file(&path, script).unwrap();
        host.check(&["chmod", "+x", &path]).unwrap();
    }
    host.check(&["mkdir", "-p", "/srv/log"]).unwrap();
    let bundle = bundle(host, "c", argv);
    let mut shim = Shim::start(host, bundle.path(), "c", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    (bundle, shim)
}

fn creation(bundle: &Bundle<'_>, stdout: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        stdout: stdout.to_owned(),
        stderr: stdout.to_owned(),
        terminal: bundle.config["process"]["terminal"] == json!(true),
        ..create_request("c", bundle.path())
    }
}

fn create(shim: &mut Shim, bundle: &Bundle<'_>, stdout: &str) {
    let request = creation(bundle, stdout);
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
}

/// Waits until a file of the host ends so, and empties it.
#[track_caller]
fn expect(host: &NativeHost, file: &str, expected: &str) {
    let end = Instant::now() + Duration::from_mins(1);
    let path = format!("/srv/log/{file}");
    loop {
        let text = host.read_file(&path).unwrap_or_default();
        if text == expected {
            host.write_file(&path, "").unwrap();
            return;
        }
        assert!(Instant::now() < end, "{file}: {text:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn output_goes_to_programs_and_files_with_and_without_a_terminal() {
    let host = host();
    let (mut bundle, mut shim) = shim(&host, TALK);
    let before = Inventory::of(&host).unwrap();
    for terminal in [false, true] {
        bundle.config["process"]["terminal"] = json!(terminal);
        bundle.write().unwrap();
        let (out, err) = if terminal {
            ("spoken\r\ncried\r\n", "")
        } else {
            ("spoken\n", "cried\n")
        };
        create(
            &mut shim,
            &bundle,
            "binary:///srv/logger?mode=fast&tag=a%20b",
        );
        assert_eq!(shim.wait("c", "").unwrap(), 0);
        shim.delete("c", "").unwrap();
        expect(&host, "calls", "begin test c mode fast tag a b\nend\n");
        expect(&host, "out", out);
        expect(&host, "err", err);

        create(&mut shim, &bundle, "file:///srv/log/file");
        assert_eq!(shim.wait("c", "").unwrap(), 0);
        shim.delete("c", "").unwrap();
        expect(&host, "file", &format!("{out}{err}"));
    }
    host.check_sh("rm /srv/log/*").unwrap();
    assert_restored(&host, &before);
}

/// Says a word each time the host makes a file.
const CONVERSE: &str = "for word in one two three; do
    echo $word; while [ ! -e /$word ]; do sleep 0.02; done
done";

/// Until it is dead it may take what is said next with it.
const KILL_LOGGER: &str = "pid=$(pgrep -x cat); kill -KILL $pid
    while kill -0 $pid 2>/dev/null; do sleep 0.01; done";

#[test]
fn a_logger_that_dies_is_followed_by_another_whoever_is_the_worker() {
    let host = host();
    let (mut bundle, mut shim) = shim(&host, &["sh", "-c", CONVERSE]);
    let supervisor = shim.pid().unwrap();
    for terminal in [false, true] {
        bundle.config["process"]["terminal"] = json!(terminal);
        bundle.write().unwrap();
        create(&mut shim, &bundle, "binary:///srv/mortal");
        let line = |word: &str| format!("{word}{}", if terminal { "\r\n" } else { "\n" });
        let go_on = |word: &str| host.write_file(format!("/bundles/c/rootfs/{word}"), "");
        let kill_logger = || host.check_sh(KILL_LOGGER).unwrap();

        expect(&host, "out", &line("one"));
        kill_logger();
        go_on("one").unwrap();
        expect(&host, "out", &line("two"));
        kill_worker(&host, supervisor);
        shim.state("c", "").unwrap();
        kill_logger();
        go_on("two").unwrap();
        expect(&host, "out", &line("three"));
        go_on("three").unwrap();
        assert_eq!(shim.wait("c", "").unwrap(), 0);
        shim.delete("c", "").unwrap();
        host.check_sh("rm /bundles/c/rootfs/one /bundles/c/rootfs/t*o /bundles/c/rootfs/three")
            .unwrap();
    }
}

#[test]
fn output_comes_once_when_the_worker_that_creates_its_container_is_killed() {
    let host = host();
    let (mut bundle, mut shim) = shim(&host, TALK);
    gated(&mut bundle);
    let before = Inventory::of(&host).unwrap();
    for terminal in [false, true] {
        bundle.config["process"]["terminal"] = json!(terminal);
        bundle.write().unwrap();
        for target in ["binary:///srv/mortal", "file:///srv/log/out"] {
            let request = creation(&bundle, target);
            create_by_two_workers(&host, &mut shim, &request);
            shim.start_process("c", "").unwrap();
            assert_eq!(shim.wait("c", "").unwrap(), 0);
            shim.delete("c", "").unwrap();
            let said = match (terminal, target.starts_with("file")) {
                (true, _) => "spoken\r\ncried\r\n",
                (false, true) => "spoken\ncried\n",
                (false, false) => "spoken\n",
            };
            expect(&host, "out", said);
        }
    }
    host.check_sh("rm /srv/log/*").unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_logger_that_cannot_be_started_for_a_time_is_started_by_the_next_worker() {
    let host = host();
    let (bundle, mut shim) = shim(&host, &["sh", "-c", CONVERSE]);
    let supervisor = shim.pid().unwrap();
    create(&mut shim, &bundle, "binary:///srv/mortal");
    expect(&host, "out", "one\n");
    host.check_sh("mv /srv/mortal /srv/gone").unwrap();
    host.check_sh(KILL_LOGGER).unwrap();
    // The worker knows of no process any more.
    host.check_sh("until [ -z \"$(pgrep -x cat)\" ]; do sleep 0.02; done")
        .unwrap();
    kill_worker(&host, supervisor);
    shim.state("c", "").unwrap();
    host.check_sh("mv /srv/gone /srv/mortal").unwrap();
    for word in ["one", "two", "three"] {
        host.write_file(format!("/bundles/c/rootfs/{word}"), "")
            .unwrap();
    }
    assert_eq!(shim.wait("c", "").unwrap(), 0);
    shim.delete("c", "").unwrap();
    expect(&host, "out", "two\nthree\n");
}

#[test]
fn a_logger_that_is_absent_or_never_ready_is_refused_and_one_that_hangs_is_ended() {
    let host = host();
    let (mut bundle, mut shim) = shim(&host, TALK);
    let before = Inventory::of(&host).unwrap();
    for (name, terminal, code, words) in [
        ("absent", false, UNKNOWN, "/srv/absent"),
        ("absent", true, UNKNOWN, "/srv/absent"),
        ("lazy", false, FAILED_PRECONDITION, "was not ready in 10s"),
    ] {
        bundle.config["process"]["terminal"] = json!(terminal);
        bundle.write().unwrap();
        let request = creation(&bundle, &format!("binary:///srv/{name}"));
        let answer = shim.task.call::<CreateTaskResponse>("Create", &request);
        let (refusal, message) = refused(answer);
        assert!(refusal == code && message.contains(words), "{message}");
        assert_restored(&host, &before);
    }

    // It holds up neither the deletion nor, for longer than it may, the shim's end.
    create(&mut shim, &bundle, "binary:///srv/stubborn");
    assert_eq!(shim.wait("c", "").unwrap(), 0);
    let asked = Instant::now();
    shim.delete("c", "").unwrap();
    assert!(asked.elapsed() < Duration::from_secs(9));
    shim.shutdown().unwrap();
    let end = Instant::now() + Duration::from_secs(40);
    while host.check_sh("pgrep -x sleep || true").unwrap() != "" {
        assert!(Instant::now() < end, "the logger or the shim never ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!shim.is_listening());
}
