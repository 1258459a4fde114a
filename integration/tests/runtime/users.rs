//! Namespaces by creation and by path, user namespaces, containers in containers; side by side
//! with runc where runc can do it here.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, xebec};

/// Adds namespaces to a configuration, or replaces those of the same kind.
pub(super) fn set_namespaces(config: &mut Value, added: &[Value]) {
    let Some(list) = config["linux"]["namespaces"].as_array_mut() else {
        return;
    };
    for namespace in added {
        list.retain(|known| known["type"] != namespace["type"]);
        list.push(namespace.clone());
    }
}

pub(super) fn map(inside: u32, outside: u32, size: u32) -> Value {
    json!({ "containerID": inside, "hostID": outside, "size": size })
}

/// Runs a bundle to its end with both runtimes; ours has to write what runc writes.
#[track_caller]
fn same_as_runc(host: &NativeHost, bundle: &Bundle<'_>) -> String {
    let run = |runtime: &str| {
        host.run(&[runtime, "run", "--bundle", bundle.path(), "same"])
            .expect("a command runs")
    };
    let (runc, ours) = (run("runc"), run("xebec"));
    assert!(
        runc.success() && ours.success(),
        "runc: {runc:?}\nours: {ours:?}"
    );
    assert_eq!(ours.stdout, runc.stdout);
    ours.stdout
}

/// A bundle without limits, which runc cannot set here.
pub(super) fn bundle<'a>(host: &'a NativeHost, path: &str, args: &[&str]) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, args).expect("a bundle");
    bundle.config["linux"]["resources"] = json!({});
    bundle.write().expect("config.json");
    bundle
}

#[test]
fn a_container_joins_each_namespace_of_another_one_by_its_path() {
    let host = host();
    let mut pod = bundle(&host, "/tmp/pod", &["sleep", "1000"]);
    pod.config["hostname"] = json!("pod");
    set_namespaces(&mut pod.config, &[json!({ "type": "time" })]);
    pod.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 } });
    pod.write().unwrap();
    host.check_sh(
        "xebec run --detach --pid-file /tmp/pid --bundle /tmp/pod pod </dev/null >/dev/null 2>&1",
    )
    .unwrap();
    let pid = host.read_file("/tmp/pid").unwrap();
    let links = |of: &str| {
        let kinds = "pid net ipc uts cgroup time";
        format!("for kind in {kinds}; do ls -l {of}/ns/$kind | sed 's/.*-> //'; done")
    };
    let pods = host.check_sh(&links(&format!("/proc/{pid}"))).unwrap();
    let mut guest = bundle(&host, "/tmp/guest", &["sh", "-c"]);
    host.check_sh("ln -s busybox /tmp/guest/rootfs/bin/sed")
        .unwrap();
    let script = format!(
        "{}; cat /proc/sys/kernel/hostname /proc/1/comm",
        links("/proc/self")
    );
    guest.config["process"]["args"] = json!(["sh", "-c", script]);
    guest.config["hostname"] = Value::Null;
    let by_path =
        |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") });
    let kinds = [
        ("pid", "pid"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
        ("time", "time"),
    ];
    set_namespaces(
        &mut guest.config,
        &kinds.map(|(kind, file)| by_path(kind, file)),
    );
    guest.write().unwrap();
    let inside = same_as_runc(&host, &guest);
    assert_eq!(inside, format!("{pods}pod\nsleep\n"));
    ok(&host, &["delete", "--force", "pod"]);
}

/// A namespace, other fields of `linux`, and what the refusal says.
fn bad_namespaces() -> Vec<(Value, Value, &'static str)> {
    let by_path = |kind: &str, path: &str| json!({ "type": kind, "path": path });
    let new = |kind: &str| json!({ "type": kind });
    let time = |clock: &str| json!({ "timeOffsets": { clock: { "secs": 1 } } });
    let sysctl = |key: &str| json!({ "sysctl": { key: "1" } });
    let none = json!({});
    vec![
        (
            by_path("pid", "/proc/1/ns/net"),
            none.clone(),
            "linux.namespaces[5].path: /proc/1/ns/net is a namespace of kind network, not pid",
        ),
        (
            by_path("pid", "/etc/passwd"),
            none.clone(),
            "linux.namespaces[5].path: /etc/passwd is no namespace",
        ),
        (
            by_path("pid", "/tmp/fifo"),
            none.clone(),
            "linux.namespaces[5].path: /tmp/fifo is no namespace",
        ),
        (
            by_path("pid", "/no/such"),
            none.clone(),
            "linux.namespaces[5].path: namespace path: lstat /no/such: no such file or directory",
        ),
        (
            by_path("pid", "no/such"),
            none.clone(),
            "linux.namespaces[5]: path no/such is not absolute",
        ),
        (
            new("user"),
            none,
            "linux.uidMappings: user namespaces enabled, but no uid mappings found",
        ),
        (
            new("user"),
            json!({ "uidMappings": [map(0, 1, 9)] }),
            "linux.gidMappings: user namespaces enabled, but no gid mappings found",
        ),
        (
            new("time"),
            time("realtime"),
            "linux.timeOffsets: \"realtime\" is no clock that a time namespace has",
        ),
        (
            new("ipc"),
            time("boottime"),
            "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config",
        ),
        (
            by_path("network", "/proc/1/ns/net"),
            sysctl("net.ipv4.ip_forward"),
            "sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace",
        ),
        (
            new("ipc"),
            sysctl("kernel.panic"),
            "sysctl \"kernel.panic\" is not in a separate kernel namespace",
        ),
        (
            new("uts"),
            sysctl("kernel.hostname"),
            "sysctl \"kernel.hostname\" is not allowed as it conflicts with the OCI \"hostname\" field",
        ),
    ]
}

#[test]
fn a_bad_namespace_is_refused_by_its_field_before_anything_is_made() {
    let host = host();
    let good = Bundle::create(&host, "/tmp/good", &["true"]).unwrap();
    host.check_sh("mkfifo /tmp/fifo").unwrap();
    let before = settled(&host, &good);
    for (namespace, more, says) in bad_namespaces() {
        let mut bad = Bundle::create(&host, "/tmp/bad", &["true"]).unwrap();
        set_namespaces(&mut bad.config, &[namespace]);
        for (key, value) in more.as_object().into_iter().flatten() {
            bad.config["linux"][key] = value.clone();
        }
        bad.write().unwrap();
        let output = xebec(&host, &["run", "--bundle", "/tmp/bad", "bad"]).unwrap();
        let said = output.stderr.replace("\\\"", "\"");
        assert!(
            output.status == 1 && said.contains(says),
            "{says} is missing in {output:?}"
        );
        host.check_sh("rm -r /tmp/bad").unwrap();
    }
    assert_restored(&host, &before);
}

#[test]
fn clocks_names_and_the_loopback_device_are_the_containers_own() {
    let host = host();
    let script = "cat /proc/self/timens_offsets | sed 's/  */ /g'; cat /proc/sys/kernel/hostname \
                  /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; \
                  cat /sys/class/net/lo/flags; ls /sys/class/net";
    let mut bundle = bundle(&host, "/tmp/b", &["sh", "-c", script]);
    host.check_sh("ln -s busybox /tmp/b/rootfs/bin/sed")
        .unwrap();
    set_namespaces(&mut bundle.config, &[json!({ "type": "time" })]);
    bundle.config["linux"]["timeOffsets"] =
        json!({ "monotonic": { "secs": 172_800, "nanosecs": 7 }, "boottime": { "secs": 604_800 } });
    bundle.config["hostname"] = json!("inside");
    bundle.config["domainname"] = json!("example.test");
    bundle.config["linux"]["sysctl"] =
        json!({ "net.ipv4.ip_forward": "1", "kernel/msgmax": "4096" });
    bundle.write().unwrap();
    let output = same_as_runc(&host, &bundle);
    assert_eq!(
        output,
        "monotonic 172800 7\nboottime 604800 0\ninside\nexample.test\n1\n4096\n0x9\nlo\n"
    );
}

/// Shows who a process is, and who owns what it can see.
pub(super) const WHO: &str = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups | sed 's/  */ /g'; \
                   id -u; id -G; stat -c '%u %g %n' / /dev/pts /dev/null /bin/busybox; \
                   touch /made && echo made; readlink /dev/ptmx; echo x > /dev/null && echo null";

fn user_bundle<'a>(host: &'a NativeHost, path: &str) -> Bundle<'a> {
    let mut bundle = bundle(host, path, &["sh", "-c", WHO]);
    host.check_sh(&format!(
        "for a in sed stat touch readlink; do ln -s busybox {path}/rootfs/bin/$a; done"
    ))
    .unwrap();
    set_namespaces(&mut bundle.config, &[json!({ "type": "user" })]);
    bundle
}

#[test]
fn a_user_namespace_of_several_extents_has_its_own_root() {
    let host = host();
    let mut bundle = user_bundle(&host, "/tmp/b");
    let maps = json!([
        map(0, 100_000, 1000),
        map(1000, 300_000, 500),
        map(5000, 400_000, 1)
    ]);
    bundle.config["linux"]["uidMappings"] = maps.clone();
    bundle.config["linux"]["gidMappings"] = maps;
    bundle.config["process"]["user"] =
        json!({ "uid": 0, "gid": 0, "additionalGids": [1001, 5000] });
    bundle.write().unwrap();
    host.check_sh("chown -R 100000:100000 /tmp/b/rootfs")
        .unwrap();
    let output = same_as_runc(&host, &bundle);
    let expected = [
        "5000 400000 1",
        "allow",
        "0 1001 5000",
        "0 0 /",
        "65534 65534 /dev/null",
        "made",
        "null",
    ];
    for line in expected {
        assert!(
            output.lines().any(|it| it.trim() == line),
            "{line} is missing in\n{output}"
        );
    }
    let owner = host.check_sh("stat -c %u:%g /tmp/b/rootfs/made").unwrap();
    assert_eq!(owner.trim(), "100000:100000");

    // A further process, and one that is nobody in particular.
    host.check_sh("jq '.process.args = [\"sleep\", \"1000\"]' /tmp/b/config.json > /tmp/c && mv /tmp/c /tmp/b/config.json")
        .unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b u </dev/null >/dev/null 2>&1")
        .unwrap();
    let inside = ok(
        &host,
        &[
            "exec",
            "--user",
            "1002:1003",
            "u",
            "sh",
            "-c",
            "id -u; id -g; cat /proc/self/uid_map | wc -l",
        ],
    );
    assert!(inside.starts_with("1002\n1003\n"), "{inside}");
    let outside = xebec(&host, &["exec", "--user", "4000", "u", "true"]).unwrap();
    assert_eq!(outside.status, 255, "{outside:?}");
    ok(&host, &["delete", "--force", "u"]);
}

#[test]
fn a_pod_with_a_user_namespace_takes_further_containers_in() {
    let host = host();
    let mut pod = user_bundle(&host, "/tmp/pod");
    let maps = json!([map(0, 100_000, 65536)]);
    pod.config["process"]["args"] = json!(["sleep", "1000"]);
    pod.config["linux"]["uidMappings"] = maps.clone();
    pod.config["linux"]["gidMappings"] = maps.clone();
    pod.write().unwrap();
    host.check_sh(
        "xebec run --detach --pid-file /tmp/pid --bundle /tmp/pod pod </dev/null >/dev/null 2>&1",
    )
    .unwrap();
    let pid = host.read_file("/tmp/pid").unwrap();
    let by_path =
        |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") });
    let mut guest = user_bundle(&host, "/tmp/guest");
    // As containerd does it for pods with hostUsers: false: the maps stand there once more.
    guest.config["linux"]["uidMappings"] = maps.clone();
    guest.config["linux"]["gidMappings"] = maps;
    set_namespaces(
        &mut guest.config,
        &[
            by_path("user", "user"),
            by_path("network", "net"),
            by_path("ipc", "ipc"),
        ],
    );
    guest.write().unwrap();
    let output = same_as_runc(&host, &guest);
    assert!(output.starts_with(" 0 100000 65536\n"), "{output}");

    // The pid namespace of the pod, and one of the user namespace's own with clocks of its own.
    set_namespaces(&mut guest.config, &[by_path("pid", "pid")]);
    guest.config["process"]["args"] = json!(["cat", "/proc/1/comm"]);
    guest.write().unwrap();
    assert_eq!(
        ok(&host, &["run", "--bundle", "/tmp/guest", "in-pid"]),
        "sleep\n"
    );
    set_namespaces(
        &mut guest.config,
        &[json!({ "type": "pid" }), json!({ "type": "time" })],
    );
    guest.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 500 } });
    guest.config["process"]["args"] = json!(["sh", "-c", "echo $$; cat /proc/self/timens_offsets"]);
    guest.write().unwrap();
    let clocks = ok(&host, &["run", "--bundle", "/tmp/guest", "clocks"]);
    assert!(
        clocks.starts_with("1\n") && clocks.contains(" 500 "),
        "{clocks}"
    );

    guest.config["linux"]["uidMappings"] = json!([map(0, 100_000, 5)]);
    guest.write().unwrap();
    let refused = xebec(&host, &["run", "--bundle", "/tmp/guest", "other-maps"]).unwrap();
    let says = "both namespace path and non-matching mapping specified";
    assert!(
        refused.stderr.contains(says) && refused.stderr.contains("linux.uidMappings"),
        "{refused:?}"
    );
    ok(&host, &["delete", "--force", "pod"]);
}

#[test]
fn a_new_user_namespace_can_be_in_the_hosts_other_namespaces() {
    let host = host();
    host.check_sh("ip netns add blue && ip -n blue link add d0 type veth peer name d1")
        .unwrap();
    let mut bundle = user_bundle(&host, "/tmp/b");
    bundle.config["linux"]["uidMappings"] = json!([map(0, 100_000, 10)]);
    bundle.config["linux"]["gidMappings"] = json!([map(0, 100_000, 10)]);
    bundle.config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    bundle.config["process"]["args"] = json!(["sh", "-c", "grep -o d0 /proc/net/dev; id -u"]);
    host.check_sh("ln -s busybox /tmp/b/rootfs/bin/grep; chown -R 100000:100000 /tmp/b/rootfs")
        .unwrap();
    set_namespaces(
        &mut bundle.config,
        &[json!({ "type": "network", "path": "/run/netns/blue" })],
    );
    bundle.write().unwrap();
    assert_eq!(same_as_runc(&host, &bundle), "d0\n0\n");
}

#[test]
fn a_mount_namespace_by_path_becomes_the_containers() {
    let host = host();
    host.check_sh(
        "unshare --mount --fork sleep 1000 </dev/null >/dev/null 2>&1 & sleep 0.1; \
         until pgrep -x sleep > /tmp/pid; do sleep 0.1; done",
    )
    .unwrap();
    let pid = host.read_file("/tmp/pid").unwrap();
    let by_path = |path: &str| json!({ "type": "mount", "path": path });
    let mut bundle = bundle(
        &host,
        "/tmp/b",
        &["sh", "-c", "ls -d /rootfs-mark; readlink /proc/self/ns/mnt"],
    );
    host.check_sh("touch /tmp/b/rootfs/rootfs-mark; ln -s busybox /tmp/b/rootfs/bin/readlink")
        .unwrap();
    let file = format!("/proc/{}/ns/mnt", pid.trim());
    set_namespaces(&mut bundle.config, &[by_path(&file)]);
    bundle.write().unwrap();
    let link = host.check(&["readlink", &file]).unwrap();
    let output = ok(&host, &["run", "--bundle", "/tmp/b", "joined"]);
    assert_eq!(output, format!("/rootfs-mark\n{link}"));
    assert!(host.check_sh("ls /tmp/b/rootfs/proc").unwrap().is_empty());

    set_namespaces(&mut bundle.config, &[by_path("/proc/self/ns/mnt")]);
    bundle.write().unwrap();
    let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "refused"]).unwrap();
    let says = "is the mount namespace of the runtime, whose root must stay";
    assert!(refused.stderr.contains(says), "{refused:?}");
}

#[test]
fn a_container_without_namespaces_shares_all_of_the_hosts_and_leaves_no_mount() {
    let host = host();
    let script = "pwd; ls /; cat /proc/1/comm; hostname; ls /proc/self/ns | while read kind; do \
                  readlink /proc/self/ns/$kind; done; echo x > /dev/null && echo null";
    let mut bundle = bundle(&host, "/tmp/b", &["sh", "-c", script]);
    host.check_sh("ln -s busybox /tmp/b/rootfs/bin/readlink")
        .unwrap();
    for field in ["maskedPaths", "readonlyPaths"] {
        bundle.config["linux"][field] = Value::Null;
    }
    bundle.config["hostname"] = Value::Null;
    bundle.config["linux"]["namespaces"] = json!([]);
    bundle.write().unwrap();
    let mounts = "grep -c /tmp/b/rootfs /proc/self/mountinfo || true";
    let ours = ok(&host, &["run", "--bundle", "/tmp/b", "shared"]);
    assert_eq!(host.check_sh(mounts).unwrap().trim(), "0");
    let runc = host
        .check(&["runc", "run", "--bundle", "/tmp/b", "shared"])
        .unwrap();
    assert_eq!(ours, runc);
    host.check_sh("umount --recursive --lazy /tmp/b/rootfs")
        .unwrap();

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b stays </dev/null >/dev/null 2>&1")
        .unwrap();
    let inside = ok(
        &host,
        &[
            "exec",
            "stays",
            "sh",
            "-c",
            "pwd; ls -d /bin/busybox; ls /tmp/b 2>/dev/null; true",
        ],
    );
    assert_eq!(
        inside.lines().take(2).collect::<Vec<_>>(),
        ["/", "/bin/busybox"]
    );
    assert!(!inside.contains("config.json"), "{inside}");
    ok(&host, &["delete", "--force", "stays"]);
    assert_eq!(host.check_sh(mounts).unwrap().trim(), "0");

    // A failed start, at a place where the host has a mount of its own.
    host.check_sh("mount --bind /tmp/b/rootfs /tmp/b/rootfs")
        .unwrap();
    bundle.config["process"]["args"] = json!(["nothere"]);
    bundle.write().unwrap();
    assert!(
        !xebec(&host, &["run", "--bundle", "/tmp/b", "failed"])
            .unwrap()
            .success()
    );
    assert_eq!(host.check_sh(mounts).unwrap().trim(), "1");

    bundle.config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    bundle.write().unwrap();
    let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "refused"]).unwrap();
    let says = "linux.maskedPaths: unable to restrict sys entries without a private MNT namespace";
    assert!(refused.stderr.contains(says), "{refused:?}");
}

#[test]
fn maps_that_the_kernel_would_refuse_are_refused_by_their_field() {
    let host = host();
    let mut bundle = user_bundle(&host, "/tmp/b");
    let many: Vec<_> = (0..341).map(|id| map(id, 100_000 + id, 1)).collect();
    let cases = [
        (
            json!(many),
            "linux.uidMappings: has more extents than the kernel takes",
        ),
        (json!([map(0, 1000, 0)]), "linux.uidMappings[0]: size is 0"),
        (
            json!([map(0, 1000, 10), map(10, 1005, 1)]),
            "linux.uidMappings[1]: overlaps with an entry before it",
        ),
        (
            json!([map(1, 1000, 10)]),
            "linux.uidMappings: user namespaces enabled, but no mapping found for uid 0",
        ),
        (
            json!([map(0, u32::MAX, 2)]),
            "linux.uidMappings[0]: reaches beyond the last id",
        ),
    ];
    bundle.config["linux"]["gidMappings"] = json!([map(0, 100_000, 10)]);
    for (maps, says) in cases {
        bundle.config["linux"]["uidMappings"] = maps;
        bundle.write().unwrap();
        let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "refused"]).unwrap();
        assert!(
            refused.status == 1 && refused.stderr.contains(says),
            "{says}: {refused:?}"
        );
    }
}

/// A container with xebec in it and a bundle in `/inner`, free to do what its root may.
pub(super) fn outer_bundle<'a>(host: &'a NativeHost, inner: &Value) -> Bundle<'a> {
    let mut outer = bundle(host, "/var/lib/outer", &["sh", "-c"]);
    host.check_sh(
        "cd /var/lib/outer/rootfs; mkdir -p inner/rootfs; cp /opt/xebec/xebec bin; \
         cp -a bin proc sys dev run tmp etc inner/rootfs",
    )
    .unwrap();
    host.write_file("/var/lib/outer/rootfs/inner/config.json", inner.to_string())
        .unwrap();
    let script = "export XEBEC_IGNORE_MISSING_CONTROLLERS=1; xebec run --bundle /inner nested; echo $?; \
                  xebec create --bundle /inner stays </dev/null >/dev/null 2>&1; xebec exec stays true; \
                  echo $?; xebec delete --force stays; xebec list -q";
    outer.config["process"]["args"] = json!(["sh", "-c", script]);
    outer.config["process"]["noNewPrivileges"] = json!(false);
    outer.config["process"]["capabilities"] = Value::Null;
    outer.config["linux"]["maskedPaths"] = json!([]);
    outer.config["linux"]["readonlyPaths"] = json!([]);
    for mount in outer.config["mounts"].as_array_mut().into_iter().flatten() {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "ro");
        }
    }
    outer
}

#[test]
fn containers_run_in_containers() {
    let host = host();
    let script = "id -u; cat /proc/self/uid_map | sed 's/  */ /g'; echo x > /dev/null && echo null";
    let mut inner = bundle(&host, "/tmp/inner", &["sh", "-c", script]);
    host.check_sh("ln -s busybox /tmp/inner/rootfs/bin/sed")
        .unwrap();
    let plain = inner.config.clone();
    set_namespaces(&mut inner.config, &[json!({ "type": "user" })]);
    inner.config["linux"]["uidMappings"] = json!([map(0, 10, 1000)]);
    inner.config["linux"]["gidMappings"] = json!([map(0, 10, 1000)]);
    let mapped = inner.config.clone();
    for (outer_maps, inner, map_inside) in [
        (Value::Null, &plain, " 0 0 4294967295"),
        (Value::Null, &mapped, " 0 10 1000"),
        (json!([map(0, 100_000, 65536)]), &plain, " 0 100000 65536"),
        (json!([map(0, 100_000, 65536)]), &mapped, " 0 10 1000"),
    ] {
        host.check_sh("rm -rf /var/lib/outer").unwrap();
        let mut outer = outer_bundle(&host, inner);
        host.check_sh("ln -s busybox /var/lib/outer/rootfs/inner/rootfs/bin/sed")
            .unwrap();
        if !outer_maps.is_null() {
            set_namespaces(&mut outer.config, &[json!({ "type": "user" })]);
            outer.config["linux"]["uidMappings"] = outer_maps.clone();
            outer.config["linux"]["gidMappings"] = outer_maps;
            host.check_sh("chown -R 100000:100000 /var/lib/outer/rootfs")
                .unwrap();
        }
        outer.write().unwrap();
        let output = ok(&host, &["run", "--bundle", "/var/lib/outer", "outer"]);
        assert_eq!(output, format!("0\n{map_inside}\nnull\n0\n0\n"));
    }
}
