//! Checkpoints that are sealed, and checkpoints in a store.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::checkpoint::{run, start, use_network};
use super::{assert_restored, host, ok, settled, state, xebec};

const RECIPIENT: &str = "age1lj3wt8mdflhsfd7cw2l988dggvn67p590qs56y48k40nmwgplvdqqdf2zh";
const IDENTITY: &str = "AGE-SECRET-KEY-1RAWA2ARU30ZTZEP8J80XN8HMS7V43VKFTMNAT3WWA0WW0KTKCPMSCV604V";
const SOMEBODY_ELSE: &str =
    "AGE-SECRET-KEY-1WSX9SS7ZWGFT4MG7DMHMY639NS0NAXNF2LN26G0P3ZUSEZD3E7SSG5NXJK";

/// Counts on standard output, and has a secret that is nowhere but in its memory. It starts no process
/// and has no file open that changes: what was left running can be restored later.
const COUNTER: &str = "half=MARKER; secret=$half-IN-MEMORY; exec 3<>/tmp/tick; i=0; \
    while true; do i=$((i+1)); echo $i; read -t 0.05 x <&3; done; echo $secret";

fn counter<'a>(host: &'a NativeHost, path: &str) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, &["sh", "-c", COUNTER]).expect("a bundle");
    host.check_sh(&format!("mkfifo {path}/rootfs/tmp/tick"))
        .expect("a fifo");
    use_network(host, &mut bundle);
    bundle.write().expect("written");
    bundle
}

/// Waits until a container has counted on.
#[track_caller]
fn goes_on(host: &NativeHost, id: &str) {
    let script = format!(
        "last() {{ tail -n 2 /srv/{id}.out 2>/dev/null | head -n 1; }}; first=$(last); \
         for i in $(seq 400); do [ \"$(last)\" != \"$first\" ] && exit 0; sleep 0.05; done; exit 1"
    );
    host.check_sh(&script).expect("the counter goes on");
}

fn with_keys() -> NativeHost {
    let host = host();
    host.write_file("/srv/key", IDENTITY).expect("written");
    host.write_file("/srv/other-key", SOMEBODY_ELSE)
        .expect("written");
    // What CRIU has found out about the kernel is kept.
    host.sh("criu check").expect("criu runs");
    host
}

#[track_caller]
fn checkpoint(host: &NativeHost, arguments: &str) -> String {
    let output = host
        .sh(&format!("xebec checkpoint {arguments}"))
        .expect("the command runs");
    assert!(output.success(), "{arguments}: {output:?}");
    output.stdout.trim().to_owned()
}

/// A command that has to fail for this reason.
#[track_caller]
fn refused(host: &NativeHost, command: &str, cause: &str) {
    let output = host
        .sh(&format!("xebec {command}"))
        .expect("the command runs");
    assert_eq!(output.status, 1, "{command}: {output:?}");
    assert!(output.stderr.contains(cause), "{command}: {output:?}");
    assert!(!output.stderr.contains("SECRET"), "{output:?}");
}

/// Restores, and has the counter go on.
#[track_caller]
fn restored(host: &NativeHost, bundle: &Bundle<'_>, arguments: &str) {
    host.check_sh("rm -f /srv/b.out").expect("removed");
    let path = bundle.path();
    run(
        host,
        &format!("xebec restore --detach --bundle {path} {arguments} b"),
        "b",
    );
    goes_on(host, "b");
    // It did not begin anew.
    assert_ne!(
        host.check_sh("head -n 1 /srv/b.out").expect("output"),
        "1\n"
    );
    ok(host, &["delete", "--force", "b"]);
}

/// Files below these directories that hold the secret.
fn shows(host: &NativeHost, directories: &str) -> String {
    host.sh(&format!("grep -rlas MARKER-IN-MEMORY {directories}; true"))
        .expect("grep runs")
        .stdout
}

/// Where something may be written.
const EVERYWHERE: &str = "/srv /tmp /var /run /root /etc";

#[test]
fn a_sealed_checkpoint_shows_no_memory_and_is_opened_by_its_recipients_alone() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    let warm_up = Bundle::create(&host, "/srv/w", &["true"]).unwrap();
    let before = settled(&host, &warm_up);
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    let sealed = format!("--encrypt-to {RECIPIENT}");
    checkpoint(
        &host,
        &format!("--leave-running {sealed} --image-path /srv/sealed --work-path /srv/work a"),
    );
    checkpoint(
        &host,
        &format!("--leave-running {sealed} --store --name first a"),
    );
    assert_eq!(shows(&host, EVERYWHERE), "");
    goes_on(&host, "a");
    // The container ends with its second one.
    checkpoint(&host, &format!("{sealed} --store --name second a"));
    assert!(
        xebec(&host, &["state", "a"])
            .unwrap()
            .stderr
            .contains("does not exist")
    );
    assert_eq!(shows(&host, EVERYWHERE), "");
    // As after a reboot: nobody needs it but the next one who seals.
    host.check_sh("rm -r /run/xebec-checkpoints").unwrap();
    let restore = "restore --detach --bundle /srv/a";
    for from in ["--image-path /srv/sealed", "--store first"] {
        refused(
            &host,
            &format!("{restore} {from} b"),
            "is sealed: an --identity is needed",
        );
        refused(
            &host,
            &format!("{restore} {from} --identity /srv/other-key b"),
            "sealed for others",
        );
        assert_restored(&host, &before);
    }
    for from in [
        "--image-path /srv/sealed",
        "--store first",
        "--store second",
    ] {
        restored(&host, &bundle, &format!("{from} --identity /srv/key"));
    }
    assert_restored(&host, &before);
    // Otherwise this test would not see anything in the first place.
    start(&host, "xebec", &bundle, "a");
    checkpoint(&host, "--image-path /srv/plain a");
    assert!(shows(&host, "/srv/plain").contains("/srv/plain/pages-1.img"));
    refused(
        &host,
        &format!("{restore} --image-path /srv/plain --identity /srv/key b"),
        "no sealed checkpoint is here",
    );
}

#[test]
fn what_was_changed_in_a_sealed_checkpoint_never_gets_to_criu() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    let sealed = format!("--leave-running --encrypt-to {RECIPIENT}");
    checkpoint(&host, &format!("{sealed} --image-path /srv/good a"));
    checkpoint(
        &host,
        &format!("{sealed} --store --store-root /srv/store --name c a"),
    );
    ok(&host, &["delete", "--force", "a"]);
    let flip = "flip() { n=$(($(stat -c %s $1) * $2 / 100)); \
         b=$(od -An -tu1 -j $n -N 1 $1); printf \"\\\\$(printf %o $((b ^ 1)))\" | dd of=$1 bs=1 seek=$n conv=notrunc 2>/dev/null; }";
    let restore =
        "restore --criu /srv/none --detach --bundle /srv/a --identity /srv/key --work-path /srv";
    let file = "/srv/bad/checkpoint.tar.zst.age";
    for damage in [
        format!("flip {file} 5"),
        format!("flip {file} 50"),
        format!("flip {file} 99"),
        format!("truncate -s -1 {file}"),
        format!("truncate -s 90000 {file}"),
        format!("echo >>{file}"),
    ] {
        host.check_sh(&format!(
            "{flip}; rm -rf /srv/bad; cp -r /srv/good /srv/bad; {damage}"
        ))
        .unwrap();
        refused(&host, &format!("{restore} --image-path /srv/bad b"), file);
    }
    for (damage, cause) in [
        ("flip records/c 2", "its record is not what was written"),
        ("flip records/c 98", "its record is not what was written"),
        (
            "flip $(find chunks -type f | head -n 1) 50",
            "not what was sealed",
        ),
        (
            "truncate -s 20 $(find chunks -type f | head -n 1)",
            "not what was sealed",
        ),
        (
            "set -- $(find chunks -type f); mv $1 x; mv $2 $1; mv x $2",
            "not what was sealed",
        ),
        ("rm $(find chunks -type f | head -n 1)", "No such file"),
    ] {
        host.check_sh(&format!(
            "{flip}; rm -rf /srv/badly; cp -r /srv/store /srv/badly; cd /srv/badly; {damage}"
        ))
        .unwrap();
        let command = format!("{restore} --store-root /srv/badly --store c b");
        refused(&host, &command, cause);
    }
    // CRIU would have been asked for next.
    refused(
        &host,
        &format!("{restore} --image-path /srv/good b"),
        "/srv/none",
    );
    assert!(!host.sh("ls /srv/restore.log").unwrap().success());
}

#[test]
fn an_operator_can_forbid_memory_in_the_open() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    let required = "XEBEC_REQUIRE_ENCRYPTION=1 xebec checkpoint --leave-running";
    let file = "mkdir -p /etc/xebec; touch /etc/xebec/require-encryption";
    for arguments in ["--image-path /srv/i a", "--store a"] {
        let failed = host.sh(&format!("{required} {arguments}")).unwrap();
        assert!(
            failed
                .stderr
                .contains("only encrypted checkpoints are allowed here"),
            "{failed:?}"
        );
    }
    host.check_sh(file).unwrap();
    refused(
        &host,
        "checkpoint --image-path /srv/i a",
        "(/etc/xebec/require-encryption)",
    );
    assert_eq!(host.sh("find /srv/i").unwrap().stdout, "");
    goes_on(&host, "a");
    checkpoint(
        &host,
        &format!("--encrypt-to {RECIPIENT} --image-path /srv/i a"),
    );
    restored(&host, &bundle, "--image-path /srv/i --identity /srv/key");
}

#[test]
fn a_name_or_a_key_that_is_none_is_refused_before_a_container_stops() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    for (arguments, cause) in [
        ("--encrypt-to age1nonsense", "no age recipient"),
        ("--encrypt-to /srv/key", "no age recipient"),
        ("--store --name ../x", "no name of a checkpoint"),
        (
            "--store --name x --store-root /proc/none",
            "mkdir /proc/none",
        ),
    ] {
        refused(&host, &format!("checkpoint {arguments} a"), cause);
    }
    goes_on(&host, "a");
    ok(&host, &["delete", "--force", "a"]);
}

fn names(host: &NativeHost) -> Vec<Value> {
    let listed = ok(host, &["checkpoint", "list", "--format", "json"]);
    serde_json::from_str(&listed).expect("a list")
}

#[test]
fn a_store_shares_chunks_keeps_what_is_pinned_and_lets_go_of_the_rest() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    let name = checkpoint(&host, "--leave-running --store --pin a");
    assert!(name.starts_with("a-20"), "{name}");
    for number in 1..=4 {
        checkpoint(
            &host,
            &format!("--leave-running --store --name c{number} --keep-count 2 a"),
        );
        goes_on(&host, "a");
    }
    let all = names(&host);
    let kept: Vec<_> = all
        .iter()
        .map(|one| one["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(kept, [&name, "c3", "c4"]);
    assert_eq!(all[0]["pinned"], json!(true));
    // Each one has less for itself than it is large, though its pages are compressed anyway.
    let own: u64 = all
        .iter()
        .map(|one| one["own"].as_u64().expect("a size"))
        .sum();
    let used = host
        .check_sh("du -s --block-size=1 /var/lib/xebec/checkpoints | cut -f 1")
        .unwrap();
    assert!(
        own < used.trim().parse().expect("a size"),
        "{own} of {used}"
    );
    ok(&host, &["checkpoint", "pin", "c3"]);
    ok(&host, &["checkpoint", "unpin", &name]);
    let pruned = ok(
        &host,
        &["checkpoint", "prune", "--keep-age", "0", "--format", "json"],
    );
    // A checkpoint of this second is not older.
    assert!(pruned.contains(&name), "{pruned}");
    ok(&host, &["delete", "--force", "a"]);
    restored(&host, &bundle, "--store c3");
    refused(&host, "checkpoint rm nothing", "no checkpoint");
    refused(
        &host,
        "restore --bundle /srv/a --store nothing b",
        "no checkpoint",
    );
    let rest: Vec<_> = names(&host)
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect();
    let mut remove = vec!["checkpoint", "rm"];
    remove.extend(rest.iter().map(String::as_str));
    ok(&host, &remove);
    let left = host
        .check_sh("find /var/lib/xebec/checkpoints/chunks -type f")
        .unwrap();
    assert_eq!(left, "");
}

#[test]
fn a_disk_that_is_full_costs_neither_the_container_nor_the_store_anything() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    host.check_sh("mkdir /srv/small /srv/tiny; mount -t tmpfs tmpfs /srv/small; mount -t tmpfs -o size=8k tmpfs /srv/tiny")
        .unwrap();
    let store = "--store --store-root /srv/small";
    checkpoint(&host, &format!("--leave-running {store} --name one a"));
    // None of these is left running by its own wish.
    refused(
        &host,
        &format!("checkpoint --encrypt-to {RECIPIENT} --image-path /srv/tiny a"),
        "o space left",
    );
    assert_eq!(host.check_sh("ls -A /srv/tiny").unwrap(), "");
    refused(
        &host,
        &format!("checkpoint {store} --keep-bytes 4K a"),
        "no room in the store",
    );
    // In the middle of writing: there are no more files to be had.
    host.check_sh("mount -o remount,nr_inodes=$(($(df --output=iused /srv/small | tail -n 1) + 3)) /srv/small")
        .unwrap();
    let before = host.check_sh("find /srv/small | sort").unwrap();
    host.check_sh("sleep 0.2").unwrap();
    refused(
        &host,
        &format!("checkpoint {store} --encrypt-to {RECIPIENT} a"),
        "o space left",
    );
    assert_eq!(host.check_sh("find /srv/small | sort").unwrap(), before);
    assert_eq!(state(&host, "a")["status"], "running");
    goes_on(&host, "a");
    ok(&host, &["delete", "--force", "a"]);
    restored(&host, &bundle, "--store-root /srv/small --store one");
}

#[test]
fn a_writer_that_is_killed_at_any_step_loses_nothing_and_leaves_nothing() {
    let host = with_keys();
    let bundle = counter(&host, "/srv/a");
    start(&host, "xebec", &bundle, "a");
    goes_on(&host, "a");
    checkpoint(&host, "--leave-running --store --name base a");
    let killed = |call: &str, when: u32, command: &str| {
        let script = format!(
            "strace -qq -o /dev/null -e trace={call} -e inject={call}:signal=KILL:when={when} xebec checkpoint {command}"
        );
        host.sh(&script).expect("strace runs")
    };
    let mut deaths = 0;
    for (call, when) in [
        ("syncfs", 1),
        ("syncfs", 2),
        ("fsync", 1),
        ("rename", 1),
        ("rename", 2),
        ("rename", 4),
        ("write", 25),
        ("write", 50),
        ("unlink", 1),
        ("mkdir", 7),
        ("statfs", 1),
    ] {
        let command = format!("--leave-running --store --name {call}-{when} --keep-count 2 a");
        let output = killed(call, when, &command);
        deaths += u32::from(!output.success());
        let all = names(&host);
        assert!(
            all.iter().all(|one| one.get("damage").is_none()),
            "{call} {when}: {all:?}"
        );
        assert!((1..=2).contains(&all.len()), "{call} {when}: {all:?}");
        assert_eq!(state(&host, "a")["status"], "running", "{call} {when}");
    }
    assert!(deaths >= 7, "{deaths}");
    checkpoint(
        &host,
        "--leave-running --store --name last --keep-count 2 a",
    );
    killed("unlink", 2, "rm last");
    checkpoint(&host, "--leave-running --store --name end --keep-count 1 a");
    assert_eq!(names(&host).len(), 1);
    let referred =
        "head -c 100000 /var/lib/xebec/checkpoints/records/end | grep -ao '\"id\":' | wc -l";
    let there =
        "find /var/lib/xebec/checkpoints/chunks /var/lib/xebec/checkpoints/staging -type f | wc -l";
    assert_eq!(
        host.check_sh(referred).unwrap(),
        host.check_sh(there).unwrap()
    );
    ok(&host, &["delete", "--force", "a"]);
    restored(&host, &bundle, "--store end");
}
