//! Checkpoints and restores that cannot be: an error that says why, and all is as before.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{Shim, command, start_request};
use serde_json::json;
use xebec_proto::prost_types::Any;
use xebec_proto::runc_options::CheckpointOptions;
use xebec_proto::task::{CheckpointTaskRequest, CreateTaskResponse, StartResponse};
use xebec_proto::task_types::Status;

use super::{
    COUNTER, IMAGES, checkpoint, count, counter, counting_shim, exit, goes_on, restored,
    start_counting,
};
use crate::{INVALID_ARGUMENT, NOT_FOUND, UNKNOWN, bundle, host, refused};

/// Whether the container goes on as before after a refusal, and nothing has been left.
#[track_caller]
fn assert_unharmed(host: &NativeHost, shim: &mut Shim, bundle: &Bundle<'_>, before: &Inventory) {
    assert_eq!(shim.state("c", "").unwrap().status(), Status::Running);
    goes_on(host, bundle, count(host, bundle) + 1);
    let is_kept = |line: &str| line.ends_with("/criu-dump.log");
    let left = before.wait_until_restored_but(host, is_kept).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn a_checkpoint_that_fails_says_why_and_the_container_goes_on() {
    let host = host();
    let bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut start = command(&host, bundle.path(), "c", &["start"]);
    start.env(
        "PATH",
        "/srv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    host.check_sh("mkdir /srv/bin /srv/full; mount -t tmpfs -o size=64k tmpfs /srv/full")
        .unwrap();
    let mut shim = Shim::started_by(&host, "c", start, b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    start_counting(&host, &mut shim, &bundle, "c");
    let before = Inventory::of(&host).unwrap();
    for (path, cause) in [
        (
            "/proc/no",
            "OCI runtime checkpoint failed: mkdir /proc/no: ",
        ),
        (
            "/srv/full/i",
            "OCI runtime checkpoint failed: criu failed: ",
        ),
    ] {
        let request = checkpoint("c", path, Some(exit()));
        let (code, message) = refused(shim.task.call::<()>("Checkpoint", &request));
        assert_eq!(code, UNKNOWN, "{message}");
        assert!(message.contains(cause), "{message}");
        assert_unharmed(&host, &mut shim, &bundle, &before);
    }
    let unknown = CheckpointTaskRequest {
        options: Some(Any {
            type_url: "acme.Options".into(),
            value: Vec::new(),
        }),
        ..checkpoint("c", IMAGES, None)
    };
    for (request, part) in [
        (unknown, "acme.Options"),
        (checkpoint("c", "", None), "path"),
    ] {
        let (code, message) = refused(shim.task.call::<()>("Checkpoint", &request));
        assert_eq!(code, INVALID_ARGUMENT, "{message}");
        assert!(message.contains(part), "{message}");
        assert_unharmed(&host, &mut shim, &bundle, &before);
    }
    let (code, _) = refused(
        shim.task
            .call::<()>("Checkpoint", &checkpoint("d", IMAGES, None)),
    );
    assert_eq!(code, NOT_FOUND);
    // A criu of the operator's that cannot do it.
    host.check_sh("printf '#!/bin/sh\\nexit 1\\n' >/srv/bin/criu; chmod +x /srv/bin/criu")
        .unwrap();
    let request = checkpoint("c", IMAGES, Some(exit()));
    let (code, message) = refused(shim.task.call::<()>("Checkpoint", &request));
    assert_eq!(code, UNKNOWN, "{message}");
    assert!(message.contains("it ended without an answer"), "{message}");
    host.check(&["rm", "/srv/bin/criu"]).unwrap();
    assert_unharmed(&host, &mut shim, &bundle, &before);
    shim.end("c").unwrap();
    host.check(&["umount", "/srv/full"]).unwrap();
}

#[test]
fn without_criu_there_is_an_error_and_no_more() {
    let host = host();
    let bundle = counter(&host, "c");
    let mut start = command(&host, bundle.path(), "c", &["start"]);
    start.env("PATH", "/usr/local/bin");
    let mut shim = Shim::started_by(&host, "c", start, b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    start_counting(&host, &mut shim, &bundle, "c");
    let before = Inventory::of(&host).unwrap();
    let request = checkpoint("c", IMAGES, Some(exit()));
    let (code, message) = refused(shim.task.call::<()>("Checkpoint", &request));
    assert_eq!(code, UNKNOWN);
    let words = "OCI runtime checkpoint failed: criu failed: there is no criu in PATH";
    assert_eq!(message, words);
    assert_unharmed(&host, &mut shim, &bundle, &before);
    shim.end("c").unwrap();
}

#[test]
fn open_connections_are_kept_only_when_that_is_asked_for() {
    let host = host();
    let script = format!(
        "sleep 10000 | busybox nc -l -p 7 & sleep 1; sleep 10000 | busybox nc 127.0.0.1 7 & {COUNTER}"
    );
    let mut bundle = bundle(&host, "c", &["sh", "-c", &script]);
    host.write_file("/srv/criu.conf", "tcp-established\n")
        .unwrap();
    bundle.write().unwrap();
    let mut shim = counting_shim(&host, &bundle, "c");
    let refusal = refused(
        shim.task
            .call::<()>("Checkpoint", &checkpoint("c", IMAGES, Some(exit()))),
    );
    assert_eq!(refusal.0, UNKNOWN);
    let log = format!(" path= {}/criu-dump.log", bundle.path());
    assert!(refusal.1.ends_with(&log), "{refusal:?}");
    assert!(refusal.1.contains("--tcp-established"), "{refusal:?}");
    let kept = host
        .read_file(format!("{}/criu-dump.log", bundle.path()))
        .unwrap();
    assert!(kept.contains("Dumping FAILED"), "{kept}");
    assert_eq!(shim.state("c", "").unwrap().status(), Status::Running);
    goes_on(&host, &bundle, count(&host, &bundle) + 1);

    let options = CheckpointOptions {
        open_tcp: true,
        ..exit()
    };
    let request = checkpoint("c", "/srv/open", Some(options));
    let () = shim.task.check("Checkpoint", &request).unwrap();
    assert_eq!(shim.wait("c", "").unwrap(), 137);
    shim.delete("c", "").unwrap();
    let at = count(&host, &bundle);
    // A restore is told by CRIU's own configuration.
    bundle.config["annotations"] = json!({"org.criu.config": "/srv/criu.conf"});
    bundle.write().unwrap();
    let request = restored("c", &bundle, "/srv/open");
    let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    shim.start_process("c", "").unwrap();
    goes_on(&host, &bundle, at + 1);
    shim.end("c").unwrap();
}

#[test]
fn a_forged_checkpoint_starts_nothing_and_a_good_one_in_its_place_does() {
    let host = host();
    let bundle = counter(&host, "c");
    host.sh("criu check").unwrap();
    let mut shim = counting_shim(&host, &bundle, "c");
    let dump = checkpoint("c", "/srv/good", Some(exit()));
    let () = shim.task.check("Checkpoint", &dump).unwrap();
    shim.wait("c", "").unwrap();
    shim.delete("c", "").unwrap();
    let at = count(&host, &bundle);
    let _: CreateTaskResponse = shim
        .task
        .check("Create", &restored("c", &bundle, IMAGES))
        .unwrap();
    let before = Inventory::of(&host).unwrap();
    for (damage, cause) in [
        ("rm -r $I", "open /srv/images: no such file or directory"),
        (
            "echo x >$I/descriptors.json",
            "/srv/images/descriptors.json: ",
        ),
        ("rm $I/pages-*.img", "criu-restore.log"),
        (
            "head -c 4000 /dev/urandom >$I/core-1.img",
            "criu-restore.log",
        ),
    ] {
        let script = format!("I={IMAGES}; rm -rf $I; cp -r /srv/good $I; {damage}");
        host.check_sh(&script).unwrap();
        let (code, message) = refused(
            shim.task
                .call::<StartResponse>("Start", &start_request("c", "")),
        );
        assert_eq!(code, UNKNOWN, "{damage}: {message}");
        let begin = "OCI runtime restore failed: ";
        assert!(
            message.starts_with(begin) && message.contains(cause),
            "{message}"
        );
        let state = shim.state("c", "").unwrap();
        assert_eq!((state.pid, state.status()), (0, Status::Created));
        let is_kept = |line: &str| line.ends_with("/criu-restore.log");
        let left = before.wait_until_restored_but(&host, is_kept).unwrap();
        assert!(left.is_empty(), "{damage} left over: {left:#?}");
    }
    host.check_sh(&format!("rm -rf {IMAGES}; cp -r /srv/good {IMAGES}"))
        .unwrap();
    shim.start_process("c", "").unwrap();
    goes_on(&host, &bundle, at + 2);
    assert_eq!(shim.end("c").unwrap(), 137);
}
