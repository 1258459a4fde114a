//! Containers in containers whose seccomp filter is older than the mount API, or knows only a part
//! of it: what `mount(2)` makes instead is the same.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::mounts::map_users;
use super::users::{self, outer_bundle};
use super::{host, ok};

/// Calls that a filter may not know.
const MOUNT_API: [&str; 8] = [
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
];

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// Shows every mount but for its numbers and propagation.
const MOUNTED: &str = "busybox awk '{ sep = index($0, \" - \"); print $4, $5, $6, substr($0, sep) }' \
    /proc/self/mountinfo | busybox sort";
/// Shows that mounts do what they are for.
const USED: &str = "ls -l /skel /data; busybox stat -c %a /skel /sealed /dev/shm; \
    cat /etc/conf /skel/deep/file /proc/sys/net/ipv4/ip_forward; echo > /dev/null && echo null; \
    echo > /data/new; echo > /proc/sys/vm/swappiness; echo > /new; cat /proc/keys; ls /proc/acpi; \
    echo > /sealed/new; echo > /again/new; : > /skel/new; ls /skel /sealed /again";

/// A bundle that uses every kind of mount; `root` is where it will lie.
fn inner(host: &NativeHost, root: &str) -> Value {
    let mut bundle = users::bundle(
        host,
        "/tmp/inner",
        &["sh", "-c", &format!("exec 2>&1; {MOUNTED}; {USED}")],
    );
    host.check_sh(
        "cd /tmp/inner; mkdir -p rootfs/skel/deep rootfs/again data/sub; chmod 1750 rootfs/skel; \
         echo copied > rootfs/skel/deep/file; echo bound > conf; touch data/file",
    )
    .unwrap();
    let extra = json!([
        { "destination": "/data", "source": format!("{root}/data"), "type": "bind",
          "options": ["rbind", "ro", "nosuid", "nodev"] },
        { "destination": "/etc/conf", "source": format!("{root}/conf"), "options": ["bind"] },
        { "destination": "/skel", "source": "tmpfs", "type": "tmpfs",
          "options": ["tmpcopyup", "size=1m", "noexec"] },
        { "destination": "/sealed", "source": "tmpfs", "type": "tmpfs", "options": ["ro", "mode=711"] },
        { "destination": "/sealed/shm", "source": "tmpfs", "type": "tmpfs" },
        { "destination": "/again", "source": format!("{root}/rootfs/skel"), "options": ["bind"] },
        { "destination": "/again", "options": ["remount", "bind", "ro"] },
    ]);
    if let (Some(mounts), Some(extra)) = (bundle.config["mounts"].as_array_mut(), extra.as_array())
    {
        mounts.extend(extra.iter().cloned());
    }
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    bundle.config
}

/// An outer container whose root holds the inner bundle, with its filter.
fn outer<'a>(host: &'a NativeHost, inner: &Value, filter: Option<(&[&str], i32)>) -> Bundle<'a> {
    host.check_sh("rm -rf /var/lib/outer").unwrap();
    let mut outer = outer_bundle(host, inner);
    host.check_sh("cp -a /tmp/inner/. /var/lib/outer/rootfs/inner")
        .unwrap();
    host.write_file("/var/lib/outer/rootfs/inner/config.json", inner.to_string())
        .unwrap();
    outer.config["process"]["args"] = json!([
        "sh",
        "-c",
        "export XEBEC_IGNORE_MISSING_CONTROLLERS=1; xebec run --bundle /inner nested 2>&1; echo $?; \
         xebec list -q; busybox wc -l < /proc/self/mountinfo"
    ]);
    outer.config["linux"]["seccomp"] = filter.map_or(Value::Null, |(names, errno)| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno }]
        })
    });
    outer.write().unwrap();
    outer
}

fn run(host: &NativeHost, outer: &Bundle<'_>) -> String {
    ok(host, &["run", "--bundle", outer.path(), "outer"])
}

#[test]
fn without_the_mount_api_the_older_call_makes_the_same_container() {
    let host = host();
    let inner = inner(&host, "/inner");
    let free = run(&host, &outer(&host, &inner, None));
    for shown in [
        "/data ro,nosuid,nodev",
        "bound\ncopied\n1\nnull\n",
        "\n1750\n",
    ] {
        assert!(free.contains(shown), "{shown}: {free}");
    }
    let alone = MOUNT_API.iter().map(std::slice::from_ref);
    for names in std::iter::once(&MOUNT_API[..]).chain(alone) {
        for errno in [EPERM, ENOSYS] {
            let filtered = run(&host, &outer(&host, &inner, Some((names, errno))));
            assert_eq!(filtered, free, "{names:?} {errno}");
        }
    }
}

#[test]
fn a_terminal_and_a_user_namespace_need_no_mount_api() {
    let host = host();
    let calls = "open_tree,?open_tree_attr,move_mount,fsopen,fspick,mount_setattr";
    let refused =
        format!("strace -f -o /tmp/trace -e trace={calls} -e inject={calls}:error=ENOSYS");
    let show =
        format!("tty; busybox stat -c '%n %a %t:%T' /dev/console /dev/zero; id -u; {MOUNTED}");
    let mut bundle = users::bundle(&host, "/tmp/b", &["sh", "-c", &show]);
    bundle.config["process"]["terminal"] = json!(true);
    let plain = bundle.config.clone();
    let run = |prefix: &str| {
        let command = format!("{prefix} xebec run --bundle /tmp/b c");
        host.check_sh(&format!(
            "script --quiet --return --command '{command}' /dev/null </dev/null"
        ))
        .unwrap()
        // The end of script's own input is echoed, sooner or later.
        .replace("^@", "")
        .replace('\r', "")
    };
    for mapped in [false, true] {
        bundle.config = plain.clone();
        if mapped {
            host.check_sh("chown -hR 100000:100000 /tmp/b/rootfs")
                .unwrap();
            map_users(&mut bundle.config);
        }
        bundle.write().unwrap();
        let (allowed, without) = (run(""), run(&refused));
        assert!(
            allowed.contains("/dev/pts/0\n/dev/console 620 "),
            "{allowed}"
        );
        assert_eq!(without, allowed, "user namespace: {mapped}");
        host.check_sh("grep -c INJECTED /tmp/trace").unwrap();
    }
}
