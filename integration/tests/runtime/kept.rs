//! Checkpoints that are kept: what engines have written is looked into and restored by one command,
//! and what somebody has forged is refused with nothing left.

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::checkpoint::use_network;
use super::clients::host_of_clients;
use super::{assert_restored, host, ok, state};

/// Counts on the root file system and in `/dev/shm`. No process of it ends: CRIU cannot detach from one
/// that is about to. A file is never cut short: the checkpoint may come at any moment.
const COUNTER: &str = "i=0; sleep 1000 | while true; do i=$((i+1)); echo $i 1<>/tmp/count; \
     echo $i 1<>/dev/shm/x; read -t 0.05 x; done";

/// A host with archives `/srv/COMPRESSION.tar` and `/srv/last.tar`, which podman has exported from a
/// counter, and with `/srv/root`, the root file system that it began with. Of a container that goes on
/// podman reads the files when they have changed again: only the last archive can be restored.
fn host_with_archives(compressions: &str) -> NativeHost {
    let host = host_of_clients();
    host.check_sh(&format!(
        "podman run -d --name c --network none -e SECRET_TOKEN=hush busybox sh -c '{COUNTER}'; \
         for i in $(seq 100); do podman exec c test -s /tmp/count && break; sleep 0.05; done; \
         podman exec c rm /bin/wc; podman exec c mkdir -p /new/inner; \
         for c in {compressions}; do \
         podman container checkpoint --leave-running --compress $c --export /srv/$c.tar c; done; \
         podman container checkpoint --export /srv/last.tar c; \
         podman create --name d --network none busybox; \
         mkdir /srv/root; podman export d | tar x -C /srv/root; podman rm -f c d"
    ))
    .expect("podman exports a checkpoint");
    host
}

pub(super) fn restore(host: &NativeHost, archive: &str, more: &str) -> Output {
    let script = format!(
        "xebec --ignore-missing-controllers restore --detach --work-path /srv/work --import {archive} \
         --rootfs /srv/root --bundle /srv/bundle {more} web </dev/null >/dev/null 2>/srv/stderr; \
         status=$?; cat /srv/stderr >&2; exit $status"
    );
    host.sh(&format!("mkdir -p /srv/work; {script}"))
        .expect("the script runs")
}

pub(super) fn number(host: &NativeHost, command: &str) -> u64 {
    let script =
        format!("for i in $(seq 100); do n=$({command}); [ -n \"$n\" ] && break; done; echo $n");
    let text = host.check_sh(&script).expect("a count");
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no number"))
}

#[test]
fn what_podman_has_exported_is_looked_into_and_restored_by_one_command() {
    let host = host_with_archives("none gzip zstd");
    for compression in ["none", "gzip", "zstd"] {
        let archive = format!("/srv/{compression}.tar");
        let text = ok(&host, &["checkpoint", "inspect", &archive]);
        for words in [
            "Podman",
            "library/busybox",
            "SECRET_TOKEN=***",
            "/dev/null",
            "/dev/shm",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("hush"), "{text}");
        let json = ok(
            &host,
            &["checkpoint", "inspect", "--format", "json", &archive],
        );
        let report: Value = serde_json::from_str(&json).expect("JSON");
        let init = &report["processes"][0];
        assert_eq!(
            (&init["pid"], &init["arguments"][0]),
            (&1.into(), &"sh".into())
        );
        assert!(init["memory"]["anonymous"]["stored"].as_u64() > Some(4096));
    }
    let restored = restore(&host, "/srv/last.tar", "");
    let log = host
        .sh("tail -n 30 /srv/work/restore.log")
        .expect("a log")
        .stdout;
    assert!(restored.success(), "{restored:?}\n{log}");
    assert_eq!(state(&host, "web")["status"], "running");
    let at = number(&host, "cat /srv/root/tmp/count");
    goes_on(&host, "/srv/root/tmp/count");
    assert!(number(&host, "xebec exec web cat /dev/shm/x") > at);
    // Its changes of the root file system came along, its memory is not kept twice.
    host.check_sh("test -d /srv/root/new/inner; test ! -e /srv/root/bin/wc")
        .expect("the changes are there");
    host.check_sh("test ! -e /srv/bundle/checkpoint; test ! -e /srv/bundle/rootfs-diff.tar")
        .expect("the memory is gone");
    ok(&host, &["delete", "--force", "web"]);
}

/// Each forgery, as what is done to the unpacked archive in `/srv/x`, and what the refusal names.
const FORGERIES: [(&str, &[&str]); 12] = [
    (
        "ln -s /etc/shadow checkpoint/evil.img",
        &["checkpoint/evil.img", "symlink"],
    ),
    (
        "mknod checkpoint/disk.img b 8 0",
        &["checkpoint/disk.img", "device"],
    ),
    (
        "mkfifo checkpoint/fifo.img",
        &["checkpoint/fifo.img", "fifo"],
    ),
    (
        "cp checkpoint/fs-1.img checkpoint/apparmor.img",
        &["apparmor.img", "--trusted"],
    ),
    (
        "sed -i s,/dev/null,/../../et, checkpoint/files.img",
        &["files.img", "/../../et", "leads out"],
    ),
    (
        "sed -i s,/dev/mqueue,/dev/../../, checkpoint/mountpoints-*.img",
        &["mountpoints", "leads out"],
    ),
    (
        "sed -i s,/proc/sys,/proc/sy_, checkpoint/mountpoints-*.img",
        &["/proc/sys is writable"],
    ),
    (
        r#"jq '.mounts += [{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]}]' \
            spec.dump >s; mv s spec.dump"#,
        &["spec.dump", "/host", "--bind /host"],
    ),
    (
        r#"jq '.process.env += ["PATH=/evil"]' spec.dump >s; mv s spec.dump"#,
        &["spec.dump", "process.env", "PATH is there twice"],
    ),
    (
        r#"jq '.process.capabilities.bounding += ["CAP_SYS_ADMIN"]' spec.dump >s; mv s spec.dump"#,
        &["spec.dump", "CAP_SYS_ADMIN"],
    ),
    (
        r#"jq '.processorFeatures = ["avx9000"]' config.dump >s; mv s config.dump"#,
        &["processor lacks avx9000"],
    ),
    ("rm spec.dump", &["spec.dump is missing"]),
];

#[test]
fn a_forged_archive_is_refused_by_name_and_leaves_nothing() {
    let host = host_with_archives("none");
    host.check_sh("mkdir -p /srv/work; cp -a /srv/root /srv/root.before")
        .expect("copied");
    let before = Inventory::of(&host).expect("an inventory");
    for (forgery, words) in FORGERIES {
        host.check_sh(&format!(
            "rm -rf /srv/x /srv/f.tar; mkdir /srv/x; cd /srv/x; tar xf /srv/none.tar; {forgery}; tar cf /srv/f.tar *"
        ))
        .unwrap_or_else(|e| panic!("{forgery}: {e}"));
        assert_refused(&host, "/srv/f.tar", words);
    }
    for (transform, word) in [
        ("s,^ctr.log,../canary,", "../canary"),
        ("s,^ctr.log,/canary,", "/canary"),
    ] {
        host.check_sh(&format!(
            "cd /srv/x; rm -rf *; tar xf /srv/none.tar; tar cPf /srv/f.tar --transform '{transform}' *"
        ))
        .expect("an archive");
        assert_refused(&host, "/srv/f.tar", &[word]);
    }
    host.check_sh("head -c 100000 /srv/none.tar >/srv/f.tar")
        .expect("cut");
    assert_refused(&host, "/srv/f.tar", &["/srv/f.tar", "ends"]);
    host.check_sh("diff -r --no-dereference /srv/root.before /srv/root; test ! -e /srv/canary; test ! -e /canary")
        .expect("nothing was written");
    assert_restored(&host, &before);
}

#[track_caller]
fn assert_refused(host: &NativeHost, archive: &str, words: &[&str]) {
    let refused = restore(host, archive, "");
    assert_eq!(refused.status, 1, "{words:?}: {refused:?}");
    for word in words {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    let left = host
        .check_sh("ls -d /srv/bundle /srv/.xebec* /run/xebec/web 2>/dev/null || true")
        .expect("a list");
    assert_eq!(left, "", "{words:?}");
}

/// A container `a` of the bundle `/srv/a`, whose root file system is an overlay, in a network that exists
/// before it and after it. What is below it is no overlay, of which the kernel would tell the wrong mount.
pub(super) fn overlay_bundle(host: &NativeHost) -> Bundle<'_> {
    let script = format!(
        "b=busybox; $b rm -r /gone /old; $b mkdir /old; echo n >/old/new; $b chmod 640 /old/new; \
         $b ln -s new /old/link; {COUNTER}"
    );
    let mut bundle = Bundle::create(host, "/srv/a", &["sh", "-c", &script]).expect("a bundle");
    bundle.config["root"]["readonly"] = json!(false);
    use_network(host, &mut bundle);
    bundle.write().expect("written");
    host.check_sh(
        "mkdir /srv/disk; mount -t tmpfs none /srv/disk; cd /srv/disk; mkdir up work; \
         mv /srv/a/rootfs lower; mkdir -p /srv/a/rootfs lower/gone lower/old; \
         echo o >lower/old/file; cp -a lower /srv/root; \
         mount -t overlay -o lowerdir=/srv/disk/lower,upperdir=/srv/disk/up,workdir=/srv/disk/work overlay /srv/a/rootfs; cd /; \
         exec bash -c 'xebec run --detach --bundle /srv/a a </dev/null > >(cat >/srv/out 2>/dev/null) 2>&1' 2>/dev/null",
    )
    .expect("a container");
    host.check_sh("for i in $(seq 200); do [ -s /srv/a/rootfs/tmp/count ] && exit 0; sleep 0.05; done; cat /srv/out; exit 1")
        .expect("it counts");
    bundle
}

pub(super) fn goes_on(host: &NativeHost, file: &str) {
    let at = number(host, &format!("cat {file}"));
    let script = format!(
        "for i in $(seq 200); do n=$(cat {file}); [ \"${{n:-0}}\" -gt {} ] && exit 0; sleep 0.05; done; exit 1",
        at + 3
    );
    host.check_sh(&script).expect("the counter goes on");
}

#[test]
fn an_exported_container_goes_on_elsewhere_with_its_changes_of_the_root_file_system() {
    for target in ["/srv/a.tar", "oci:/srv/layout"] {
        let host = host();
        let _bundle = overlay_bundle(&host);
        ok(
            &host,
            &["checkpoint", "--export", target, "--image", "web:1", "a"],
        );
        let gone = host.sh("xebec state a").expect("it runs");
        assert!(gone.stderr.contains("does not exist"), "{gone:?}");
        let left = host
            .check_sh("ls -a /srv | grep xebec || true")
            .expect("a list");
        assert_eq!(left, "");
        let at = number(&host, "cat /srv/disk/up/tmp/count");
        let refused = restore(&host, target, "");
        assert!(refused.stderr.contains("--network FILE"), "{refused:?}");
        let restored = restore(&host, target, "--network /run/netns/t");
        let log = host
            .sh("tail -n 30 /srv/work/restore.log")
            .expect("a log")
            .stdout;
        assert!(restored.success(), "{restored:?}\n{log}");
        goes_on(&host, "/srv/root/tmp/count");
        assert!(number(&host, "cat /srv/root/tmp/count") > at);
        host.check_sh(
            "cd /srv/root; test ! -e gone; test ! -e old/file; test $(stat -c %a old/new) = 640; \
             test $(readlink old/link) = new",
        )
        .expect("the changes came along");
        ok(&host, &["delete", "--force", "web"]);
    }
}

#[test]
fn podman_imports_what_xebec_has_exported() {
    let host = host_of_clients();
    host.check_sh(&format!(
        "podman run -d --name c --network none busybox sh -c '{COUNTER}'; \
         for i in $(seq 100); do podman exec c test -s /tmp/count && break; sleep 0.05; done; \
         image=$(podman images --quiet --no-trunc | sed s/sha256://); \
         xebec checkpoint --leave-running --export /srv/a.tar --image docker.io/library/busybox:latest \
         --image-id $image $(podman inspect c --format '{{{{.Id}}}}'); podman rm --force --time 0 c; \
         podman container restore --import /srv/a.tar --name again"
    ))
    .expect("podman restores it");
    let count = "podman exec again cat /tmp/count";
    let at = number(&host, count);
    host.check_sh(&format!(
        "for i in $(seq 100); do n=$({count}); [ \"${{n:-0}}\" -gt {at} ] && exit 0; sleep 0.05; done; exit 1"
    ))
    .expect("the counter goes on");
    host.check_sh("podman rm --force --time 0 again")
        .expect("removed");
}

#[test]
fn an_export_that_fails_leaves_the_container_running_and_no_file() {
    let host = host();
    let _bundle = overlay_bundle(&host);
    host.check_sh("mkdir /srv/small; mount -t tmpfs -o size=100k none /srv/small")
        .expect("a small disk");
    let failed = host
        .sh("xebec checkpoint --export /srv/small/a.tar a")
        .expect("it runs");
    assert_eq!(failed.status, 1, "{failed:?}");
    assert_eq!(state(&host, "a")["status"], "running");
    goes_on(&host, "/srv/a/rootfs/tmp/count");
    assert_eq!(host.check_sh("ls -A /srv/small").expect("a list"), "");
    ok(
        &host,
        &[
            "checkpoint",
            "--leave-running",
            "--export",
            "/srv/a.tar",
            "a",
        ],
    );
    assert_eq!(state(&host, "a")["status"], "running");
    goes_on(&host, "/srv/a/rootfs/tmp/count");
    let mode = host.check_sh("stat -c %a /srv/a.tar").expect("there");
    assert_eq!(mode, "600\n");
    ok(&host, &["delete", "--force", "a"]);
    host.check_sh("umount /srv/small /srv/a/rootfs /srv/disk")
        .expect("unmounted");
}

#[test]
fn what_runc_has_dumped_is_looked_into() {
    let host = host();
    let mut bundle = Bundle::create(
        &host,
        "/srv/r",
        &["sh", "-c", "sleep 1000 & exec busybox nc -l -p 8080"],
    )
    .expect("a bundle");
    use_network(&host, &mut bundle);
    bundle.write().expect("written");
    host.check_sh(&format!(
        "exec bash -c 'runc run --detach --bundle {} r </dev/null > >(cat >/srv/out 2>/dev/null) 2>&1' 2>/dev/null",
        bundle.path()
    ))
    .expect("a container");
    host.check_sh(
        "for i in $(seq 200); do nsenter --net=/run/netns/t cat /proc/self/net/tcp /proc/self/net/tcp6 | \
         grep -q :1F90 && exec runc checkpoint --image-path /srv/images r; sleep 0.05; done; exit 1",
    )
    .expect("runc dumps");
    let json = ok(
        &host,
        &["checkpoint", "inspect", "--format", "json", "/srv/images"],
    );
    let report: Value = serde_json::from_str(&json).expect("JSON");
    let names: Vec<_> = report["processes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names.len(), 2, "{report:#}");
    let socket = &report["sockets"][0];
    assert_eq!(
        (&socket["kind"], &socket["state"]),
        (&"tcp".into(), &"listening".into())
    );
    assert!(
        socket["local"]
            .as_str()
            .is_some_and(|local| local.ends_with(":8080")),
        "{socket}"
    );
}
