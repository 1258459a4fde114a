//! The root file system: what it may be, what is made and hidden in it, and what changes later.

use rustix::fs::{XattrFlags, getxattr, setxattr};
use serde_json::{Value, json};

use super::mounts::{Trial, bind, filesystem, map_users};
use super::{host, ok, state, xebec};

#[test]
fn the_root_may_be_any_directory_and_any_mount() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "cp -a /tmp/trial/rootfs /tmp/other && touch /tmp/other/OTHER /tmp/trial/rootfs/FIRST \
        && mkdir /tmp/shared && mount --bind /tmp/other /tmp/shared && mount --make-shared /tmp/shared",
    )
    .unwrap();
    for (path, expected) in [
        ("rootfs", "/FIRST\n"),
        ("../trial/./rootfs", "/FIRST\n"),
        ("/tmp/other", "/OTHER\n"),
        ("/tmp/shared", "/OTHER\n"),
    ] {
        trial.mounts("ls -d /FIRST /OTHER 2>/dev/null; true", &[])["root"]["path"] = json!(path);
        assert_eq!(trial.same(), expected, "{path}");
        let flags = "--no-pivot";
        let unpivoted = trial.run_with("xebec", flags);
        assert_eq!(
            unpivoted.stdout, expected,
            "{path} without a pivot: {unpivoted:?}"
        );
    }
    let left = host
        .check_sh("grep -c /tmp/shared/ /proc/self/mountinfo || true")
        .unwrap();
    assert_eq!(left.trim(), "0", "mounts inside the root show on the host");

    // The host's own root, and another tree over the root (which crun allows).
    trial.mounts("test -e /usr/bin/apt && echo host", &[])["root"]["path"] = json!("/");
    assert_eq!(trial.output(), "host\n");
    let mut over = bind("/tmp/other", &["rbind"]);
    over["destination"] = json!("/");
    let config = trial.mounts("ls -d /OTHER /proc/self/ns; echo >/dev/null", &[]);
    config["mounts"].as_array_mut().unwrap().insert(0, over);
    assert_eq!(trial.output(), "/OTHER\n/proc/self/ns\n");

    trial.mounts(
        ">/new || echo read-only; echo >/x/new && echo writable",
        &[bind("/tmp", &["bind"])],
    )["root"]["readonly"] = json!(true);
    assert_eq!(trial.same(), "read-only\nwritable\n");
    for (path, text) in [
        ("nowhere", "no such file or directory"),
        ("config.json", "not a directory"),
    ] {
        trial.mounts("true", &[])["root"]["path"] = json!(path);
        let refused = trial.run("xebec");
        assert!(
            !refused.success() && refused.stderr.contains(text),
            "{refused:?}"
        );
    }
    let config = trial.mounts("true", &[]);
    config["linux"]["rootfsPropagation"] = json!("rprivate");
    let refused = trial.run_with("xebec", "--no-pivot");
    assert!(
        refused.stderr.contains("linux.rootfsPropagation"),
        "{refused:?}"
    );
}

#[test]
fn without_a_pivot_no_complete_proc_of_the_host_is_left_to_be_mounted_again() {
    let host = host();
    host.check_sh("chmod 755 /tmp").unwrap();
    let mut trial = Trial::new(&host);
    // The kernel lets a user namespace mount a proc if one is somewhere to be seen unmasked; what
    // cannot be reached from the root counts as well.
    let script = "busybox unshare -U -r -m -p -f mount -t proc proc /tmp 2>/dev/null \
        && echo seen || echo hidden";
    for (masked, expected) in [(true, "hidden\n"), (false, "seen\n")] {
        let config = trial.mounts(script, &[]);
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        if !masked {
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        }
        assert_eq!(trial.same(), expected);
        let unpivoted = trial.run_with("xebec", "--no-pivot");
        assert_eq!(unpivoted.stdout, expected, "{unpivoted:?}");
    }
    // In a user namespace the host's are locked in place, and are covered.
    host.check_sh("chown -hR 100000:100000 /tmp/trial/rootfs")
        .unwrap();
    map_users(trial.mounts("ls -d /proc/self/ns", &[]));
    let mapped = trial.run_with("xebec", "--no-pivot");
    assert_eq!(mapped.stdout, "/proc/self/ns\n", "{mapped:?}");
}

#[test]
fn devices_are_made_as_configured_beside_the_default_ones() {
    let host = host();
    let mut trial = Trial::new(&host);
    let list = "for f in /dev/* /srv/x/*; do busybox stat -c '%n %F %t %T %a %u %g' $f; done; \
        for l in fd stdin stdout stderr ptmx; do busybox readlink /dev/$l; done";
    let devices = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/srv/x/fifo", "type": "p", "fileMode": 0o600, "uid": 3},
        {"path": "/srv/x/block", "type": "b", "major": 7, "minor": 0},
        {"path": "/srv/x/char", "type": "u", "major": 1, "minor": 3, "fileMode": 0o4444},
    ]);
    trial.mounts(list, &[])["linux"]["devices"] = devices.clone();
    let shown = trial.same();
    for line in [
        "/dev/fuse character special file a e5 640 7 8",
        "/dev/null character special file 1 3 666 0 0",
        "/dev/tty character special file 5 0 666 0 0",
        "/srv/x/fifo fifo 0 0 600 3 0",
        "/srv/x/block block special file 7 0 666 0 0",
        "pts/ptmx",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "no {line:?} in\n{shown}"
        );
    }

    // A user namespace cannot make nodes: it gets the host's.
    let config = trial.mounts(
        "busybox stat -c '%n %t %T' /dev/null /dev/fuse; echo >/dev/null",
        &[],
    );
    map_users(config);
    config["linux"]["devices"] = json!([devices[0]]);
    assert_eq!(trial.same(), "/dev/null 1 3\n/dev/fuse a e5\n");

    // An image may bring its own /dev; a node that is another device is no substitute.
    host.check_sh(
        "mount -t tmpfs t /tmp/trial/rootfs/dev \
        && mknod -m 666 /tmp/trial/rootfs/dev/null c 1 3 \
        && mknod /tmp/trial/rootfs/dev/zero c 1 7",
    )
    .unwrap();
    let config = trial.mounts("echo >/dev/null && echo fine", &[]);
    let kept = |mount: &Value| {
        !mount["destination"]
            .as_str()
            .is_some_and(|d| d.starts_with("/dev"))
    };
    config["mounts"].as_array_mut().unwrap().retain(kept);
    let refused = trial.run("xebec");
    assert!(refused.stderr.contains("/dev/zero"), "{refused:?}");
    host.check_sh("rm /tmp/trial/rootfs/dev/zero").unwrap();
    assert_eq!(trial.output(), "fine\n");

    // A symlink in its place leads nobody elsewhere; what is mounted over it is filled where it is.
    host.check_sh(
        "umount /tmp/trial/rootfs/dev && cd /tmp/trial/rootfs && rmdir dev && mkdir elsewhere \
        && touch elsewhere/ptmx && ln -s elsewhere dev",
    )
    .unwrap();
    let refused = trial.run("xebec");
    assert!(refused.stderr.contains("symbolic links"), "{refused:?}");
    assert_eq!(
        host.check_sh("ls /tmp/trial/rootfs/elsewhere").unwrap(),
        "ptmx\n"
    );
    trial.mounts("ls /elsewhere; echo >/dev/null && echo fine", &[]);
    let shown = trial.same();
    assert!(
        shown.contains("null\n") && shown.ends_with("fine\n"),
        "{shown}"
    );
}

#[test]
fn paths_are_masked_and_protected() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mkdir -p /tmp/trial/rootfs/m/dir /tmp/trial/rootfs/m/ro/in /tmp/trial/rootfs/m/target \
        && cd /tmp/trial/rootfs/m && echo secret | tee file dir/f target/f ro/f >/dev/null \
        && ln -s target link && mount -t tmpfs t ro/in",
    )
    .unwrap();
    let script = "cd /m; cat file; ls dir; ls target; busybox stat -c %F file; \
        for f in dir/x ro/x ro/in/x; do >$f || echo $f refused; done; \
        cat /proc/self/mountinfo | while read a b dev d at rest; do \
        case $at in /m/dir|/m/target) echo $dev;; esac; done | busybox uniq | busybox wc -l";
    let config = trial.mounts(script, &[]);
    config["linux"]["maskedPaths"] = json!([
        "/m/file",
        "/m/dir",
        "/m/missing",
        "/m/missing/too",
        "/m/link"
    ]);
    config["linux"]["readonlyPaths"] = json!(["/m/ro", "/m/none"]);
    let shown = trial.output();
    assert_eq!(
        shown, "character special file\ndir/x refused\nro/x refused\nro/in/x refused\n1\n",
        "one tmpfs hides all directories"
    );
    assert_eq!(
        host.read_file("/tmp/trial/rootfs/m/file").unwrap(),
        "secret\n"
    );
}

#[test]
fn cgroups_are_mounted_as_runc_does_in_every_pair_of_namespaces() {
    let host = host();
    let mut trial = Trial::new(&host);
    let script = "while read a b c root at options rest; do case $at in /x) \
        echo $root $options;; esac; done </proc/self/mountinfo; \
        cat /proc/self/cgroup | busybox tail -n 1; ls -d /x/mounts 2>/dev/null; true";
    for (cgroup_namespace, user_namespace, options) in [
        (true, false, json!(["ro", "nosuid", "noexec", "nodev"])),
        (false, false, json!(["ro", "nosuid"])),
        (true, true, json!(["ro", "nosuid", "noexec", "nodev"])),
        (false, true, json!(["ro", "nosuid", "noexec", "nodev"])),
    ] {
        let mount =
            json!({"destination": "/x", "type": "cgroup", "source": "cgroup", "options": options});
        let config = trial.mounts(script, &[mount]);
        config["linux"]["cgroupsPath"] = json!("/mounts");
        if user_namespace {
            map_users(config);
        }
        // The usual mount of the hierarchy would be in the way of a second one for runc.
        let kept = |mount: &Value| mount["destination"] != "/sys/fs/cgroup";
        config["mounts"].as_array_mut().unwrap().retain(kept);
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        if cgroup_namespace {
            namespaces.push(json!({"type": "cgroup"}));
        }
        let shown = trial.same();
        assert!(shown.starts_with("/ ro,nosuid"), "{shown}");
        assert_eq!(shown.contains("/x/mounts"), !cgroup_namespace, "{shown}");
    }
}

#[test]
fn a_user_namespace_sees_the_hosts_sysfs_proc_and_queues_where_it_owns_none() {
    let host = host();
    let mut trial = Trial::new(&host);
    for (shared, kind, mount_point) in [
        ("network", "sysfs", "/sys"),
        ("ipc", "mqueue", "/dev/mqueue"),
        ("pid", "proc", "/proc"),
    ] {
        let script = format!(
            "busybox grep ' {mount_point} ' /proc/self/mountinfo | busybox sed 's/.* - //' \
            | busybox cut -d' ' -f1; >{mount_point}/new || echo refused"
        );
        let config = trial.mounts(&script, &[]);
        map_users(config);
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != shared);
        let shown = trial.output();
        assert!(shown.starts_with(kind), "{shared}: {shown}");
        assert_eq!(
            shown.contains("refused"),
            kind != "mqueue",
            "{shared}: {shown}"
        );
    }
}

#[test]
fn a_running_container_gets_and_loses_mounts() {
    let host = host();
    let mut trial = Trial::new(&host);
    let write = |name: &str, document: Value| {
        host.write_file(format!("/tmp/{name}"), document.to_string())
            .unwrap();
    };
    host.check_sh("mkdir /tmp/s && mount -t tmpfs t /tmp/s && echo text >/tmp/s/file")
        .unwrap();
    let list = json!([
        {"destination": "/hot", "type": "bind", "source": "/tmp/s", "options": ["bind", "ro"]},
        {"destination": "/hot-file", "type": "bind", "source": "/tmp/s/file", "options": ["bind", "rw"]},
        {"destination": "/hot-tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        {"destination": "/hot-tmp/in", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
    ]);
    write("list.json", list.clone());
    write("document.json", json!({"mounts": list}));
    let mut half = list.clone();
    half[3]["type"] = json!("nosuchfs");
    write("half.json", half);
    let mounted = "cat /proc/self/mountinfo | while read a b c d at options rest; do \
        case $at in /hot*) echo $at $options;; esac; done";
    let expected = "/hot ro,relatime\n/hot-file rw,relatime\n/hot-tmp rw,nosuid,relatime\n\
        /hot-tmp/in ro,relatime\n";
    for users in [false, true] {
        let config = trial.mounts("sleep 1000", &[]);
        if users {
            map_users(config);
            host.check_sh("chown -hR 100000:100000 /tmp/trial/rootfs")
                .unwrap();
        }
        trial.start();
        let shown = || ok(&host, &["exec", "trial", "sh", "-c", mounted]);
        for file in ["/tmp/list.json", "/tmp/document.json"] {
            ok(&host, &["mounts", "add", "trial", file]);
            assert_eq!(shown(), expected, "{file}, user namespace: {users}");
            let read = ok(&host, &["exec", "trial", "cat", "/hot/file", "/hot-file"]);
            assert_eq!(read, "text\ntext\n");
            ok(&host, &["mounts", "remove", "trial", file]);
            assert_eq!(shown(), "", "{file}, user namespace: {users}");
        }
        // All of it or nothing.
        let refused = xebec(&host, &["mounts", "add", "trial", "/tmp/half.json"]).unwrap();
        assert!(refused.stderr.contains("no such device"), "{refused:?}");
        assert_eq!(shown(), "");
        let absent = xebec(&host, &["mounts", "remove", "trial", "/tmp/list.json"]).unwrap();
        assert!(
            !absent.success() && absent.stderr.contains("hot-tmp/in"),
            "{absent:?}"
        );
        let nowhere = xebec(&host, &["mounts", "add", "trial", "/tmp/none.json"]).unwrap();
        assert!(nowhere.stderr.contains("/tmp/none.json"), "{nowhere:?}");
        ok(&host, &["delete", "--force", "trial"]);
    }
    let left = host
        .check_sh("grep -c hot /proc/self/mountinfo || true")
        .unwrap();
    assert_eq!(left.trim(), "0");
}

/// A default access list, as the kernel keeps it: all for user 12 besides the usual.
const ACCESS_LIST: [u8; 44] = {
    let (none, mut list) = ([0xff; 4], [0; 44]);
    list[0] = 2;
    let entries = [
        (1, 7, none),
        (2, 7, [12, 0, 0, 0]),
        (4, 5, none),
        (16, 7, none),
        (32, 5, none),
    ];
    let mut n = 0;
    while n < entries.len() {
        let (at, (tag, rights, [a, b, c, d])) = (4 + 8 * n, entries[n]);
        (list[at], list[at + 2]) = (tag, rights);
        (list[at + 4], list[at + 5], list[at + 6], list[at + 7]) = (a, b, c, d);
        n += 1;
    }
    list
};

#[test]
fn a_copied_up_file_keeps_its_capabilities_its_other_names_and_its_times() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "cd /tmp/trial/rootfs && mkdir -p x/sub && echo 1 >x/one && ln x/one x/sub/two && \
         ln x/one outside && mkfifo x/pipe && mknod x/node c 1 3 && ln -s one x/link && \
         setcap cap_net_raw+ep x/one",
    )
    .unwrap();
    let attributes = [
        ("x/one", "security.capability"),
        ("x/one", "user.colour"),
        ("x/sub", "system.posix_acl_default"),
    ];
    let set = |(file, name): (&str, &str), value: &[u8]| {
        let path = host.path(format!("/tmp/trial/rootfs/{file}"));
        setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    set(attributes[1], b"blue");
    set(attributes[2], &ACCESS_LIST);
    host.check_sh("cd /tmp/trial/rootfs/x; touch -h -d @86400 one sub pipe node link")
        .unwrap();
    trial.mounts("sleep 1000", &[filesystem("tmpfs", &["tmpcopyup"])]);
    trial.start();
    let root = format!("/proc/{}/root", state(&host, "trial")["pid"]);
    for (file, name) in attributes {
        let get = |root: &str| {
            let mut value = [0; 64];
            // Not all of the host can be seen by its paths here.
            let path = format!("/proc/{}/root{root}/{file}", host.pid());
            let length =
                getxattr(path, name, &mut value[..]).unwrap_or_else(|e| panic!("{name}: {e}"));
            value[..length].to_vec()
        };
        assert_eq!(get(&root), get("/tmp/trial/rootfs"), "{name}");
    }
    let look = |root: &str| {
        let shown = "stat -c '%n %h %Y %t:%T %A' one sub/two sub pipe node link; ls -A";
        host.check_sh(&format!("cd {root}/x; {shown}")).unwrap()
    };
    let (copy, original) = (look(&root), look("/tmp/trial/rootfs"));
    ok(&host, &["delete", "--force", "trial"]);
    // One name of the file lies elsewhere.
    assert!(original.contains("one 3 86400"), "{original}");
    assert_eq!(copy, original.replace(" 3 86400", " 2 86400"));
}

#[test]
fn devices_in_a_user_namespace_are_the_hosts_by_their_numbers_and_fifos_its_own() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh("chown -hR 100000:100000 /tmp/trial/rootfs")
        .unwrap();
    let show = "cd /dev; for d in other sub/pipe; do busybox stat -c '%n %a %t:%T %u %F' $d; done; \
                head -c 1 other | wc -c";
    let mut run = |devices: Value| {
        let config = trial.mounts(
            &show
                .replace("head", "busybox head")
                .replace("wc", "busybox wc"),
            &[],
        );
        map_users(config);
        config["linux"]["devices"] = devices;
        trial.run("xebec")
    };
    let ran = run(json!([
        { "path": "/dev/other", "type": "c", "major": 1, "minor": 5 },
        { "path": "/dev/sub/pipe", "type": "p", "fileMode": 416, "uid": 3, "gid": 4 },
    ]));
    let shown = "other 666 1:5 65534 character special file\nsub/pipe 640 0:0 3 fifo\n1\n";
    assert_eq!(ran.stdout, shown, "{ran:?}");
    let nowhere = run(json!([{ "path": "/dev/other", "type": "c", "major": 241, "minor": 77 }]));
    assert!(
        nowhere
            .stderr
            .contains("bind device /dev/other: no such file or directory"),
        "{nowhere:?}"
    );
}
