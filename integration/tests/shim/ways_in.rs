//! How containerd's versions start, ask and clean up after a shim, and which runtimes it drives.

use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use integration::shim::{self, Shim, encoded};
use xebec_proto::bootstrap::{BootstrapParams, Extension};
use xebec_proto::prost::Message;
use xebec_proto::prost_types::Any;
use xebec_proto::task::{CreateTaskResponse, DeleteResponse};
use xebec_proto::types::RuntimeInfo;
use xebec_proto::{pack, runc_options, runtimeoptions};

use crate::{assert_restored, bundle, host};

const SLEEP: &[&str] = &["sleep", "1000"];

fn runc_options(binary: &str) -> Any {
    pack(&runc_options::Options {
        binary_name: binary.into(),
        ..Default::default()
    })
}

#[test]
fn every_version_of_containerd_finds_the_shim_and_every_runtime_behind_it() {
    let host = host();
    every_runtime_is_driven_by_whatever_options_name_it(&host);
    the_bootstrap_message_of_containerd_2_3_says_where_everything_is(&host);
    containerd_1_6_gets_a_plain_address_and_a_second_start_the_same_one(&host);
    information_is_given_with_features_and_the_mounts_that_the_shim_makes(&host);
    deletion_cleans_up_after_a_shim_that_was_killed(&host);
    the_shims_own_process_is_placed_as_the_operator_says(&host);
}

fn every_runtime_is_driven_by_whatever_options_name_it(host: &NativeHost) {
    host.write_file("/srv/crun.toml", "BinaryName = \"crun\"\n")
        .unwrap();
    let by_path = pack(&runtimeoptions::Options {
        config_path: "/srv/crun.toml".into(),
        ..Default::default()
    });
    let by_body = pack(&runtimeoptions::Options {
        config_body: b"BinaryName = \"xebec\"\n".to_vec(),
        ..Default::default()
    });
    let bundle = bundle(host, "driven", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "driven", b"").unwrap();
    shim.warm_up("c", bundle.path()).unwrap();
    let before = Inventory::of(host).unwrap();
    let library = "/run/containerd/xebec/test/c";
    let program = "/run/containerd/runc/test/c";
    for (options, state) in [
        (runc_options(""), library),
        (runc_options("runc"), program),
        (by_path, program),
        (by_body, program),
    ] {
        let mut request = shim::create_request("c", bundle.path());
        request.options = Some(options.clone());
        let _: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
        assert!(host.path(state).exists(), "{options:?}");
        shim.start_process("c", "").unwrap();
        shim.exec("c", "x", &["sh", "-c", "exit 7"]).unwrap();
        shim.start_process("c", "x").unwrap();
        assert_eq!(shim.wait("c", "x").unwrap(), 7, "{options:?}");
        assert_eq!(shim.delete("c", "x").unwrap(), 7);
        assert_eq!(shim.end("c").unwrap(), 137, "{options:?}");
        assert_restored(host, &before);
    }
}

fn the_bootstrap_message_of_containerd_2_3_says_where_everything_is(host: &NativeHost) {
    let bundle = bundle(host, "bootstrap", SLEEP);
    host.check_sh("mkdir /run/sockets").unwrap();
    let params = BootstrapParams {
        instance_id: "bootstrap".into(),
        namespace: "test".into(),
        containerd_ttrpc_address: "unix:///srv/events-bootstrap.sock".into(),
        extensions: vec![Extension {
            value: Some(runc_options("crun")),
        }],
        socket_dir: Some("/run/sockets".into()),
        ..Default::default()
    };
    let mut shim = Shim::start(host, bundle.path(), "bootstrap", &encoded(&params)).unwrap();
    assert_eq!(
        host.check_sh("ls /run/sockets | wc -l").unwrap().trim(),
        "1"
    );
    shim.create("c", bundle.path()).unwrap();
    shim.delete("c", "").unwrap();
    shim.events.lines_until("/tasks/delete", 1).unwrap();
}

fn containerd_1_6_gets_a_plain_address_and_a_second_start_the_same_one(host: &NativeHost) {
    let bundle = bundle(host, "plain", SLEEP);
    let mut shim = Shim::start(host, bundle.path(), "plain", b"").unwrap();
    let mut command = shim::command(host, bundle.path(), "plain", &["start"]);
    command.env_remove("MAX_SHIM_VERSION");
    let (_, answer) = shim::run(command, b"").unwrap();
    assert!(answer.success() && answer.stderr.is_empty(), "{answer:?}");
    let socket = answer.stdout.strip_prefix("unix:///run/containerd/s/");
    assert!(socket.is_some_and(|name| name.len() == 64), "{answer:?}");
    shim.shutdown().unwrap();
}

fn information_is_given_with_features_and_the_mounts_that_the_shim_makes(host: &NativeHost) {
    for binary in ["", "runc"] {
        let command = shim::command(host, "/bundles", "c", &["-info"]);
        let (info, text) = shim::run(command, &encoded(&runc_options(binary))).unwrap();
        assert!(text.success() && text.stderr.is_empty(), "{text:?}");
        let info = RuntimeInfo::decode(info.as_slice()).unwrap();
        let features: serde_json::Value =
            serde_json::from_slice(&info.features.unwrap().value).unwrap();
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
        let mounts = &info.annotations["containerd.io/runtime-allow-mounts"];
        assert!(mounts.split(',').any(|kind| kind == "erofs"), "{mounts}");
    }
    let (_, version) = shim::run(shim::command(host, "/bundles", "c", &["-v"]), b"").unwrap();
    assert!(version.stdout.contains("Version: "), "{version:?}");
}

fn deletion_cleans_up_after_a_shim_that_was_killed(host: &NativeHost) {
    let bundle = bundle(host, "killed", SLEEP);
    // One after the other in the same bundle, by each kind of engine.
    for (id, binary) in [("killed", ""), ("dead", "crun")] {
        let before = Inventory::of(host).unwrap();
        let mut shim = Shim::start(host, bundle.path(), id, b"").unwrap();
        let mut request = shim::create_request(id, bundle.path());
        request.options = Some(runc_options(binary));
        let created: CreateTaskResponse = shim.task.check("Create", &request).unwrap();
        shim.start_process(id, "").unwrap();
        let pid = shim.pid().unwrap();
        host.check_sh(&format!("kill -9 {pid}")).unwrap();
        let deleted = |init| {
            let words = ["-bundle", bundle.path(), "delete"];
            let command = shim::command(host, bundle.path(), id, &words);
            let (answer, text) = shim::run(command, b"").unwrap();
            assert!(text.success(), "{text:?}");
            let answer = DeleteResponse::decode(answer.as_slice()).unwrap();
            assert_eq!((answer.pid, answer.exit_status), (init, 137));
        };
        deleted(created.pid);
        assert_restored(host, &before);
        deleted(created.pid);
    }
}

fn the_shims_own_process_is_placed_as_the_operator_says(host: &NativeHost) {
    let bundle = bundle(host, "placed", SLEEP);
    let options = pack(&runc_options::Options {
        shim_cgroup: "/shims".into(),
        ..Default::default()
    });
    host.write_file("/srv/options", encoded(&options)).unwrap();
    // A shell stands for containerd: the start's parent has to be a process of the host.
    let start = format!(
        "cd {}; containerd-shim-xebec-v2 -namespace test -address /run/containerd.sock \
         -publish-binary /bin/true -id placed start < /srv/options; true",
        bundle.path()
    );
    host.check_sh(&start).unwrap();
    // It is there already, and stays where it is.
    let mut shim = Shim::start(host, bundle.path(), "placed", b"").unwrap();
    let pid = shim.pid().unwrap();
    let cgroup = host.read_file(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(
        cgroup.lines().any(|line| line.ends_with("/shims")),
        "{cgroup}"
    );
    // One above who started it, which is a process of this test's host with the score of init.
    let score = |pid: &str| -> i32 {
        let text = host.read_file(format!("/proc/{pid}/oom_score_adj"));
        text.unwrap().trim().parse().unwrap()
    };
    assert_eq!(score(&pid.to_string()), (score("1") + 1).min(1000));
    shim.create("c", bundle.path()).unwrap();
    let init = shim.state("c", "").unwrap().pid;
    let cgroup = host.read_file(format!("/proc/{init}/cgroup")).unwrap();
    assert!(!cgroup.contains("/shims"), "{cgroup}");
    shim.delete("c", "").unwrap();
}
