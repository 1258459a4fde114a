//! The Task service: what happens in which order, and what is refused in which words.

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{
    Shim, create_request, delete_request, exec_request, kill_request, start_request, wait_request,
};
use xebec_proto::prost_types::Any;
use xebec_proto::runc_options::ProcessDetails;
use xebec_proto::task::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, DeleteResponse,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitResponse,
};
use xebec_proto::unpack;

use crate::{
    ALREADY_EXISTS, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, UNKNOWN, assert_restored,
    bundle, host, refused,
};

const SLEEP: &[&str] = &["sleep", "1000"];

#[test]
fn what_happens_to_a_container_is_told_in_order_to_its_end_and_the_shims() {
    let host = host();
    inits_exit_comes_after_those_of_all_its_execs(&host);
    a_process_that_ends_at_once_is_told_after_its_start(&host);
    a_created_container_is_ended_by_signals_and_by_deletion(&host);
    a_shim_ends_when_it_is_asked_to_and_has_no_container_left(&host);
}

fn inits_exit_comes_after_those_of_all_its_execs(host: &NativeHost) {
    let bundle = bundle(host, "order", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "order", b"").unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    shim.exec("c", "short", &["sh", "-c", "exit 3"]).unwrap();
    shim.start_process("c", "short").unwrap();
    assert_eq!(shim.wait("c", "short").unwrap(), 3);
    for exec_id in ["one", "two", "three"] {
        shim.exec("c", exec_id, SLEEP).unwrap();
        shim.start_process("c", exec_id).unwrap();
    }
    // The kernel ends all of them with the first process of their pid namespace.
    assert_eq!(shim.end("c").unwrap(), 137);
    let lines = shim.events.lines_until("/tasks/delete", 1).unwrap();
    let start = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit short 3",
    ];
    assert_eq!(lines[..5], start);
    let added = ["exec-added", "exec-started"].repeat(3);
    assert_eq!(lines[5..11], added);
    let mut exits = lines[11..14].to_vec();
    exits.sort();
    assert_eq!(exits, ["exit one 137", "exit three 137", "exit two 137"]);
    assert_eq!(lines[14..], ["exit c 137", "delete"]);
}

fn a_process_that_ends_at_once_is_told_after_its_start(host: &NativeHost) {
    let bundle = bundle(host, "process", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "process", b"").unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    for round in 0..20 {
        let exec_id = format!("e{round}");
        shim.exec("c", &exec_id, &["true"]).unwrap();
        shim.start_process("c", &exec_id).unwrap();
        assert_eq!(shim.wait("c", &exec_id).unwrap(), 0);
        assert_eq!(shim.delete("c", &exec_id).unwrap(), 0);
    }
    shim.end("c").unwrap();
    let lines = shim.events.lines_until("/tasks/delete", 1).unwrap();
    for (round, events) in lines[2..62].chunks(3).enumerate() {
        let exit = format!("exit e{round} 0");
        assert_eq!(events, ["exec-added", "exec-started", &*exit]);
    }
}

#[test]
fn calls_in_the_wrong_state_are_refused_with_the_codes_and_words_of_the_contract() {
    let host = host();
    pids_metrics_and_limits_are_told_and_set(&host);
    let bundle = bundle(&host, "c", SLEEP);
    let mut shim = Shim::start(&host, bundle.path(), "c", b"").unwrap();
    let task = &mut shim.task;
    let unknown: (i32, String) = refused(task.call::<()>("Kill", &kill_request("c", "", 9)));
    assert_eq!(unknown, (NOT_FOUND, "container not created".into()));
    let connect = ConnectRequest { id: "c".into() };
    let connected: ConnectResponse = task.check("Connect", &connect).unwrap();
    assert_eq!(connected.task_pid, 0);

    let pid = shim.create("c", bundle.path()).unwrap();
    let task = &mut shim.task;
    let twice = refused(task.call::<()>("Create", &create_request("c", bundle.path())));
    assert_eq!(twice, (ALREADY_EXISTS, "container c already exists".into()));
    let pause = PauseRequest { id: "c".into() };
    let early = refused(task.call::<()>("Pause", &pause));
    let words = "cannot pause task in created state";
    assert_eq!(early, (FAILED_PRECONDITION, words.into()));
    let dump = CheckpointTaskRequest {
        id: "c".into(),
        path: "/srv/images".into(),
        options: None,
    };
    let early = refused(task.call::<()>("Checkpoint", &dump));
    let words = "cannot checkpoint a task in created state";
    assert_eq!(early, (FAILED_PRECONDITION, words.into()));
    let connected: ConnectResponse = task.check("Connect", &connect).unwrap();
    assert_eq!(connected.task_pid, pid);

    shim.start_process("c", "").unwrap();
    running_refusals(&mut shim);
    exec_refusals(&mut shim);

    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    let task = &mut shim.task;
    let late = refused(task.call::<()>("Kill", &kill_request("c", "", 9)));
    assert_eq!(late, (NOT_FOUND, "process already finished".into()));
    let late = refused(task.call::<()>("Exec", &exec_request("c", "late", SLEEP)));
    let words = "cannot exec in a stopped state";
    assert_eq!(late, (FAILED_PRECONDITION, words.into()));
    let late = refused(task.call::<()>("Checkpoint", &dump));
    let words = "cannot checkpoint a stopped process";
    assert_eq!(late, (FAILED_PRECONDITION, words.into()));
    shim.delete("c", "").unwrap();
    let gone = refused(
        shim.task
            .call::<DeleteResponse>("Delete", &delete_request("c", "")),
    );
    assert_eq!(gone.0, NOT_FOUND);
}

fn running_refusals(shim: &mut Shim) {
    let task = &mut shim.task;
    let again = refused(task.call::<StartResponse>("Start", &start_request("c", "")));
    let words = "cannot start a running process";
    assert_eq!(again, (FAILED_PRECONDITION, words.into()));
    let early = refused(task.call::<DeleteResponse>("Delete", &delete_request("c", "")));
    let words = "cannot delete a running process";
    assert_eq!(early, (FAILED_PRECONDITION, words.into()));
    let request = PauseRequest { id: "c".into() };
    let () = task.check("Pause", &request).unwrap();
    let frozen = refused(task.call::<()>("Exec", &exec_request("c", "frozen", SLEEP)));
    let words = "cannot exec in a paused state";
    assert_eq!(frozen, (FAILED_PRECONDITION, words.into()));
    assert_eq!(
        shim.state("c", "").unwrap().status().as_str_name(),
        "PAUSED"
    );
    let request = ResumeRequest { id: "c".into() };
    let () = shim.task.check("Resume", &request).unwrap();
    let wrong = refused(shim.task.call::<()>("Kill", &kill_request("c", "", 4711)));
    assert_eq!(wrong.0, UNKNOWN, "{wrong:?}");
}

/// An exec is known once: until its deletion, whether it could be started or not.
fn exec_refusals(shim: &mut Shim) {
    shim.exec("c", "x", &["nothere"]).unwrap();
    let task = &mut shim.task;
    for taken in ["x", "c"] {
        let twice = refused(task.call::<()>("Exec", &exec_request("c", taken, SLEEP)));
        assert_eq!(twice.0, ALREADY_EXISTS, "{twice:?}");
    }
    let early = refused(task.call::<()>("Kill", &kill_request("c", "x", 9)));
    let words = "process not created";
    assert_eq!(early, (FAILED_PRECONDITION, words.into()));
    let failed = refused(task.call::<StartResponse>("Start", &start_request("c", "x")));
    let words = "executable file not found in $PATH";
    assert!(failed.1.contains(words), "{failed:?}");
    let ended: WaitResponse = task.check("Wait", &wait_request("c", "x")).unwrap();
    assert_eq!(ended.exit_status, 255);
    assert_eq!(
        shim.state("c", "x").unwrap().status().as_str_name(),
        "STOPPED"
    );
    assert_eq!(shim.delete("c", "x").unwrap(), 255);
    let gone = StateRequest {
        id: "c".into(),
        exec_id: "x".into(),
    };
    let gone = refused(shim.task.call::<StateResponse>("State", &gone));
    assert_eq!(gone, (NOT_FOUND, "process does not exist x".into()));
}

fn a_created_container_is_ended_by_signals_and_by_deletion(host: &NativeHost) {
    let bundle = bundle(host, "created", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "created", b"").unwrap();
    for signal in [9, 15] {
        shim.create("c", bundle.path()).unwrap();
        shim.kill("c", "", signal).unwrap();
        assert_eq!(shim.wait("c", "").unwrap(), 128 + signal);
        shim.delete("c", "").unwrap();
    }
    shim.create("c", bundle.path()).unwrap();
    assert_eq!(shim.delete("c", "").unwrap(), 137);
    let lines = shim.events.lines_until("/tasks/delete", 3).unwrap();
    let round = |status| {
        vec![
            "create".to_owned(),
            format!("exit c {status}"),
            "delete".into(),
        ]
    };
    assert_eq!(lines, [round(137), round(143), round(137)].concat());
}

fn pids_metrics_and_limits_are_told_and_set(host: &NativeHost) {
    let bundle = bundle(host, "told", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "told", b"").unwrap();
    let pid = shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    shim.exec("c", "x", SLEEP).unwrap();
    let exec_pid = shim.start_process("c", "x").unwrap();
    let id = || "c".to_owned();
    let pids: PidsResponse = shim.task.check("Pids", &PidsRequest { id: id() }).unwrap();
    let mut told: Vec<_> = pids
        .processes
        .iter()
        .map(|process| {
            let details = process
                .info
                .as_ref()
                .map(|any| unpack(any).unwrap().unwrap());
            (process.pid, details.map(|it: ProcessDetails| it.exec_id))
        })
        .collect();
    told.sort();
    assert_eq!(told, [(pid, None), (exec_pid, Some("x".to_owned()))]);

    let stats: StatsResponse = shim
        .task
        .check("Stats", &StatsRequest { id: id() })
        .unwrap();
    assert_eq!(
        stats.stats.unwrap().type_url,
        "io.containerd.cgroups.v2.Metrics"
    );

    let mut update = UpdateTaskRequest {
        id: id(),
        annotations: [("note".to_owned(), "for nobody".to_owned())].into(),
        ..Default::default()
    };
    let () = shim.task.check("Update", &update).unwrap();
    for (type_url, value) in [("acme/Limits", "{}"), ("x/LinuxResources", "{")] {
        update.resources = Some(Any {
            type_url: type_url.into(),
            value: value.into(),
        });
        let wrong = refused(shim.task.call::<()>("Update", &update));
        assert_eq!(wrong.0, INVALID_ARGUMENT, "{wrong:?}");
    }
    // Without a terminal there is nothing to resize, and nothing is wrong with it either.
    let resize = ResizePtyRequest {
        id: id(),
        width: 80,
        height: 24,
        ..Default::default()
    };
    let () = shim.task.check("ResizePty", &resize).unwrap();
    let close = CloseIoRequest {
        id: id(),
        stdin: true,
        ..Default::default()
    };
    let () = shim.task.check("CloseIO", &close).unwrap();
    shim.end("c").unwrap();
}

fn a_shim_ends_when_it_is_asked_to_and_has_no_container_left(host: &NativeHost) {
    let bundle = bundle(host, "shim", SLEEP);
    let before = Inventory::of(host).unwrap();
    let mut shim = Shim::start(host, bundle.path(), "shim", b"").unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    shim.shutdown().unwrap();
    // Two who delete the same container at the same time, as one whose client has lost patience.
    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    let mut second = shim.connect(integration::shim::TASK).unwrap();
    let streams = [&mut shim.task, &mut second]
        .map(|client| client.send("Delete", &delete_request("c", "")).unwrap());
    let [one, other] = [
        shim.task.answer::<DeleteResponse>(streams[0]).unwrap(),
        second.answer::<DeleteResponse>(streams[1]).unwrap(),
    ];
    for answer in [one, other] {
        match answer {
            Ok(deleted) => assert_eq!(deleted.exit_status, 137),
            // It came when the other was through.
            Err(status) => assert_eq!(status.code, NOT_FOUND),
        }
    }
    let lines = shim.events.lines_until("/tasks/delete", 1).unwrap();
    assert_eq!(lines, ["create", "start", "exit c 137", "delete"]);
    shim.shutdown().unwrap();
    assert_restored(host, &before);
    assert!(!shim.is_listening());
}
