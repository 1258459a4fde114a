//! Containers that start as clones of a template: what they share, what they do not, and what is
//! left of them.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, state, xebec};

/// Counts in its own memory, and tells on request; draws other random numbers when it learns that it
/// is a clone.
const SERVER: &str = r#"
import http.server, json, mmap, os, random, signal
ballast = [float(i) for i in range(400000)]
block = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block.write(b"Z" * (1 << 20))
count = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        global count
        if self.path == "/forget":
            try:
                block.madvise(mmap.MADV_DONTNEED)
                return {"read": block[5000]}
            except OSError as error:
                return {"errno": error.errno, "read": block[5000]}
        if self.path == "/grow":
            try:
                block.resize(2 << 20)
                return {"read": block[(1 << 20) + 5000]}
            except OSError as error:
                return {"errno": error.errno}
        if self.path == "/move":
            block.resize(3 << 20)
            return {"read": block[5000]}
        if self.path == "/fork":
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writer, repr(sum(ballast)).encode())
                os._exit(0)
            os.waitpid(child, 0)
            return {"sum": float(os.read(reader, 100))}
        count += 1
        return {"count": count, "length": len(ballast), "random": random.random(),
                "urandom": os.urandom(8).hex(), "pid": os.getpid()}
    def do_GET(self):
        text = json.dumps(self.answer()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words):
        pass

def draw_anew(*_):
    with open("/run/xebec/generation") as file:
        random.seed(file.read())

signal.signal(signal.SIGUSR2, draw_anew)
with open("/dev/shm/kept", "w") as file:
    file.write("in memory")
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"#;

/// Unpacks an image of the corpus.
fn unpack(host: &NativeHost, image: &str, rootfs: &str) {
    let script = format!(
        "cd /srv/corpus/{image}/blobs; blob() {{ echo $1 | tr : /; }}; mkdir -p {rootfs}
         manifest=$(blob $(jq -r '.manifests[0].digest' ../index.json))
         for layer in $(jq -r '.layers[].digest' $manifest); do tar -xf $(blob $layer) -C {rootfs}; done"
    );
    host.check_sh(&script).expect("an image is unpacked");
}

/// A bundle of an image whose container serves on port 8080 of its own network.
pub(super) fn server<'a>(
    host: &'a NativeHost,
    image: &str,
    args: &[&str],
    guard: bool,
) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, "/srv/a", args).expect("a bundle");
    if image != "busybox" {
        host.check_sh("rm -rf /srv/a/rootfs").expect("removed");
        unpack(host, image, "/srv/a/rootfs");
    }
    if guard {
        // V8 dies of advice that is refused.
        let guard = if image == "nodejs" { "ignore" } else { "true" };
        bundle.config["annotations"] = json!({"dev.xebec.clone.guard": guard});
    }
    bundle.write().expect("written");
    bundle
}

pub(super) fn python(host: &NativeHost, guard: bool) -> Bundle<'_> {
    let bundle = server(host, "python3-numpy", &["python3", "/app.py"], guard);
    host.write_file("/srv/a/rootfs/app.py", SERVER)
        .expect("written");
    bundle
}

/// Starts the bundle's container as `a`, and waits until it answers.
pub(super) fn start(host: &NativeHost) {
    run(host);
    get(host, "a", "/");
}

pub(super) fn run(host: &NativeHost) {
    let command = "xebec --log /srv/run.log run --detach --bundle /srv/a a";
    let script = format!("{command} </dev/null >/dev/null 2>&1 || {{ cat /srv/run.log; exit 1; }}");
    host.check_sh(&script).expect("it runs");
}

/// Makes a template of `a`.
#[track_caller]
pub(super) fn create(host: &NativeHost, arguments: &str) {
    let output = host
        .sh(&format!("xebec template create {arguments} t a"))
        .expect("it runs");
    assert!(output.success(), "{output:?}");
}

#[track_caller]
pub(super) fn clone(host: &NativeHost, memory: &str, id: &str) {
    let command = format!("xebec clone --detach --memory {memory} t {id}");
    let script =
        format!("{command} </dev/null >/dev/null 2>/srv/err || {{ cat /srv/err; exit 1; }}");
    let output = host.sh(&script).expect("the script runs");
    assert!(output.success(), "{command}: {output:?}");
}

/// What a container's server says.
#[track_caller]
pub(super) fn get(host: &NativeHost, id: &str, path: &str) -> Value {
    let pid = state(host, id)["pid"].as_i64().expect("a pid");
    let script = format!(
        "for i in $(seq 100); do nsenter -t {pid} -n curl -fsS --max-time 20 \
         http://127.0.0.1:8080{path} 2>/srv/err && exit 0; sleep 0.1; done; cat /srv/err; exit 1"
    );
    let answer = host
        .check_sh(&script)
        .unwrap_or_else(|e| panic!("{id} answers: {e}"));
    serde_json::from_str(&answer).expect("the answer is JSON")
}

/// A line of `smaps_rollup`, in kB.
pub(super) fn memory_of(host: &NativeHost, id: &str, what: &str) -> u64 {
    let pid = &state(host, id)["pid"];
    let script = format!("awk '/^{what}:/ {{ print $2 }}' /proc/{pid}/smaps_rollup");
    let text = host.check_sh(&script).expect("it is there");
    text.trim().parse().expect("a number")
}

/// An inventory when everything that stays for good is there already.
pub(super) fn inventory(host: &NativeHost) -> integration::leftovers::Inventory {
    let mut warm_up = Bundle::create(host, "/srv/w", &["true"]).expect("a bundle");
    // The compiled rules of the guard are kept, too.
    warm_up.config["annotations"] = json!({"dev.xebec.clone.guard": "true"});
    warm_up.write().expect("written");
    // What CRIU has found out about the kernel is kept.
    host.sh("criu check").expect("it runs");
    settled(host, &warm_up)
}

#[test]
fn clones_of_a_python_server_answer_and_share_its_memory() {
    let host = host();
    python(&host, true);
    let before = inventory(&host);
    start(&host);
    create(&host, "--leave-running");
    let first = get(&host, "a", "/");
    assert_eq!(first["count"], 2);
    for memory in ["eager", "share"] {
        for number in 1..=4 {
            clone(&host, memory, &format!("{memory}-{number}"));
        }
        for number in 1..=4 {
            let id = format!("{memory}-{number}");
            for count in 2..=3 {
                let answer = get(&host, &id, "/");
                assert_eq!(answer["count"], count, "{id}");
                assert_eq!(answer["length"], first["length"], "{id}");
                assert_eq!(answer["pid"], 1);
            }
            assert_ne!(get(&host, &id, "/")["urandom"], first["urandom"]);
        }
    }
    // Nothing of what one of them does is seen by another, or by the first one.
    assert_eq!(get(&host, "a", "/")["count"], 3);
    let total = |memory: &str| -> u64 {
        (1..=4)
            .map(|number| memory_of(&host, &format!("{memory}-{number}"), "Pss"))
            .sum()
    };
    let (eager, share) = (total("eager"), total("share"));
    assert!(share * 2 < eager, "{share} kB shared, {eager} kB not");
    // They are containers like any other.
    assert_eq!(
        ok(&host, &["exec", "share-1", "cat", "/dev/shm/kept"]),
        "in memory"
    );
    assert_eq!(
        ok(
            &host,
            &["exec", "share-1", "sh", "-c", "echo x >/dev/null; hostname"]
        ),
        "xebec\n"
    );
    assert!(ok(&host, &["ps", "share-1"]).contains("python3 /app.py"));
    assert_eq!(state(&host, "share-2")["status"], "running");
    ok(&host, &["pause", "share-2"]);
    ok(&host, &["resume", "share-2"]);
    assert!(get(&host, "share-2", "/")["count"].is_u64());
    ok(&host, &["kill", "share-3", "KILL"]);
    host.check_sh("until xebec state share-3 | grep -q stopped; do sleep 0.05; done")
        .unwrap();
    ok(&host, &["delete", "share-3"]);
    // A template may go before its clones.
    ok(&host, &["template", "rm", "t"]);
    assert!(get(&host, "share-4", "/")["count"].is_u64());
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn advice_to_forget_memory_is_refused_to_who_shares_it_and_exact_for_who_does_not() {
    let host = host();
    python(&host, true);
    start(&host);
    create(&host, "");
    assert_eq!(host.sh("xebec state a").unwrap().status, 1);
    for memory in ["eager", "share"] {
        clone(&host, memory, "b");
        let answer = get(&host, "b", "/forget");
        assert_eq!(
            answer,
            json!({"errno": 22, "read": i64::from(b'Z')}),
            "{memory}"
        );
        assert_eq!(get(&host, "b", "/grow"), json!({"errno": 12}), "{memory}");
        ok(&host, &["delete", "--force", "b"]);
    }
}

#[test]
fn without_the_guard_sharing_has_to_be_allowed_and_forgets_to_the_template() {
    let host = host();
    python(&host, false);
    start(&host);
    create(&host, "--leave-running");
    let refused = xebec(&host, &["clone", "--memory", "share", "t", "b"]).unwrap();
    assert!(
        refused
            .stderr
            .contains("was not made for the memory mode share"),
        "{refused:?}"
    );
    ok(&host, &["template", "rm", "t"]);
    create(&host, "--allow-share");
    clone(&host, "eager", "exact");
    assert_eq!(get(&host, "exact", "/forget"), json!({"read": 0}));
    assert_eq!(get(&host, "exact", "/grow"), json!({"read": 0}));
    clone(&host, "share", "shared");
    // This is why it is not allowed by itself: zeroes were promised.
    assert_eq!(
        get(&host, "shared", "/forget"),
        json!({"read": i64::from(b'Z')})
    );
}

#[test]
fn connections_stay_with_the_first_container_and_clones_listen() {
    let host = host();
    python(&host, true);
    start(&host);
    let pid = state(&host, "a")["pid"].clone();
    // One connection for two requests, the template being made in between.
    let script = format!(
        "request='GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'
         nsenter -t {pid} -n bash -c '
            exec 3<>/dev/tcp/127.0.0.1/8080; printf \"'\"$request\"'\" >&3; head -c 80 <&3 >/dev/null
            xebec template create --leave-running t a || exit 1
            printf \"'\"$request\"'\" >&3; timeout 20 grep -m 1 -a HTTP/1.1 <&3'"
    );
    let output = host.sh(&script).unwrap();
    assert!(output.stdout.contains("HTTP/1.1 200"), "{output:?}");
    for memory in ["eager", "share"] {
        clone(&host, memory, memory);
        assert_eq!(get(&host, memory, "/")["pid"], 1);
    }
}

#[test]
fn a_hundred_clones_start_at_once_and_leave_nothing() {
    let host = host();
    let command =
        "mkdir /www; echo '{\"from\": 1}' >/www/index.html; exec busybox httpd -f -p 8080 -h /www";
    server(&host, "busybox", &["sh", "-c", command], true);
    let before = inventory(&host);
    start(&host);
    create(&host, "");
    host.check_sh(
        "for i in $(seq 100); do \
            xebec clone --detach --memory share t c-$i </dev/null >/dev/null 2>>/srv/err & \
         done; wait; test ! -s /srv/err || { cat /srv/err; exit 1; }",
    )
    .expect("all start");
    let listed = ok(&host, &["list", "--quiet"]);
    assert_eq!(listed.lines().count(), 100);
    for id in ["c-1", "c-50", "c-100"] {
        assert_eq!(get(&host, id, "/"), json!({"from": 1}));
    }
    host.check_sh("xebec list -q | xargs -n 1 -P 8 xebec delete --force")
        .unwrap();
    ok(&host, &["template", "rm", "t"]);
    assert_restored(&host, &before);
}

#[test]
fn a_template_that_is_not_whole_is_refused_and_nothing_is_left() {
    let host = host();
    server(
        &host,
        "busybox",
        &["sh", "-c", "while true; do sleep 1; done"],
        true,
    );
    let before = inventory(&host);
    run(&host);
    let failed = xebec(
        &host,
        &["template", "create", "--criu", "/no/criu", "t", "a"],
    )
    .unwrap();
    assert!(
        failed.stderr.contains("stat /no/criu: no such file"),
        "{failed:?}"
    );
    assert_eq!(state(&host, "a")["status"], "running");
    create(&host, "");
    let again = xebec(&host, &["template", "create", "t", "a"]).unwrap();
    assert!(
        again.stderr.contains("container does not exist"),
        "{again:?}"
    );
    let listed: Value =
        serde_json::from_str(&ok(&host, &["template", "list", "--format", "json"])).unwrap();
    assert_eq!(listed[0]["name"], "t");
    assert_eq!(listed[0]["modes"], json!(["eager", "share"]));
    ok(&host, &["template", "inspect", "--verify", "t"]);
    host.check_sh("cp -a /var/lib/xebec/templates/t /srv/good")
        .unwrap();
    for (damage, cause) in [
        (
            "rm template.json",
            "open /var/lib/xebec/templates/t/template.json: no such file",
        ),
        (
            "sed -i 's/\"version\": 1/\"version\": 9/' template.json",
            "version 9 is not 1",
        ),
        ("echo >>share/files.img", "share/files.img has another size"),
        (
            "printf x | dd of=share/mm-1.img bs=1 seek=90 conv=notrunc status=none",
            "share/mm-1.img has other content",
        ),
        (
            "cp share/core-1.img share/core-99.img",
            "share/core-99.img is not the template's",
        ),
        ("rm share/pstree.img", "share/pstree.img is missing"),
        ("truncate -s 5 pages", "pages has another size"),
        ("chmod 777 .", "could be trusted"),
    ] {
        host.check_sh(&format!(
            "cd /var/lib/xebec/templates; rm -rf t; cp -a /srv/good t; cd t; {damage}"
        ))
        .unwrap();
        let failed = xebec(&host, &["clone", "--detach", "--memory", "share", "t", "b"]).unwrap();
        assert_eq!(failed.status, 1, "{damage}: {failed:?}");
        assert!(failed.stderr.contains(cause), "{damage}: {failed:?}");
    }
    host.check_sh("cd /var/lib/xebec/templates; rm -rf t; cp -a /srv/good t")
        .unwrap();
    refuses_other_circumstances(&host);
    host.check_sh("rm -rf /var/lib/xebec/templates/t").unwrap();
    assert_restored(&host, &before);
}

/// What is wrong with a clone rather than with its template.
fn refuses_other_circumstances(host: &NativeHost) {
    let attempt = |arguments: &str| {
        host.sh(&format!("xebec clone --detach {arguments}"))
            .unwrap()
    };
    for (arguments, cause) in [
        ("none b", "template none does not exist"),
        ("../t b", "invalid container ID format"),
        ("--memory lazily t b", "invalid memory mode"),
        ("--criu /no/criu t b", "stat /no/criu: no such file"),
        (
            "--bundle /srv/w t b",
            "these are not the mounts of the template t",
        ),
        ("--bundle /no t b", "chdir /no: no such file"),
    ] {
        let change =
            "jq '.mounts |= .[1:]' /srv/w/config.json >/srv/c && mv /srv/c /srv/w/config.json";
        if arguments.contains("/srv/w") {
            host.check_sh(change).unwrap();
        }
        let failed = attempt(arguments);
        assert_ne!(failed.status, 0, "{arguments}: {failed:?}");
        assert!(failed.stderr.contains(cause), "{arguments}: {failed:?}");
    }
    // The program of the template's container is not there any more.
    let failed = host
        .sh(
            "mv /srv/a/rootfs/bin/busybox /srv; xebec clone --detach t b; R=$?; \
             mv /srv/busybox /srv/a/rootfs/bin; exit $R",
        )
        .unwrap();
    assert_eq!(failed.status, 1, "{failed:?}");
    assert!(failed.stderr.contains("bin/busybox"), "{failed:?}");
}

#[test]
fn clones_of_a_node_server_answer_in_both_modes() {
    let host = host();
    let script = "const heap = []; for (let i = 0; i < 200000; i++) heap.push({i, s: 's' + i}); \
        let count = 0; require('http').createServer((q, r) => { \
        const garbage = []; for (let i = 0; i < 20000; i++) garbage.push({i}); \
        r.end(JSON.stringify({count: ++count, last: heap[199999].s, n: garbage.length})) \
        }).listen(8080);";
    server(&host, "nodejs", &["node", "-e", script], true);
    start(&host);
    create(&host, "");
    let own = |memory: &str| {
        clone(&host, memory, memory);
        get(&host, memory, "/");
        memory_of(&host, memory, "Anonymous")
    };
    let (eager, share) = (own("eager"), own("share"));
    assert!(
        share * 2 < eager,
        "{share} kB of its own, {eager} kB when nothing is shared"
    );
    for memory in ["eager", "share"] {
        for count in 3..40 {
            let answer = get(&host, memory, "/");
            let wanted = json!({"count": count, "last": "s199999", "n": 20000});
            assert_eq!(answer, wanted, "{memory}");
        }
    }
}

#[test]
fn a_container_whose_annotation_names_a_template_runs_as_its_clone_with_no_more_rights() {
    let host = host();
    let command =
        "mkdir /www; echo '{\"from\": 1}' >/www/index.html; exec busybox httpd -f -p 8080 -h /www";
    let mut bundle = server(&host, "busybox", &["sh", "-c", command], false);
    let before = inventory(&host);
    start(&host);
    create(&host, "");
    // A program of its own would end at once.
    bundle.config["process"]["args"] = json!(["false"]);
    bundle.config["annotations"] = json!({"dev.xebec.clone.template": "t"});
    bundle.write().expect("written");
    run(&host);
    assert_eq!(get(&host, "a", "/"), json!({"from": 1}));
    ok(&host, &["delete", "--force", "a"]);

    let refused = |command: &str, part: &str| {
        let output = xebec(&host, &[command, "--bundle", "/srv/a", "a"]).unwrap();
        assert!(output.stderr.contains(part), "{part}: {output:?}");
    };
    refused("create", "runs at once and cannot wait for its start");
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    bundle.write().expect("written");
    refused("run", "process.user: this is not as in the template t");
    bundle.config["annotations"] = json!({"dev.xebec.clone.template": "../t"});
    bundle.write().expect("written");
    refused("run", "is no name of a template");
    ok(&host, &["template", "rm", "t"]);
    assert_restored(&host, &before);
}

/// Annotations of a container that is to know whether it is a clone.
fn aware(bundle: &mut Bundle<'_>, signal: Option<&str>) {
    let guard = bundle.config["annotations"]["dev.xebec.clone.guard"].clone();
    bundle.config["annotations"] = json!({
        "dev.xebec.clone.guard": guard,
        "dev.xebec.clone.generation": "true",
    });
    if let Some(signal) = signal {
        bundle.config["annotations"]["dev.xebec.clone.signal"] = json!(signal);
    }
    bundle.write().expect("written");
}

fn generation(host: &NativeHost, id: &str) -> Vec<String> {
    let text = ok(host, &["exec", id, "cat", "/run/xebec/generation"]);
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn clones_of_python_draw_the_same_numbers_until_they_are_told_that_they_are_clones() {
    let host = host();
    let mut bundle = python(&host, true);
    aware(&mut bundle, None);
    let before = inventory(&host);
    start(&host);
    create(&host, "--leave-running");
    let draw = |id: &str, memory: &str| {
        clone(&host, memory, id);
        get(&host, id, "/")["random"].clone()
    };
    assert_eq!(draw("b-1", "share"), draw("b-2", "eager"));
    aware(&mut bundle, Some("USR2"));
    let told: Vec<_> = (3..7)
        .map(|number| {
            draw(
                &format!("b-{number}"),
                if number < 5 { "share" } else { "eager" },
            )
        })
        .collect();
    for (index, number) in told.iter().enumerate() {
        assert!(!told[..index].contains(number), "{told:?}");
    }
    assert_eq!(generation(&host, "a"), ["0"]);
    let (one, two) = (generation(&host, "b-1"), generation(&host, "b-2"));
    assert_eq!((one[0].as_str(), two[0].as_str()), ("1", "2"));
    assert_ne!(one[1], two[1]);
    let written = host
        .sh("xebec exec b-1 sh -c 'echo 9 >/run/xebec/generation'")
        .unwrap();
    assert!(
        written.stderr.contains("Read-only file system"),
        "{written:?}"
    );
    aware(&mut bundle, Some("NONE"));
    let refused = xebec(&host, &["clone", "t", "c"]).unwrap();
    assert!(
        refused
            .stderr
            .contains("dev.xebec.clone.signal: unknown signal"),
        "{refused:?}"
    );
    // What knows of its generation can be dumped in the ordinary way, too.
    aware(&mut bundle, None);
    ok(
        &host,
        &["checkpoint", "--tcp-close", "--image-path", "/srv/i", "b-2"],
    );
    let restore = "xebec restore --detach --bundle /srv/a --image-path /srv/i --tcp-close r";
    host.check_sh(&format!("{restore} </dev/null >/dev/null 2>&1"))
        .unwrap();
    assert!(get(&host, "r", "/")["count"].is_u64());
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force; xebec template rm t")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn clones_of_node_that_are_told_draw_other_numbers_but_not_from_its_own_crypto() {
    let host = host();
    let script = "const fs = require('fs'), crypto = require('crypto'); let state = 1; \
        const seed = () => { state = parseInt(fs.readFileSync('/run/xebec/generation', 'utf8') \
            .split(' ')[1].slice(0, 7), 16) }; process.on('SIGUSR2', seed); \
        require('http').createServer((q, r) => { state = (state * 48271) % 2147483647; \
            r.end(JSON.stringify({own: state, uuid: crypto.randomUUID()})) }).listen(8080);";
    let mut bundle = server(&host, "nodejs", &["node", "-e", script], true);
    aware(&mut bundle, None);
    start(&host);
    create(&host, "");
    let draw = |id: &str| {
        clone(&host, "share", id);
        get(&host, id, "/")
    };
    let (one, two) = (draw("b-1"), draw("b-2"));
    assert_eq!(one["own"], two["own"]);
    // OpenSSL asks the kernel again after a fork, and knows nothing of clones.
    assert_eq!(one["uuid"], two["uuid"]);
    aware(&mut bundle, Some("SIGUSR2"));
    assert_ne!(draw("b-3")["own"], draw("b-4")["own"]);
}
