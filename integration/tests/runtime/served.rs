//! Clones whose memory comes page by page, from a server, when it is touched.

use integration::hosts::{HostOptions, NativeHost};
use integration::proxy::Shape;
use serde_json::{Value, json};

use super::template::{clone, create, get, inventory, memory_of, python, server, start};
use super::{assert_restored, host, ok, state};

/// Pids of servers and of their guards.
fn servers(host: &NativeHost) -> Vec<u32> {
    let found = host.check_sh("pgrep -f '[p]age-server /run/xebec' || true");
    let found = found.expect("it runs");
    found
        .lines()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

/// Starts a clone from a cgroup that is ended and removed when that is done, as a service's is.
fn clone_from_service(host: &NativeHost, id: &str) {
    let script = format!(
        "service=/sys/fs/cgroup/service; mkdir $service
         (exec sh -c 'echo $$ >$0/cgroup.procs; exec xebec clone --detach --memory uffd t {id}' $service \
            </dev/null >/dev/null 2>/srv/err) || {{ cat /srv/err; exit 1; }}
         echo 1 >$service/cgroup.kill; rmdir $service"
    );
    host.check_sh(&script).expect("nobody is left in it");
}

#[test]
fn clones_get_each_page_when_they_touch_it_and_cannot_tell_otherwise() {
    let host = host();
    python(&host, false);
    let before = inventory(&host);
    start(&host);
    create(&host, "--leave-running");
    let first = get(&host, "a", "/");
    let sum = get(&host, "a", "/fork");
    clone(&host, "eager", "eager");
    clone_from_service(&host, "uffd");
    for id in ["eager", "uffd"] {
        assert_eq!(get(&host, id, "/")["length"], first["length"]);
    }
    let memory = |id| memory_of(&host, id, "Anonymous");
    let (eager, served) = (memory("eager"), memory("uffd"));
    assert!(served * 2 < eager, "{served} kB of {eager} kB are there");

    // A child's memory comes from there, too, and so does what has moved.
    assert_eq!(get(&host, "uffd", "/fork"), sum);
    assert_eq!(get(&host, "uffd", "/grow"), json!({"read": 0}));
    clone(&host, "uffd", "moved");
    assert_eq!(
        get(&host, "moved", "/move"),
        json!({"read": i64::from(b'Z')})
    );
    // What was given back is empty, touched before or not.
    clone(&host, "uffd", "untouched");
    for id in ["uffd", "untouched", "uffd"] {
        assert_eq!(get(&host, id, "/forget"), json!({"read": 0}), "{id}");
    }
    assert_eq!(get(&host, "uffd", "/fork"), sum);
    assert_eq!(get(&host, "uffd", "/")["count"], 3);

    let both = servers(&host);
    assert_eq!(both.len(), 2, "one server and its guard");
    for pid in both {
        let cgroup = host.read_file(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.ends_with("/xebec-pages\n"), "{cgroup}");
    }
    ok(&host, &["delete", "--force", "uffd"]);
    ok(&host, &["template", "rm", "t"]);
    assert_eq!(
        get(&host, "moved", "/fork"),
        sum,
        "of a template that is gone"
    );
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn clones_end_with_their_server_before_they_could_read_zeroes() {
    let host = host();
    python(&host, false);
    let before = inventory(&host);
    start(&host);
    create(&host, "");
    for id in ["b", "c"] {
        clone(&host, "uffd", id);
    }
    assert_eq!(get(&host, "b", "/")["count"], 2);
    host.check_sh("pkill -KILL -f '[p]age-server /run/xebec --guarded'")
        .expect("killed");
    host.check_sh("until test $(xebec list | grep -c stopped) = 2; do sleep 0.05; done")
        .expect("both end");
    assert_eq!(state(&host, "c")["status"], "stopped");
    // The next one has a new server.
    ok(&host, &["delete", "b"]);
    clone(&host, "uffd", "b");
    assert_eq!(get(&host, "b", "/")["count"], 2);
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force")
        .unwrap();
    ok(&host, &["template", "rm", "t"]);
    assert_restored(&host, &before);
}

#[test]
fn one_server_has_a_hundred_clones_at_once_and_ends_with_the_last() {
    let host = host();
    let command =
        "mkdir /www; echo '{\"from\": 1}' >/www/index.html; exec busybox httpd -f -p 8080 -h /www";
    server(&host, "busybox", &["sh", "-c", command], false);
    let before = inventory(&host);
    start(&host);
    create(&host, "");
    host.check_sh(
        "for i in $(seq 100); do \
            xebec clone --detach --memory uffd t c-$i </dev/null >/dev/null 2>>/srv/err & \
         done; wait; test ! -s /srv/err || { cat /srv/err; exit 1; }",
    )
    .expect("all start");
    assert_eq!(servers(&host).len(), 2);
    for id in ["c-1", "c-50", "c-100"] {
        assert_eq!(get(&host, id, "/"), json!({"from": 1}));
    }
    host.check_sh("xebec list -q | xargs -n 1 -P 8 xebec delete --force")
        .unwrap();
    ok(&host, &["template", "rm", "t"]);
    assert_restored(&host, &before);
}

/// Has the template `t` learn which pages a first request needs: bytes of them, and of all.
fn record(host: &NativeHost) -> (u64, u64) {
    let request =
        "until nsenter -t $XEBEC_PID -n curl -fsS http://127.0.0.1:8080/; do sleep 0.1; done";
    let recorded = host.run(&[
        "xebec", "template", "record", "t", "--", "sh", "-c", request,
    ]);
    let recorded = recorded.expect("it runs");
    assert!(recorded.success(), "{recorded:?}");
    assert!(recorded.stdout.contains("\"count\": 2"), "{recorded:?}");
    let template = ok(host, &["template", "inspect", "--verify", "t"]);
    let template: Value = serde_json::from_str(&template).expect("JSON");
    let size = |field: &str| template[field].as_u64().expect("a size");
    // A shareable one keeps most of it apart.
    (size("hotMemory"), size("ownMemory") + size("sharedMemory"))
}

/// Waits until a clone that was asked for nothing has nearly as many bytes of memory.
#[track_caller]
fn arrives(host: &NativeHost, id: &str, bytes: u64) {
    for _ in 0..100 {
        if memory_of(host, id, "Anonymous") * 1024 > bytes / 10 * 9 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let there = memory_of(host, id, "Anonymous");
    panic!("{there} kB of {bytes} bytes have come");
}

#[test]
fn a_recorded_template_gives_its_clones_what_they_need_before_they_touch_it() {
    let host = host();
    python(&host, true);
    let before = inventory(&host);
    start(&host);
    create(&host, "--leave-running");
    let sum = get(&host, "a", "/fork");
    clone(&host, "uffd", "cold");
    let (hot, all) = record(&host);
    assert!(hot > 0 && hot * 2 < all, "{hot} of {all} bytes are hot");
    assert!(
        memory_of(&host, "cold", "Anonymous") * 1024 < hot / 2,
        "one that is asked for nothing has nothing"
    );
    clone(&host, "uffd", "hot");
    arrives(&host, "hot", hot);
    // Memory is right all the same, and what was forgotten does not come back.
    assert_eq!(
        get(&host, "hot", "/forget"),
        json!({"errno": 22, "read": i64::from(b'Z')})
    );
    assert_eq!(get(&host, "hot", "/fork"), sum);
    assert_eq!(get(&host, "hot", "/")["count"], 2);
    for memory in ["eager", "share"] {
        clone(&host, memory, memory);
        assert_eq!(get(&host, memory, "/")["count"], 2);
    }
    // A request that fails records nothing; what is damaged is refused to who would get it.
    let failed = host.run(&["xebec", "template", "record", "t", "--", "false"]);
    let failed = failed.expect("it runs");
    assert!(
        failed.stderr.contains("nothing is recorded: false"),
        "{failed:?}"
    );
    assert_eq!(record(&host).1, all, "it can be recorded again");
    host.check_sh("printf x | dd of=/var/lib/xebec/templates/t/hot/list-1 bs=1 seek=9 conv=notrunc status=none")
        .unwrap();
    let damaged = host.sh("xebec clone --detach --memory uffd t b").unwrap();
    assert!(
        damaged.stderr.contains("hot/list-1 has other content"),
        "{damaged:?}"
    );
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force; xebec template rm t")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_template_of_a_registry_starts_clones_before_its_memory_is_here() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let mut bundle = python(&host, false);
    bundle.config["annotations"] = json!({"dev.xebec.clone.generation": "true"});
    bundle.write().expect("written");
    start(&host);
    create(&host, "");
    let template = ok(&host, &["template", "inspect", "t"]);
    let template: Value = serde_json::from_str(&template).expect("JSON");
    let memory = template["ownMemory"].as_u64().expect("a size");
    let (hot, all) = record(&host);
    assert!(hot > 0 && hot * 2 < all, "{hot} of {all} bytes are hot");
    let image = "127.0.0.1:5000/t:v1";
    ok(&host, &["template", "push", "t", image]);
    ok(&host, &["template", "rm", "t"]);

    let (link, remote) = host.through_link(image, Shape::new(2, 1000.0)).unwrap();
    let wrong = host
        .sh(&format!("xebec template pull {remote} other"))
        .unwrap();
    assert!(
        wrong.stderr.contains("it is of the template t"),
        "{wrong:?}"
    );
    ok(&host, &["template", "pull", &remote, "t"]);
    clone(&host, "uffd", "b");
    // What it will need comes before it is asked for anything.
    arrives(&host, "b", hot);
    assert_eq!(get(&host, "b", "/")["count"], 2);
    let down = link.counters().down;
    assert!(down * 4 < memory, "{down} bytes of {memory}");
    clone(&host, "eager", "c");
    assert_eq!(get(&host, "c", "/")["count"], 2);
    assert_eq!(
        ok(&host, &["exec", "c", "cat", "/dev/shm/kept"]),
        "in memory"
    );
    // Nobody can write to the template; they are told apart all the same.
    for (id, number) in [("b", "1 "), ("c", "2 ")] {
        let generation = ok(&host, &["exec", id, "cat", "/run/xebec/generation"]);
        assert!(generation.starts_with(number), "{id}: {generation}");
    }
    assert_eq!(
        ok(&host, &["template", "list", "--format", "json"])
            .lines()
            .count(),
        1
    );

    // One that is in use goes when its last clone does.
    for id in ["b", "c"] {
        ok(&host, &["delete", "--force", id]);
    }
    host.check_sh("while pgrep -f '[p]age-server /run/xebec'; do sleep 0.1; done")
        .expect("the server ends");
    ok(&host, &["template", "rm", "t"]);
    let left = host.check_sh("ls /var/lib/xebec/templates; xebec-snapshotter status --format json");
    let left: Value = serde_json::from_str(&left.unwrap()).expect("no template, and JSON");
    assert_eq!(
        left["snapshots"].as_array().map(Vec::len),
        Some(0),
        "{left}"
    );
}
