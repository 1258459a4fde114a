//! Full disks, damaged files, killed callers, and commands that meet on one container: one clear
//! error at most, and nothing that `delete --force` does not remove.

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, state, xebec};

/// Runs a container that sleeps, in the background.
fn run_detached(host: &NativeHost, bundle: &str, id: &str) {
    host.check_sh(&format!(
        "xebec run --detach --bundle {bundle} {id} </dev/null >/dev/null 2>&1"
    ))
    .unwrap();
}

/// The pid of a container's init.
fn pid(host: &NativeHost, id: &str) -> i64 {
    state(host, id)["pid"].as_i64().expect("a pid")
}

#[track_caller]
fn assert_one_line(output: &Output, says: &[&str]) {
    assert!(!output.success(), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    for part in says {
        assert!(
            output.stderr.to_lowercase().contains(part),
            "{part} is missing: {output:?}"
        );
    }
}

#[test]
fn a_state_root_without_room_or_without_permission_is_told_and_left_clean() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    host.check_sh(
        "mkdir -p /run/small /run/locked && mount -t tmpfs -o size=64k small /run/small \
        && mount -t tmpfs -o ro locked /run/locked && xebec --root /run/small list",
    )
    .unwrap();
    let before = settled(
        &host,
        &Bundle::create(&host, "/tmp/warm", &["true"]).unwrap(),
    );
    let create = |root: &str| {
        host.sh(&format!(
            "xebec --root {root} create --bundle {} c </dev/null >/dev/null 2>/run/said; \
             status=$?; cat /run/said >&2; rm /run/said; exit $status",
            bundle.path()
        ))
        .unwrap()
    };
    let mut refused = 0;
    for free in 0..8 {
        let fill = format!(
            "dd if=/dev/zero of=/run/small/fill bs=4096 2>/dev/null; \
             truncate -s $(( (16 - {free}) * 4096 )) /run/small/fill"
        );
        host.sh(&fill).unwrap();
        let created = create("/run/small");
        if created.success() {
            ok(&host, &["--root", "/run/small", "delete", "--force", "c"]);
        } else {
            refused += 1;
            assert_one_line(&created, &["no space left on device"]);
        }
        let left = host
            .check_sh("ls -A /run/small; ls -d /sys/fs/cgroup/c || :")
            .unwrap();
        assert_eq!(left, "fill\n", "with {free} pages free: {created:?}");
    }
    assert!((1..8).contains(&refused), "{refused} of 8 were refused");
    assert_one_line(
        &create("/run/locked"),
        &["/run/locked/c", "read-only file system"],
    );
    assert_one_line(
        &create("/etc/hostname"),
        &["/etc/hostname/c", "not a directory"],
    );
    // A careless umask opens the root to nobody else.
    let run = "(umask 0; xebec --root /run/new/root run --bundle /tmp/warm c); \
               stat -c %a /run/new /run/new/root; rm -r /run/new";
    assert_eq!(host.check_sh(run).unwrap(), "711\n711\n");
    host.check_sh("rm /run/small/fill").unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_damaged_record_is_one_error_and_its_container_can_still_be_deleted() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "4711"]).unwrap();
    let before = settled(
        &host,
        &Bundle::create(&host, "/tmp/warm", &["true"]).unwrap(),
    );
    run_detached(&host, bundle.path(), "sound");
    for damage in [
        ": > state.json",
        "head -c 100 state.json > s && mv s state.json",
        "head -c 4096 /dev/urandom > state.json",
        "echo '[1]' > state.json",
        "jq '.pid = \"x\"' state.json > s && mv s state.json",
        "rm state.json && mkfifo state.json",
        "rm state.json && ln -s /dev/zero state.json",
        "rm state.json && mkdir -p state.json/deep && touch foreign",
    ] {
        run_detached(&host, bundle.path(), "c");
        let init = pid(&host, "c");
        host.check_sh(&format!("cd /run/xebec/c && {damage}"))
            .unwrap();
        for command in [
            &["state", "c"][..],
            &["kill", "c", "KILL"],
            &["delete", "c"],
        ] {
            assert_one_line(
                &xebec(&host, command).unwrap(),
                &["/run/xebec/c/state.json"],
            );
        }
        let listed = xebec(&host, &["list"]).unwrap();
        assert!(
            listed.success() && listed.stdout.contains("sound"),
            "{damage}: {listed:?}"
        );
        assert!(listed.stderr.contains("state.json"), "{damage}: {listed:?}");
        ok(&host, &["delete", "--force", "c"]);
        let alive = host.sh(&format!("kill -0 {init}")).unwrap();
        assert!(!alive.success(), "{damage}: init has survived");
    }
    ok(&host, &["delete", "--force", "sound"]);
    assert_restored(&host, &before);
}

#[test]
fn a_pid_that_was_given_out_again_is_not_signalled() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    run_detached(&host, bundle.path(), "c");
    // The record's pid now belongs to a bystander, who has started later than init had: the kernel
    // tells start times in ticks of 10 ms, and init may have started within the current one.
    let bystander = "sleep 0.03; sleep 1000 >/dev/null 2>&1 & echo $!";
    let bystander = host.check_sh(bystander).unwrap().trim().to_owned();
    let file = "/run/xebec/c/state.json";
    let mut record: Value = serde_json::from_str(&host.read_file(file).unwrap()).unwrap();
    record["pid"] = json!(bystander.parse::<i32>().unwrap());
    host.write_file(file, record.to_string()).unwrap();

    assert_eq!(state(&host, "c")["status"], "stopped");
    let killed = xebec(&host, &["kill", "c", "KILL"]).unwrap();
    assert_one_line(&killed, &["container not running"]);
    assert!(!xebec(&host, &["exec", "c", "true"]).unwrap().success());
    ok(&host, &["delete", "--force", "c"]);
    host.check_sh(&format!("kill -0 {bystander} && kill {bystander}"))
        .unwrap();
}

#[test]
fn a_container_whose_processes_were_moved_away_is_still_ended() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    run_detached(&host, bundle.path(), "c");
    let init = pid(&host, "c");
    host.check_sh(&format!(
        "cd /sys/fs/cgroup && mkdir elsewhere && echo {init} > elsewhere/cgroup.procs && rmdir c"
    ))
    .unwrap();
    assert_eq!(state(&host, "c")["status"], "running");
    ok(&host, &["delete", "--force", "c"]);
    let alive = host.sh(&format!("kill -0 {init}")).unwrap();
    assert!(!alive.success(), "init has survived");
    host.check_sh("rmdir /sys/fs/cgroup/elsewhere").unwrap();
}

#[test]
fn a_deletion_does_not_end_who_has_taken_the_cgroup_over() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let warm = Bundle::create(&host, "/tmp/warm", &["true"]).unwrap();
    bundle.config["linux"]["cgroupsPath"] = json!("/shared");
    bundle.write().unwrap();
    let before = settled(&host, &warm);
    ok(&host, &["run", "--keep", "--bundle", "/tmp/b", "first"]);
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    run_detached(&host, bundle.path(), "second");
    ok(&host, &["delete", "first"]);
    assert_eq!(state(&host, "second")["status"], "running");
    ok(&host, &["delete", "--force", "second"]);
    assert_restored(&host, &before);
}

#[test]
fn an_init_whose_creator_was_killed_at_the_end_can_be_started() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", "echo started > /ok"]).unwrap();
    host.sh(&format!(
        "strace -o /dev/null -e trace=exit_group -e inject=exit_group:signal=KILL \
         xebec create --bundle {} c </dev/null >/dev/null 2>&1",
        bundle.path()
    ))
    .unwrap();
    assert_eq!(state(&host, "c")["status"], "created");
    ok(&host, &["start", "c"]);
    host.check_sh(
        "for i in $(seq 100); do [ -f /tmp/b/rootfs/ok ] && exit; sleep 0.1; done; exit 1",
    )
    .unwrap();
    ok(&host, &["delete", "--force", "c"]);
}

#[test]
fn a_creator_that_is_ended_during_its_hooks_holds_nobody_up() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    let warm = Bundle::create(&host, "/tmp/warm", &["true"]).unwrap();
    let before = settled(&host, &warm);
    for kind in [
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ] {
        let inside = kind == "startContainer";
        let shell = if inside {
            "/bin/busybox"
        } else {
            "/usr/bin/busybox"
        };
        let flag = if inside {
            "/in-hook"
        } else {
            "/tmp/b/rootfs/in-hook"
        };
        let script = format!("touch {flag}; exec sleep 4712");
        bundle.config["hooks"] = json!({});
        bundle.config["hooks"][kind] = json!([{ "path": shell, "args": ["sh", "-c", script] }]);
        bundle.write().unwrap();
        for signal in ["TERM", "INT", "KILL"] {
            // It does not ignore SIGINT, as what a script starts in the background does. A hook of
            // the host's goes on: the story ends it.
            let story = format!(
                "env --default-signal=INT xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1 & xebec=$!
                until [ -f /tmp/b/rootfs/in-hook ]; do sleep 0.02; done; rm /tmp/b/rootfs/in-hook
                kill -{signal} $xebec; wait $xebec
                xebec state c >/dev/null 2>&1 || [ $? = 1 ]
                timeout 20 xebec delete --force c || echo delete $?
                for hook in $(grep -lsa '471[2]' /proc/[0-9]*/cmdline); do
                    kill -9 $(echo $hook | cut -d/ -f3) 2>/dev/null
                done; :"
            );
            let said = host.sh(&story).unwrap();
            assert_eq!(said.stdout, "", "{kind}, {signal}: {said:?}");
            assert_restored(&host, &before);
        }
    }
}

#[test]
fn a_run_outlives_its_caller_and_its_container_can_be_deleted() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "4711"]).unwrap();
    let before = settled(
        &host,
        &Bundle::create(&host, "/tmp/warm", &["true"]).unwrap(),
    );
    host.sh(&format!(
        "sh -c 'xebec run --bundle {} c </dev/null >/dev/null 2>&1 & \
         until xebec state c 2>/dev/null | grep -q running; do sleep 0.02; done; kill -KILL $$'",
        bundle.path()
    ))
    .unwrap();
    assert_eq!(state(&host, "c")["status"], "running");
    ok(&host, &["kill", "c", "KILL"]);
    // The command that nobody waits for any more still does what comes after the end.
    assert_restored(&host, &before);
}

/// Races two commands on one container, many times; gives what they said, sorted.
fn race(host: &NativeHost, before: &str, one: &str, other: &str) -> Vec<String> {
    let script = format!(
        "for round in $(seq 15); do
            {before}
            {{ {one}; }} </dev/null >/tmp/one 2>&1 & {{ {other}; }} </dev/null >/tmp/other 2>&1 &
            wait; cat /tmp/one /tmp/other
            xebec delete --force c 2>/dev/null
            ls -d /run/xebec/c /sys/fs/cgroup/c 2>/dev/null
        done; rm /tmp/one /tmp/other"
    );
    let output = host.sh(&script).unwrap();
    let mut said: Vec<_> = output.stdout.lines().map(str::to_owned).collect();
    said.sort();
    said.dedup();
    said
}

#[test]
fn commands_that_meet_on_one_container_take_turns_or_say_why_not() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "4711"]).unwrap();
    let before = settled(
        &host,
        &Bundle::create(&host, "/tmp/warm", &["true"]).unwrap(),
    );
    let create = format!(
        "xebec create --bundle {} c </dev/null >/dev/null",
        bundle.path()
    );
    let run = format!(
        "xebec run --detach --bundle {} c </dev/null >/dev/null",
        bundle.path()
    );
    let delete = "xebec delete --force c";
    let cases = [
        ("", &*create, &*create, &["already exists"][..]),
        ("", &create, delete, &["does not exist"]),
        (
            &create,
            "xebec start c",
            "xebec start c",
            &["cannot start an already running"],
        ),
        (
            &create,
            "xebec start c",
            delete,
            &["does not exist", "has exited"],
        ),
        (&run, delete, delete, &["does not exist"]),
        (
            &run,
            "xebec exec c true",
            delete,
            &[
                "does not exist",
                "exec failed",
                "not running",
                "container process",
                "cgroup",
            ],
        ),
        (&run, delete, &run, &["already exists", "does not exist"]),
        (
            &run,
            "xebec kill c KILL",
            delete,
            &["does not exist", "not running"],
        ),
    ];
    for (first, one, other, allowed) in cases {
        for line in race(&host, first, one, other) {
            let is_known = allowed.iter().any(|words| line.contains(words));
            assert!(is_known, "{one} against {other}: {line}");
        }
        assert_restored(&host, &before);
    }
}

#[test]
fn two_hundred_containers_come_and_go_at_once() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "4711"]).unwrap();
    let before = settled(
        &host,
        &Bundle::create(&host, "/tmp/warm", &["true"]).unwrap(),
    );
    let path = bundle.path();
    let said = host
        .sh(&format!(
            "seq 200 | xargs -P 20 -I N sh -c '\
               xebec create --bundle {path} cN </dev/null >/dev/null && xebec start cN \
               && xebec exec cN true && xebec delete --force cN || echo cN failed' 2>&1"
        ))
        .unwrap();
    assert_eq!(said.stdout, "", "{said:?}");
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
    assert_restored(&host, &before);
}

#[test]
fn files_that_are_no_configuration_are_refused_at_once() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let before = Inventory::of(&host).unwrap();
    for (spoil, says) in [
        ("ln -s /dev/zero config.json", "config.json"),
        ("mkdir config.json", "config.json"),
        ("mkfifo config.json", "config.json"),
        (
            "yes '[' | head -c 1000000 | tr -d '\\n' > config.json",
            "config.json",
        ),
        ("truncate -s 1T config.json", "config.json"),
    ] {
        host.check_sh(&format!("rm -rf /tmp/b/config.json; cd /tmp/b; {spoil}"))
            .unwrap();
        let refused = host.sh("timeout 10 xebec run --bundle /tmp/b c").unwrap();
        assert_eq!(refused.status, 1, "{spoil}: {refused:?}");
        assert_one_line(&refused, &[says]);
    }
    host.check_sh("rm -rf /tmp/b/config.json; touch /tmp/b/config.json")
        .unwrap();
    assert_restored(&host, &before);
}
