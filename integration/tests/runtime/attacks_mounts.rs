//! Hostile root file systems against the mounts that the runtime makes in them: symlinks where
//! `/dev` and `/proc` are expected, masks, redirected writes, races. `docs/security.md` tells which
//! attack is which.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{host, ok, xebec};

const SWAP: &str = include_str!("attackers/swap.pl");

/// What an image hopes to reach: a directory of the host with files of many names in it.
const VICTIM: &str = "mkdir -p /victim/pts /victim/sys/net/ipv4 /victim/self/attr && cd /victim && \
    for name in null console ptmx kcore sys/net/ipv4/ip_forward self/attr/exec; do \
        echo untouched > $name; done; touch -d @0 $(find /victim)";

/// Everything about the victim that a write, a creation or a change of owner would alter.
fn look(host: &NativeHost) -> String {
    host.check_sh(
        "find /victim -printf '%p %y %s %T@ %u %m\\n' | sort; grep -r . /victim; \
                   cat /proc/sys/kernel/core_pattern; grep -c . /proc/self/mountinfo",
    )
    .unwrap()
}

/// Takes away the mount on `destination`.
fn without_mount(bundle: &mut Bundle<'_>, destination: &str) {
    if let Some(mounts) = bundle.config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != destination);
    }
}

fn add_mount(bundle: &mut Bundle<'_>, mount: Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn a_symlink_for_dev_leads_nothing_to_the_host() {
    let host = host();
    host.check_sh(VICTIM).unwrap();
    let mut bundle =
        Bundle::create(&host, "/tmp/b", &["sh", "-c", "echo x > /dev/null; tty"]).unwrap();
    let own_dev = bundle.config.clone();
    for has_mount in [true, false] {
        bundle.config = own_dev.clone();
        if !has_mount {
            for place in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
                without_mount(&mut bundle, place);
            }
        }
        bundle.config["linux"]["devices"] = json!([{
            "path": "/dev/sub/zero", "type": "c", "major": 1, "minor": 5, "uid": 7, "fileMode": 438
        }]);
        bundle.write().unwrap();
        for image in [
            "rm -r dev; ln -s /victim dev",
            "rm -r dev; ln -s ../../../../../victim dev",
            "rm -r dev; ln -s a dev; ln -s /victim a",
            "ln -s /victim dev/pts; ln -s /victim dev/shm; ln -s /victim/console dev/console",
            "ln -s /victim/null dev/null; ln -s /victim/console dev/console; ln -s /victim dev/sub",
            "rm -r dev; ln -s /proc/self/fd/0/../../../victim dev",
            "rm -r dev; ln -s /proc/1/root/victim dev",
        ] {
            host.check_sh(&format!(
                "cd /tmp/b/rootfs && rm -rf dev a victim && mkdir dev && {image}"
            ))
            .unwrap();
            let before = look(&host);
            for terminal in ["", "script --quiet --command"] {
                let run = "xebec run --bundle /tmp/b c";
                let command = if terminal.is_empty() {
                    format!("{run} </dev/null 2>&1 || :")
                } else {
                    format!(
                        "jq .process.terminal=true /tmp/b/config.json > /tmp/t && \
                             cp /tmp/t /tmp/b/config.json; {terminal} '{run}' /dev/null </dev/null || :"
                    )
                };
                let said = host.check_sh(&command).unwrap();
                assert_eq!(
                    look(&host),
                    before,
                    "{image}, own /dev: {has_mount}: {said}"
                );
            }
            bundle.write().unwrap();
        }
    }
}

#[test]
fn a_symlink_or_a_volume_for_proc_or_sys_is_refused_and_nothing_is_written_through_it() {
    let host = host();
    host.check_sh(VICTIM).unwrap();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["cat", "/proc/self/attr/exec"]).unwrap();
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    let plain = bundle.config.clone();
    for (image, mount, says) in [
        // CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: the image's /proc is a symlink, and what
        // it points to is a volume.
        (
            "rm -r proc; ln -s /volume proc; mkdir volume",
            json!({
                "destination": "/volume", "source": "/victim", "options": ["rbind"]
            }),
            "/proc",
        ),
        ("rm -r proc; ln -s /victim proc", Value::Null, "/proc"),
        ("rm -r proc; ln -s . proc", Value::Null, "/proc"),
        ("rm -r sys; ln -s /victim sys", Value::Null, "/sys"),
        // CVE-2019-16884: a volume over /proc, or in it.
        (
            ":",
            json!({ "destination": "/proc", "source": "/victim", "options": ["bind"] }),
            "cannot be mounted because it is not of type proc",
        ),
        (
            ":",
            json!({ "destination": "/x/../proc/self/attr", "source": "/victim", "options": ["bind"] }),
            "cannot be mounted because it is inside /proc",
        ),
        // CVE-2025-52881: the image leads a volume into /proc.
        (
            "ln -s /proc/self/attr here",
            json!({
                "destination": "/here", "source": "/victim/self/attr", "options": ["bind"]
            }),
            "here",
        ),
        (
            "ln -s proc/sys/net/ipv4 here",
            json!({
                "destination": "/here", "source": "/victim/sys/net/ipv4", "options": ["bind"]
            }),
            "here",
        ),
        (
            "ln -s ../proc here",
            json!({ "destination": "/here", "type": "tmpfs", "source": "x" }),
            "here",
        ),
    ] {
        host.check_sh(&format!(
            "cd /tmp/b/rootfs && rm -rf proc sys here volume && mkdir proc sys && {image}"
        ))
        .unwrap();
        bundle.config = plain.clone();
        if !mount.is_null() {
            add_mount(&mut bundle, mount.clone());
        }
        bundle.write().unwrap();
        let before = look(&host);
        let refused = xebec(&host, &["run", "--bundle", "/tmp/b", "c"]).unwrap();
        assert!(
            !refused.success() && refused.stderr.contains(says),
            "{image} {mount}: {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
        assert_eq!(look(&host), before, "{image} {mount}");
    }
}

#[test]
fn a_mask_is_a_null_device_or_an_empty_directory_whatever_the_image_says() {
    let host = host();
    host.check_sh(VICTIM).unwrap();
    let script = "stat -c %t:%T /proc/interrupts /mine; echo x > /proc/interrupts; echo x > /mine; \
        ls -A /hidden; (echo x > /hidden/x) 2>/dev/null && echo written; \
        (echo x > /protected/x) 2>/dev/null && echo written; \
        grep -E ' /(hidden|proc/interrupts|mine) ' /proc/self/mountinfo | wc -l";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["busybox", "sh", "-c", script]).unwrap();
    for place in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        without_mount(&mut bundle, place);
    }
    bundle.config["linux"]["maskedPaths"] =
        json!(["/proc/interrupts", "/mine", "/hidden", "/absent", "/out"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/protected", "/out2"]);
    bundle.write().unwrap();
    // CVE-2025-31133: /dev/null of the image is a symlink to what the host's root may write.
    for image in [
        ":",
        "ln -s /proc/sys/kernel/core_pattern dev/null",
        "ln -s /victim/null dev/null",
        "echo > dev/null",
    ] {
        host.check_sh(&format!(
            "cd /tmp/b/rootfs && rm -rf dev hidden protected out out2 && mkdir dev hidden protected && \
             for a in stat wc grep; do ln -sf busybox bin/$a; done; \
             echo secret > mine; echo secret > hidden/secret; \
             ln -s /victim out; ln -s ../../../victim out2; {image}"
        ))
        .unwrap();
        let before = look(&host);
        let ran = xebec(&host, &["run", "--bundle", "/tmp/b", "c"]).unwrap();
        assert_eq!(ran.stdout, "1:3\n1:3\n3\n", "{image}: {ran:?}");
        assert_eq!(look(&host), before, "{image}");
        host.check_sh("cd /tmp/b/rootfs && grep -q secret mine hidden/secret")
            .unwrap();
    }
}

#[test]
fn what_is_mounted_over_a_device_or_a_mask_is_not_mounted_over_the_hosts() {
    let host = host();
    let script = "for place in /dev/null /dev/zero /proc/interrupts; do \
        mount -o bind /own $place && echo covered; done; cat /dev/null";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["busybox", "sh", "-c", script]).unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/interrupts"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    bundle.write().unwrap();
    host.check_sh(
        "mount --make-rshared / && cd /tmp/b/rootfs && echo hostile > own && \
         for applet in mount cat; do ln -sf busybox bin/$applet; done",
    )
    .unwrap();
    let nodes = "stat -c %F /dev/null /dev/zero; grep -c . /proc/self/mountinfo";
    let before = host.check_sh(nodes).unwrap();
    let run = |way: &str| {
        let ran = ok(&host, &["run", "--bundle", "/tmp/b", "c"]);
        assert_eq!(ran, "covered\ncovered\ncovered\nhostile\n", "{way}");
        assert_eq!(host.check_sh(nodes).unwrap(), before, "{way}");
    };
    run("as root of the host");
    let linux = &mut bundle.config["linux"];
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user" }));
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    bundle.write().unwrap();
    host.check_sh("chown -R 100000:100000 /tmp/b/rootfs")
        .unwrap();
    run("in a user namespace, where the host's nodes are bound");
    // The host's sysfs stands in for one that only the owner of the network may have.
    let script = "for place in /sys/kernel /sys/fs/cgroup; do \
        mount -o bind /bin $place && echo covered; done";
    bundle.config["process"]["args"] = json!(["busybox", "sh", "-c", script]);
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "network" && namespace["type"] != "cgroup");
    bundle.write().unwrap();
    let ran = ok(&host, &["run", "--bundle", "/tmp/b", "c"]);
    assert_eq!(ran, "covered\ncovered\n");
    assert_eq!(host.check_sh(nodes).unwrap(), before);
}

#[test]
fn a_race_for_a_mount_target_is_never_won() {
    let host = host();
    host.check_sh(VICTIM).unwrap();
    host.check_sh(
        "mkdir -p /tmp/volume/place /tmp/data; ln -s /victim /tmp/volume/link; \
                   ln -s ../../../../../../../victim /tmp/volume/up; echo ours > /tmp/data/file",
    )
    .unwrap();
    host.write_file("/tmp/swap.pl", SWAP).unwrap();
    let mut bundle = Bundle::create(
        &host,
        "/tmp/b",
        &["sh", "-c", "grep -E ' /(victim|tmp/volume)' /proc/self/mountinfo; ls /victim 2>/dev/null; cat /proc/self/mountinfo | grep -c ."],
    )
    .unwrap();
    // Another container has the volume, too, and swaps directory and symlink (CVE-2021-30465); what
    // is missing is made on the way (CVE-2024-45310).
    add_mount(
        &mut bundle,
        json!({ "destination": "/v", "source": "/tmp/volume", "options": ["rbind"] }),
    );
    for (name, source) in [
        ("place/d", "/tmp/data"),
        ("place/new/deep", "/tmp/data"),
        ("place/f", "/tmp/data/file"),
    ] {
        add_mount(
            &mut bundle,
            json!({
                "destination": format!("/v/{name}"), "source": source, "options": ["bind"]
            }),
        );
    }
    add_mount(
        &mut bundle,
        json!({ "destination": "/v/place/t", "type": "tmpfs", "source": "t" }),
    );
    bundle.config["process"]["cwd"] = json!("/v/place/cwd");
    bundle.config["linux"]["maskedPaths"] = json!(["/v/place/null", "/v/place/pts"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/v/place"]);
    bundle.write().unwrap();
    // With the mount API refused, mount(2) has to be as safe.
    let calls = "open_tree,?open_tree_attr,move_mount,fsopen,mount_setattr";
    let refused =
        format!("strace -f -o /tmp/trace -e trace={calls} -e inject={calls}:error=ENOSYS");
    let prefixes = ["", refused.as_str()];
    for (prefix, link) in prefixes
        .map(|prefix| [(prefix, "link"), (prefix, "up")])
        .concat()
    {
        let before = look(&host);
        // Who swaps fast enough has nearly every container refused; one has to have run.
        let script = format!(
            "perl /tmp/swap.pl /tmp/volume/place /tmp/volume/{link} /tmp/stop > /tmp/swaps & \
             i=0 ran=; while [ $i -lt 60 ] || [ -z \"$ran\" -a $i -lt 1000 ]; do \
                 i=$((i + 1)); \
                 {prefix} xebec run --bundle /tmp/b c >> /tmp/outs 2>> /tmp/errors && ran=ran; \
             done; echo $ran; touch /tmp/stop; wait; rm /tmp/stop; cat /tmp/swaps"
        );
        let said = host.check_sh(&script).unwrap();
        assert_eq!(look(&host), before, "{link} {prefix}");
        let injected = host.sh("grep -c INJECTED /tmp/trace").unwrap();
        assert_eq!(injected.success(), !prefix.is_empty());
        let swaps: u32 = said
            .lines()
            .last()
            .and_then(|n| n.parse().ok())
            .unwrap_or_default();
        assert!(swaps > 1000, "{swaps} swaps only");
        let errors = host.read_file("/tmp/errors").unwrap_or_default();
        assert!(
            said.contains("ran"),
            "no container has run against {link} {prefix}: {errors}"
        );
        let inside = host.read_file("/tmp/outs").unwrap();
        assert!(
            !inside.contains("untouched") && !inside.contains("console"),
            "{inside}"
        );
    }
    assert_eq!(ok(&host, &["list", "--quiet"]), "");
}

#[test]
fn the_cgroup_hierarchy_of_a_user_namespace_can_be_read_and_no_more() {
    let host = host();
    let script = "cat /sys/fs/cgroup/cgroup.controllers >/dev/null && echo readable; \
        mkdir /sys/fs/cgroup/mine 2>/dev/null && echo made; \
        (echo 0 > /sys/fs/cgroup/cgroup.procs) 2>/dev/null && echo moved; \
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null; \
        mkdir /sys/fs/cgroup/mine 2>/dev/null && echo made; echo end";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["busybox", "sh", "-c", script]).unwrap();
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let linux = &mut bundle.config["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    // CVE-2023-25809: without a cgroup namespace the hierarchy is the host's.
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    namespaces.push(json!({ "type": "user" }));
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = all.clone();
    }
    bundle.write().unwrap();
    host.check_sh("chown -R 100000:100000 /tmp/b/rootfs")
        .unwrap();
    let ran = ok(&host, &["run", "--bundle", "/tmp/b", "c"]);
    assert_eq!(ran, "readable\nend\n");
}

#[test]
fn sysctls_are_set_through_the_containers_own_proc_where_a_detached_one_is_refused() {
    let host = host();
    let mut bundle =
        Bundle::create(&host, "/tmp/b", &["cat", "/proc/sys/net/ipv4/ip_forward"]).unwrap();
    // The bundle brings its proc file system along, so that the runtime has none of its own.
    without_mount(&mut bundle, "/proc");
    host.check_sh("mount -t proc proc /tmp/b/rootfs/proc")
        .unwrap();
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    bundle.write().unwrap();
    assert_eq!(ok(&host, &["run", "--bundle", "/tmp/b", "c"]), "1\n");
    // The proc file system is the one that is made last; a security module refuses it.
    let made = host
        .check_sh(
            "strace -f -o /tmp/trace -e trace=fsopen xebec run --bundle /tmp/b c >/dev/null; \
                   grep -n 'fsopen(' /tmp/trace | grep '\"proc\"' | head -1 | cut -d: -f1",
        )
        .unwrap();
    let nth: u32 = made
        .trim()
        .parse()
        .unwrap_or_else(|e| panic!("{e}: {made:?}"));
    for refusal in ["EPERM", "EACCES", "ENOSYS"] {
        let ran = host
            .check_sh(&format!(
                "strace -f -o /tmp/trace -e trace=fsopen -e inject=fsopen:error={refusal}:when={nth} \
                 xebec run --bundle /tmp/b c; grep -c INJECTED /tmp/trace"
            ))
            .unwrap();
        assert_eq!(ran, "1\n1\n", "{refusal}");
    }
}
