//! Filters and their agents, compared with what runc and libseccomp make of the same profile.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::seccomp::{Instruction, filters_of};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::{host, ok, xebec};

/// What the kernel shows a filter of a call (`struct seccomp_data`).
#[derive(Clone, Copy, Debug)]
struct Call {
    audit: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs a filter as the kernel would (`seccomp(2)`, classic BPF).
fn verdict(filter: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.audit,
        16..64 => (call.args[(offset as usize - 16) / 8] >> ((offset % 8) * 8)) as u32,
        _ => panic!("a load of offset {offset}"),
    };
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let Instruction { code, jt, jf, k } = filter[at];
        at += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
        match code {
            0x20 => accumulator = word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => return k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// A profile of the shape of containerd's default one, for three architectures.
fn default_profile() -> Value {
    let names: Vec<_> = include_str!("../../../runtime/src/seccomp/tests/names.txt")
        .split_whitespace()
        .collect();
    let allow = |names: Value, args: Value| json!({ "names": names, "action": "SCMP_ACT_ALLOW", "args": args });
    let mut syscalls = vec![
        allow(json!(names), json!([])),
        allow(
            json!(["socket"]),
            json!([{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }]),
        ),
    ];
    for value in [0_u64, 8, 0x20000, 0x20008, 0xffff_ffff] {
        let args = json!([{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }]);
        syscalls.push(allow(json!(["personality"]), args));
    }
    syscalls.push(allow(json!(["arch_prctl", "modify_ldt"]), json!([])));
    let clone = json!([{ "index": 0, "value": 0x7e02_0000, "valueTwo": 0,
        "op": "SCMP_CMP_MASKED_EQ" }]);
    syscalls.push(allow(json!(["clone"]), clone));
    syscalls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
    json!({ "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls })
}

/// A permissive profile with one rule of each kind of comparison and action.
fn rules_of_every_kind() -> Value {
    let when =
        |index: u32, op: &str, value: u64| json!({ "index": index, "op": op, "value": value });
    let rule = |name: &str, action: &str, args: Value| json!({ "names": [name], "action": action, "errnoRet": null, "args": args });
    let big = 0x0000_0005_0000_0007_u64;
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        rule("acct", "SCMP_ACT_ERRNO", json!([when(1, "SCMP_CMP_GT", big)])),
        rule("sync", "SCMP_ACT_LOG", json!([when(2, "SCMP_CMP_GE", big)])),
        rule("chroot", "SCMP_ACT_TRAP", json!([when(3, "SCMP_CMP_LT", big)])),
        rule("swapon", "SCMP_ACT_KILL_PROCESS", json!([when(4, "SCMP_CMP_LE", big)])),
        rule("swapoff", "SCMP_ACT_KILL_THREAD", json!([when(5, "SCMP_CMP_NE", big)])),
        rule("vhangup", "SCMP_ACT_KILL",
            json!([when(0, "SCMP_CMP_EQ", 1), when(1, "SCMP_CMP_EQ", 40)])),
        rule("reboot", "SCMP_ACT_ERRNO",
            json!([when(0, "SCMP_CMP_EQ", 1), when(0, "SCMP_CMP_EQ", 40)])),
        { "names": ["syslog"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99 },
        { "names": ["mount"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 },
        { "names": ["no_such_call"], "action": "SCMP_ACT_KILL" },
    ] })
}

/// A strict profile that is older than some calls, with an errno of its own.
fn old_profile() -> Value {
    const NEWER: [&str; 3] = ["mseal", "setxattrat", "statmount"];
    let mut profile = default_profile();
    profile["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    profile["defaultErrnoRet"] = json!(7);
    let names = profile["syscalls"][0]["names"].as_array_mut().unwrap();
    names.retain(|name| !NEWER.contains(&name.as_str().unwrap()));
    profile
}

/// Numbers, architectures and arguments that tell filters apart.
fn calls() -> impl Iterator<Item = Call> {
    const AUDITS: [u32; 4] = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0];
    const VALUES: [u64; 22] = [
        0,
        1,
        2,
        5,
        7,
        8,
        21,
        40,
        41,
        0x20000,
        0x20008,
        0x7e02_0000,
        0x0200_0000,
        0x1200_0011,
        0xffff_ffff,
        1 << 32,
        0x5_0000_0006,
        0x5_0000_0007,
        0x5_0000_0008,
        0x6_0000_0000,
        0x4_0000_0009,
        u64::MAX,
    ];
    let numbers = (0..620)
        .chain((0..620).map(|number| number | 0x4000_0000))
        .chain([u32::MAX, u32::MAX - 1, 0x3fff_ffff]);
    numbers.flat_map(|number| {
        AUDITS.into_iter().flat_map(move |audit| {
            VALUES.into_iter().flat_map(move |value| {
                // All alike, and one after the other different from the rest.
                [
                    [value; 6],
                    [1, value, 40, value, 40, value],
                    [value, 40, 0, 0, 0, 0],
                ]
                .map(|args| Call {
                    audit,
                    number,
                    args,
                })
            })
        })
    })
}

/// The filter of a container's init, as the kernel has it.
fn installed(host: &NativeHost, runtime: &str, bundle: &Bundle<'_>, id: &str) -> Vec<Instruction> {
    let run = format!(
        "{runtime} run --detach --bundle {} {id} </dev/null >/tmp/{id}.log 2>&1 || cat /tmp/{id}.log >&2",
        bundle.path()
    );
    host.check_sh(&run).unwrap();
    let state = host.check(&[runtime, "state", id]).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let pid = host
        .outer_pid(state["pid"].as_i64().unwrap() as i32)
        .unwrap();
    let mut filters = filters_of(pid).unwrap();
    host.check(&[runtime, "delete", "--force", id]).unwrap();
    assert_eq!(filters.len(), 1, "{runtime} installs one filter");
    filters.remove(0)
}

#[test]
fn filters_decide_as_those_of_libseccomp_in_runc() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    for (index, profile) in [default_profile(), rules_of_every_kind(), old_profile()]
        .into_iter()
        .enumerate()
    {
        bundle.config["linux"]["seccomp"] = profile;
        bundle.write().unwrap();
        let ours = installed(&host, "xebec", &bundle, &format!("ours{index}"));
        let runcs = installed(&host, "runc", &bundle, &format!("runcs{index}"));
        let different: Vec<_> = calls()
            .map(|call| (call, verdict(&ours, &call), verdict(&runcs, &call)))
            .filter(|(_, ours, runcs)| ours != runcs)
            .take(20)
            .collect();
        assert!(
            different.is_empty(),
            "profile {index}, (call, ours, runc's): {different:#x?}"
        );
    }
}

#[test]
fn hooks_before_the_program_are_under_its_filter() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let hook = |script: &str| json!({ "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    // Such a profile denies the newer call that makes processes.
    bundle.config["linux"]["seccomp"] = default_profile();
    bundle.config["hooks"] = hook("echo ran > /ran");
    bundle.write().unwrap();
    let debug = xebec(&host, &["--debug", "run", "--bundle", "/tmp/b", "hooked"]).unwrap();
    assert!(debug.success(), "{debug:?}");
    assert!(
        debug.stderr.contains("msg=\"seccomp filter flags: 4\""),
        "{debug:?}"
    );
    assert_eq!(host.read_file("/tmp/b/rootfs/ran").unwrap(), "ran\n");

    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL" }] });
    bundle.config["hooks"] = hook("exec busybox mkdir /x");
    bundle.write().unwrap();
    for runtime in ["xebec", "runc"] {
        let output = host
            .run(&[runtime, "run", "--bundle", "/tmp/b", "killed"])
            .unwrap();
        assert!(!output.success(), "{runtime}: {output:?}");
        for part in [
            "error running startContainer hook #0",
            "signal: bad system call",
        ] {
            assert!(output.stderr.contains(part), "{runtime}: {output:?}");
        }
    }
}

/// A profile whose agent is asked about `mkdir`.
fn watched() -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": "/tmp/agent.sock", "listenerMetadata": "for the agent",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }] })
}

/// One message of a runtime: the process state, and how many descriptors came with it. The
/// listener is closed at once, so that what it listens to answers ENOSYS.
fn introduction(listener: &UnixListener) -> (Value, usize) {
    let (connection, _) = listener.accept().unwrap();
    let (text, fds) = receive(&connection);
    (serde_json::from_slice(&text).expect("JSON"), fds.len())
}

fn receive(connection: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; 1 << 16];
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(
        connection,
        &mut parts,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    text.truncate(received.bytes);
    (text, fds)
}

#[test]
fn an_agent_gets_the_listener_and_the_state_of_each_process_in_one_message() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    bundle.config["linux"]["seccomp"] = watched();
    bundle.config["annotations"] = json!({ "who": "us" });
    let listener = UnixListener::bind(host.path("/tmp/agent.sock")).unwrap();
    let talk = |runtime: &str, no_new_privileges: bool| {
        let mut introductions = Vec::new();
        host.check_sh(&format!(
            "{runtime} create --bundle /tmp/b --pid-file /tmp/pid watched </dev/null >/dev/null 2>&1"
        ))
        .unwrap();
        let (state, fds) = introduction(&listener);
        let pid: i64 = host.read_file("/tmp/pid").unwrap().trim().parse().unwrap();
        assert_eq!(fds, 1, "{runtime}");
        assert_eq!(state["pid"], pid, "{runtime}: {state}");
        assert_eq!(state["state"]["pid"], pid, "{runtime}: {state}");
        introductions.push(state);
        host.check(&[runtime, "start", "watched"]).unwrap();
        let exec = [runtime, "exec", "watched", "busybox", "mkdir", "/x"];
        let child = host.spawn(&exec).unwrap();
        let (state, fds) = introduction(&listener);
        assert_eq!(fds, 1, "{runtime}");
        assert_eq!(state["state"]["pid"], pid, "{runtime}: {state}");
        assert_ne!(state["pid"], pid, "{runtime}: {state}");
        introductions.push(state);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            stderr.contains("Function not implemented"),
            "{runtime}: {stderr}"
        );
        host.check(&[runtime, "delete", "--force", "watched"])
            .unwrap();
        // What differs by nature: pids, and which version of the specification is spoken.
        for state in &mut introductions {
            state["pid"] = Value::Null;
            state["ociVersion"] = Value::Null;
            state["state"]["pid"] = Value::Null;
            state["state"]["ociVersion"] = Value::Null;
        }
        assert_eq!(
            introductions[0]["metadata"], "for the agent",
            "{no_new_privileges}"
        );
        introductions
    };
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.write().unwrap();
        assert_eq!(
            talk("xebec", no_new_privileges),
            talk("runc", no_new_privileges)
        );
    }
}

#[test]
fn a_profile_that_cannot_work_is_refused_as_by_runc() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let mut unheard = watched();
    unheard["listenerPath"] = json!("");
    unheard["listenerMetadata"] = json!("");
    let mut wrote = watched();
    wrote["syscalls"][0]["names"] = json!(["write"]);
    let absent = watched();
    for (profile, says) in [
        (unheard, "listenerPath is not set"),
        (
            wrote,
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
            "SCMP_ACT_NOTIFY cannot be used as default",
        ),
        (absent, "failed to connect with seccomp agent"),
    ] {
        bundle.config["linux"]["seccomp"] = profile;
        bundle.write().unwrap();
        for runtime in ["xebec", "runc"] {
            let output = host
                .run(&[runtime, "run", "--bundle", "/tmp/b", "refused"])
                .unwrap();
            assert_eq!(output.status, 1, "{runtime}, {says}: {output:?}");
            assert!(output.stderr.contains(says), "{runtime}: {output:?}");
        }
    }
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
    let gone = xebec(&host, &["state", "refused"]).unwrap();
    assert!(!gone.success(), "{gone:?}");
}

#[test]
fn an_agent_is_told_of_the_processes_of_a_user_without_privileges() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", "busybox mkdir /x"]).unwrap();
    let linux = &mut bundle.config["linux"];
    linux["seccomp"] = watched();
    linux["namespaces"] = json!([{ "type": "user" }, { "type": "mount" }, { "type": "pid" }]);
    let own = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    linux["uidMappings"] = own.clone();
    linux["gidMappings"] = own;
    bundle.config["hostname"] = Value::Null;
    bundle.config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    bundle.write().unwrap();
    let listener = UnixListener::bind(host.path("/tmp/agent.sock")).unwrap();
    host.check_sh(
        "useradd --uid 1000 joe; mkdir -p /run/user/1000; chown -R joe /tmp/b /run/user/1000; \
         chmod 777 /tmp/agent.sock",
    )
    .unwrap();
    let run = "setpriv --reuid joe --regid joe --clear-groups env \
               XDG_RUNTIME_DIR=/run/user/1000 xebec --root /run/user/1000/xebec \
               run --bundle /tmp/b watched";
    let child = host.spawn(&["sh", "-c", run]).unwrap();
    let (state, fds) = introduction(&listener);
    assert_eq!(
        (&state["state"]["id"], fds),
        (&json!("watched"), 1),
        "{state}"
    );
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("Function not implemented"), "{stderr}");
}
