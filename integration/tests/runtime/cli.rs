//! The command line beside runc's: the same words, codes and documents, and every option of both.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener};

use integration::bundle::Bundle;
use integration::hosts::{HostOptions, NativeHost, Service};
use serde_json::{Value, json};

use super::lifecycle::receive_descriptor;
use super::{host, ok, state, xebec};

/// A command line to fail, after a change of config.json.
struct Failure {
    spoil: &'static str,
    arguments: &'static str,
}

const fn fails(arguments: &'static str) -> Failure {
    Failure {
        spoil: ".",
        arguments,
    }
}

const fn spoiled(spoil: &'static str) -> Failure {
    Failure {
        spoil,
        arguments: "run x",
    }
}

/// Failures that clients and people know by runc's words.
const FAILURES: &[Failure] = &[
    fails("state nobody"),
    fails("start nobody"),
    fails("kill nobody"),
    fails("delete nobody"),
    fails("pause nobody"),
    fails("resume nobody"),
    fails("ps nobody"),
    fails("exec nobody true"),
    fails("update nobody"),
    fails("events --stats nobody"),
    fails("state ''"),
    fails("create c"),
    fails("start c"),
    fails("delete c"),
    fails("resume c"),
    fails("kill c BOGUS"),
    fails("exec c"),
    fails("exec c nothere"),
    fails("exec c /nothere"),
    fails("exec c /etc"),
    fails("exec --cwd /nodir c true"),
    fails("exec --process /nofile c"),
    fails("exec -d -t c true"),
    fails("exec --console-socket /nosocket c true"),
    fails("run --console-socket /nosocket x"),
    fails("run --bundle /nodir x"),
    fails("spec"),
    spoiled(".process.terminal = true | .process.args = [\"true\"]"),
    spoiled(".process.args = [\"nothere\"]"),
    spoiled(".process.args = [\"/nothere\"]"),
    spoiled(".process.args = [\"/etc\"]"),
    spoiled(".process.args = []"),
    spoiled(".process.cwd = \"\""),
    spoiled(".process.cwd = \"relative\""),
    spoiled(".root.path = \"nodir\""),
    spoiled("del(.process)"),
    spoiled(".linux.namespaces = [{\"type\": \"pid\"}, {\"type\": \"mount\"}]"),
    spoiled(".linux.sysctl = {\"kernel.foo\": \"1\"}"),
];

/// Runs every failing command with one runtime: its exit code and the last error of its log.
fn failures_of(host: &NativeHost, runtime: &str) -> Vec<String> {
    let mut script = format!(
        "cd /tmp/b; cp config.json good.json
         {runtime} run -d c </dev/null >/dev/null 2>&1 || exit 1
         fail() {{ rm -f /tmp/log; {runtime} --log /tmp/log --log-format json \"$@\" \
            </dev/null >/dev/null 2>/tmp/stderr; code=$?
            jq -rs --arg code $code '\"\\($code) \\(map(select(.level == \"error\"))[-1].msg)\"' /tmp/log
         }}\n"
    );
    for Failure { spoil, arguments } in FAILURES {
        let detached = if spoil.contains("terminal") {
            " -d"
        } else {
            ""
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            script,
            "jq '{spoil}' good.json > config.json; fail {arguments}{detached}"
        );
    }
    let _ = write!(script, "cp good.json config.json; {runtime} delete -f c");
    let output = host.sh(&script).unwrap();
    assert!(output.success(), "{runtime}: {output:?}");
    output.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn failures_have_runcs_words_and_exit_codes() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    let (theirs, ours) = (failures_of(&host, "runc"), failures_of(&host, "xebec"));
    assert_eq!(theirs.len(), FAILURES.len(), "{theirs:#?}");
    for ((their, our), failure) in theirs.iter().zip(&ours).zip(FAILURES) {
        let their = their
            .replace(" runc run failed", " xebec run failed")
            .replace(" runc create failed", " xebec create failed");
        // Ours names file and field first.
        let field = our.split_once("/tmp/b/config.json: ").map(|(intro, rest)| {
            let reason = rest.split_once(": ").map_or(rest, |(_, reason)| reason);
            format!("{intro}{reason}")
        });
        let our = field.unwrap_or_else(|| our.clone());
        assert_eq!(our, their, "{} after {}", failure.arguments, failure.spoil);
    }
}

#[test]
fn states_lists_and_process_tables_are_runcs() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    // Left out is what differs between any two containers, the version of the specification, and the
    // owner in states, which runc does not fill in; the order of members stays.
    let views = |runtime: &str| {
        host.check_sh(&format!(
            "cd /tmp/b; show() {{ {runtime} state c | jq 'del(.pid, .created, .owner) | .ociVersion = \"\"'; }}
             {runtime} create c </dev/null >/dev/null 2>&1; show; {runtime} start c; show
             # runc does not wait until the program is there.
             until {runtime} ps c | grep -q sleep; do sleep 0.05; done
             {runtime} list | awk '{{ print $1, $3, $4, $6 }}'; {runtime} list -q
             {runtime} list -f json | jq -c 'map(del(.pid, .created) | .ociVersion = \"\")'
             {runtime} ps c | awk '{{ print $1, $3, $8, $9 }}'; {runtime} ps c -o user,pid,args | awk '{{ print $1, $3, $4 }}'
             {runtime} ps -f json c | jq -c 'map(type)'
             {runtime} pause c; show; {runtime} resume c; {runtime} kill c KILL
             until {runtime} state c | grep -q stopped; do sleep 0.05; done
             show; {runtime} state c | jq .pid; {runtime} delete c"
        ))
        .unwrap()
    };
    let ours = views("xebec");
    assert_eq!(ours, views("runc"));
    assert!(ours.contains("\"status\": \"paused\""), "{ours}");
}

#[test]
fn every_option_of_runc_and_crun_is_known() {
    let host = host();
    let script = "for runtime in runc crun; do
        for command in '' create delete events exec features kill list pause ps resume run spec \
            start state update; do
          [ $runtime$command = crunevents ] && continue
          for option in $($runtime $command --help | grep -oE '^ *(-[a-zA-Z], )?--[a-z0-9-]+' \
              | grep -oE -- '--[a-z0-9-]+'); do
            case $option in --usage|--version) continue;; esac
            [ \"$command $option\" = 'update --kernel-memory' ] && continue
            [ \"$command $option\" = 'update --kernel-memory-tcp' ] && continue
            [ \"$command $option\" = 'create --no-subreaper' ] && continue
            xebec $command --help | grep -qE -- \"$option\\b\" || echo $runtime $command $option
          done
        done
      done
      # Accepted without an effect, and so not shown.
      mkdir /tmp/none; cd /tmp/none
      xebec create --no-subreaper x 2>&1 | grep -v 'config.json not found' || true
      xebec update --kernel-memory 1 --kernel-memory-tcp 1 x 2>&1 | grep -v 'does not exist\\|is ignored' || true";
    assert_eq!(host.check_sh(script).unwrap(), "");
}

#[test]
fn help_version_manual_and_completions_cover_every_command() {
    let host = host();
    let version = ok(&host, &["--version"]);
    let lines: Vec<_> = version.lines().collect();
    assert!(lines[0].starts_with("xebec version "), "{version}");
    assert!(lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("spec: 1."), "{version}");
    let script = "xebec man /tmp/man
        for command in create delete events exec features kill list mounts pause ps resume run spec start \
            state update; do
          for help in '--help' '-h'; do
            xebec $command $help | grep -q 'xebec '$command || echo $command $help
          done
          xebec $command --help | grep -q Example || echo $command has no example
          xebec help $command > /dev/null || echo help $command
          test -s /tmp/man/xebec-$command.1 || echo $command has no manual page
          for shell in bash zsh fish; do
            xebec completions $shell | grep -qw $command || echo $command in $shell
          done
        done";
    assert_eq!(host.check_sh(script).unwrap(), "");
    for (line, code) in [
        ("xebec", 0),
        ("xebec help", 0),
        ("xebec nosuch", 3),
        ("xebec --nosuch", 1),
        ("xebec run", 1),
        ("xebec state a b", 1),
    ] {
        assert_eq!(host.sh(line).unwrap().status, code, "{line}");
    }
}

#[test]
fn the_log_goes_where_it_is_sent_in_the_form_that_is_asked_for() {
    let host = host();
    let failing = |target: &str, more: &str| {
        let line = format!("xebec --log '{target}' {more} state nobody");
        let output = host.sh(&line).unwrap();
        assert_eq!(output.status, 1, "{line}");
        assert_eq!(output.stderr, "container does not exist\n", "{line}");
    };
    for (file, target) in [("/tmp/a", "/tmp/a"), ("/tmp/b", "file:/tmp/b")] {
        failing(target, "");
        let text = host.read_file(file).unwrap();
        let (time, rest) = text.split_once(' ').expect("a time");
        assert!(
            time.starts_with("time=\"20") && time.ends_with("Z\""),
            "{text}"
        );
        assert_eq!(rest, "level=error msg=\"container does not exist\"\n");
    }
    failing("/tmp/c", "--log-format json");
    let line: Value = serde_json::from_str(&host.read_file("/tmp/c").unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container does not exist");

    host.check_sh("mkdir -p /run/systemd/journal").unwrap();
    let journal = UnixDatagram::bind(host.path("/run/systemd/journal/socket")).unwrap();
    failing("journald:web", "");
    let mut entry = [0; 4096];
    let length = journal.recv(&mut entry).unwrap();
    let entry = String::from_utf8_lossy(&entry[..length]).into_owned();
    for part in [
        "container does not exist",
        "PRIORITY",
        "SYSLOG_IDENTIFIER",
        "web",
    ] {
        assert!(entry.contains(part), "{part} is missing in {entry:?}");
    }
    // A usage error is logged too: clients read nothing else.
    host.sh("xebec --log /tmp/d --log-format json run --nosuch x")
        .unwrap();
    let usage = host.read_file("/tmp/d").unwrap();
    assert!(usage.contains("--nosuch"), "{usage}");
    let absent = host.sh("xebec --log /nodir/x state nobody").unwrap();
    assert_eq!(absent.status, 1);
    assert!(
        absent
            .stderr
            .contains("open /nodir/x: no such file or directory"),
        "{absent:?}"
    );
}

#[test]
fn a_pidfd_reaches_whoever_listens_for_it() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    let listener = UnixListener::bind(host.path("/tmp/pidfd.sock")).unwrap();
    let receive = |line: &str| {
        host.check_sh(&format!("{line} </dev/null >/dev/null 2>&1"))
            .unwrap();
        receive_descriptor(&listener.accept().unwrap().0)
    };
    let init = receive("xebec create -b /tmp/b --pidfd-socket /tmp/pidfd.sock c");
    ok(&host, &["start", "c"]);
    let further = receive("xebec exec -d --pidfd-socket /tmp/pidfd.sock c sleep 1000");
    let processes = |count: usize| {
        let script = format!(
            "for i in $(seq 100); do [ $(xebec ps -f json c | jq length) = {count} ] && exit; \
             sleep 0.05; done; xebec ps c; exit 1"
        );
        host.check_sh(&script).unwrap();
    };
    processes(2);
    let kill = rustix::process::Signal::KILL;
    rustix::process::pidfd_send_signal(further.as_fd(), kill).unwrap();
    processes(1);
    rustix::process::pidfd_send_signal(init.as_fd(), kill).unwrap();
    host.check_sh(
        "for i in $(seq 100); do xebec state c | grep -q stopped && exit; sleep 0.05; done; exit 1",
    )
    .unwrap();
    ok(&host, &["delete", "c"]);
    let nobody = xebec(
        &host,
        &["run", "-b", "/tmp/b", "--pidfd-socket", "/tmp/no", "c"],
    )
    .unwrap();
    assert_eq!(nobody.status, 1, "{nobody:?}");
    assert_eq!(ok(&host, &["list", "-q"]), "");
}

#[test]
fn run_passes_signals_on_and_buries_the_orphans_it_inherits() {
    let host = host();
    let loops = "trap 'echo term; exit 7' TERM; trap 'echo usr1' USR1; echo up; \
                 while :; do sleep 0.05; done";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", loops]).unwrap();
    let script = "xebec run -b /tmp/b c >/tmp/out </dev/null & pid=$!
        said() { until grep -q $1 /tmp/out; do sleep 0.05; done; }
        said up; kill -USR1 $pid; said usr1; kill -TERM $pid; wait $pid || echo $?; xebec list -q";
    assert_eq!(host.check_sh(script).unwrap(), "7\n");

    // In the host's pid namespace orphans come to the nearest subreaper, which is xebec.
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.config["process"]["args"] =
        json!(["sh", "-c", "(sleep 0.1 & sleep 0.1 &); sleep 1; exit 3"]);
    bundle.write().unwrap();
    let script = "xebec run -b /tmp/b c </dev/null & pid=$!
        until [ \"$(ps -o comm= --ppid $pid | grep -c sleep)\" -ge 1 ]; do sleep 0.02; done
        sleep 0.5; ps -o stat=,comm= --ppid $pid | grep ^Z || true; wait $pid || echo $?";
    assert_eq!(host.check_sh(script).unwrap(), "3\n");
}

#[test]
fn containers_are_killed_and_deleted_by_regular_expression() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    for id in ["web-1", "web-2", "db"] {
        host.check_sh(&format!(
            "xebec run -d -b /tmp/b {id} </dev/null >/dev/null 2>&1"
        ))
        .unwrap();
    }
    ok(&host, &["kill", "--regex", "^web-[12]$", "KILL"]);
    host.check_sh("until [ $(xebec list | grep -c stopped) = 2 ]; do sleep 0.05; done")
        .unwrap();
    assert_eq!(state(&host, "db")["status"], "running");
    ok(&host, &["delete", "--regex", "web"]);
    assert_eq!(ok(&host, &["list", "-q"]), "db\n");
    let refused = xebec(&host, &["delete", "--regex", "("]).unwrap();
    assert!(
        refused.stderr.contains("is no extended regular expression"),
        "{refused:?}"
    );
    ok(&host, &["delete", "--force", "--regex", "."]);
    assert_eq!(ok(&host, &["list", "-q"]), "");
}

#[test]
fn options_are_taken_in_every_place_and_spelling() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    for line in [
        "xebec --root /tmp/r run --bundle /tmp/b --detach c",
        "xebec run c --detach --bundle=/tmp/b --root /tmp/r",
        "xebec -root /tmp/r run -bundle /tmp/b -detach=true c",
        "xebec --root=/tmp/r run -d -b /tmp/b --no-subreaper --no-new-keyring c",
        "cd /tmp; xebec --root r run -db b c",
        "xebec --root /none --root /tmp/r run --detach --detach=true --bundle /none --bundle /tmp/b c",
        "cd /tmp; mv b/config.json other.json; xebec --root r run -db b --config other.json c",
    ] {
        host.check_sh(&format!("({line}) </dev/null >/dev/null 2>&1"))
            .unwrap();
        let script = "xebec --root /tmp/r exec c echo -d --root; xebec --root /tmp/r delete -f c";
        assert_eq!(host.check_sh(script).unwrap(), "-d --root\n", "{line}");
    }
    let kept = "cd /tmp/b; jq '.process.args = [\"false\"]' ../other.json > f.json
        xebec run --keep -f f.json c || echo $?; xebec state c | jq -r .status; xebec delete c";
    assert_eq!(host.check_sh(kept).unwrap(), "1\nstopped\n");
}

#[test]
fn exec_takes_its_options_as_runc_does() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    let results = |runtime: &str| {
        host.sh(&format!(
            "{runtime} run -d -b /tmp/b c </dev/null >/dev/null 2>&1
             {runtime} exec --user 1000:1001 -g 5 -g 6 c id
             {runtime} exec -u 7 -g 8 -g 9 c id
             {runtime} exec --user 1000 c sh -c 'echo $HOME'
             {runtime} exec --cwd /etc -e A=1 -e B=2 c sh -c 'pwd; echo $A$B'
             {runtime} exec --cwd '' c sh -c pwd
             {runtime} exec --pid-file /tmp/pid c true; test $(cat /tmp/pid) -gt 1 && echo pid
             {runtime} exec c sh -c 'exit 42'; echo $?
             {runtime} exec c sh -c 'kill -TERM $$'; echo $?
             echo in | {runtime} exec c cat
             echo '{{\"args\": [\"/bin/id\"], \"cwd\": \"/\"}}' > /tmp/p; {runtime} exec -p /tmp/p c
             {runtime} pause c; {runtime} exec c true 2>&1 | sed 's/.*msg=//'
             {runtime} resume c; {runtime} delete -f c"
        ))
        .unwrap()
        .stdout
    };
    assert_eq!(results("xebec"), results("runc"));
}

#[test]
fn a_user_keeps_state_in_the_session_directory() {
    let host = host();
    let script = "mkdir -m 777 /tmp/session
        for runtime in runc xebec; do
          setpriv --reuid 1000 --clear-groups env XDG_RUNTIME_DIR=/tmp/session $runtime list >/dev/null
          stat -c '%a %u' /tmp/session/$runtime
        done
        # Root of the host has its own place.
        mkdir /tmp/roots; XDG_RUNTIME_DIR=/tmp/roots xebec list >/dev/null; ls /tmp/roots";
    assert_eq!(host.check_sh(script).unwrap(), "1700 1000\n1700 1000\n");
}

#[test]
fn the_template_is_runcs() {
    let host = host();
    let script = "for flag in '' --rootless; do
        for runtime in runc xebec; do
          rm -rf /tmp/$runtime; mkdir /tmp/$runtime; $runtime spec $flag -b /tmp/$runtime
        done
        # Each names itself and its version of the specification; the order of members counts.
        for runtime in runc xebec; do
          jq '.hostname = \"\" | .ociVersion = \"\"' /tmp/$runtime/config.json > /tmp/$runtime.json
        done
        diff /tmp/runc.json /tmp/xebec.json
      done
      cd /tmp; xebec spec --file other.json && test -s other.json";
    assert_eq!(host.check_sh(script).unwrap(), "");
}

#[test]
fn kill_ends_every_process_where_init_alone_would_leave_some() {
    let host = host();
    let mut bundle = Bundle::create(
        &host,
        "/tmp/b",
        &["sh", "-c", "sleep 4711 & sleep 4711 & wait"],
    )
    .unwrap();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.write().unwrap();
    let story = |runtime: &str| {
        host.sh(&format!(
            "count() {{ ps -eo args | grep -c '^sleep 4711'; }}
             start() {{ {runtime} run -d -b /tmp/b c </dev/null >/dev/null 2>&1
               until [ $(count) = 2 ]; do sleep 0.05; done; }}
             gone() {{ for i in $(seq 100); do [ $(count) = 0 ] && return; sleep 0.05; done; echo left; }}
             start; {runtime} kill c KILL; echo $?; gone; {runtime} delete c; echo $?
             start; kill -9 $({runtime} state c | jq .pid); sleep 0.2; count
             {runtime} kill c TERM; echo $?; {runtime} kill c KILL; echo $?; gone; {runtime} delete c
             start; kill -9 $({runtime} state c | jq .pid); sleep 0.2; {runtime} delete c; echo $?; gone"
        ))
        .unwrap()
        .stdout
    };
    let ours = story("xebec");
    assert_eq!(ours, story("runc"));
    assert_eq!(ours, "0\n0\n2\n1\n0\n0\n");
}

#[test]
fn a_created_container_can_be_paused_and_a_bundle_is_named_by_its_place() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    bundle.config["root"]["path"] = json!("./rootfs/");
    bundle.write().unwrap();
    let story = |runtime: &str| {
        host.sh(&format!(
            "ln -sfn /tmp/b /tmp/link; cd /tmp; status() {{ {runtime} state c | jq -r .status; }}
             {runtime} create -b link c </dev/null >/dev/null 2>&1
             {runtime} state c | jq -r '.bundle, .rootfs'
             {runtime} pause c; status; {runtime} start c 2>&1 | sed 's/.*msg=//'
             {runtime} delete c 2>&1 | sed 's/.*msg=//'
             {runtime} resume c; status; {runtime} start c; status; {runtime} delete -f c
             {runtime} run -d -b ./b/../link/ c </dev/null >/dev/null 2>&1
             {runtime} state c | jq -r '.bundle, .rootfs'; {runtime} delete -f c"
        ))
        .unwrap()
        .stdout
    };
    let ours = story("xebec");
    assert_eq!(ours, story("runc"));
    assert!(ours.contains("paused\n"), "{ours}");
}

#[test]
fn umask_and_closed_streams_are_the_callers() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", "umask"]).unwrap();
    // Init has the usual one, whatever the caller's is.
    let script = "umask 027; for runtime in runc xebec; do $runtime run -b /tmp/b c; done";
    assert_eq!(host.check_sh(script).unwrap(), "0022\n0022\n");
    bundle.config["process"]["user"]["umask"] = json!(0o77);
    bundle.write().unwrap();
    assert_eq!(host.check_sh(script).unwrap(), "0077\n0077\n");

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    bundle.write().unwrap();
    let streams = |runtime: &str| {
        host.check_sh(&format!(
            "umask 027; {runtime} run -d -b /tmp/b c <&- >&- 2>&-
             {runtime} exec c sh -c 'for f in 0 1 2; do readlink /proc/1/fd/$f; done; umask'
             {runtime} delete -f c"
        ))
        .unwrap()
    };
    assert_eq!(streams("xebec"), streams("runc"));
}

#[test]
fn features_have_every_member_and_word_of_runcs() {
    let host = host();
    // Left out are annotations, which each runtime has its own of; `v1` is there and false.
    let script = "cd /tmp; runc features > theirs; xebec features > ours
        for file in theirs ours; do
          jq -r 'del(.annotations, .potentiallyUnsafeConfigAnnotations, .linux.seccomp.archs)
            | [paths(type == \"object\" or type == \"array\" or type == \"boolean\")
                | map(tostring | select(test(\"^[0-9]+$\") | not)) | join(\".\")] | unique[],
            (.mountOptions, .hooks, .linux.namespaces, .linux.capabilities, .linux.seccomp.actions,
             .linux.seccomp.operators, .linux.seccomp.knownFlags | .[])' $file | sort > $file.words
        done
        comm -23 theirs.words ours.words
        jq -c .potentiallyUnsafeConfigAnnotations ours; jq -c .linux.cgroup.v2 ours";
    assert_eq!(
        host.check_sh(script).unwrap(),
        "[\"org.systemd.property.\"]\ntrue\n"
    );
}

/// containerd's own shim for runc, which knows nothing of us but the path of a program.
#[test]
fn containerds_shim_for_runc_drives_xebec_in_runcs_place() {
    let services = [Service::Registry, Service::Containerd];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let image = host.push("busybox").unwrap();
    host.check(&["ctr", "images", "pull", &image]).unwrap();
    let story = |runtime: &str| {
        let script = format!(
            "run() {{ ctr run --runc-binary {runtime} --cpu-shares 0 \"$@\" 2>&1; echo $?; }}
             task() {{ ctr tasks \"$@\" 2>&1; echo $?; }}
             run --rm {image} c echo hello
             run --rm {image} c sh -c 'exit 42'
             run --rm {image} c nothere
             run --rm --cwd /made {image} c pwd
             run --rm --user 1000:1000 {image} c id
             script -qec \"ctr run --rm -t --runc-binary {runtime} --cpu-shares 0 {image} c tty\" \
                /dev/null </dev/null | tr -d '\\0'
             run -d {image} c sleep 1000
             task exec --exec-id e c sh -c 'echo inside; exit 7'
             task exec --exec-id e c nothere
             task pause c; ctr tasks ls | awk '{{ print $3 }}'; task resume c
             ctr tasks ps c | wc -l
             task kill -s KILL c; until ctr tasks ls | grep -q STOPPED; do sleep 0.05; done
             ctr tasks delete c 2>&1 | grep -o 'exit code.*'; ctr containers delete c
             ls -A /run/containerd/runc/default"
        );
        host.sh(&script).unwrap().stdout
    };
    let ours = story("/usr/local/bin/xebec");
    let theirs = story("/usr/bin/runc");
    assert_eq!(
        ours.replace("xebec create failed", "runc create failed"),
        theirs
    );
    assert!(ours.starts_with("hello\n0\n42\n"), "{ours}");
}
