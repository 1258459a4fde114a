//! Very many calls at once, and some that take long.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{
    Shim, create_request, delete_request, exec_request, kill_request, start_request, wait_request,
};
use serde_json::json;
use xebec_proto::task::{
    CreateTaskResponse, DeleteResponse, ExecProcessRequest, StartResponse, WaitResponse,
};

use crate::{assert_restored, bundle, descriptors, host, sleeper};

const SLEEP: &[&str] = &["sleep", "1000"];

#[test]
fn hundreds_of_execs_at_once_with_and_without_terminals_leave_nothing() {
    let host = host();
    let mut shim = sleeper(&host);
    let pid = shim.pid().unwrap();
    let before = Inventory::of(&host).unwrap();
    let open = descriptors(&host, pid);

    let ids: Vec<String> = (0..200).map(|number| format!("e{number}")).collect();
    let ended: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(number, exec_id)| {
            let script = format!("test -t 0; exit $(($? * 100 + {}))", number % 50);
            let request = ExecProcessRequest {
                terminal: number % 3 == 0,
                ..exec_request("c", exec_id, &["sh", "-c", &script])
            };
            shim.task.send("Exec", &request).unwrap();
            shim.task
                .send("Start", &start_request("c", exec_id))
                .unwrap();
            shim.task.send("Wait", &wait_request("c", exec_id)).unwrap()
        })
        .collect();
    for (number, (exec_id, stream)) in ids.iter().zip(ended).enumerate() {
        let ended: WaitResponse = shim.task.answer(stream).unwrap().unwrap();
        let expected = if number % 3 == 0 { 0 } else { 100 } + number as u32 % 50;
        assert_eq!(ended.exit_status, expected, "{exec_id}");
        assert_eq!(shim.delete("c", exec_id).unwrap(), expected, "{exec_id}");
    }
    assert_restored(&host, &before);
    assert_eq!(descriptors(&host, pid), open);
    let lines = shim.events.lines_until("/tasks/exit", 201).unwrap();
    assert_eq!(
        lines.iter().filter(|it| it.starts_with("exit e")).count(),
        200
    );
    shim.end("c").unwrap();
}

#[test]
fn a_thousand_execs_and_kills_at_once_are_all_answered_and_leave_nothing() {
    let host = host();
    let mut shim = sleeper(&host);
    let pid = shim.pid().unwrap();
    let before = Inventory::of(&host).unwrap();
    let open = descriptors(&host, pid);
    let ids: Vec<String> = (0..1000).map(|number| format!("e{number}")).collect();
    let mut answers = Vec::new();
    for exec_id in &ids {
        let task = &mut shim.task;
        let _ = task
            .send("Exec", &exec_request("c", exec_id, SLEEP))
            .unwrap();
        let started = task.send("Start", &start_request("c", exec_id)).unwrap();
        let killed = task.send("Kill", &kill_request("c", exec_id, 9)).unwrap();
        let waited = task.send("Wait", &wait_request("c", exec_id)).unwrap();
        answers.push((exec_id, started, killed, waited));
    }
    for (exec_id, started, killed, waited) in answers {
        let started = shim.task.answer::<StartResponse>(started).unwrap();
        assert!(started.is_ok(), "{exec_id}: {started:?}");
        // It overtook the start, or it did not.
        if shim.task.answer::<()>(killed).unwrap().is_err() {
            shim.kill("c", exec_id, 9).unwrap();
        }
        let ended: WaitResponse = shim.task.answer(waited).unwrap().unwrap();
        assert_eq!(ended.exit_status, 137, "{exec_id}");
        assert_eq!(shim.delete("c", exec_id).unwrap(), 137);
    }
    assert_restored(&host, &before);
    assert_eq!(descriptors(&host, pid), open);
    shim.end("c").unwrap();
}

#[test]
fn containers_whose_hooks_take_long_hold_no_others_up() {
    let host = host();
    let mut shim = sleeper(&host);
    let quick = bundle(&host, "quick", SLEEP);
    let mut slow = bundle(&host, "slow", SLEEP);
    let script = "until [ -e /tmp/gate ]; do sleep 0.02; done";
    slow.config["hooks"] = json!({ "createRuntime": [
        { "path": integration::bundle::busybox(), "args": ["sh", "-c", script] }
    ]});
    slow.write().unwrap();
    let before = Inventory::of(&host).unwrap();
    let ids = ["slow-1", "slow-2", "slow-3"];
    let created = ids.map(|id| {
        let request = create_request(id, slow.path());
        shim.task.send("Create", &request).unwrap()
    });
    live(&mut shim, &quick);
    host.check(&["touch", "/tmp/gate"]).unwrap();
    for (id, stream) in ids.into_iter().zip(created) {
        shim.task
            .answer::<CreateTaskResponse>(stream)
            .unwrap()
            .unwrap();
        shim.delete(id, "").unwrap();
    }
    host.check(&["rm", "/tmp/gate"]).unwrap();
    assert_restored(&host, &before);
    shim.end("c").unwrap();
}

/// The whole life of a container, with an exec.
fn live(shim: &mut Shim, bundle: &Bundle<'_>) {
    shim.create("quick", bundle.path()).unwrap();
    shim.start_process("quick", "").unwrap();
    shim.exec("quick", "e", &["true"]).unwrap();
    shim.start_process("quick", "e").unwrap();
    assert_eq!(shim.wait("quick", "e").unwrap(), 0);
    shim.end("quick").unwrap();
}

#[test]
fn starts_and_deletions_with_hooks_that_take_long_hold_no_others_up_and_leave_no_threads() {
    let host = host();
    let mut shim = sleeper(&host);
    let quick = bundle(&host, "quick", SLEEP);
    let before = Inventory::of(&host).unwrap();
    let mut slow = bundle(&host, "slow", SLEEP);
    let hook = |gate: &str| {
        let script = format!("until [ -e /tmp/{gate} ]; do sleep 0.02; done");
        json!([{ "path": integration::bundle::busybox(), "args": ["sh", "-c", script] }])
    };
    slow.config["hooks"] = json!({ "poststart": hook("started"), "poststop": hook("stopped") });
    slow.write().unwrap();
    let ids = ["slow-1", "slow-2", "slow-3"];
    for id in ids {
        shim.create(id, slow.path()).unwrap();
    }
    let started = ids.map(|id| shim.task.send("Start", &start_request(id, "")).unwrap());
    live(&mut shim, &quick);
    host.check(&["touch", "/tmp/started"]).unwrap();
    for stream in started {
        shim.task.answer::<StartResponse>(stream).unwrap().unwrap();
    }
    let deleted = ids.map(|id| {
        shim.kill(id, "", 9).unwrap();
        assert_eq!(shim.wait(id, "").unwrap(), 137);
        shim.task.send("Delete", &delete_request(id, "")).unwrap()
    });
    live(&mut shim, &quick);
    host.check(&["touch", "/tmp/stopped"]).unwrap();
    for stream in deleted {
        let answer = shim.task.answer::<DeleteResponse>(stream).unwrap();
        assert_eq!(answer.unwrap().exit_status, 137);
    }
    host.check(&["rm", "/tmp/started", "/tmp/stopped"]).unwrap();
    assert_restored(&host, &before);
    wait_for_one_thread(&host, shim.pid().unwrap());
    shim.end("c").unwrap();
}

/// Waits until the worker is its event loop's thread alone again.
fn wait_for_one_thread(host: &NativeHost, supervisor: u32) {
    let script = format!(
        "until [ $(ls /proc/$(pgrep -P {supervisor} -x xebec-worker)/task | wc -l) = 1 ]; do
           sleep 0.05; done"
    );
    host.check_sh(&script).unwrap();
}
