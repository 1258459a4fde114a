//! Hooks: when they run, where, with what, and what their failure leads to.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{HOOK_KINDS, assert_restored, host, settled, xebec};

fn shell(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
}

/// The message of an error line, from the first word that both runtimes use.
fn message(stderr: &str) -> Option<&str> {
    let from = stderr.rfind("error running ")?;
    stderr[from..].split(" hook #0").next()
}

#[test]
fn each_kind_runs_in_its_place_with_its_state_and_environment() {
    let host = host();
    let mut bundle =
        Bundle::create(&host, "/tmp/b", &["sh", "-c", "echo program >> /log"]).unwrap();
    // Two kinds run inside, where the log is the one of the root file system once it is entered.
    let name = |kind: &str| {
        if kind == "startContainer" {
            "sh"
        } else {
            "zeroth"
        }
    };
    let hook = |kind: &str, log: &str| {
        json!({ "path": "/bin/sh", "env": ["ONE=1", "TWO=2"], "args": [name(kind), "-c", format!(
            "echo {kind} $(pwd) $ONE$TWO $0 $(cat) >> {log}; test -z \"$HOME\"")] })
    };
    let host_log = "/tmp/b/rootfs/log";
    let mut hooks = json!({});
    for kind in HOOK_KINDS {
        let log = if kind == "startContainer" {
            "/log"
        } else {
            host_log
        };
        hooks[kind] = json!([hook(kind, log)]);
    }
    bundle.config["hooks"] = hooks;
    bundle.config["process"]["cwd"] = json!("/tmp");
    bundle.config["annotations"] = json!({ "who": "us" });
    bundle.write().unwrap();
    let output = xebec(&host, &["run", "--bundle", "/tmp/b", "hooked"]).unwrap();
    assert!(output.success(), "{output:?}");
    let log = host.read_file(host_log).unwrap();
    // The program and the hooks after its start run side by side.
    let (program, lines): (Vec<_>, Vec<_>) = log.lines().partition(|line| *line == "program");
    assert_eq!(program.len(), 1, "{log}");
    assert_eq!(lines.len(), HOOK_KINDS.len(), "{log}");
    let places = [
        "/tmp/b",
        "/tmp/b",
        "/tmp/b/rootfs",
        "/tmp",
        "/tmp/b",
        "/tmp/b",
    ];
    let statuses = [
        "creating", "creating", "creating", "created", "running", "stopped",
    ];
    for (index, line) in lines.iter().enumerate() {
        let mut words = line.splitn(5, ' ');
        let head: Vec<_> = words.by_ref().take(4).collect();
        let kind = HOOK_KINDS[index];
        assert_eq!(head, [kind, places[index], "12", name(kind)], "{log}");
        let state: Value = serde_json::from_str(words.next().unwrap_or_default()).expect(line);
        assert_eq!(state["status"], statuses[index], "{line}");
        assert_eq!(state["id"], "hooked", "{line}");
        assert_eq!(state["bundle"], "/tmp/b", "{line}");
        assert_eq!(state["annotations"]["who"], "us", "{line}");
        assert_eq!(state["pid"] == 0, index == 5, "{line}");
    }
}

#[test]
fn a_failure_leads_to_what_it_leads_to_in_runc() {
    let host = host();
    let good = Bundle::create(&host, "/tmp/good", &["true"]).unwrap();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let before = settled(&host, &good);
    for kind in HOOK_KINDS {
        bundle.config["hooks"] = json!({ kind: shell("echo out; echo err >&2; exit 3") });
        bundle.write().unwrap();
        let run = |runtime: &str| {
            host.run(&[runtime, "run", "--bundle", "/tmp/b", "failing"])
                .unwrap()
        };
        let (ours, runcs) = (run("xebec"), run("runc"));
        // After the start runc's init tells of it by itself, with a status of its own.
        if kind != "startContainer" {
            assert_eq!(ours.status, runcs.status, "{kind}: {ours:?} {runcs:?}");
        }
        assert_eq!(ours.success(), kind == "poststop", "{kind}: {ours:?}");
        assert_eq!(message(&ours.stderr), message(&runcs.stderr), "{kind}");
        let said = r"exit status 3, stdout: out\n, stderr: err\n";
        assert!(ours.stderr.contains(said), "{kind}: {}", ours.stderr);
        host.check_sh("runc delete --force failing 2>/dev/null || true")
            .unwrap();
    }
    assert_restored(&host, &before);
}

#[test]
fn a_hook_that_cannot_start_or_takes_too_long_ends_the_creation() {
    let host = host();
    let good = Bundle::create(&host, "/tmp/good", &["true"]).unwrap();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let before = settled(&host, &good);
    for kind in ["createRuntime", "createContainer"] {
        let slow = json!([{ "path": "/bin/sh", "timeout": 1,
            "args": ["sh", "-c", "sleep 4321 & sleep 4321"] }]);
        for (hook, says) in [
            (
                json!([{ "path": "/none" }]),
                "fork/exec /none: no such file or directory",
            ),
            (slow, "hook ran past specified timeout of 1.0s"),
        ] {
            bundle.config["hooks"] = json!({ kind: hook });
            bundle.write().unwrap();
            let ours = xebec(&host, &["run", "--bundle", "/tmp/b", "late"]).unwrap();
            assert_eq!(ours.status, 1, "{kind}: {ours:?}");
            assert!(ours.stderr.contains(says), "{kind}: {}", ours.stderr);
        }
        assert_eq!(
            sleepers(&host),
            "",
            "{kind}: the hook's group is still there"
        );
    }
    bundle.config["hooks"] = json!({ "poststop": [{ "path": "relative" }] });
    bundle.write().unwrap();
    let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "refused"]).unwrap();
    assert!(refused.stderr.contains("hooks.poststop[0]"), "{refused:?}");
    assert_restored(&host, &before);
}

/// Pids of processes of the slow hook.
fn sleepers(host: &NativeHost) -> String {
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | \
                  grep -q '^sleep 4321' && echo $p; done; true";
    host.check_sh(script).unwrap()
}

#[test]
fn all_poststop_hooks_run_and_their_failure_is_a_warning_of_run() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", "exit 5"]).unwrap();
    bundle.config["hooks"] = json!({ "poststop": [
        { "path": "/bin/false" },
        { "path": "/bin/sh", "args": ["sh", "-c", "echo second > /tmp/second"] },
    ] });
    bundle.write().unwrap();
    let output = xebec(&host, &["run", "--bundle", "/tmp/b", "stopped"]).unwrap();
    assert_eq!(output.status, 5, "{output:?}");
    assert!(output.stderr.contains("poststop hook #0"), "{output:?}");
    assert!(output.stderr.contains("level=warning"), "{output:?}");
    assert_eq!(host.read_file("/tmp/second").unwrap(), "second\n");
    let gone = xebec(&host, &["state", "stopped"]).unwrap();
    assert!(gone.stderr.contains("does not exist"), "{gone:?}");
}

#[test]
fn hooks_of_a_user_without_privileges_run_with_what_the_user_has() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let hook = |kind: &str, log: &str| {
        shell(&format!(
            "echo {kind} $(id -u) $(pwd) $(jq -r .status 2>/dev/null) >> {log}"
        ))
    };
    let mut hooks = json!({});
    for kind in HOOK_KINDS {
        let log = if kind == "startContainer" {
            "/log"
        } else {
            "/tmp/b/rootfs/log"
        };
        hooks[kind] = hook(kind, log);
    }
    bundle.config["hooks"] = hooks;
    let linux = &mut bundle.config["linux"];
    linux["namespaces"] = json!([{ "type": "user" }, { "type": "mount" }, { "type": "pid" },
        { "type": "ipc" }, { "type": "uts" }]);
    let own = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    linux["uidMappings"] = own.clone();
    linux["gidMappings"] = own;
    bundle.config["mounts"] = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
    ]);
    bundle.write().unwrap();
    host.check_sh(
        "useradd --uid 1000 joe; mkdir -p /run/user/1000; chown -R joe /tmp/b /run/user/1000",
    )
    .unwrap();
    let logs = ["xebec", "runc"].map(|runtime| {
        let run = format!(
            "rm -f /tmp/b/rootfs/log; setpriv --reuid joe --regid joe --clear-groups env \
             XDG_RUNTIME_DIR=/run/user/1000 {runtime} --root /run/user/1000/{runtime} \
             run --bundle /tmp/b hooked"
        );
        host.check_sh(&run).unwrap();
        host.read_file("/tmp/b/rootfs/log").unwrap()
    });
    let [ours, runcs] = &logs;
    assert_eq!(ours.lines().count(), HOOK_KINDS.len(), "{ours}");
    for line in [
        "createRuntime 1000 /tmp/b creating",
        "createContainer 0 /tmp/b/rootfs creating",
        "startContainer 0 /",
        "poststop 1000 /tmp/b stopped",
    ] {
        assert!(
            ours.lines().any(|found| found.trim() == line),
            "{line}: {ours}"
        );
    }
    // When the start is over is told differently; runc's hooks after it find "created".
    let before = |log: &str| {
        let mut lines: Vec<_> = log.lines().map(str::to_owned).collect();
        lines.retain(|line| !line.starts_with("post"));
        lines
    };
    assert_eq!(before(ours), before(runcs));
}
