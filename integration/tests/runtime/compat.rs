//! What conformance suites of other runtimes found: xebec and runc do the same with one bundle.

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use serde_json::json;

use super::{assert_restored, host, ok, settled, xebec};

/// The same command line by runc and by xebec; in the script, `$R` is the runtime.
#[track_caller]
fn both(host: &NativeHost, script: &str) -> [Output; 2] {
    ["runc", "xebec"].map(|runtime| {
        let script = format!("R={runtime}; {script}");
        host.sh(&script).expect("the script runs")
    })
}

#[test]
fn a_terminal_in_the_foreground_leaves_line_ends_alone() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/tty", &["busybox", "printf", r"a\nb\n"]).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write().unwrap();
    let shown = host
        .sh("xebec run --bundle /tmp/tty tty </dev/null")
        .unwrap();
    assert_eq!((shown.status, &*shown.stdout), (0, "a\nb\n"), "{shown:?}");
}

#[test]
fn a_process_document_may_leave_out_what_the_containers_process_has() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/io", &["sleep", "1000"]).unwrap();
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 3});
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_CORE", "soft": 3584, "hard": 4096}]);
    bundle.write().unwrap();
    let script = "$R run --detach --bundle /tmp/io io </dev/null >/dev/null 2>&1 && \
         $R exec --process /tmp/process.json io; code=$?; $R delete -f io; exit $code";
    for (extra, expected) in [
        ("", "best-effort: prio 3\n0\n"),
        (
            r#","ioPriority":{"class":"IOPRIO_CLASS_IDLE"}"#,
            "idle\n0\n",
        ),
        (
            r#","capabilities":null,"rlimits":null,"env":null"#,
            "best-effort: prio 3\n0\n",
        ),
    ] {
        let args = r#"{"args":["/bin/sh","-c","busybox ionice -p $$; ulimit -c"],"cwd":"/""#;
        host.write_file("/tmp/process.json", format!("{args}{extra}}}"))
            .unwrap();
        for output in both(&host, script) {
            assert_eq!(output.stdout, expected, "{extra}: {output:?}");
        }
    }
}

#[test]
fn killing_a_container_that_shares_its_pid_namespace_leaves_none_of_its_processes() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/shared", &["sleep", "1000"]).unwrap();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.write().unwrap();
    let start = "xebec run -d --pid-file /tmp/pid --bundle /tmp/shared shared </dev/null >/dev/null 2>&1 && \
         xebec exec -d shared sleep 1000 </dev/null >/dev/null 2>&1 && xebec exec -d shared sleep 1000 </dev/null >/dev/null 2>&1";
    let all_gone = "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; \
         pgrep -lx sleep; exit 1";
    for init_first in [false, true] {
        host.check_sh(start).unwrap();
        if init_first {
            host.check_sh("kill -9 $(cat /tmp/pid); sleep 0.2; pgrep -x sleep")
                .unwrap();
        }
        ok(&host, &["kill", "shared", "KILL"]);
        host.check_sh(all_gone).unwrap();
        ok(&host, &["delete", "shared"]);
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_told_as_its_own_end() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/bad", &["/bad"]).unwrap();
    host.write_file("/tmp/bad/rootfs/bad", "#!/no/such/interpreter\n")
        .unwrap();
    host.check_sh("chmod +x /tmp/bad/rootfs/bad").unwrap();
    let [runc, xebec] = both(&host, &format!("$R run --bundle {} bad", bundle.path()));
    assert_eq!(xebec.stderr, "exec /bad: no such file or directory\n");
    assert_eq!((xebec.status, &xebec.stderr), (runc.status, &runc.stderr));
    let left = self::xebec(&host, &["state", "bad"]).unwrap();
    assert!(left.stderr.contains("container does not exist"), "{left:?}");
}

#[test]
fn an_ambient_capability_that_cannot_be_had_is_a_warning() {
    let host = host();
    let mut bundle = Bundle::create(
        &host,
        "/tmp/amb",
        &["busybox", "grep", "CapAmb", "/proc/self/status"],
    )
    .unwrap();
    let sets = &mut bundle.config["process"]["capabilities"];
    *sets = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_CHOWN"]});
    bundle.write().unwrap();
    for output in both(&host, "$R run --bundle /tmp/amb amb") {
        assert_eq!(output.stdout, "CapAmb:\t0000000000000020\n", "{output:?}");
        let warned = output
            .stderr
            .contains("can't raise ambient capability CAP_CHOWN: ");
        assert!(warned, "{output:?}");
    }
}

#[test]
fn a_container_may_live_in_the_mount_namespace_of_the_host() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/open", &["sleep", "1000"]).unwrap();
    let linux = &mut bundle.config["linux"];
    linux["maskedPaths"] = json!([]);
    linux["readonlyPaths"] = json!([]);
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "mount");
    bundle.write().unwrap();
    let start =
        "xebec run -d --pid-file /tmp/open.pid --bundle /tmp/open open </dev/null >/dev/null 2>&1";
    host.check_sh(start).unwrap();
    let same = "test $(readlink /proc/$(cat /tmp/open.pid)/ns/mnt) = $(readlink /proc/self/ns/mnt)";
    host.check_sh(same).unwrap();
    // Further processes are inside the container's root, too.
    let names = ok(&host, &["exec", "open", "ls", "/"]);
    assert_eq!(names, "bin\ndev\netc\nproc\nrun\nsys\ntmp\n");
    assert!(ok(&host, &["exec", "open", "busybox", "ps"]).contains("sleep 1000"));
    ok(&host, &["delete", "--force", "open"]);

    bundle.config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    bundle.write().unwrap();
    for output in both(&host, "$R run --bundle /tmp/open open") {
        let reason = "unable to restrict sys entries without a private MNT namespace";
        assert!(output.stderr.contains(reason), "{output:?}");
    }
}

#[test]
fn a_created_container_ends_when_it_is_asked_to() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/asked", &["sleep", "1000"]).unwrap();
    let path = bundle.path();
    let script = format!(
        "$R create --bundle {path} asked </dev/null >/dev/null 2>&1 && $R kill asked TERM && \
         for i in $(seq 100); do $R state asked | grep -q stopped && break; sleep 0.05; done; \
         $R state asked | grep status; $R delete asked"
    );
    for output in both(&host, &script) {
        assert!(output.stdout.contains("stopped"), "{output:?}");
        assert!(output.success(), "{output:?}");
    }
}

#[test]
fn start_container_hooks_are_bound_by_the_filter_and_have_the_programs_environment() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/bound", &["true"]).unwrap();
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
    let hook = "echo in $HOME >&2; busybox mkdir /tmp/d";
    bundle.config["hooks"] =
        json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    bundle.write().unwrap();
    for output in both(&host, "$R run --bundle /tmp/bound bound") {
        assert!(!output.success(), "{output:?}");
        for words in [
            "error running startContainer hook #0",
            "in /",
            "Operation not permitted",
        ] {
            assert!(output.stderr.contains(words), "{words}: {output:?}");
        }
    }
}

#[test]
fn the_callers_groups_are_kept_when_the_annotation_says_so() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/groups", &["id", "-G"]).unwrap();
    for (annotations, expected) in [
        (json!({}), "0\n"),
        (json!({"run.oci.keep_original_groups": "1"}), "0 7 9\n"),
    ] {
        bundle.config["annotations"] = annotations;
        bundle.write().unwrap();
        for runtime in ["crun", "xebec"] {
            let script = format!("setpriv --groups 7,9 {runtime} run --bundle /tmp/groups groups");
            let output = host.sh(&script).unwrap();
            assert_eq!(output.stdout, expected, "{runtime}: {output:?}");
        }
    }
}

#[test]
fn a_tmpfs_takes_the_mode_of_the_directory_it_covers() {
    let host = host();
    let script = "busybox stat -c %a /tmp/old /tmp/new; busybox grep -o 'mode=[0-9]*' /proc/mounts";
    let mut bundle = Bundle::create(&host, "/tmp/modes", &["sh", "-c", script]).unwrap();
    host.check_sh("mkdir -m 710 /tmp/modes/rootfs/tmp/old")
        .unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        ["/proc", "/dev"]
            .iter()
            .any(|kept| mount["destination"] == *kept)
    });
    for destination in ["/tmp/old", "/tmp/new"] {
        mounts.push(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
    }
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.write().unwrap();
    for output in both(
        &host,
        "rm -rf /tmp/modes/rootfs/tmp/new; $R run --bundle /tmp/modes modes",
    ) {
        assert_eq!(
            output.stdout, "710\n1777\nmode=755\nmode=710\n",
            "{output:?}"
        );
    }
}

#[test]
fn a_container_can_be_deleted_as_soon_as_it_is_killed() {
    let host = host();
    // A payload with many processes takes its pid namespace some time to end.
    let payload = "for i in $(busybox seq 50); do sleep 1000 & done; echo > /tmp/up; wait";
    let bundle = Bundle::create(&host, "/tmp/quick", &["sh", "-c", payload]).unwrap();
    let script = format!(
        "for round in $(seq 10); do
           rm -f /tmp/quick/rootfs/tmp/up
           xebec run -d --bundle {} quick </dev/null >/dev/null 2>&1 || exit 1
           until [ -e /tmp/quick/rootfs/tmp/up ]; do sleep 0.05; done
           xebec delete quick 2>&1 | grep -q 'that is not stopped: running' || exit 2
           xebec kill quick KILL && xebec delete quick || exit 3
         done",
        bundle.path()
    );
    host.check_sh(&script).unwrap();
}

#[test]
fn runc_lists_ends_and_deletes_our_containers_and_starts_nothing_in_them() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    bundle.config["hooks"] = json!({ "poststop": [
        { "path": "/usr/bin/touch", "args": ["touch", "/tmp/poststop"], "timeout": 5 }
    ]});
    let warm = Bundle::create(&host, "/tmp/warm", &["true"]).unwrap();
    let before = settled(&host, &warm);
    let document = r#"{"args":["touch","/tmp/started"],"cwd":"/"}"#;
    for shares_pids in [false, true] {
        if shares_pids {
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
            namespaces.unwrap().retain(|it| it["type"] != "pid");
        }
        bundle.write().unwrap();
        host.write_file("/tmp/process.json", document).unwrap();
        let script = "R='runc --root /run/both'; X='xebec --root /run/both'
            $X create --bundle /tmp/b c </dev/null >/dev/null 2>&1
            $R list | awk '/^c / { print $3, $4 }'
            $X start c
            $R state c | jq -c '[.id, .pid > 0, .status, .bundle, .rootfs]'
            test $($R state c | jq .pid) = $($X state c | jq .pid)
            until $R ps c | grep -o 'sleep 1000'; do sleep 0.05; done
            $R exec c touch /tmp/started 2>/dev/null && exit 1
            $R exec --process /tmp/process.json c 2>/dev/null && exit 1
            test ! -e /tmp/b/rootfs/tmp/started -a ! -e /tmp/started
            $R kill c KILL; until $R list | grep -q stopped; do sleep 0.05; done
            $X state c | jq -r .status
            $R delete c; ls /run/both; rm /tmp/poststop
            $X run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1
            $R delete --force c; ls /run/both
            rmdir /run/both; rm /tmp/poststop /tmp/process.json";
        let said = host.check_sh(script).unwrap();
        let expected = [
            "created /tmp/b",
            r#"["c",true,"running","/tmp/b","/tmp/b/rootfs"]"#,
            "sleep 1000",
            "stopped",
        ];
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines, expected);
        assert_restored(&host, &before);
    }
}
