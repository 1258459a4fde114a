//! What a shim tells of itself: its state on demand, its log all the time.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::rpc::Client;
use integration::shim::{PROGRAM, Shim, TASK, command, create_request, exec_request, kill_request};
use serde_json::{Value, json};
use xebec_proto::task::CreateTaskResponse;

use crate::{
    NOT_FOUND, UNIMPLEMENTED, assert_restored, bundle, descriptors, host, refused, wait_for_program,
};

const DEBUG: &str = "io.xebec.debug.v1.Debug";
/// Where containerd, whose socket is in `/run`, has its bundles.
const BUNDLES: &str = "/run/io.containerd.runtime.v2.task/test";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const O_NONBLOCK: i32 = 0o4000;

fn dump(client: &mut Client) -> Value {
    let json: String = client.check("Dump", &()).unwrap();
    serde_json::from_str(&json).expect("the dump is JSON")
}

fn debug(host: &NativeHost, flags: &[&str]) -> Output {
    let argv: Vec<&str> = [&[PROGRAM], flags, &["debug"]].concat();
    host.run(&argv).unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, part: &str) {
    assert_eq!((output.status, &*output.stdout), (1, ""), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(output.stderr.contains(part), "{output:?}");
}

/// Waits until the state is as `is_wanted` says.
fn dump_when(client: &mut Client, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_mins(1);
    loop {
        let state = dump(client);
        if is_wanted(&state) {
            return state;
        }
        assert!(Instant::now() < end, "it never came: {state:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_shim_tells_the_state_of_its_containers_processes_and_streams_and_the_last_calls() {
    let host = host();
    let argv = ["sh", "-c", "echo hello; exec sleep 1000"];
    let running = Bundle::create(&host, format!("{BUNDLES}/a"), &argv).unwrap();
    let stopped = Bundle::create(&host, format!("{BUNDLES}/b"), &["true"]).unwrap();
    host.check(&["mkfifo", "/srv/stdout"]).unwrap();
    let before = Inventory::of(&host).unwrap();
    let mut shim = Shim::start(&host, running.path(), "a", b"").unwrap();
    let mut client = shim.connect(DEBUG).unwrap();
    let empty = dump(&mut client);
    assert_eq!(
        (&empty["containers"], &empty["calls"]),
        (&json!([]), &json!([]))
    );

    let mut create = create_request("a", running.path());
    create.stdout = "/srv/stdout".into();
    let created: CreateTaskResponse = shim.task.check("Create", &create).unwrap();
    shim.start_process("a", "").unwrap();
    wait_for_program(&host, created.pid, "sleep");
    shim.create("b", stopped.path()).unwrap();
    shim.start_process("b", "").unwrap();
    shim.wait("b", "").unwrap();
    for (exec_id, argv) in [
        ("runs", &["sleep", "1000"][..]),
        ("ended", &["sh", "-c", "exit 3"]),
    ] {
        shim.exec("a", exec_id, argv).unwrap();
        shim.start_process("a", exec_id).unwrap();
    }
    shim.wait("a", "ended").unwrap();
    refused(
        shim.task
            .call::<()>("Kill", &kill_request("nobody", "x", 9)),
    );

    let state = dump_when(&mut client, |state| {
        state["containers"][0]["init"]["streams"][0]["untaken"] == "hello\n".len()
            && state["supervisor"]["launches"] == 0
    });
    the_dump_has_it_all(&state, &running, created.pid);
    the_shim_is_told_from_its_worker(&host, &mut shim, &state);
    asking_opens_nothing(&host, &state, &mut client);
    the_command_prints_it(&host, &state, running.path());
    a_successor_tells_what_it_has_taken_over(&host, &state, &mut client);

    let wrong = refused(client.call::<()>("Undump", &()));
    assert_eq!(wrong, (UNIMPLEMENTED, "method Undump".into()));
    shim.end("a").unwrap();
    shim.delete("b", "").unwrap();
    shim.shutdown().unwrap();
    host.check(&["rm", "-r", running.path(), stopped.path()])
        .unwrap();
    assert_restored(&host, &before);
    let socket = state["socket"].as_str().unwrap();
    assert_refused(&debug(&host, &["-socket", socket]), "no shim listens at");
}

fn the_dump_has_it_all(state: &Value, running: &Bundle<'_>, pid: u32) {
    assert_eq!(
        (&state["namespace"], &state["creating"]),
        (&json!("test"), &json!([]))
    );
    let [a, b] = [0, 1].map(|index| &state["containers"][index]);
    assert_eq!(
        (&a["id"], &a["bundle"]),
        (&json!("a"), &json!(running.path()))
    );
    let init = &a["init"];
    assert_eq!(
        (&init["pid"], &init["state"]),
        (&json!(pid), &json!("Running"))
    );
    assert_eq!(init["exit"], Value::Null);
    assert_eq!(init["streams"].as_array().unwrap().len(), 1);
    let stdout = &init["streams"][0];
    assert_eq!(
        (&stdout["kind"], &stdout["open"]),
        (&json!("stdout"), &json!(true))
    );
    assert_eq!(stdout["unread"], 0);
    let times = &a["timings_us"];
    let us = |phase: &str| times[phase].as_u64().expect("a time");
    let phases = us("streams") + us("mount") + us("launch") + us("console");
    assert!(us("launch") > 0 && us("start") > 0, "{times}");
    assert!(phases <= us("create"), "{times}");
    assert_eq!(us("total"), us("create") + us("start"));

    assert_eq!(
        (&b["id"], &b["init"]["state"]),
        (&json!("b"), &json!("Stopped"))
    );
    assert_eq!(b["init"]["exit"]["status"], 0);
    assert!(b["init"]["exit"]["at"].as_str().unwrap().ends_with('Z'));
    let execs = a["execs"].as_array().unwrap();
    let told = |exec: &Value| {
        (
            exec["exec_id"].clone(),
            exec["state"].clone(),
            exec["exit"]["status"].clone(),
        )
    };
    assert_eq!(
        told(&execs[0]),
        (json!("ended"), json!("Stopped"), json!(3))
    );
    assert_eq!(
        told(&execs[1]),
        (json!("runs"), json!("Running"), Value::Null)
    );

    let last = state["calls"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["method"], &last["id"]),
        (&json!("Kill"), &json!("nobody"))
    );
    assert_eq!(
        (&last["exec_id"], &last["code"]),
        (&json!("x"), &json!(NOT_FOUND))
    );
}

fn the_shim_is_told_from_its_worker(host: &NativeHost, shim: &mut Shim, state: &Value) {
    let supervisor = &state["supervisor"];
    assert_eq!(supervisor["pid"], shim.pid().unwrap());
    assert_eq!(
        (&supervisor["workers"], &supervisor["launches"]),
        (&json!(1), &json!(0))
    );
    let comm = format!("/proc/{}/comm", state["worker"]["pid"]);
    assert_eq!(host.read_file(comm).unwrap(), "xebec-worker\n");
    assert!(supervisor["age_ms"].as_u64() >= state["worker"]["age_ms"].as_u64());
}

fn asking_opens_nothing(host: &NativeHost, state: &Value, client: &mut Client) {
    let pids = [&state["supervisor"]["pid"], &state["worker"]["pid"]];
    let open = || pids.map(|pid| descriptors(host, pid.as_u64().unwrap() as u32));
    let before = open();
    for _ in 0..100 {
        dump(client);
    }
    assert_eq!(open(), before);
}

fn the_command_prints_it(host: &NativeHost, state: &Value, bundle: &str) {
    let socket = format!("unix://{}", state["socket"].as_str().unwrap());
    let containerd = [
        "-namespace",
        "test",
        "-address",
        "/run/containerd.sock",
        "-id",
    ];
    for flags in [
        &[&containerd[..], &["a"]].concat()[..],
        &["-namespace", "test", "-id", "a", "-bundle", bundle],
        &["-socket", &socket],
    ] {
        let output = debug(host, flags);
        assert!(output.success() && output.stderr.is_empty(), "{output:?}");
        let printed: Value = serde_json::from_str(&output.stdout).expect("JSON is printed");
        assert_eq!(printed["containers"], state["containers"], "{flags:?}");
        assert!(output.stdout.lines().count() > 50, "it is not for people");
    }
    let nobody = debug(host, &[&containerd[..], &["nobody"]].concat());
    assert_refused(&nobody, "no shim of nobody in namespace test");
    assert_refused(&debug(host, &[]), "-namespace and -id");
    let help = host.check(&[PROGRAM, "--help"]).unwrap();
    assert!(
        help.contains("debug") && help.contains("-socket PATH"),
        "{help}"
    );
}

fn a_successor_tells_what_it_has_taken_over(host: &NativeHost, old: &Value, client: &mut Client) {
    host.check(&["kill", "-9", &old["worker"]["pid"].to_string()])
        .unwrap();
    let new = dump_when(client, |state| state["supervisor"]["workers"] == 2);
    assert_ne!(new["worker"]["pid"], old["worker"]["pid"]);
    let mut expected = old["containers"].clone();
    for container in expected.as_array_mut().unwrap() {
        container["timings_us"] = Value::Null;
    }
    assert_eq!(new["containers"], expected);
}

#[test]
fn the_log_has_a_line_of_fields_for_each_step_and_never_holds_the_shim_up() {
    let host = host();
    let bundle = bundle(&host, "c", &["sleep", "1000"]);
    let log = format!("{}/log", bundle.path());
    host.check(&["mkfifo", &log]).unwrap();
    // containerd opens the fifo before it starts the shim.
    let mut open = OpenOptions::new();
    let open = open.read(true).custom_flags(O_NONBLOCK);
    let mut log = open.open(host.path(&log)).unwrap();
    let start = command(&host, bundle.path(), "c", &["-debug", "start"]);
    let mut shim = Shim::started_by(&host, "c", start, b"").unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    a_trace_goes_into_log_and_dump(&shim);
    let lines = read_all(&mut log);
    let find = |part: &str| {
        let found = lines.iter().find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part} in {lines:#?}"))
    };
    for part in [
        " level=debug ",
        " namespace=test ",
        " id=c ",
        " mount_us=",
        " total_us=",
    ] {
        assert!(
            find("container started").contains(part),
            "{part}: {lines:#?}"
        );
    }
    assert!(
        lines.iter().all(|line| line.starts_with("time=\"20")),
        "{lines:#?}"
    );
    let traced = find(PARENT);
    assert!(
        traced.contains("msg=\"Exec failed: ") && traced.contains(" exec_id=x "),
        "{traced}"
    );
    assert!(traced.contains(" tracestate=\"a=1\""), "{traced}");

    // More than a fifo holds, and nobody reads.
    for _ in 0..1000 {
        shim.state("c", "").unwrap();
    }
    assert!(read_all(&mut log).len() < 1000, "nothing was lost");
    shim.state("c", "").unwrap();
    let lines = read_all(&mut log);
    assert!(lines[0].contains(" lost_lines="), "{lines:#?}");
    shim.end("c").unwrap();
    shim.shutdown().unwrap();
}

/// A call with a trace context that is refused.
fn a_trace_goes_into_log_and_dump(shim: &Shim) {
    let mut client = shim.connect(TASK).unwrap();
    client.set_metadata(&[("traceparent", PARENT), ("tracestate", "a=1")]);
    let answer = client.call::<()>("Exec", &exec_request("nobody", "x", &["true"]));
    assert_eq!(refused(answer).0, NOT_FOUND);
    let state = dump(&mut shim.connect(DEBUG).unwrap());
    let last = state["calls"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["traceparent"], &last["tracestate"]),
        (&json!(PARENT), &json!("a=1"))
    );
}

/// The lines that wait in a fifo.
fn read_all(log: &mut File) -> Vec<String> {
    let mut bytes = Vec::new();
    match log.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        read => assert!(read.is_ok(), "{read:?}"),
    }
    let text = String::from_utf8(bytes).expect("the log is UTF-8");
    text.lines().map(str::to_owned).collect()
}
