//! Containers that become files, and containers again: by xebec alone, and by runc in turn.

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::{HostOptions, NativeHost};
use integration::setup::tools::LIBCRIU;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, state, xebec};

/// Counts on a file of the root file system, and on standard output. The file only grows: one that is
/// written anew would be empty for ever if the checkpoint came in between.
const COUNTER: &str =
    "i=0; while true; do i=$((i+1)); echo $i >> /tmp/count; echo $i; sleep 0.05; done";

/// A bundle whose container counts, in a network namespace that exists before it and after it, as
/// under an engine.
fn counter<'a>(host: &'a NativeHost, path: &str) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, &["sh", "-c", COUNTER]).expect("a bundle");
    use_network(host, &mut bundle);
    bundle.write().expect("written");
    bundle
}

pub(super) fn use_network(host: &NativeHost, bundle: &mut Bundle<'_>) {
    host.check_sh(
        "mountpoint -q /run/netns/t || { mkdir -p /run/netns; touch /run/netns/t; \
         unshare -n mount --bind /proc/self/ns/net /run/netns/t; }",
    )
    .expect("a network namespace");
    let namespaces = bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .expect("a list");
    for namespace in namespaces {
        if namespace["type"] == "network" {
            namespace["path"] = json!("/run/netns/t");
        }
    }
}

/// Starts a container whose output goes through a pipe into `/srv/ID.out`.
pub(super) fn start(host: &NativeHost, runtime: &str, bundle: &Bundle<'_>, id: &str) {
    let path = bundle.path();
    // What an earlier one has counted says nothing of this one.
    host.check_sh(&format!("rm -f {path}/rootfs/tmp/count"))
        .expect("removed");
    run(
        host,
        &format!("{runtime} run --detach --bundle {path} {id}"),
        id,
    );
}

/// A command that leaves a container behind whose output a `cat` appends to a file.
#[track_caller]
pub(super) fn run(host: &NativeHost, command: &str, id: &str) {
    // A pipe without a name: a fifo of the host is in no mount of the container.
    let script = format!(
        "exec bash -c '{command} </dev/null > >(cat >>/srv/{id}.out 2>/dev/null) \
         2> >(cat >/srv/stderr) || {{ sleep 0.2; cat /srv/stderr; exit 1; }}' 2>/dev/null"
    );
    let output = host.sh(&script).expect("the script runs");
    assert!(output.success(), "{command}: {output:?}\n{}", logs(host));
}

/// What CRIU has to say.
fn logs(host: &NativeHost) -> String {
    let script = "tail -n 20 /srv/*/dump.log /srv/*/restore.log 2>/dev/null; true";
    host.sh(script)
        .map(|output| output.stdout)
        .unwrap_or_default()
}

#[track_caller]
fn checkpoint(host: &NativeHost, runtime: &str, arguments: &str) {
    let command = format!("{runtime} checkpoint {arguments}");
    let output = host.sh(&command).expect("the command runs");
    assert!(output.success(), "{command}: {output:?}\n{}", logs(host));
}

#[track_caller]
pub(super) fn restore(
    host: &NativeHost,
    runtime: &str,
    bundle: &Bundle<'_>,
    images: &str,
    id: &str,
) {
    let path = bundle.path();
    let command = format!("{runtime} restore --detach --bundle {path} --image-path {images} {id}");
    run(host, &command, id);
}

fn count(host: &NativeHost, bundle: &Bundle<'_>) -> u64 {
    let file = format!("{}/rootfs/tmp/count", bundle.path());
    // It may not be there yet.
    let script = format!("until tail -n 1 {file} | grep .; do sleep 0.01; done");
    let text = host.check_sh(&script).expect("a count");
    text.trim().parse().expect("a number")
}

/// Waits until the counter has passed `beyond`.
#[track_caller]
fn goes_on(host: &NativeHost, bundle: &Bundle<'_>, beyond: u64) {
    let file = format!("{}/rootfs/tmp/count", bundle.path());
    let script = format!(
        "for i in $(seq 200); do n=$(tail -n 1 {file} 2>/dev/null || true); [ \"${{n:-0}}\" -gt {beyond} ] && exit 0; \
         sleep 0.05; done; cat {file}; exit 1"
    );
    host.check_sh(&script).expect("the counter goes on");
}

#[test]
fn a_container_goes_on_where_its_checkpoint_was_made() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    let warm_up = Bundle::create(&host, "/srv/w", &["true"]).unwrap();
    // What CRIU has found out about the kernel is kept.
    host.sh("criu check").unwrap();
    let before = settled(&host, &warm_up);
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 3);
    checkpoint(&host, "xebec", "--image-path /srv/images a");
    let gone = xebec(&host, &["state", "a"]).unwrap();
    assert!(gone.stderr.contains("container does not exist"), "{gone:?}");
    let at = count(&host, &bundle);
    restore(&host, "xebec", &bundle, "/srv/images", "b");
    goes_on(&host, &bundle, at + 3);
    // Its output goes on, too, in the pipe that took the first one's place.
    let next = host
        .check_sh("until [ -s /srv/b.out ]; do sleep 0.05; done; head -n 1 /srv/b.out")
        .unwrap();
    let next: u64 = next.trim().parse().expect("a number");
    assert!((at..=at + 2).contains(&next), "{at} is followed by {next}");
    assert_eq!(state(&host, "b")["status"], "running");
    assert_eq!(ok(&host, &["exec", "b", "echo", "inside"]), "inside\n");
    ok(&host, &["pause", "b"]);
    assert_eq!(state(&host, "b")["status"], "paused");
    ok(&host, &["resume", "b"]);
    ok(&host, &["kill", "b", "KILL"]);
    ok(&host, &["delete", "b"]);
    assert_restored(&host, &before);
}

#[test]
fn a_container_that_is_left_running_goes_on_and_can_be_dumped_again() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 3);
    for round in ["1", "2"] {
        checkpoint(
            &host,
            "xebec",
            &format!("--leave-running --image-path /srv/{round} a"),
        );
        assert_eq!(state(&host, "a")["status"], "running");
        goes_on(&host, &bundle, count(&host, &bundle) + 2);
    }
    // A container that its owner has paused stays so.
    ok(&host, &["pause", "a"]);
    checkpoint(&host, "xebec", "--leave-running --image-path /srv/3 a");
    assert_eq!(state(&host, "a")["status"], "paused");
    ok(&host, &["delete", "--force", "a"]);
}

#[test]
fn runc_restores_what_xebec_has_dumped_and_xebec_what_runc_has() {
    let host = host();
    // So that CRIU can look at the network from inside from the first dump on.
    host.sh("criu check").unwrap();
    let mut bundle = counter(&host, "/srv/a");
    host.check_sh("mkdir -p /srv/data; ln -s /tmp /srv/a/rootfs/link; echo seen >/srv/data/file")
        .unwrap();
    // The place of a mount may be reached through a symlink of the image.
    let mount = json!({"destination": "/link/data", "type": "bind", "source": "/srv/data",
        "options": ["rbind", "ro"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    bundle.write().unwrap();
    for (from, to) in [("xebec", "runc"), ("runc", "xebec"), ("xebec", "xebec")] {
        let images = format!("/srv/{from}-{to}");
        start(&host, from, &bundle, from);
        goes_on(&host, &bundle, 3);
        checkpoint(&host, from, &format!("--image-path {images} {from}"));
        let at = count(&host, &bundle);
        restore(&host, to, &bundle, &images, "restored");
        goes_on(&host, &bundle, at + 3);
        let seen = host
            .check_sh(&format!("{to} exec restored cat /tmp/data/file"))
            .unwrap();
        assert_eq!(seen, "seen\n", "{from} to {to}");
        // Images that were made from inside of its network have it there again, too.
        let networks = format!(
            "stat -Lc %i /run/netns/t /proc/$({to} state restored | jq .pid)/ns/net | uniq | wc -l"
        );
        let networks = host.check_sh(&networks).unwrap();
        assert_eq!(networks, "1\n", "{from} to {to}");
        host.check_sh(&format!("{to} delete --force restored"))
            .unwrap();
    }
}

/// A container that echoes what a connection sends, and a client of it whose words go into `/srv/say`
/// and whose answers come from `/srv/heard`.
fn echo(host: &NativeHost) -> Bundle<'_> {
    let mut bundle = Bundle::create(
        host,
        "/srv/e",
        &["busybox", "nc", "-l", "-p", "7", "-e", "cat"],
    )
    .expect("a bundle");
    use_network(host, &mut bundle);
    bundle.write().expect("written");
    host.check_sh("ip -n t link set lo up").expect("a loopback");
    start(host, "xebec", &bundle, "e");
    let client = "mkfifo /srv/say; \
        (while true; do ip netns exec t busybox nc 127.0.0.1 7 <>/srv/say && break; sleep 0.1; done) \
        >/srv/heard 2>/dev/null &";
    host.check_sh(client).expect("a client");
    bundle
}

#[track_caller]
fn echoes(host: &NativeHost, words: &str) {
    let script = format!(
        "echo {words} >/srv/say; for i in $(seq 100); do grep -q {words} /srv/heard && exit 0; \
         sleep 0.1; done; cat /srv/heard; exit 1"
    );
    host.check_sh(&script).expect("an echo");
}

fn rules(host: &NativeHost) -> String {
    host.check_sh("ip netns exec t iptables-save")
        .expect("rules")
}

#[test]
fn connections_are_kept_when_that_is_asked_for() {
    let host = host();
    let bundle = echo(&host);
    echoes(&host, "one");
    let refused = host
        .sh("xebec checkpoint --image-path /srv/refused e")
        .unwrap();
    assert!(
        refused.stderr.contains("Connected TCP socket"),
        "{refused:?}"
    );
    echoes(&host, "two");
    checkpoint(&host, "xebec", "--tcp-established --image-path /srv/i e");
    // Nothing of the connection reaches anyone until it is there again.
    assert!(rules(&host).contains("DROP"), "{}", rules(&host));
    host.check_sh("echo three >/srv/say").unwrap();
    restore(&host, "xebec", &bundle, "/srv/i --tcp-established", "e");
    echoes(&host, "three");
    echoes(&host, "four");
    assert!(!rules(&host).contains("DROP"), "{}", rules(&host));
    ok(&host, &["delete", "--force", "e"]);
}

#[test]
fn a_network_that_is_there_after_a_checkpoint_is_not_left_locked() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    for runtime in ["xebec", "runc"] {
        start(&host, "xebec", &bundle, "a");
        goes_on(&host, &bundle, 1);
        checkpoint(&host, "xebec", "--image-path /srv/i a");
        assert!(!rules(&host).contains("DROP"), "{}", rules(&host));
        // The images say so to whoever restores them.
        restore(&host, runtime, &bundle, "/srv/i", "b");
        assert!(!rules(&host).contains("DROP"), "{}", rules(&host));
        host.check_sh(&format!("{runtime} delete --force b; rm -r /srv/i"))
            .unwrap();
    }
    // Settings of the host's may ask for connections that this command knows nothing of.
    host.check_sh("mkdir -p /etc/criu; echo tcp-established >/etc/criu/runc.conf")
        .unwrap();
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 1);
    checkpoint(&host, "xebec", "--image-path /srv/i a");
    assert!(rules(&host).contains("DROP"), "{}", rules(&host));
}

#[test]
fn what_file_systems_in_memory_hold_is_there_again() {
    let host = host();
    let mut bundle = counter(&host, "/srv/a");
    let capabilities = bundle.config["process"]["capabilities"].as_object_mut();
    for (_, set) in capabilities.unwrap() {
        let all = [
            "CAP_KILL",
            "CAP_CHOWN",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_MKNOD",
        ];
        *set = json!(all);
    }
    bundle.write().unwrap();
    // /dev/pts and /dev/mqueue are none of these, and made anew.
    let look = "cd /dev/shm; ls -lnR /dev /run | busybox grep -v -e pt -e mqueue; busybox md5sum d/* file*";
    let plain = "cd /dev/shm; mkdir -m 711 d; echo inner >d/file; busybox ln -s d/file link; echo x >file; \
        busybox chown 7:8 file; busybox chmod 4755 file; busybox mknod null c 1 3; echo r >/run/r";
    // What is large or has several names is packed by GNU's tar.
    let more = "cd /dev/shm; busybox dd if=/dev/urandom of=file2 bs=1M count=6 2>/dev/null; \
        busybox ln file2 file3; busybox mkfifo fifo";
    for (further, back) in [
        ("true", "xebec"),
        ("true", "runc"),
        (more, "xebec"),
        (more, "runc"),
    ] {
        start(&host, "xebec", &bundle, "a");
        goes_on(&host, &bundle, 1);
        let fill = format!("{plain}; {further}");
        ok(&host, &["exec", "a", "sh", "-ec", &fill]);
        let before = ok(&host, &["exec", "a", "sh", "-c", look]);
        checkpoint(&host, "xebec", "--image-path /srv/i a");
        restore(&host, back, &bundle, "/srv/i", "b");
        let inside = host.check(&[back, "exec", "b", "sh", "-c", look]).unwrap();
        assert_eq!(before, inside, "by {back}");
        host.check_sh(&format!("{back} delete --force b; rm -r /srv/i"))
            .unwrap();
    }
    // What runc's has packed is unpacked by ours.
    start(&host, "runc", &bundle, "a");
    goes_on(&host, &bundle, 1);
    host.check(&["runc", "exec", "a", "sh", "-ec", plain])
        .unwrap();
    let before = host
        .check(&["runc", "exec", "a", "sh", "-c", look])
        .unwrap();
    checkpoint(&host, "runc", "--image-path /srv/i a");
    restore(&host, "xebec", &bundle, "/srv/i", "b");
    assert_eq!(before, ok(&host, &["exec", "b", "sh", "-c", look]));
    ok(&host, &["delete", "--force", "b"]);
}

#[test]
fn a_container_that_starts_programs_all_the_time_can_be_dumped() {
    let host = host();
    // Who waits for a child to execute its program is frozen where CRIU cannot stop it.
    let command = ["sh", "-c", "while true; do /bin/true; done"];
    let mut bundle = Bundle::create(&host, "/srv/p", &command).unwrap();
    use_network(&host, &mut bundle);
    bundle.write().unwrap();
    start(&host, "xebec", &bundle, "p");
    for round in 0..8 {
        let arguments = format!("--leave-running --image-path /srv/{round} p");
        checkpoint(&host, "xebec", &arguments);
    }
    assert_eq!(state(&host, "p")["status"], "running");
    ok(&host, &["delete", "--force", "p"]);
}

#[test]
fn crius_log_is_as_long_as_ours() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 1);
    let dump = |flags: &str| {
        let command = format!("xebec {flags} checkpoint --leave-running --image-path /srv/i a");
        host.check_sh(&command).unwrap();
        let log = host.read_file("/srv/i/dump.log").unwrap();
        host.check_sh("rm -r /srv/i").unwrap();
        log.lines().count()
    };
    let (brief, long) = (dump(""), dump("--debug"));
    assert!(brief < 20 && long > 200, "{brief} and {long} lines");
    ok(&host, &["delete", "--force", "a"]);
}

#[test]
fn what_crun_has_dumped_is_restored() {
    let host = NativeHost::start(HostOptions::bare().tool(&LIBCRIU)).expect("a native host starts");
    let bundle = counter(&host, "/srv/a");
    let crun = format!("env LD_LIBRARY_PATH={} crun", LIBCRIU.place().display());
    // By default, crun has CRIU make cgroups in hierarchies of version 1, too.
    let flags = "--manage-cgroups-mode ignore";
    start(&host, &crun, &bundle, "a");
    goes_on(&host, &bundle, 3);
    checkpoint(&host, &crun, &format!("{flags} --image-path /srv/i a"));
    let at = count(&host, &bundle);
    restore(&host, "xebec", &bundle, "/srv/i", "b");
    goes_on(&host, &bundle, at + 3);
    // What was hidden is so again, directories and files.
    let masked = bundle.config["linux"]["maskedPaths"].as_array().unwrap();
    let masked: Vec<_> = masked.iter().filter_map(Value::as_str).collect();
    let look = format!(
        "for p in {}; do if [ -d $p ]; then ls -A $p; elif [ -e $p ]; then cat $p; fi; done",
        masked.join(" ")
    );
    assert_eq!(ok(&host, &["exec", "b", "sh", "-c", &look]), "");
    ok(&host, &["delete", "--force", "b"]);
}

/// Whether a failed command named its cause and left the container as it was.
#[track_caller]
fn assert_unharmed(host: &NativeHost, bundle: &Bundle<'_>, failed: &Output, cause: &str) {
    assert_eq!(failed.status, 1, "{failed:?}");
    assert!(failed.stderr.contains(cause), "{cause}: {failed:?}");
    assert_eq!(state(host, "a")["status"], "running");
    goes_on(host, bundle, count(host, bundle) + 2);
}

#[test]
fn a_checkpoint_that_fails_leaves_the_container_running_and_says_why() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 1);
    let attempt = |arguments: &str| host.sh(&format!("xebec checkpoint {arguments} a")).unwrap();
    let failed = attempt("--image-path /srv/i --criu /no/such/criu");
    assert_unharmed(&host, &bundle, &failed, "stat /no/such/criu: no such file");
    let failed = host.sh("X=$(command -v xebec); PATH=/srv $X checkpoint --image-path /srv/i a");
    let failed = failed.unwrap();
    assert_unharmed(&host, &bundle, &failed, "there is no criu in PATH");
    let failed = attempt("--image-path /proc/no");
    assert_unharmed(&host, &bundle, &failed, "mkdir /proc/no: ");
    let failed = attempt("--image-path /srv/i --parent-path /srv/i");
    assert_unharmed(&host, &bundle, &failed, "--parent-path must be relative");
    let failed = attempt("--image-path /srv/i --parent-path ../none");
    assert_unharmed(
        &host,
        &bundle,
        &failed,
        "open /srv/i/../none: no such file or directory",
    );
    let failed = attempt("--image-path /srv/i --manage-cgroups-mode some");
    assert!(
        failed.stderr.contains("invalid manage-cgroups-mode value"),
        "{failed:?}"
    );
    host.check_sh("mkdir /srv/full; mount -t tmpfs -o size=64k tmpfs /srv/full")
        .unwrap();
    let failed = attempt("--image-path /srv/full/i");
    assert_unharmed(&host, &bundle, &failed, "criu failed: ");
    ok(&host, &["delete", "--force", "a"]);
    // A file of the host that is in no mount of the container.
    host.check_sh(
        "mkfifo /srv/fifo; xebec run --detach --bundle /srv/a a <>/srv/fifo >/dev/null 2>&1",
    )
    .unwrap();
    let failed = attempt("--image-path /srv/i");
    assert_unharmed(&host, &bundle, &failed, "Can't lookup mount=");
    let log = "(log file: /srv/i/dump.log)";
    assert!(failed.stderr.contains(log), "{failed:?}");
    ok(&host, &["delete", "--force", "a"]);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let host = host();
    let bundle = counter(&host, "/srv/a");
    let warm_up = Bundle::create(&host, "/srv/w", &["true"]).unwrap();
    // What CRIU has found out about the kernel is kept.
    host.sh("criu check").unwrap();
    let before = settled(&host, &warm_up);
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 1);
    checkpoint(&host, "xebec", "--image-path /srv/good a");
    for (damage, cause) in [
        ("rm -r $I", "open /srv/bad: no such file or directory"),
        ("rm $I/descriptors.json", "open /srv/bad/descriptors.json: "),
        ("echo x >$I/descriptors.json", "/srv/bad/descriptors.json: "),
        ("echo x >$I/cgroup.img", "/srv/bad/cgroup.img: "),
        ("rm $I/inventory.img", "(log file: /srv/bad/restore.log)"),
        ("rm $I/pages-*.img", "(log file: /srv/bad/restore.log)"),
        (
            "truncate -s 20 $I/pstree.img",
            "(log file: /srv/bad/restore.log)",
        ),
        (
            "truncate -s 100 $I/mm-1.img",
            "(log file: /srv/bad/restore.log)",
        ),
        (
            "head -c 4000 /dev/urandom >$I/core-1.img",
            "(log file: /srv/bad/restore.log)",
        ),
    ] {
        host.check_sh(&format!(
            "I=/srv/bad; rm -rf $I; cp -r /srv/good $I; {damage}"
        ))
        .unwrap();
        let arguments = [
            "restore",
            "--detach",
            "--bundle",
            "/srv/a",
            "--image-path",
            "/srv/bad",
            "b",
        ];
        let failed = xebec(&host, &arguments).unwrap();
        assert_eq!(failed.status, 1, "{damage}: {failed:?}");
        assert!(failed.stderr.contains(cause), "{damage}: {failed:?}");
        assert_restored(&host, &before);
    }
}

#[test]
fn a_restored_terminal_is_handed_over() {
    let host = host();
    let mut bundle = Bundle::create(
        &host,
        "/srv/t",
        &["sh", "-c", "stty -echo; while read x; do echo got $x; done"],
    )
    .unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    use_network(&host, &mut bundle);
    bundle.write().unwrap();
    // Each time in the foreground, below a terminal of ours; the first one ends by the checkpoint.
    let first = "exec xebec run --bundle /srv/t t";
    host.write_file("/srv/first", first).unwrap();
    let second = "exec xebec restore --bundle /srv/t --image-path /srv/i t";
    host.write_file("/srv/second", second).unwrap();
    let script = "(sleep 2; xebec checkpoint --image-path /srv/i t >/srv/said 2>&1) & \
         sleep 3 | script -qec 'sh /srv/first' /dev/null; wait; cat /srv/said; \
         (sleep 1; echo hello; sleep 1; xebec kill t KILL) | script -qec 'sh /srv/second' /dev/null";
    let output = host.sh(script).unwrap();
    let logs = logs(&host);
    assert!(output.stdout.contains("got hello"), "{output:?}\n{logs}");
}

#[test]
fn hooks_of_a_creation_run_at_a_restore() {
    let host = host();
    let mut bundle = counter(&host, "/srv/a");
    let hook = |kind: &str| {
        json!([{"path": "/bin/sh", "args": ["sh", "-c",
        format!("cat >/srv/{kind}.json")]}])
    };
    bundle.config["hooks"] = json!({"createRuntime": hook("created"), "poststop": hook("stopped")});
    bundle.write().unwrap();
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, &bundle, 1);
    checkpoint(&host, "xebec", "--image-path /srv/i a");
    host.check_sh("test -s /srv/stopped.json; rm /srv/*.json")
        .unwrap();
    restore(&host, "xebec", &bundle, "/srv/i", "a");
    let told: Value = serde_json::from_str(&host.read_file("/srv/created.json").unwrap()).unwrap();
    assert_eq!(told["id"], "a");
    assert_eq!(told["pid"], state(&host, "a")["pid"]);
    ok(&host, &["delete", "--force", "a"]);
}

#[test]
fn what_cannot_be_dumped_is_refused_by_its_state() {
    let host = host();
    counter(&host, "/srv/a");
    host.check_sh("xebec create --bundle /srv/a a </dev/null >/dev/null 2>&1")
        .unwrap();
    for status in ["created", "stopped"] {
        if status == "stopped" {
            ok(&host, &["kill", "a", "KILL"]);
            host.check_sh("until xebec state a | grep -q stopped; do sleep 0.05; done")
                .unwrap();
        }
        let failed = xebec(&host, &["checkpoint", "--image-path", "/srv/i", "a"]).unwrap();
        let words = format!("container cannot be checkpointed in {status} state");
        assert!(failed.stderr.contains(&words), "{failed:?}");
    }
    let failed = xebec(&host, &["checkpoint", "none"]).unwrap();
    assert!(
        failed.stderr.contains("container does not exist"),
        "{failed:?}"
    );
    ok(&host, &["delete", "a"]);
}
