//! Output that nobody reads, as when containerd is away, and what the options say of it.

use std::fs::File;
use std::io::Read;
use std::thread::{self, JoinHandle};

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{self, Shim, create_request};
use serde_json::json;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse};
use xebec_proto::{pack, runtimeoptions};

use crate::{INVALID_ARGUMENT, assert_restored, bundle, host, refused};

/// 1.4 MB in 200,000 lines, then the end.
const COUNT: &[&str] = &["busybox", "seq", "100000", "299999"];
/// The same, and no end.
const COUNT_AND_STAY: &[&str] = &["sh", "-c", "busybox seq 100000 299999; exec sleep 1000"];

fn counted(newline: &str) -> String {
    let numbers: Vec<String> = (100_000..300_000).map(|it| it.to_string()).collect();
    numbers.join(newline) + newline
}

#[test]
fn a_container_that_nobody_reads_goes_on_as_the_options_say() {
    let host = host();
    host.check_sh("mkfifo /srv/out").unwrap();
    for terminal in [false, true] {
        with_drop_it_ends_and_its_reader_gets_the_newest_and_a_note(&host, terminal);
        for policy in ["block", "spill"] {
            its_reader_gets_everything_though_the_worker_was_killed(&host, terminal, policy);
        }
    }
    what_was_spilled_goes_with_the_container_and_with_its_shim(&host);
    nonsense_in_an_annotation_is_refused_by_name(&host);
}

/// A container whose output goes to a fifo that nobody has opened.
fn unread(bundle: &Bundle<'_>, terminal: bool) -> CreateTaskRequest {
    let mut request = create_request("c", bundle.path());
    request.stdout = "/srv/out".into();
    request.terminal = terminal;
    request
}

/// A bundle whose annotations say that output waits in memory, or is spilled.
fn storing<'a>(host: &'a NativeHost, id: &str, policy: &str, terminal: bool) -> Bundle<'a> {
    let mut bundle = spilling(host, id, COUNT, terminal);
    if policy == "block" {
        bundle.config["annotations"] = json!({
            "io.xebec.log.overflow": policy,
            "io.xebec.log.buffer": "2097152",
        });
        bundle.write().unwrap();
    }
    bundle
}

/// A bundle whose annotations say that output is spilled.
fn spilling<'a>(host: &'a NativeHost, id: &str, argv: &[&str], terminal: bool) -> Bundle<'a> {
    let mut bundle = bundle(host, id, argv);
    bundle.config["process"]["terminal"] = json!(terminal);
    bundle.config["annotations"] = json!({
        "io.xebec.log.overflow": "spill",
        "io.xebec.log.buffer": "65536",
    });
    bundle.write().unwrap();
    bundle
}

fn read_everything(host: &NativeHost) -> JoinHandle<String> {
    let mut fifo = File::open(host.path("/srv/out")).unwrap();
    thread::spawn(move || {
        let mut text = String::new();
        fifo.read_to_string(&mut text).unwrap();
        text
    })
}

fn spilled(host: &NativeHost, bundle: &Bundle<'_>) -> Vec<String> {
    let found = host.check_sh(&format!("cd {}; ls | grep spill || true", bundle.path()));
    found.unwrap().lines().map(str::to_owned).collect()
}

fn with_drop_it_ends_and_its_reader_gets_the_newest_and_a_note(host: &NativeHost, terminal: bool) {
    let id = format!("drop-{terminal}");
    let newline = if terminal { "\r\n" } else { "\n" };
    let mut bundle = bundle(host, &id, COUNT);
    bundle.config["process"]["terminal"] = json!(terminal);
    bundle.write().unwrap();
    let before = Inventory::of(host).unwrap();
    let mut shim = Shim::start(host, bundle.path(), &id, b"").unwrap();
    let mut request = unread(&bundle, terminal);
    request.options = Some(pack(&runtimeoptions::Options {
        config_body: b"LogOverflow = \"drop\"\nLogBuffer = 131072\n".to_vec(),
        ..Default::default()
    }));
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    assert_eq!(shim.wait("c", "").unwrap(), 0);
    let reader = read_everything(host);
    assert_eq!(shim.delete("c", "").unwrap(), 0);
    let text = reader.join().unwrap();
    let all = counted(newline);
    let words = format!(" bytes of output dropped, nobody read them{newline}");
    assert!(text.contains(&words), "{terminal}: {} bytes", text.len());
    assert!(text.starts_with(&all[..16 * 1024]), "{terminal}");
    assert!(text.ends_with(&all[all.len() - 100 * 1024..]), "{terminal}");
    assert!(
        text.len() < all.len() / 2,
        "{terminal}: {} bytes",
        text.len()
    );
    shim.shutdown().unwrap();
    assert_restored(host, &before);
}

fn its_reader_gets_everything_though_the_worker_was_killed(
    host: &NativeHost,
    terminal: bool,
    policy: &str,
) {
    let id = format!("{policy}-{terminal}");
    let bundle = storing(host, &id, policy, terminal);
    let before = Inventory::of(host).unwrap();
    let mut shim = Shim::start(host, bundle.path(), &id, b"").unwrap();
    let request = unread(&bundle, terminal);
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    assert_eq!(shim.wait("c", "").unwrap(), 0);
    let files: &[&str] = match (policy, terminal) {
        ("block", _) => &[],
        (_, true) => &["tty.spill"],
        (_, false) => &["out.spill"],
    };
    assert_eq!(spilled(host, &bundle), files);
    crate::kill_worker(host, shim.pid().unwrap());
    let reader = read_everything(host);
    assert_eq!(shim.delete("c", "").unwrap(), 0);
    let newline = if terminal { "\r\n" } else { "\n" };
    let text = reader.join().unwrap();
    assert!(text == counted(newline), "{terminal}: {} bytes", text.len());
    assert!(spilled(host, &bundle).is_empty());
    shim.shutdown().unwrap();
    assert_restored(host, &before);
}

fn what_was_spilled_goes_with_the_container_and_with_its_shim(host: &NativeHost) {
    for shim_dies in [false, true] {
        let id = format!("unread-{shim_dies}");
        let bundle = spilling(host, &id, COUNT_AND_STAY, false);
        let before = Inventory::of(host).unwrap();
        let mut shim = Shim::start(host, bundle.path(), &id, b"").unwrap();
        let mut request = unread(&bundle, false);
        request.id.clone_from(&id);
        let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
        let pid = shim.start_process(&id, "").unwrap();
        crate::wait_for_program(host, pid, "sleep");
        assert_eq!(spilled(host, &bundle), ["out.spill"]);
        if shim_dies {
            let supervisor = shim.pid().unwrap();
            host.check_sh(&format!("kill -9 {supervisor}")).unwrap();
            let words = ["-bundle", bundle.path(), "delete"];
            let command = shim::command(host, bundle.path(), &id, &words);
            let (_, answer) = shim::run(command, b"").unwrap();
            assert!(answer.success(), "{answer:?}");
            assert!(answer.stderr.contains("out.spill"), "{answer:?}");
        } else {
            assert_eq!(shim.end(&id).unwrap(), 137);
            shim.shutdown().unwrap();
        }
        assert!(spilled(host, &bundle).is_empty());
        assert_restored(host, &before);
    }
}

fn nonsense_in_an_annotation_is_refused_by_name(host: &NativeHost) {
    let mut bundle = spilling(host, "nonsense", COUNT, false);
    bundle.config["annotations"]["io.xebec.log.buffer"] = json!("much");
    bundle.write().unwrap();
    let before = Inventory::of(host).unwrap();
    let mut shim = Shim::start(host, bundle.path(), "nonsense", b"").unwrap();
    let request = unread(&bundle, false);
    let answer = shim.task.call::<CreateTaskResponse>("Create", &request);
    let (code, message) = refused(answer);
    assert_eq!(code, INVALID_ARGUMENT, "{message}");
    let part = "config.json: annotation io.xebec.log.buffer: \"much\"";
    assert!(message.contains(part), "{message}");
    shim.shutdown().unwrap();
    assert_restored(host, &before);
}
