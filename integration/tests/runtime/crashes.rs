//! `kill -9` at every step of every command: what is left can be told, is removed wholly by
//! `delete --force`, and its name is free again.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::{HOOK_KINDS, assert_restored, host, ok};

/// Calls that change something outside the process, or wait for something: each is a step. Of the
/// others, which only read or compute, every tenth is tried too.
const STEPS: &[&str] = &[
    "bpf",
    "clone3",
    "exit_group",
    "fchmodat",
    "fchownat",
    "flock",
    "fsconfig",
    "fsmount",
    "fsopen",
    "kill",
    "linkat",
    "memfd_create",
    "mkdir",
    "mkdirat",
    "mknodat",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pidfd_open",
    "pidfd_send_signal",
    "poll",
    "ppoll",
    "prctl",
    "prlimit64",
    "rename",
    "renameat",
    "rmdir",
    "setns",
    "signalfd4",
    "socketpair",
    "symlinkat",
    "unlink",
    "unlinkat",
    "unshare",
    "vfork",
    "wait4",
    "waitid",
    "write",
];

/// Kills the command of /tmp/command as it enters the NTH call of SYSCALL. Processes of a container
/// are known by their command line: they sleep for 4711 seconds, or are still xebec's.
const KILL: &str = r#"
if [ -f /tmp/before ]; then sh /tmp/before; fi
strace -o /dev/null -e trace=$1 -e inject=$1:signal=KILL:when=$2 $(cat /tmp/command) \
    </dev/null >/dev/null 2>&1
echo "killed $?"
"#;

/// What is there then; and, with everything deleted, what is left.
const CLEAN: &str = r#"
for try in 1 2 3 4 5 6 7 8 9 10; do
    hidden=
    xebec state c 2>/dev/null | grep -Eq '"(creating|created|running)"' && break
    hidden=$(grep -lsa '471[1]\|xebe[c]' /proc/[0-9]*/cmdline)
    [ -z "$hidden" ] && break
    sleep 0.1
done 2>/dev/null
echo "hidden" $hidden
if xebec state c 2>/dev/null | grep -q '"created"'; then
    said=$(xebec start c 2>&1)
    echo "start $?" $said
fi
for command in 'state c' 'list' 'delete --force c' 'run --bundle /tmp/true c'; do
    said=$(xebec $command 2>&1)
    echo "${command%% *} $?" $said
done
for try in 1 2 3 4 5 6 7 8 9 10; do
    left=$(ls -A /run/xebec | grep -v '^@'; ls -A /run/xebec/@seccomp | grep '^\.'
        ls -d /sys/fs/cgroup/c; ls -A /tmp | grep '^\.'
        grep -lsa '471[1]\|xebe[c]' /proc/[0-9]*/cmdline)
    [ -z "$left" ] && break
    sleep 0.1
done 2>/dev/null
echo "left" $left
"#;

/// A killed `exec` has not hurt the container.
const STILL_RUNS: &str = r"
echo state $(xebec state c | jq -r .status)
echo exec $(xebec exec c echo fine 2>&1)
echo left $(ls -A /tmp | grep '^\.')
";

/// The bundles that are killed: a plain one, one with everything that makes a step of its own, and
/// one that shows that the name can be used again.
fn bundles(host: &NativeHost) -> [Bundle<'_>; 3] {
    let plain = Bundle::create(host, "/tmp/plain", &["sleep", "4711"]).unwrap();
    let mut full = Bundle::create(host, "/tmp/full", &["sleep", "4711"]).unwrap();
    let hook = json!([{ "path": "/bin/true" }]);
    for kind in HOOK_KINDS {
        full.config["hooks"][kind] = hook.clone();
    }
    full.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["acct"], "action": "SCMP_ACT_ERRNO" }]
    });
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let linux = &mut full.config["linux"];
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    let mounts = full.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({
        "destination": "/data", "source": "/tmp/data", "options": ["bind", "idmap"]
    }));
    full.write().unwrap();
    host.check_sh("mkdir -p /tmp/data && chown -R 100000:100000 /tmp/full/rootfs")
        .unwrap();
    let again = Bundle::create(host, "/tmp/true", &["echo", "again"]).unwrap();
    [plain, full, again]
}

/// One step: a system call by its name, and which of them.
#[derive(Debug, Clone)]
struct Step {
    call: String,
    nth: usize,
}

/// The steps of a command (after `before`), from a run that nobody kills.
fn steps(host: &NativeHost, (before, command): (&str, &str)) -> Vec<Step> {
    host.write_file("/tmp/command", command).unwrap();
    host.check_sh("rm -f /tmp/before").unwrap();
    if !before.is_empty() {
        host.write_file("/tmp/before", before).unwrap();
    }
    host.check_sh(
        "if [ -f /tmp/before ]; then sh /tmp/before; fi
        strace -o /tmp/trace $(cat /tmp/command) </dev/null >/dev/null 2>/tmp/errors \
            || { cat /tmp/errors; exit 1; }",
    )
    .unwrap();
    let mut seen = std::collections::HashMap::<String, usize>::new();
    let trace = host.read_file("/tmp/trace").unwrap();
    let calls = trace.lines().filter_map(|line| line.split_once('('));
    let steps = calls.enumerate().filter_map(|(index, (call, _))| {
        let nth = seen.entry(call.to_owned()).or_default();
        *nth += 1;
        (STEPS.contains(&call) || index % 10 == 0).then(|| Step {
            call: call.to_owned(),
            nth: *nth,
        })
    });
    steps.collect()
}

/// Kills the command at each of its steps and hands what `look` prints to `check`.
fn kill_at_each(host: &NativeHost, steps: &[Step], look: &str, check: impl Fn(&Step, &str)) {
    assert!(steps.len() > 10, "{steps:?}");
    host.write_file("/tmp/step", format!("{KILL}{look}"))
        .unwrap();
    let mut killed = 0;
    for step in steps {
        let output = host
            .run(&["sh", "/tmp/step", &step.call, &step.nth.to_string()])
            .unwrap();
        killed += usize::from(output.stdout.contains("killed 137"));
        check(step, &output.stdout);
    }
    assert!(
        killed * 10 > steps.len() * 9,
        "killed at {killed} of {} steps only",
        steps.len()
    );
}

/// The words after `name` on the line that begins with it.
fn line<'o>(output: &'o str, name: &str) -> &'o str {
    output
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default()
        .trim()
}

fn assert_cleaned(command: &str, step: &Step, output: &str) {
    let at = || format!("{command} killed at {step:?}:\n{output}");
    let is_absent = |text: &str| text.starts_with('1') && text.contains("container does not exist");
    let state = line(output, "state ");
    if let Some(document) = state.strip_prefix("0 ") {
        let document: Value =
            serde_json::from_str(document).unwrap_or_else(|e| panic!("{e}: {}", at()));
        let status = document["status"].as_str().unwrap_or_default();
        let pid = document["pid"].as_i64().unwrap_or_default();
        let lives = ["created", "running"].contains(&status);
        assert!(lives == (pid > 0) && !status.is_empty(), "{}", at());
    } else {
        assert!(is_absent(state), "{}", at());
    }
    assert!(line(output, "list ").starts_with('0'), "{}", at());
    let deleted = line(output, "delete ");
    assert!(deleted == "0" || is_absent(deleted), "{}", at());
    assert_eq!(line(output, "run "), "0 again", "{}", at());
    // No process lives on in a container that is said to be none, or to have stopped.
    assert_eq!(line(output, "hidden"), "", "{}", at());
    assert_eq!(line(output, "left"), "", "{}", at());
}

/// A start that was killed has started the container, or can be repeated.
fn assert_startable(step: &Step, output: &str) {
    let started = line(output, "start");
    let is_fine = ["", "0"].contains(&started) || started.contains("already running");
    assert!(is_fine, "killed at {step:?}:\n{output}");
    assert!(
        line(output, "state").contains("\"running\""),
        "killed at {step:?}:\n{output}"
    );
}

/// Makes the files that these stories leave themselves.
const OWN_FILES: &str =
    "touch /tmp/command /tmp/step /tmp/before /tmp/trace /tmp/errors /tmp/c.pid";

/// An inventory after every bundle has come and gone, with the files of these stories.
fn settled(host: &NativeHost) -> Inventory {
    for bundle in ["true", "plain", "full"] {
        let run = format!("xebec run --detach --bundle /tmp/{bundle} c </dev/null >/dev/null 2>&1");
        host.check_sh(&run).unwrap();
        ok(host, &["delete", "--force", "c"]);
    }
    host.check_sh(OWN_FILES).unwrap();
    Inventory::of(host).unwrap()
}

/// Runs the story of several commands on one host.
fn killed_commands_leave_nothing(cases: &[(&str, &str)]) {
    let host = host();
    let _bundles = bundles(&host);
    let before = settled(&host);
    for case in cases {
        let steps = steps(&host, *case);
        host.sh("xebec delete --force c").unwrap();
        let check = |step: &Step, output: &str| {
            assert_cleaned(case.1, step, output);
            if case.1.starts_with("xebec start") {
                assert_startable(step, output);
            }
        };
        kill_at_each(&host, &steps, CLEAN, check);
    }
    host.check_sh(OWN_FILES).unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_creation_that_is_killed_anywhere_leaves_nothing() {
    killed_commands_leave_nothing(&[
        (
            "",
            "xebec create --bundle /tmp/plain --pid-file /tmp/c.pid c",
        ),
        ("", "xebec create --bundle /tmp/full c"),
    ]);
}

#[test]
fn a_run_that_is_killed_anywhere_leaves_nothing() {
    killed_commands_leave_nothing(&[
        ("", "xebec run --bundle /tmp/true c"),
        ("", "xebec run --detach --bundle /tmp/full c"),
    ]);
}

#[test]
fn a_start_or_a_deletion_that_is_killed_anywhere_leaves_nothing() {
    let create = "xebec create --bundle /tmp/full c </dev/null >/dev/null 2>&1";
    let run = "xebec run --detach --bundle /tmp/full c </dev/null >/dev/null 2>&1";
    killed_commands_leave_nothing(&[(create, "xebec start c"), (run, "xebec delete --force c")]);
}

#[test]
fn an_exec_that_is_killed_anywhere_leaves_the_container_as_it_was() {
    let host = host();
    let _bundles = bundles(&host);
    let before = settled(&host);
    for (bundle, options) in [("plain", ""), ("full", "--detach --pid-file /tmp/c.pid")] {
        host.check_sh(&format!(
            "xebec run --detach --bundle /tmp/{bundle} c </dev/null >/dev/null 2>&1"
        ))
        .unwrap();
        let command = format!("xebec exec {options} c true");
        let steps = steps(&host, ("", &command));
        kill_at_each(&host, &steps, STILL_RUNS, |step, output| {
            let at = format!("{command} killed at {step:?}:\n{output}");
            assert_eq!(line(output, "state"), "running", "{at}");
            assert_eq!(line(output, "exec"), "fine", "{at}");
            assert_eq!(line(output, "left"), "", "{at}");
        });
        ok(&host, &["delete", "--force", "c"]);
    }
    host.check_sh(OWN_FILES).unwrap();
    assert_restored(&host, &before);
}
