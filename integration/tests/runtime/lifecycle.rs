//! The life of a container from `create` to `delete`, and what a bad bundle leads to.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use integration::bundle::Bundle;
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, state, xebec};

#[test]
fn a_container_is_created_started_entered_killed_and_deleted() {
    let host = host();
    let warm = Bundle::create(&host, "/tmp/warm", &["true"]).unwrap();
    let bundle = Bundle::create(&host, "/tmp/web", &["sleep", "1000"]).unwrap();
    let before = settled(&host, &warm);

    // `create` returns while init waits, so its descriptors must not be the test's pipes.
    let create =
        "xebec create --bundle /tmp/web --pid-file /tmp/web.pid web </dev/null >/dev/null 2>&1";
    host.check_sh(create).unwrap();
    let created = state(&host, "web");
    assert_eq!(created["status"], "created");
    assert_eq!(created["bundle"], bundle.path());
    let pid = host.read_file("/tmp/web.pid").unwrap();
    assert_eq!(created["pid"].to_string(), pid.trim());

    ok(&host, &["start", "web"]);
    assert_eq!(state(&host, "web")["status"], "running");
    assert!(ok(&host, &["list"]).contains("web"));
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "web");
    assert!(ok(&host, &["ps", "web"]).contains(pid.trim()));

    let exec = xebec(
        &host,
        &["exec", "web", "sh", "-c", "echo in; echo err >&2; exit 7"],
    )
    .unwrap();
    assert_eq!(
        (exec.status, &*exec.stdout, &*exec.stderr),
        (7, "in\n", "err\n")
    );
    let exec = ok(
        &host,
        &[
            "exec",
            "--env",
            "WHO=me",
            "--cwd",
            "/tmp",
            "web",
            "sh",
            "-c",
            "echo $WHO; pwd",
        ],
    );
    assert_eq!(exec, "me\n/tmp\n");

    let second = xebec(&host, &["create", "--bundle", "/tmp/web", "web"]).unwrap();
    assert_eq!(second.status, 1);
    assert!(
        second
            .stderr
            .contains("container with given ID already exists"),
        "{second:?}"
    );
    let alive = xebec(&host, &["delete", "web"]).unwrap();
    assert!(
        !alive.success(),
        "a running container was deleted without --force"
    );

    ok(&host, &["kill", "web", "KILL"]);
    host.check_sh("for i in $(seq 100); do xebec state web | grep -q '\"stopped\"' && exit; sleep 0.05; done; exit 1")
        .unwrap();
    ok(&host, &["delete", "web"]);
    let gone = xebec(&host, &["state", "web"]).unwrap();
    assert!(gone.stderr.contains("container does not exist"), "{gone:?}");

    host.check_sh("rm /tmp/web.pid").unwrap();
    assert_restored(&host, &before);
}

#[test]
fn run_passes_output_and_exit_status_on_and_delete_force_ends_a_live_container() {
    let host = host();
    let warm = Bundle::create(&host, "/tmp/warm", &["true"]).unwrap();
    let mut bundle = Bundle::create(
        &host,
        "/tmp/b",
        &["sh", "-c", "echo out; echo err >&2; exit 42"],
    )
    .unwrap();
    let before = settled(&host, &warm);

    let ran = xebec(&host, &["run", "--bundle", "/tmp/b", "short"]).unwrap();
    assert_eq!(
        (ran.status, &*ran.stdout, &*ran.stderr),
        (42, "out\n", "err\n")
    );

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b long </dev/null >/dev/null 2>&1")
        .unwrap();
    ok(&host, &["pause", "long"]);
    assert_eq!(state(&host, "long")["status"], "paused");
    ok(&host, &["resume", "long"]);
    assert_eq!(state(&host, "long")["status"], "running");
    ok(&host, &["delete", "--force", "long"]);

    let killed = "xebec run --bundle /tmp/b shot & \
                  until xebec kill shot KILL 2>/dev/null; do sleep 0.05; done; wait $!";
    assert_eq!(host.sh(killed).unwrap().status, 137);
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
    assert_restored(&host, &before);
}

#[test]
fn a_container_is_confined_as_its_spec_says() {
    let host = host();
    let script = "id -u; hostname; ls /proc/1/task | echo pids; cat /proc/sys/kernel/hostname; \
                  grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status; \
                  cat /proc/kcore >/dev/null 2>&1 && echo kcore-read; \
                  echo x > /proc/sys/kernel/hostname || echo proc-is-read-only; \
                  ls -l /proc/self/fd | wc -l";
    let script = script.replace("| wc -l", "");
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", &script]).unwrap();
    bundle.config["hostname"] = json!("inside");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]
    });
    bundle.write().unwrap();
    let output = ok(&host, &["run", "--bundle", "/tmp/b", "confined"]);
    let expect = [
        "inside\n",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "proc-is-read-only",
    ];
    for part in expect {
        assert!(output.contains(part), "{part} is missing in\n{output}");
    }
    assert!(!output.contains("kcore-read"), "{output}");

    bundle.config["process"]["args"] = json!(["busybox", "mkdir", "/tmp/x"]);
    bundle.write().unwrap();
    let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "filtered"]).unwrap();
    assert!(
        refused.stderr.contains("Operation not permitted"),
        "{refused:?}"
    );
}

#[test]
fn hooks_run_in_their_order_with_the_state_on_their_input() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let hook = |name: &str| {
        json!([{ "path": "/bin/sh", "args": ["sh", "-c",
            format!("echo {name} $(jq -r '.id + \" \" + .status') >> /tmp/hooks")] }])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
        "poststart": hook("poststart"), "poststop": hook("poststop"),
    });
    bundle.write().unwrap();
    ok(&host, &["run", "--bundle", "/tmp/b", "hooked"]);
    let log = host.read_file("/tmp/hooks").unwrap();
    let names: Vec<_> = log
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        names,
        ["prestart", "createRuntime", "poststart", "poststop"],
        "{log}"
    );
    assert!(
        log.lines()
            .all(|line| line.split(' ').nth(1) == Some("hooked")),
        "{log}"
    );
    assert!(log.contains("poststop hooked stopped"), "{log}");

    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    bundle.write().unwrap();
    let before = Inventory::of(&host).unwrap();
    let failed = xebec(&host, &["run", "--bundle", "/tmp/b", "refused"]).unwrap();
    assert!(
        !failed.success() && failed.stderr.contains("hook"),
        "{failed:?}"
    );
    assert_restored(&host, &before);
}

#[test]
fn a_terminal_is_handed_over_the_console_socket() {
    let host = host();
    let mut bundle = Bundle::create(
        &host,
        "/tmp/b",
        &["sh", "-c", "tty; stty size; read x; echo got $x"],
    )
    .unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    bundle.write().unwrap();
    let listener = UnixListener::bind(host.path("/tmp/console.sock")).unwrap();
    host.check_sh(
        "xebec run --detach --bundle /tmp/b --console-socket /tmp/console.sock t </dev/null >/dev/null 2>&1",
    )
    .unwrap();
    let (connection, _) = listener.accept().unwrap();
    let mut console = std::fs::File::from(receive_descriptor(&connection));
    console.write_all(b"hello\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    // The end of a terminal is EIO once nobody holds its other side.
    while let Ok(count) = console.read(&mut buffer)
        && count > 0
    {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(
        text.contains("/dev/pts/0") || text.contains("/dev/console"),
        "{text}"
    );
    assert!(text.contains("33 77"), "{text}");
    assert!(text.contains("got hello"), "{text}");
    ok(&host, &["delete", "--force", "t"]);
}

pub(super) fn receive_descriptor(connection: &std::os::unix::net::UnixStream) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut parts = [IoSliceMut::new(&mut name)];
    recvmsg(
        connection,
        &mut parts,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    descriptors
        .next()
        .and_then(|mut rights| rights.next())
        .expect("a terminal was sent")
}

/// What is wrong with a bundle, how it is made wrong, and what the error has to name.
struct BadBundle {
    name: &'static str,
    spoil: &'static str,
    says: &'static [&'static str],
}

const BAD_BUNDLES: &[BadBundle] = &[
    BadBundle {
        name: "config.json is no JSON",
        spoil: "echo '{\"ociVersion\": ' > config.json",
        says: &["config.json"],
    },
    BadBundle {
        name: "config.json is absent",
        spoil: "rm config.json",
        says: &["config.json"],
    },
    BadBundle {
        name: "a field has the wrong type",
        spoil: "jq '.process.args = 7' config.json > c && mv c config.json",
        says: &["config.json", "args"],
    },
    BadBundle {
        name: "the root file system is absent",
        spoil: "rm -r rootfs",
        says: &["rootfs"],
    },
    BadBundle {
        name: "the entrypoint is not in PATH",
        spoil: "jq '.process.args = [\"nothere\"]' config.json > c && mv c config.json",
        says: &["exec: \"nothere\": executable file not found in $PATH"],
    },
    BadBundle {
        name: "the entrypoint's path is absent",
        spoil: "jq '.process.args = [\"/bin/nothere\"]' config.json > c && mv c config.json",
        says: &["exec: \"/bin/nothere\": stat /bin/nothere: no such file or directory"],
    },
    BadBundle {
        name: "the entrypoint is not executable",
        spoil: "echo x > rootfs/etc/plain; \
                jq '.process.args = [\"/etc/plain\"]' config.json > c && mv c config.json",
        says: &["exec: \"/etc/plain\": permission denied"],
    },
    BadBundle {
        name: "the working directory is a file",
        spoil: "echo x > rootfs/etc/plain; \
                jq '.process.cwd = \"/etc/plain/x\"' config.json > c && mv c config.json",
        says: &["/etc/plain"],
    },
];

#[test]
fn a_bad_bundle_gives_one_clear_error_and_leaves_nothing() {
    let host = host();
    let good = Bundle::create(&host, "/tmp/good", &["true"]).unwrap();
    host.check_sh("mkdir /tmp/bad").unwrap();
    let before = settled(&host, &good);
    for case in BAD_BUNDLES {
        host.check_sh(&format!(
            "rm -rf /tmp/bad && cp -a /tmp/good /tmp/bad && cd /tmp/bad && {}",
            case.spoil
        ))
        .unwrap();
        for command in ["run", "create"] {
            let output = host
                .sh(&format!("xebec {command} --bundle /tmp/bad bad </dev/null"))
                .unwrap();
            let name = case.name;
            assert_eq!(output.status, 1, "{command}, {name}: {output:?}");
            let lines: Vec<_> = output.stderr.lines().collect();
            assert_eq!(lines.len(), 1, "{command}, {name}: {}", output.stderr);
            for part in case.says {
                let escaped = part.replace('"', "\\\"");
                let is_said = output.stderr.contains(part) || output.stderr.contains(&escaped);
                assert!(
                    is_said,
                    "{command}, {name}: {part} is missing in {}",
                    output.stderr
                );
            }
        }
        host.check_sh("rm -rf /tmp/bad").unwrap();
        assert_restored(&host, &before);
    }
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
}

#[test]
fn an_exec_that_nobody_can_be_told_of_is_ended() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1")
        .unwrap();
    let untold = "xebec exec --detach --pid-file /tmp/nowhere/pid c sleep 4712 </dev/null";
    let output = host.sh(untold).unwrap();
    assert_eq!(output.status, 255, "{output:?}");
    assert!(output.stderr.contains("/tmp/nowhere/pid"), "{output:?}");
    let left = host.sh("pgrep -xf 'sleep 4712'").unwrap();
    assert_eq!(left.status, 1, "{left:?}");
    ok(&host, &["delete", "--force", "c"]);
}

#[test]
fn an_exec_of_what_cannot_be_run_fails_as_in_runc() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    host.check_sh("echo x > /tmp/b/rootfs/etc/plain").unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1")
        .unwrap();
    for (command, says) in [
        ("nothere", "executable file not found in $PATH"),
        ("/nothere", "no such file or directory"),
        ("/etc/plain", "permission denied"),
    ] {
        let output = xebec(&host, &["exec", "c", command]).unwrap();
        assert!(
            !output.success() && output.stderr.contains(says),
            "{command}: {output:?}"
        );
    }
    let absent = xebec(&host, &["exec", "nobody", "true"]).unwrap();
    assert!(
        absent.stderr.contains("container does not exist"),
        "{absent:?}"
    );
    ok(&host, &["delete", "--force", "c"]);
}

#[test]
fn spec_and_features_are_what_tools_expect() {
    let host = host();
    let features: Value = serde_json::from_str(&ok(&host, &["features"])).unwrap();
    assert!(
        features["linux"]["seccomp"]["enabled"] == json!(true),
        "{features}"
    );
    assert!(
        features["linux"]["cgroup"]["v2"] == json!(true),
        "{features}"
    );
    assert!(
        features["mountOptions"]
            .as_array()
            .is_some_and(|o| o.len() > 30),
        "{features}"
    );
    host.check_sh("mkdir /tmp/s && cd /tmp/s && xebec spec")
        .unwrap();
    let spec: Value = serde_json::from_str(&host.read_file("/tmp/s/config.json").unwrap()).unwrap();
    assert_eq!(spec["process"]["args"], json!(["sh"]));
    let version = ok(&host, &["--version"]);
    assert!(version.contains("spec: 1."), "{version}");
}
