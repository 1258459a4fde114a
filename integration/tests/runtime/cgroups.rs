//! Cgroups on the native host, whose hierarchy has no controllers for containers: freezing, killing,
//! devices, cgroups below the container's, and what happens without a controller or a cgroup.
//! Limits are a matter of the VM (`vm/cgroups.rs`).

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::json;

use super::{assert_restored, host, ok, settled, state, xebec};

/// A bundle without limits, which runc could not apply here.
fn bundle<'a>(host: &'a NativeHost, path: &str, args: &[&str]) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, args).unwrap();
    bundle.config["linux"]["resources"] = json!({});
    bundle.write().unwrap();
    bundle
}

#[track_caller]
fn start(host: &NativeHost, options: &str, path: &str, id: &str) {
    let run =
        format!("xebec {options} run --detach --bundle {path} {id} </dev/null >/dev/null 2>&1");
    host.check_sh(&run).unwrap();
}

/// Each step with its exit status, and the words of its error.
const TRANSITIONS: &str = r#"
set +e
step() {
    out=$("$@" 2>&1 >/tmp/out); status=$?
    echo "$(printf '%s\n' "$out" | sed -n 's/.*msg="\(.*\)"$/\1/p') [$status]"
}
$R run -d -b /tmp/b c </dev/null >/dev/null 2>&1
step $R pause c; $R state c | jq -r .status
step $R pause c
step $R exec c true
step $R resume c
step $R resume c
echo "processes $($R ps --format json c | jq length)"
step $R update --memory-swap nonsense c 2>/dev/null | cut -d: -f1
step $R events --interval 0s c
# Newer versions of runc say it in other words; ours are both.
step $R exec --cgroup ../../other c true | sed 's/bad sub cgroup path: //'
step $R kill c KILL
for i in $(seq 100); do [ "$($R state c | jq -r .status)" = stopped ] && break; sleep 0.05; done
step $R ps --format json c
step $R pause c
step $R resume c
step $R update --pids-limit 3 c
step $R events --stats c
step $R kill --all c KILL
step $R kill c KILL
step $R delete c
"#;

#[test]
fn freezing_and_killing_answer_as_runc_does() {
    let host = host();
    let warm = bundle(&host, "/tmp/warm", &["true"]);
    let _bundle = bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let before = settled(&host, &warm);
    let said = |runtime: &str| {
        let script = format!("R={runtime}\n{TRANSITIONS}");
        host.check_sh(&script).unwrap()
    };
    let (ours, theirs) = (said("xebec"), said("runc"));
    assert_eq!(ours, theirs);
    assert!(
        ours.contains("paused") && ours.contains("processes 1"),
        "{ours}"
    );
    host.check_sh("rm -f /tmp/out").unwrap();
    assert_restored(&host, &before);
}

#[test]
fn devices_are_filtered_and_an_update_replaces_the_filter_or_leaves_it_alone() {
    let host = host();
    let mut bundle = bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let deny = json!({"allow": false, "access": "rwm"});
    let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    bundle.config["linux"]["resources"] = json!({"devices": [deny]});
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    bundle.write().unwrap();
    start(&host, "", "/tmp/b", "c");
    let opens = |device: &str| {
        let script = format!(": < {device}");
        xebec(&host, &["exec", "c", "sh", "-c", &script])
            .unwrap()
            .success()
    };
    let update = |resources: serde_json::Value| {
        host.write_file("/tmp/update", resources.to_string())
            .unwrap();
        ok(&host, &["update", "--resources", "/tmp/update", "c"]);
    };
    assert!(
        opens("/dev/null") && !opens("/dev/fuse"),
        "a default and a denied device"
    );
    update(json!({"devices": [deny, fuse]}));
    assert!(
        opens("/dev/null") && opens("/dev/fuse"),
        "after it was allowed"
    );
    update(json!({"blockIO": {"weight": 0}}));
    assert!(
        opens("/dev/fuse"),
        "after an update that says nothing of devices"
    );
    update(json!({"devices": [deny]}));
    assert!(!opens("/dev/fuse"), "after it was denied again");
    ok(&host, &["delete", "--force", "c"]);
}

#[test]
fn a_process_starts_below_the_containers_cgroup_or_where_init_has_gone() {
    let host = host();
    let warm = bundle(&host, "/tmp/warm", &["true"]);
    let mut bundle = bundle(&host, "/tmp/b", &["sleep", "1000"]);
    bundle.config["linux"]["cgroupsPath"] = json!("/nested/c");
    bundle.write().unwrap();
    let before = settled(&host, &warm);
    start(&host, "", "/tmp/b", "c");
    host.check_sh("mkdir /sys/fs/cgroup/nested/c/lower /sys/fs/cgroup/nested/c/init")
        .unwrap();
    let place = |options: &[&str]| {
        let arguments = [&["exec"], options, &["c", "cat", "/proc/self/cgroup"]].concat();
        ok(&host, &arguments)
    };
    assert!(place(&[]).contains("0::/\n"));
    assert!(place(&["--cgroup", "lower"]).contains("0::/lower\n"));
    assert!(place(&["--cgroup", "/lower"]).contains("0::/lower\n"));
    let missing = xebec(&host, &["exec", "--cgroup", "nowhere", "c", "true"]).unwrap();
    assert!(
        missing.status == 255 && missing.stderr.contains("nowhere"),
        "{missing:?}"
    );
    // Threaded children make the container's cgroup one that takes no process any more.
    host.check_sh(
        "cd /sys/fs/cgroup/nested/c; for pid in $(cat cgroup.procs); do echo $pid > init/cgroup.procs; done",
    )
    .unwrap();
    assert!(place(&["--cgroup", "init"]).contains("0::/init\n"));
    ok(&host, &["delete", "--force", "c"]);
    let left = host.sh("ls -d /sys/fs/cgroup/nested/c").unwrap();
    assert!(!left.success(), "{left:?}");
    host.check_sh("rmdir /sys/fs/cgroup/nested").unwrap();
    assert_restored(&host, &before);
}

#[test]
fn root_of_a_user_namespace_has_the_cgroup_but_not_its_limits() {
    let host = host();
    let mut bundle = bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    bundle.config["linux"]["cgroupsPath"] = json!("/mapped");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    bundle.write().unwrap();
    start(&host, "", "/tmp/b", "c");
    ok(
        &host,
        &["exec", "c", "busybox", "mkdir", "/sys/fs/cgroup/mine"],
    );
    let owners = host
        .check_sh("cd /sys/fs/cgroup/mapped; stat -c %u . cgroup.procs cgroup.max.depth mine")
        .unwrap();
    assert_eq!(owners, "100000\n100000\n0\n100000\n");
    ok(&host, &["delete", "--force", "c"]);
    let left = host.sh("ls -d /sys/fs/cgroup/mapped").unwrap();
    assert!(!left.success(), "{left:?}");
}

#[test]
fn a_limit_without_its_controller_is_refused_by_name_unless_that_is_to_be_ignored() {
    let host = host();
    let mut bundle = bundle(&host, "/tmp/b", &["true"]);
    bundle.config["linux"]["resources"] =
        json!({"pids": {"limit": 7}, "unified": {"misc.max": "x 1"}});
    bundle.write().unwrap();
    let strict = host
        .sh("env -u XEBEC_IGNORE_MISSING_CONTROLLERS xebec run --bundle /tmp/b c")
        .unwrap();
    assert_eq!(strict.status, 1, "{strict:?}");
    assert!(
        strict
            .stderr
            .contains("linux.resources.pids.limit: cgroup controller")
            && strict.stderr.contains("--ignore-missing-controllers"),
        "{strict:?}"
    );
    let lenient = xebec(&host, &["run", "--bundle", "/tmp/b", "c"]).unwrap();
    assert!(lenient.success(), "{lenient:?}");
    for field in [
        "linux.resources.pids.limit is ignored",
        "linux.resources.unified[misc.max] is ignored",
    ] {
        assert!(lenient.stderr.contains(field), "{lenient:?}");
    }
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
}

#[test]
fn a_container_without_a_cgroup_of_its_own_is_looked_after_by_its_init() {
    let host = host();
    let warm = bundle(&host, "/tmp/warm", &["true"]);
    let _bundle = bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let before = settled(&host, &warm);
    start(&host, "--cgroup-manager disabled", "/tmp/b", "c");
    let pid = state(&host, "c")["pid"].to_string();
    let compare = format!("cmp /proc/self/cgroup /proc/{pid}/cgroup");
    host.check_sh(&compare).unwrap();
    ok(&host, &["exec", "c", "true"]);
    let paused = xebec(&host, &["pause", "c"]).unwrap();
    assert!(paused.stderr.contains("no cgroup of its own"), "{paused:?}");
    ok(&host, &["kill", "--all", "c", "KILL"]);
    host.check_sh("for i in $(seq 100); do xebec state c | grep -q '\"stopped\"' && exit; sleep 0.05; done; exit 1")
        .unwrap();
    ok(&host, &["delete", "c"]);
    start(&host, "--cgroup-manager disabled", "/tmp/b", "c");
    ok(&host, &["delete", "--force", "c"]);
    assert_restored(&host, &before);
}

#[test]
fn scopes_are_refused_where_systemd_does_not_run() {
    let host = host();
    let _bundle = bundle(&host, "/tmp/b", &["true"]);
    for option in ["--systemd-cgroup", "--cgroup-manager=systemd"] {
        let refused = xebec(&host, &[option, "run", "--bundle", "/tmp/b", "c"]).unwrap();
        assert!(
            refused.status == 1
                && refused.stderr.contains(
                    "systemd not running on this host, cannot use systemd cgroups manager"
                ),
            "{refused:?}"
        );
    }
    assert_eq!(ok(&host, &["list", "--quiet"]).trim(), "");
}
