//! Pods that the shim makes itself, as containerd's `sandboxer = "shim"` asks for them.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{self, Client, SANDBOX, Shim, create_request, exec_request};
use serde_json::{Value, json};
use xebec_proto::cri::{DnsConfig, PodSandboxConfig, PodSandboxMetadata};
use xebec_proto::prost::Message;
use xebec_proto::prost_types::Any;
use xebec_proto::sandbox::{
    CreateSandboxRequest, PingRequest, PlatformRequest, PlatformResponse, SandboxMetricsRequest,
    SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, WaitSandboxRequest,
    WaitSandboxResponse,
};
use xebec_proto::task::CreateTaskResponse;

use crate::{
    ALREADY_EXISTS, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, assert_restored, bundle,
    host, refused, wait_for_program,
};

fn id() -> String {
    "pod".to_owned()
}

/// What CRI asks for: a pod called `web` with a resolver of its own.
fn creation(bundle: &str) -> CreateSandboxRequest {
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            ..Default::default()
        }),
        hostname: "web".into(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.9.8.7".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    CreateSandboxRequest {
        sandbox_id: id(),
        bundle_path: bundle.into(),
        options: Some(Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: pod.encode_to_vec(),
        }),
        ..Default::default()
    }
}

/// A shim with a started sandbox, its Sandbox service and the pid that holds the namespaces.
fn pod(host: &NativeHost, directory: &str) -> (Shim, Client, u32) {
    host.check_sh(&format!("mkdir -p {directory}")).unwrap();
    let shim = Shim::start(host, directory, "pod", b"").unwrap();
    let mut sandbox = shim.connect(SANDBOX).unwrap();
    let () = sandbox
        .check("CreateSandbox", &creation(directory))
        .unwrap();
    let request = StartSandboxRequest { sandbox_id: id() };
    let started: StartSandboxResponse = sandbox.check("StartSandbox", &request).unwrap();
    wait_for_program(host, started.pid, "/pause");
    (shim, sandbox, started.pid)
}

/// A container's bundle in all namespaces of a pod, as containerd writes it.
fn member<'a>(host: &'a NativeHost, name: &str, holder: u32) -> Bundle<'a> {
    let mut bundle = bundle(host, name, &["sleep", "1000"]);
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, file) in [
        ("pid", "pid"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("network", "net"),
    ] {
        namespaces.push(json!({"type": kind, "path": format!("/proc/{holder}/ns/{file}")}));
    }
    bundle.config["linux"]["namespaces"] = Value::from(namespaces);
    bundle.config.as_object_mut().unwrap().remove("hostname");
    bundle.write().unwrap();
    bundle
}

/// What a script in a container prints.
fn says(host: &NativeHost, shim: &mut Shim, id: &str, script: &str) -> String {
    let mut request = exec_request(id, "says", &["sh", "-c", script]);
    request.stdout = "file:///srv/said".into();
    let () = shim.task.check("Exec", &request).unwrap();
    shim.start_process(id, "says").unwrap();
    assert_eq!(shim.wait(id, "says").unwrap(), 0, "{script}");
    shim.delete(id, "says").unwrap();
    let said = host.read_file("/srv/said").unwrap();
    host.check_sh("rm /srv/said").unwrap();
    said
}

#[test]
fn a_pod_is_held_by_the_shim_shared_by_its_containers_and_ended_with_everything_in_it() {
    let host = host();
    host.check_sh("mkdir -p /bundles").unwrap();
    let before = Inventory::of(&host).unwrap();
    let (mut shim, mut sandbox, holder) = pod(&host, "/bundles/pod");
    told_of_itself(&mut sandbox, holder);
    let (a, b) = (member(&host, "a", holder), member(&host, "b", holder));
    for (id, bundle) in [("a", &a), ("b", &b)] {
        let request = create_request(id, bundle.path());
        let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
        shim.start_process(id, "").unwrap();
    }
    assert_eq!(
        says(&host, &mut shim, "a", "hostname; cat /etc/hostname"),
        "web\nweb\n"
    );
    let resolver = says(&host, &mut shim, "b", "cat /etc/resolv.conf");
    assert_eq!(resolver, "nameserver 10.9.8.7\n");
    says(&host, &mut shim, "a", "echo shared > /dev/shm/x");
    assert_eq!(says(&host, &mut shim, "b", "cat /dev/shm/x"), "shared\n");
    // One pid namespace, whose first process lets no orphan stay a zombie.
    assert_eq!(says(&host, &mut shim, "b", "cat /proc/1/comm"), "pause\n");
    says(
        &host,
        &mut shim,
        "b",
        "for i in 1 2 3 4 5; do (true &) ; done",
    );
    let zombies = "! grep -l '^State:.Z' /proc/[0-9]*/status";
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !host.sh(zombies).unwrap().success() {
        assert!(std::time::Instant::now() < end, "orphans stay");
    }

    let shutdown = ShutdownSandboxRequest { sandbox_id: id() };
    let early = refused(sandbox.call::<()>("ShutdownSandbox", &shutdown));
    assert_eq!(
        early,
        (FAILED_PRECONDITION, "sandbox pod has containers".into())
    );
    let stop = StopSandboxRequest {
        sandbox_id: id(),
        timeout_secs: 60,
    };
    let () = sandbox.check("StopSandbox", &stop).unwrap();
    let () = sandbox.check("StopSandbox", &stop).unwrap();
    let wait = WaitSandboxRequest { sandbox_id: id() };
    let ended: WaitSandboxResponse = sandbox.check("WaitSandbox", &wait).unwrap();
    assert_eq!(ended.exit_status, 0);
    for id in ["b", "a"] {
        assert_eq!(shim.wait(id, "").unwrap(), 137);
        shim.delete(id, "").unwrap();
    }
    // Without tasks, but with a sandbox.
    shim.shutdown().unwrap();
    let status = SandboxStatusRequest {
        sandbox_id: id(),
        verbose: false,
    };
    let ended: SandboxStatusResponse = sandbox.check("SandboxStatus", &status).unwrap();
    assert_eq!(ended.state, "SANDBOX_NOTREADY");
    let lines = shim.events.lines_until("/tasks/delete", 2).unwrap();
    assert!(lines.iter().all(|line| !line.contains("pod")), "{lines:?}");
    let () = sandbox.check("ShutdownSandbox", &shutdown).unwrap();
    assert_restored(&host, &before);
    assert!(!shim.is_listening());
}

fn told_of_itself(sandbox: &mut Client, holder: u32) {
    let () = sandbox
        .check("PingSandbox", &PingRequest { sandbox_id: id() })
        .unwrap();
    let request = PlatformRequest { sandbox_id: id() };
    let answer: PlatformResponse = sandbox.check("Platform", &request).unwrap();
    assert_eq!(answer.platform.unwrap().os, "linux");
    let request = SandboxStatusRequest {
        sandbox_id: id(),
        verbose: true,
    };
    let status: SandboxStatusResponse = sandbox.check("SandboxStatus", &request).unwrap();
    assert_eq!((&*status.state, status.pid), ("SANDBOX_READY", holder));
    let request = SandboxMetricsRequest { sandbox_id: id() };
    let answer: SandboxMetricsResponse = sandbox.check("SandboxMetrics", &request).unwrap();
    let data = answer.metrics.unwrap().data.unwrap();
    assert_eq!(data.type_url, "io.containerd.cgroups.v2.Metrics");

    let again = refused(sandbox.call::<()>("CreateSandbox", &creation("/bundles/pod")));
    assert_eq!(again.0, ALREADY_EXISTS);
    let request = StartSandboxRequest { sandbox_id: id() };
    let again = refused(sandbox.call::<StartSandboxResponse>("StartSandbox", &request));
    assert_eq!(again.0, FAILED_PRECONDITION);
    let other = PingRequest {
        sandbox_id: "other".into(),
    };
    assert_eq!(
        refused(sandbox.call::<()>("PingSandbox", &other)).0,
        NOT_FOUND
    );
}

#[test]
fn a_sandbox_that_cannot_be_or_whose_shim_was_killed_leaves_nothing() {
    let host = host();
    host.check_sh("mkdir -p /bundles/pod").unwrap();
    let before = Inventory::of(&host).unwrap();
    let mut shim = Shim::start(&host, "/bundles/pod", "pod", b"").unwrap();
    let mut sandbox = shim.connect(SANDBOX).unwrap();
    let mut wrong = creation("/bundles/pod");
    wrong.options.as_mut().unwrap().type_url = "acme.Pod".into();
    let answer = refused(sandbox.call::<()>("CreateSandbox", &wrong));
    assert_eq!(answer.0, INVALID_ARGUMENT, "{answer:?}");
    // This is how containerd takes leave of a sandbox that could not be created.
    let shutdown = ShutdownSandboxRequest { sandbox_id: id() };
    let () = sandbox.check("ShutdownSandbox", &shutdown).unwrap();
    assert_restored(&host, &before);

    host.check_sh("rm /srv/events-pod.sock").unwrap();
    let (killed, _, _) = pod(&host, "/bundles/pod");
    shim = killed;
    let pid = shim.pid().unwrap();
    host.check_sh(&format!("kill -9 {pid}")).unwrap();
    let words = ["-bundle", "/bundles/pod", "delete"];
    let command = shim::command(&host, "/bundles/pod", "pod", &words);
    let (_, text) = shim::run(command, b"").unwrap();
    assert!(text.success(), "{text:?}");
    assert_restored(&host, &before);
}
