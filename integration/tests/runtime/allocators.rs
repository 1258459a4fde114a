//! Clones that share memory, by allocator: whoever hands memory out, and takes it back, does so as if
//! nobody shared anything.
//!
//! Each program answers by a checksum that it computes itself, which follows from how many answers
//! there have been; it allocates and frees much for each. Clones that share, one that does not, and
//! the first container have to give the same answers, each for itself.

use std::process::Command;

use integration::bundle::Bundle;
use integration::command::check;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::template::{clone, create, get, run, server};
use super::{host, ok, state};

const CHURN_C: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/runtime/allocators/churn.c"
);
const CHURN_JS: &str = include_str!("allocators/churn.js");
const CHURN_PY: &str = include_str!("allocators/churn.py");
const CHURN_JAVA: &str = include_str!("allocators/Churn.java");

/// Answers that each container gives after the template was made.
const ANSWERS: u64 = 2;

/// A bundle whose container runs under a guard.
fn guarded<'a>(host: &'a NativeHost, image: &str, args: &[&str], guard: &str) -> Bundle<'a> {
    let mut bundle = server(host, image, args, true);
    bundle.config["annotations"]["dev.xebec.clone.guard"] = json!(guard);
    bundle.write().expect("written");
    bundle
}

/// Makes a template of the running container `a`, which has answered once, and holds its clones against
/// it and against each other. All of them go.
#[track_caller]
fn assert_each_for_itself(host: &NativeHost, mut answer: impl FnMut(&str) -> Value) {
    let first = answer("a");
    assert_eq!((&first["count"], &first["wrong"]), (&json!(1), &json!(0)));
    create(host, "--leave-running");
    for (memory, id) in [("eager", "e"), ("share", "s-1"), ("share", "s-2")] {
        clone(host, memory, id);
    }
    // Each has written before any other one goes on.
    let ids = ["s-1", "e", "s-2", "a"];
    let rounds: Vec<Vec<Value>> = (0..ANSWERS)
        .map(|_| ids.iter().map(|id| answer(id)).collect())
        .collect();
    for (round, answers) in rounds.iter().enumerate() {
        for (id, one) in ids.iter().zip(answers) {
            assert_eq!(one["count"], round + 2, "{id}");
            assert_eq!(one["wrong"], 0, "{id}: {one}");
            assert_eq!(one, &answers[0], "{id} and {}", ids[0]);
        }
    }
    // Where the page file is mapped from there is no name in the clone.
    let pid = &state(host, "s-1")["pid"];
    let shared = host
        .check_sh(&format!(
            "grep -c \" $(stat -c %i /var/lib/xebec/templates/t/pages) \" /proc/{pid}/maps"
        ))
        .expect("it shares");
    assert_ne!(shared, "0\n");
    host.check_sh("xebec list -q | xargs -n 1 xebec delete --force; xebec template rm t")
        .expect("removed");
}

/// A program of a C library, linked statically: `cc` or `musl-gcc`, as the machine has them.
fn assert_c_library_is_exact(host: &NativeHost, compiler: &str) {
    host.check_sh("rm -rf /srv/a").expect("removed");
    guarded(host, "busybox", &["/churn", "8080"], "true");
    let program = host.path("/srv/a/rootfs/churn");
    let mut compile = Command::new(compiler);
    compile.args(["-O1", "-pthread", "-static", "-o"]);
    check(
        compile.arg(program).arg(CHURN_C),
        integration::command::DEADLINE,
    )
    .unwrap_or_else(|e| panic!("{compiler} (`integration setup --vm` installs it): {e}"));
    run(host);
    assert_each_for_itself(host, |id| get(host, id, "/"));
}

#[test]
fn what_glibc_and_musl_hand_out_is_the_clones_own() {
    let host = host();
    for compiler in ["cc", "musl-gcc"] {
        assert_c_library_is_exact(&host, compiler);
    }
}

/// Changes keys so that each answer follows from the one before, and lets jemalloc give back what it
/// can; the digest is the server's own.
const REDIS: &str = r#"
redis-cli eval "
  local n = redis.call('incr', 'count')
  for i = 1, 5000 do
    local key = 'k' .. ((i * 7919 + n * 104729) % 20000)
    if i % 3 == 0 then redis.call('del', key)
    else redis.call('set', key, string.rep(tostring(n * i), i % 20 == 0 and 9000 or i % 500 + 1)) end
  end
  return n" 0
redis-cli memory purge >/dev/null
redis-cli debug digest
"#;

#[test]
fn what_jemalloc_hands_out_is_the_clones_own() {
    let host = host();
    let args = "redis-server --save  --appendonly no --enable-debug-command yes";
    let args: Vec<_> = args.split(' ').collect();
    let mut bundle = guarded(&host, "redis", &args, "true");
    let variables = bundle.config["process"]["env"]
        .as_array_mut()
        .expect("a list");
    // What is free goes back at once.
    variables.push(json!("MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0"));
    bundle.write().expect("written");
    run(&host);
    host.check_sh("until xebec exec a redis-cli ping; do sleep 0.1; done")
        .expect("it answers");
    let pid = &state(&host, "a")["pid"];
    host.check_sh(&format!("grep -q jemalloc /proc/{pid}/maps"))
        .expect("jemalloc is there");
    assert_each_for_itself(&host, |id| {
        let answer = ok(&host, &["exec", id, "sh", "-c", REDIS]);
        let (count, digest) = answer.trim().split_once('\n').expect("two lines");
        let count: u64 = count.trim().parse().expect("a number");
        assert_eq!(digest.len(), 40, "{answer}");
        json!({"count": count, "sum": digest, "wrong": 0})
    });
}

/// A registry that has its blobs in memory. Pushes, reads and removes some: Go checks the digest of what
/// it is sent, and `sha256sum` that of what it sends.
const PUSHES: &str = r#"
base=http://127.0.0.1:8080/v2/x/blobs
n=$((${1:-0})); wrong=0
blob() { yes "$1" | head -c $2; }
digest() { blob $1 $2 | sha256sum | cut -d' ' -f1; }
for i in 1 2 3 4; do
    blob $n-$i $((i * 300000)) >/srv/blob
    to=$(curl -fsS -X POST -D - -o /dev/null $base/uploads/ | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -fsS -X PUT --data-binary @/srv/blob -H 'Content-Type: application/octet-stream' \
        "$to&digest=sha256:$(sha256sum </srv/blob | cut -d' ' -f1)" || wrong=$((wrong + 1))
done
# Those of the one before are still right; then half of them go.
for m in $((n - 1)) $n; do
    [ $m -ge 1 ] || continue
    for i in 1 2 3 4; do
        want=$(digest $m-$i $((i * 300000)))
        have=$(curl -fsS $base/sha256:$want | sha256sum | cut -d' ' -f1)
        [ $want = $have ] || wrong=$((wrong + 1))
    done
done
for i in 1 2; do
    [ $n = 1 ] || curl -fsS -X DELETE $base/sha256:$(digest $((n - 1))-$i $((i * 300000))) || wrong=$((wrong + 1))
done
curl -fsS "http://127.0.0.1:8081/debug/pprof/heap?gc=1" >/dev/null || wrong=$((wrong + 1))
echo $wrong
"#;

const REGISTRY: &str = "
version: 0.1
log: {level: error}
storage: {inmemory: {}, delete: {enabled: true}}
http: {addr: 0.0.0.0:8080, debug: {addr: 127.0.0.1:8081}}
";

#[test]
fn what_go_hands_out_is_the_clones_own() {
    let host = host();
    let args = ["docker-registry", "serve", "/registry.yml"];
    let mut bundle = guarded(&host, "busybox", &args, "true");
    let variables = bundle.config["process"]["env"]
        .as_array_mut()
        .expect("a list");
    // The collector runs often, and gives back what it can.
    variables.extend(["GOGC=20", "GOMEMLIMIT=24MiB"].map(|one| json!(one)));
    bundle.write().expect("written");
    host.write_file("/srv/a/rootfs/registry.yml", REGISTRY)
        .expect("written");
    host.write_file("/srv/pushes", PUSHES).expect("written");
    host.check_sh(
        "cd /srv/a/rootfs; cp $(which docker-registry) bin
         for file in $(ldd bin/docker-registry | grep -o '/[^ ]*'); do
            mkdir -p .$(dirname $file); cp -L $file .$file; done",
    )
    .expect("a root file system");
    run(&host);
    let mut counts = std::collections::BTreeMap::new();
    let mut answer = |id: &str| {
        let pid = &state(&host, id)["pid"];
        let count = counts.entry(id.to_owned()).or_insert(u64::from(id != "a"));
        *count += 1;
        let script = format!(
            "n='nsenter -t {pid} -n'; until $n curl -fs http://127.0.0.1:8080/v2/ >/dev/null; do sleep 0.1; done; \
             exec $n bash /srv/pushes {count}"
        );
        let wrong: u64 = host
            .check_sh(&script)
            .expect("it answers")
            .trim()
            .parse()
            .expect("a number");
        json!({"count": count, "sum": "of each blob", "wrong": wrong})
    };
    assert_each_for_itself(&host, &mut answer);
}

#[test]
fn what_cpython_and_numpy_hand_out_is_the_clones_own() {
    let host = host();
    guarded(&host, "python3-numpy", &["python3", "/churn.py"], "true");
    host.write_file("/srv/a/rootfs/churn.py", CHURN_PY)
        .expect("written");
    run(&host);
    assert_each_for_itself(&host, |id| get(&host, id, "/"));
}

#[test]
fn what_a_jvm_hands_out_is_the_clones_own() {
    let host = host();
    // Clones of one root file system would share the file of its performance counters.
    let args = "java -Xms8m -Xmx128m -XX:+UseG1GC -XX:G1PeriodicGCInterval=100 -XX:-UsePerfData \
                -XX:TieredStopAtLevel=1 /Churn.java";
    let args: Vec<_> = args.split_whitespace().collect();
    guarded(&host, "openjdk", &args, "true");
    host.write_file("/srv/a/rootfs/Churn.java", CHURN_JAVA)
        .expect("written");
    run(&host);
    assert_each_for_itself(&host, |id| get(&host, id, "/"));
}

#[test]
fn v8_dies_of_advice_that_is_refused_and_lives_with_advice_that_is_ignored() {
    let host = host();
    let mut bundle = guarded(&host, "nodejs", &["node", "/churn.js"], "true");
    host.write_file("/srv/a/rootfs/churn.js", CHURN_JS)
        .expect("written");
    run(&host);
    let pid = &state(&host, "a")["pid"];
    let died = host
        .sh(&format!(
            "until nsenter -t {pid} -n curl -s http://127.0.0.1:8080/; [ $? != 7 ]; do sleep 0.1; done; \
             until xebec state a | grep -q stopped; do sleep 0.1; done"
        ))
        .expect("it runs");
    // The first container shows it, before there is any clone.
    assert!(!died.stdout.contains("count"), "{died:?}");
    ok(&host, &["delete", "a"]);
    let mut guard = |guard: &str| {
        bundle.config["annotations"]["dev.xebec.clone.guard"] = json!(guard);
        bundle.write().expect("written");
    };
    guard("maybe");
    let refused = super::xebec(&host, &["create", "--bundle", "/srv/a", "x"]).unwrap();
    assert!(
        refused.stderr.contains("dev.xebec.clone.guard: "),
        "{refused:?}"
    );
    guard("ignore");
    run(&host);
    assert_each_for_itself(&host, |id| get(&host, id, "/"));
}
