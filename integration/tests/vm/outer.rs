//! The runtime itself under a profile of AppArmor that lets nobody attach a detached mount, as
//! LXC's do: what it makes by `mount(2)` is what it makes when nobody confines it.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

/// The outer profile and one for the payload.
///
/// AppArmor takes `move_mount` of a detached mount for `mount --move` from nowhere; `fsmount`,
/// `open_tree` and `mount_setattr` it does not mediate.
const PROFILES: &str = r"
set -e
cat > /tmp/profiles <<'END'
profile outer flags=(attach_disconnected,mediate_deleted) {
    file,
    capability,
    network,
    signal,
    ptrace,
    unix,
    umount,
    pivot_root,
    change_profile,
    mount fstype=(proc,sysfs,tmpfs,devpts,mqueue,cgroup2),
    mount options=(rw,bind),
    mount options=(rw,rbind),
    mount options in (remount,bind,ro,rw,nosuid,nodev,noexec,relatime,strictatime),
}
profile inner flags=(attach_disconnected,mediate_deleted) {
    file,
    capability,
    network,
    signal,
    ptrace,
    mount,
    umount,
}
END
apparmor_parser --replace /tmp/profiles
";

/// A container with every kind of mount; what it and a later process see of themselves.
const STORY: &str = r#"
mkdir -p /b/rootfs/bin /b/rootfs/proc /b/rootfs/dev /b/rootfs/sys /b/rootfs/skel /b/data
cp /usr/bin/busybox /b/rootfs/bin/
for name in sh cat sleep sort awk; do ln -s busybox /b/rootfs/bin/$name; done
echo copied > /b/rootfs/skel/file
echo bound > /b/data/file
cd /b
xebec spec
jq '.process.terminal = false | .process.noNewPrivileges = false |
    .process.apparmorProfile = "inner" | .linux.sysctl = {"net.ipv4.ip_forward": "1"} |
    .process.args = ["sleep", "1000"] | .mounts += [
        {"destination": "/data", "source": "/b/data", "type": "bind", "options": ["rbind", "ro"]},
        {"destination": "/skel", "source": "tmpfs", "type": "tmpfs", "options": ["tmpcopyup"]}
    ]' config.json > next
mv next config.json
look='cat /proc/self/attr/current /skel/file /data/file /proc/sys/net/ipv4/ip_forward;
    awk "{ print \$4, \$5, \$6, substr(\$0, index(\$0, \" - \")) }" /proc/self/mountinfo | sort;
    { echo > /data/new; echo > /proc/sys/vm/swappiness; cat /proc/kcore; } 2>&1'
story() {
    xebec run --detach c < /dev/null > /dev/null 2> log || cat log
    xebec exec c sh -c "$1"
    xebec exec --apparmor outer c cat /proc/self/attr/current
    xebec delete --force c
    xebec list --quiet
    grep -c /b/ /proc/self/mountinfo || :
}
story "$look" > /tmp/free
cat /tmp/free
dmesg --clear
aa-exec -p outer -- sh -c "$(declare -f story); story '$look'" > /tmp/confined 2>&1
diff /tmp/free /tmp/confined && echo the same
echo "moves denied: $(dmesg | grep -c 'DENIED.*comm="xebec".*flags="rw, move"')"
"#;

#[test]
fn under_a_profile_without_detached_mounts_the_container_is_the_same() {
    let options = VmOptions {
        services: Vec::new(),
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let script = [PROFILES, STORY].concat();
    let output = VmHost::run(options, &["bash", "-c", &script]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    for line in [
        "inner (enforce)",
        "outer (enforce)",
        "copied",
        "bound",
        "/b/data /data ro,relatime  - ext4 /dev/root rw",
        "the same",
    ] {
        assert!(lines.contains(&line), "{line} is missing in {output:#?}");
    }
    let denied = lines
        .iter()
        .find_map(|line| line.strip_prefix("moves denied: ")?.parse().ok());
    assert!(denied > Some(0), "{output:#?}");
}
