//! What no client should send, and what no client should do.

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::rpc::{REQUEST, frame};
use integration::shim::{Shim, TASK, create_request, exec_request, kill_request, wait_request};
use xebec_proto::prost_types::Any;
use xebec_proto::task::{CreateTaskRequest, CreateTaskResponse, PidsRequest, PidsResponse};
use xebec_proto::types::Mount;

use crate::{
    INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNKNOWN, assert_restored, bundle,
    descriptors, host, refused,
};

const SLEEP: &[&str] = &["sleep", "1000"];

#[test]
fn bad_input_is_refused_and_harms_nobody() {
    let host = host();
    garbage_on_the_socket_gets_a_status_or_the_end_and_harms_nobody_else(&host);
    requests_that_make_no_sense_are_refused_by_name_and_leave_nothing(&host);
    streams_that_nobody_opens_hold_nothing_up(&host);
    a_bundle_that_vanishes_does_not_keep_its_container(&host);
    a_client_that_hangs_up_in_the_middle_leaves_the_work_done_and_the_shim_alive(&host);
}

fn garbage_on_the_socket_gets_a_status_or_the_end_and_harms_nobody_else(host: &NativeHost) {
    let bundle = bundle(host, "garbage", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "garbage", b"").unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    let pid = shim.pid().unwrap();
    let open = descriptors(host, pid);

    let mut rude = shim.connect(TASK).unwrap();
    for (stream, bytes, code) in [
        (1, frame(REQUEST, 1, &[0xff; 40]), INVALID_ARGUMENT),
        (2, frame(REQUEST, 2, b""), INVALID_ARGUMENT),
        (3, frame(REQUEST, 3, b""), UNIMPLEMENTED),
        (3, frame(REQUEST, 3, b""), INVALID_ARGUMENT),
        (5, frame(2, 5, b""), INVALID_ARGUMENT),
        (7, frame(77, 7, b"data"), INVALID_ARGUMENT),
        (
            9,
            frame(REQUEST, 9, &vec![0; (4 << 20) + 1]),
            RESOURCE_EXHAUSTED,
        ),
    ] {
        rude.send_bytes(&bytes).unwrap();
        let (told, answer) = rude.receive().unwrap();
        assert_eq!((told, answer.status.unwrap().code), (stream, code));
    }
    // No frame at all: an absurd length, and then nothing.
    let mut cut = shim.connect(TASK).unwrap();
    cut.send_bytes(&[0xff; 64]).unwrap();
    drop(cut);
    let mut cut = shim.connect(TASK).unwrap();
    cut.send_bytes(&frame(REQUEST, 1, &[7; 100])[..50]).unwrap();
    drop(cut);
    let mut web = shim.connect(TASK).unwrap();
    web.send_bytes(b"GET / HTTP/1.1\r\nHost: shim\r\n\r\n")
        .unwrap();
    drop((web, rude));

    for service in ["containerd.task.v1.Task", "containerd.services.Acme", ""] {
        let mut other = shim.connect(service).unwrap();
        let answer = other.call::<PidsResponse>("Pids", &PidsRequest { id: "c".into() });
        assert_eq!(refused(answer).0, UNIMPLEMENTED, "{service:?}");
    }
    let unknown = refused(shim.task.call::<()>("Explode", &()));
    assert_eq!(unknown.0, UNIMPLEMENTED);
    // The second version of the service has the same methods.
    let mut second = shim.connect("containerd.task.v2.Task").unwrap();
    let pids: PidsResponse = second
        .check("Pids", &PidsRequest { id: "c".into() })
        .unwrap();
    assert_eq!(pids.processes.len(), 1);
    drop(second);
    let closed = || descriptors(host, pid) == open;
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !closed() {
        assert!(std::time::Instant::now() < end, "connections stay open");
    }
    shim.end("c").unwrap();
}

fn requests_that_make_no_sense_are_refused_by_name_and_leave_nothing(host: &NativeHost) {
    let bundle = bundle(host, "sense", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "sense", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    let before = Inventory::of(host).unwrap();
    let any = |type_url: &str, value: &[u8]| {
        Some(Any {
            type_url: type_url.into(),
            value: value.into(),
        })
    };
    let good = create_request("c", bundle.path());
    let cases = [
        (
            "../c",
            INVALID_ARGUMENT,
            create_request("../c", bundle.path()),
        ),
        ("acme.Options", INVALID_ARGUMENT, {
            let options = any("acme.Options", b"");
            changed(&good, |request| request.options = options)
        }),
        ("containerd.runc.v1.Options", INVALID_ARGUMENT, {
            let options = any("containerd.runc.v1.Options", &[0xff]);
            changed(&good, |request| request.options = options)
        }),
        (
            "/bundles/gone",
            UNKNOWN,
            create_request("c", "/bundles/gone"),
        ),
        ("gopher:///x", INVALID_ARGUMENT, {
            changed(&good, |request| request.stdout = "gopher:///x".into())
        }),
        ("/srv/nofifo", UNKNOWN, {
            changed(&good, |request| request.stdin = "/srv/nofifo".into())
        }),
        ("no such file system", UNKNOWN, {
            let mount = Mount {
                r#type: "no such file system".into(),
                source: "x".into(),
                ..Default::default()
            };
            changed(&good, |request| request.rootfs = vec![mount])
        }),
    ];
    for (words, code, request) in cases {
        let answer = refused(shim.task.call::<CreateTaskResponse>("Create", &request));
        assert!(
            answer.0 == code && answer.1.contains(words),
            "{words}: {answer:?}"
        );
    }
    assert_restored(host, &before);

    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    for (words, spec) in [
        ("no Process", None),
        ("acme/Spec", any("acme/Spec", b"{}")),
        ("Process: ", any(integration::shim::PROCESS, b"[]")),
    ] {
        let mut request = exec_request("c", "x", SLEEP);
        request.spec = spec;
        let answer = refused(shim.task.call::<()>("Exec", &request));
        assert!(
            answer.0 == INVALID_ARGUMENT && answer.1.contains(words),
            "{answer:?}"
        );
    }
    let answer = refused(
        shim.task
            .call::<()>("Exec", &exec_request("c", "a/b", SLEEP)),
    );
    assert_eq!(answer.0, INVALID_ARGUMENT, "{answer:?}");
    shim.end("c").unwrap();
}

fn changed(
    good: &CreateTaskRequest,
    change: impl FnOnce(&mut CreateTaskRequest),
) -> CreateTaskRequest {
    let mut request = good.clone();
    change(&mut request);
    request
}

fn streams_that_nobody_opens_hold_nothing_up(host: &NativeHost) {
    let bundle = bundle(
        host,
        "streams",
        &["sh", "-c", "echo out; echo err >&2; exec sleep 1000"],
    );
    let mut shim = Shim::start(host, bundle.path(), "streams", b"").unwrap();
    host.check_sh("cd /srv; mkfifo in out err").unwrap();
    let mut request = create_request("c", bundle.path());
    request.stdin = "/srv/in".into();
    request.stdout = "/srv/out".into();
    request.stderr = "/srv/err".into();
    let created: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
    assert_ne!(created.pid, 0);
    shim.start_process("c", "").unwrap();
    let mut exec = exec_request("c", "x", &["echo", "hello"]);
    exec.stdout = "/srv/out".into();
    let () = shim.task.check("Exec", &exec).unwrap();
    shim.start_process("c", "x").unwrap();
    assert_eq!(shim.wait("c", "x").unwrap(), 0);
    assert_eq!(shim.delete("c", "x").unwrap(), 0);
    assert_eq!(shim.end("c").unwrap(), 137);
}

fn a_bundle_that_vanishes_does_not_keep_its_container(host: &NativeHost) {
    let bundle = bundle(host, "vanished", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "vanished", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    let before = Inventory::of(host).unwrap();
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    host.check_sh("rm -r /bundles/vanished").unwrap();
    assert_eq!(shim.end("c").unwrap(), 137);
    assert_restored(host, &before);
}

fn a_client_that_hangs_up_in_the_middle_leaves_the_work_done_and_the_shim_alive(host: &NativeHost) {
    let bundle = bundle(host, "hasty", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "hasty", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    let pid = shim.pid().unwrap();
    let open = descriptors(host, pid);
    let mut hasty = shim.connect(TASK).unwrap();
    hasty
        .send("Create", &create_request("c", bundle.path()))
        .unwrap();
    drop(hasty);
    shim.events.lines_until("/tasks/create", 2).unwrap();
    shim.start_process("c", "").unwrap();
    let mut hasty = shim.connect(TASK).unwrap();
    for _ in 0..100 {
        hasty.send("Wait", &wait_request("c", "")).unwrap();
    }
    drop(hasty);
    let mut hasty = shim.connect(TASK).unwrap();
    hasty.send("Kill", &kill_request("c", "", 9)).unwrap();
    drop(hasty);
    assert_eq!(shim.wait("c", "").unwrap(), 137);
    assert_eq!(shim.delete("c", "").unwrap(), 137);
    assert_eq!(descriptors(host, pid), open);
}
