//! Terminals: in the foreground under one of our own (by util-linux's `script`), and the rules for
//! when there is a console socket.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::json;

use super::{host, ok, xebec};

/// Runs a command of a shell under a terminal, with what is typed there; gives what it shows, and
/// fails unless the command ends with `status`.
#[track_caller]
fn shown(host: &NativeHost, typed: &str, command: &str, status: i32) -> String {
    host.write_file("/tmp/command", command).unwrap();
    let script = format!("({typed}) | script -qec 'sh /tmp/command' /dev/null");
    let output = host.sh(&script).unwrap();
    assert_eq!(output.status, status, "{command}: {output:?}");
    output.stdout.replace('\r', "")
}

#[test]
fn a_terminal_in_the_foreground_has_our_size_our_keys_and_passes_the_status_on() {
    let host = host();
    let wait = "until test \"$(stty size)\" = '40 120'; do sleep 0.1; done; stty size; tty; exit 3";
    let script = format!("stty size; {wait}");
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", &script]).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write().unwrap();
    let command = "stty rows 33 cols 99; (sleep 1; stty -F /dev/tty rows 40 cols 120) &
        exec xebec run --bundle /tmp/b sized";
    let text = shown(&host, "true", command, 3);
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(place("33 99") < place("40 120"), "{text}");
    assert!(place("40 120") < place("/dev/pts/0"), "{text}");

    // Keys reach the container as signals and as lines, and its jobs are its own.
    bundle.config["process"]["args"] = json!(["sh"]);
    bundle.write().unwrap();
    let typed = r"sleep 1; printf 'sleep 100\n'; sleep 1; printf '\032'; sleep 1; printf 'jobs\n'; \
        sleep 1; printf 'echo wrong\177\177\177\177\177right; kill %%1; exit 5\n'; sleep 1; \
        printf 'exit 5\n'; sleep 1";
    let text = shown(&host, typed, "exec xebec run --bundle /tmp/b typed", 5);
    for part in ["^Z", "Stopped", "sleep 100", "\nright\n"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }

    bundle.config["process"]["terminal"] = json!(false);
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1")
        .unwrap();
    let command = "stty rows 22 cols 77; exec xebec exec --tty c sh -c 'stty size; exit 4'";
    let text = shown(&host, "true", command, 4);
    assert!(text.contains("22 77"), "{text}");
    // Without a terminal the streams are the caller's own, closed ones included.
    let output = host.check_sh("echo piped | xebec exec c cat").unwrap();
    assert_eq!(output, "piped\n");
    let output = host
        .check_sh("xebec exec c sh -c 'cat; echo $?' <&-")
        .unwrap();
    assert_eq!(output, "0\n");
    ok(&host, &["delete", "--force", "c"]);
}

#[test]
fn a_console_socket_goes_with_a_detached_terminal_and_nothing_else() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1")
        .unwrap();
    let socket = "cannot use console socket if runc will not detach or allocate tty";
    let tty = "cannot allocate tty if runc will detach without setting console socket";
    let refused = |runtime: &str, arguments: &[&str], says: &str| {
        let output = host.run(&[&[runtime], arguments].concat()).unwrap();
        assert!(!output.success(), "{runtime} {arguments:?}: {output:?}");
        assert!(
            output.stderr.contains(says),
            "{runtime} {arguments:?}: {output:?}"
        );
    };
    refused("xebec", &["exec", "--detach", "--tty", "c", "true"], tty);
    refused(
        "xebec",
        &["exec", "--console-socket", "/tmp/s", "--tty", "c", "true"],
        socket,
    );
    refused(
        "xebec",
        &[
            "exec",
            "--console-socket",
            "/tmp/s",
            "--detach",
            "c",
            "true",
        ],
        socket,
    );
    let bundled = ["--bundle", "/tmp/b", "new"];
    for runtime in ["xebec", "runc"] {
        refused(
            runtime,
            &[&["create", "--console-socket", "/tmp/s"], &bundled[..]].concat(),
            socket,
        );
        refused(
            runtime,
            &[&["run", "--console-socket", "/tmp/s"], &bundled[..]].concat(),
            socket,
        );
    }
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write().unwrap();
    for runtime in ["xebec", "runc"] {
        refused(runtime, &[&["create"], &bundled[..]].concat(), tty);
        refused(runtime, &[&["run", "--detach"], &bundled[..]].concat(), tty);
        refused(
            runtime,
            &[&["run", "--console-socket", "/tmp/s"], &bundled[..]].concat(),
            socket,
        );
        refused(
            runtime,
            &[
                &["run", "--detach", "--console-socket", "/tmp/s"],
                &bundled[..],
            ]
            .concat(),
            "/tmp/s",
        );
    }
    let left = xebec(&host, &["state", "new"]).unwrap();
    assert!(!left.success(), "{left:?}");
    ok(&host, &["delete", "--force", "c"]);
}
