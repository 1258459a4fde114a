//! Users who are not root: with and without subordinate ids, with and without a cgroup; side by
//! side with runc where runc can do it.

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::users::{WHO, map, set_namespaces};
use super::{assert_restored, host};

/// A user with ids to give away.
const ALICE: &str = "useradd --create-home --uid 1000 alice; \
                     echo alice:100000:65536 | tee /etc/subuid > /etc/subgid";

/// Prepares a bundle and a cgroup that belong to alice, and runs `script` as her.
fn as_alice(host: &NativeHost, bundle: &Bundle<'_>, script: &str) -> Output {
    let path = bundle.path();
    host.check_sh(&format!(
        "chown -R alice {path}; mkdir -p /sys/fs/cgroup/alice/init; chown -R alice /sys/fs/cgroup/alice; \
         mkdir -p /run/user/1000; chown alice /run/user/1000"
    ))
    .unwrap();
    let script = format!("cd {path}; export XDG_RUNTIME_DIR=/run/user/1000; {script}");
    let enter = "echo $$ > /sys/fs/cgroup/alice/init/cgroup.procs; exec setpriv --reuid 1000 --regid 1000 \
                 --clear-groups sh -c \"$1\"";
    host.run(&["sh", "-c", enter, "sh", &script]).unwrap()
}

fn rootless_bundle<'a>(host: &'a NativeHost, path: &str, args: &[&str]) -> Bundle<'a> {
    host.check_sh(ALICE).unwrap();
    let mut bundle = Bundle::create(host, path, args).unwrap();
    host.check_sh(&format!(
        "for a in sed stat touch readlink; do ln -s busybox {path}/rootfs/bin/$a; done; rm {path}/config.json; \
         cd {path}; setpriv --reuid 1000 --regid 1000 --clear-groups xebec spec --rootless > /dev/null 2>&1 \
         || (chown alice . && setpriv --reuid 1000 --regid 1000 --clear-groups xebec spec --rootless)"
    ))
    .unwrap();
    let text = host.read_file(format!("{path}/config.json")).unwrap();
    bundle.config = serde_json::from_str(&text).unwrap();
    bundle.config["process"]["terminal"] = json!(false);
    bundle.config["process"]["args"] = json!(args);
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["linux"]["cgroupsPath"] = json!("/alice/container");
    bundle.write().unwrap();
    bundle
}

#[test]
fn a_user_with_nothing_but_a_user_namespace_runs_containers() {
    let host = host();
    let bundle = rootless_bundle(&host, "/tmp/b", &["sh", "-c", WHO]);
    let ran = as_alice(
        &host,
        &bundle,
        "runc run same > /tmp/runc.out 2>&1; rm -f rootfs/made; xebec run same > /tmp/ours.out 2>&1; \
         echo $?; ls /run/user/1000/xebec",
    );
    let (runc, ours) = (
        host.read_file("/tmp/runc.out").unwrap(),
        host.read_file("/tmp/ours.out").unwrap(),
    );
    assert_eq!(ours, runc, "{ran:?}");
    for line in [" 0 1000 1", "deny", "made", "null"] {
        assert!(
            ours.lines().any(|it| it == line),
            "{line} is missing in\n{ours}"
        );
    }
    assert!(ran.stdout.starts_with("0\n"), "{ran:?}");
}

#[test]
fn a_user_with_subordinate_ids_runs_steers_and_deletes_a_container() {
    let host = host();
    let mut bundle = rootless_bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let maps = json!([map(0, 1000, 1), map(1, 100_000, 65536)]);
    bundle.config["linux"]["uidMappings"] = maps.clone();
    bundle.config["linux"]["gidMappings"] = maps;
    bundle.config["process"]["user"] = json!({ "uid": 33, "gid": 34, "additionalGids": [35] });
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    set_namespaces(
        &mut bundle.config,
        &[json!({ "type": "time" }), json!({ "type": "network" })],
    );
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 300 } });
    bundle.write().unwrap();
    let before = Inventory::of(&host).unwrap();
    let script = "set -e; xebec create --pid-file /tmp/b/pid c </dev/null >/dev/null 2>&1; \
        xebec state c | jq -r .status; xebec start c; xebec state c | jq -r .status; \
        cat /proc/$(cat pid)/oom_score_adj; \
        xebec exec c sh -c 'id -u; id -g; readlink /proc/self/ns/pid | wc -c; ls /proc | head -1; \
            cat /proc/self/timens_offsets | tail -1 | sed \"s/  */ /g\"; cat /sys/class/net/lo/flags' \
            || echo exec: $?; \
        xebec exec -u 0 c sh -c 'echo root $(id -u)'; \
        xebec exec c sh -c 'exit 7' || echo $?; \
        xebec kill c KILL; until xebec state c | jq -e '.status == \"stopped\"' >/dev/null; do sleep 0.1; done; \
        xebec delete c; xebec list -q | wc -l";
    let ran = as_alice(&host, &bundle, script);
    assert!(ran.success(), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().map(str::trim).collect();
    let expected = ["created", "running", "500", "33", "34"];
    assert_eq!(lines[..5], expected, "{ran:?}");
    for line in ["1", "boottime 300 0", "0x9", "root 0", "7"] {
        assert!(lines.contains(&line), "{line} is missing in {ran:?}");
    }
    assert_eq!(lines.last(), Some(&"0"), "{ran:?}");
    host.check_sh("rm -rf /run/user/1000/xebec /tmp/b/pid; rmdir /sys/fs/cgroup/alice/init /sys/fs/cgroup/alice")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_user_adds_mounts_to_a_container_and_removes_them() {
    let host = host();
    let mut bundle = rootless_bundle(&host, "/tmp/b", &["sleep", "1000"]);
    let maps = json!([map(0, 1000, 1), map(1, 100_000, 65536)]);
    for maps_of_alice in [Value::Null, maps] {
        if !maps_of_alice.is_null() {
            bundle.config["linux"]["uidMappings"] = maps_of_alice.clone();
            bundle.config["linux"]["gidMappings"] = maps_of_alice;
            bundle.write().unwrap();
        }
        let list = json!([
            { "destination": "/data", "source": "/tmp/b/data", "options": ["rbind", "ro"] },
            { "destination": "/fresh", "source": "tmpfs", "type": "tmpfs" },
            { "destination": "/fresh/proc", "source": "proc", "type": "proc" },
        ]);
        host.write_file("/tmp/b/list.json", list.to_string())
            .unwrap();
        let secret = json!([{ "destination": "/s", "source": "/root", "options": ["bind"] }]);
        host.write_file("/tmp/b/secret.json", secret.to_string())
            .unwrap();
        host.check_sh("mkdir -p /tmp/b/data; echo mine > /tmp/b/data/file; chmod 700 /root")
            .unwrap();
        let script = "set -e; xebec run -d c </dev/null >/dev/null 2>&1; xebec mounts add c list.json; \
            xebec exec c sh -c 'cat /data/file; echo > /data/new; touch /fresh/made && ls /fresh; \
                cat /fresh/proc/1/cmdline' 2>&1; \
            xebec mounts add c secret.json; xebec exec c ls /s 2>&1 || :; \
            xebec mounts remove c list.json; xebec exec c sh -c 'ls -A /data /fresh'; \
            xebec delete -f c; xebec list -q";
        let ran = as_alice(&host, &bundle, script);
        assert!(ran.success(), "{ran:?}");
        for line in [
            "mine",
            "made",
            "proc",
            "sleep\u{0}1000\u{0}ls: can't open '/s': Permission denied",
        ] {
            assert!(
                ran.stdout.lines().any(|it| it == line),
                "{line} is missing in {ran:?}"
            );
        }
        assert!(ran.stdout.contains("Read-only file system"), "{ran:?}");
        assert!(ran.stdout.ends_with("/data:\n\n/fresh:\n"), "{ran:?}");
    }
}

#[test]
fn a_user_without_any_cgroup_runs_containers_without_limits() {
    let host = host();
    let mut bundle = rootless_bundle(&host, "/tmp/b", &["sh", "-c", "id -u; exit 5"]);
    bundle.config["linux"]["cgroupsPath"] = Value::Null;
    bundle.write().unwrap();
    host.check_sh("chown -R alice /tmp/b; install -d -o alice /run/user/1000")
        .unwrap();
    let script = "cd /tmp/b; export XDG_RUNTIME_DIR=/run/user/1000; xebec run c; echo $?; \
                  jq '.linux.resources.memory.limit = 10000000' config.json > c && mv c config.json; \
                  xebec run limited; echo $?; xebec list -q; find /sys/fs/cgroup -user alice";
    let enter = "exec setpriv --reuid 1000 --regid 1000 --clear-groups sh -c \"$1\"";
    let ran = host.run(&["sh", "-c", enter, "sh", script]).unwrap();
    assert_eq!(ran.stdout, "0\n5\n1\n", "{ran:?}");
    assert!(
        ran.stderr.contains("no permission is granted for cgroups"),
        "{ran:?}"
    );
}

/// How a configuration goes beyond what its user may do, and what the refusal says.
type Presumption = (fn(&mut Value), &'static str);

const PRESUMPTIONS: [Presumption; 4] = [
    (
        |config| {
            if let Some(list) = config["linux"]["namespaces"].as_array_mut() {
                list.retain(|namespace| namespace["type"] != "user");
            }
        },
        "linux.namespaces: rootless container requires user namespaces",
    ),
    (
        |config| config["process"]["user"] = json!({ "uid": 5, "gid": 0 }),
        "process.user.uid: cannot setuid to unmapped uid 5 in user namespace",
    ),
    (
        |config| config["linux"]["uidMappings"] = json!([map(0, 1000, 1), map(1, 900_000, 5)]),
        "failed to use newuidmap for the map \"0 1000 1\n1 900000 5\": ",
    ),
    (
        |config| config["root"]["path"] = json!("nowhere"),
        "invalid rootfs: stat /tmp/b/nowhere: no such file or directory",
    ),
];

#[test]
fn what_a_user_may_not_do_is_told_in_one_line() {
    let host = host();
    let mut bundle = rootless_bundle(&host, "/tmp/b", &["true"]);
    let good = bundle.config.clone();
    for (spoil, says) in PRESUMPTIONS {
        bundle.config = good.clone();
        spoil(&mut bundle.config);
        bundle.write().unwrap();
        let ran = as_alice(&host, &bundle, "xebec run refused");
        let said = ran.stderr.replace("\\\\n", "\n").replace("\\\"", "\"");
        assert!(said.contains(says), "{says} is missing in {said}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
    let left = host
        .sh("find /run/user/1000/xebec -mindepth 1 ! -path '*@seccomp*'")
        .unwrap();
    assert_eq!(left.stdout, "", "{left:?}");
}
