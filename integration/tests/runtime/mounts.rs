//! `mounts` of the specification: each option as it shows inside, beside runc wherever runc has it.

use std::os::unix::net::UnixListener;

use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{assert_restored, host, settled};

/// A bundle whose configuration is changed again and again, for both runtimes.
pub(super) struct Trial<'a> {
    host: &'a NativeHost,
    bundle: Bundle<'a>,
    base: Value,
}

impl<'a> Trial<'a> {
    pub(super) fn new(host: &'a NativeHost) -> Self {
        let mut bundle = Bundle::create(host, "/tmp/trial", &["true"]).unwrap();
        // The native host lacks controllers, which runc insists on.
        let linux = bundle.config["linux"].as_object_mut().unwrap();
        linux.remove("resources");
        // A user namespace's root could not make it in a root file system that is not its own.
        host.check_sh("mkdir /tmp/trial/rootfs/x").unwrap();
        let base = bundle.config.clone();
        Self { host, bundle, base }
    }

    /// Prepares a container that runs `script`, with these mounts after the usual ones.
    pub(super) fn mounts(&mut self, script: &str, mounts: &[Value]) -> &mut Value {
        self.bundle.config = self.base.clone();
        let config = &mut self.bundle.config;
        config["process"]["args"] = json!(["sh", "-c", script]);
        let list = config["mounts"].as_array_mut().unwrap();
        list.extend(mounts.iter().cloned());
        config
    }

    pub(super) fn run(&self, runtime: &str) -> Output {
        self.run_with(runtime, "")
    }

    pub(super) fn run_with(&self, runtime: &str, flags: &str) -> Output {
        self.bundle.write().unwrap();
        let bundle = self.bundle.path();
        let command = format!("{runtime} run {flags} --bundle {bundle} trial </dev/null");
        self.host.sh(&command).unwrap()
    }

    /// Leaves xebec's container running, without the test's own pipes.
    pub(super) fn start(&self) {
        self.bundle.write().unwrap();
        let bundle = self.bundle.path();
        let command =
            format!("xebec run --detach --bundle {bundle} trial </dev/null >/dev/null 2>&1");
        self.host.check_sh(&command).unwrap();
    }

    /// What xebec's container wrote.
    #[track_caller]
    pub(super) fn output(&self) -> String {
        let output = self.run("xebec");
        assert!(output.success(), "{output:?}\n{}", self.bundle.config);
        output.stdout
    }

    /// What both runtimes' containers wrote, which is the same.
    #[track_caller]
    pub(super) fn same(&self) -> String {
        let (ours, theirs) = (self.output(), self.run("runc"));
        assert!(theirs.success(), "{theirs:?}\n{}", self.bundle.config);
        assert_eq!(ours, theirs.stdout, "xebec | runc\n{}", self.bundle.config);
        ours
    }

    /// Why both runtimes refuse the container: with a text that they have in common.
    #[track_caller]
    fn refused(&self, text: &str, runtimes: &[&str]) -> String {
        let mut said = String::new();
        for runtime in runtimes.iter().copied().chain(["xebec"]) {
            let output = self.run(runtime);
            assert!(!output.success(), "{runtime}: {}", self.bundle.config);
            let words = output.stderr.replace('\\', "");
            assert!(words.contains(text), "{runtime}: no {text:?} in {words}");
            said = words;
        }
        said
    }
}

pub(super) fn bind(source: &str, options: &[&str]) -> Value {
    json!({"destination": "/x", "type": "bind", "source": source, "options": options})
}

pub(super) fn filesystem(kind: &str, options: &[&str]) -> Value {
    json!({"destination": "/x", "type": kind, "source": kind, "options": options})
}

/// Mount points below `/x` with their options and propagation, without the numbers of groups.
const MOUNTED: &str = "cat /proc/self/mountinfo | while read a b c d at options rest; do \
    rest=\" $rest\"; case $at in /x*) echo $at $options ${rest%% - *};; esac; done | busybox sed 's/:[0-9]*//g'";

#[test]
fn a_bind_sees_what_earlier_mounts_have_brought_into_the_root() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh("mkdir -p /tmp/brought/deep /tmp/trial/rootfs/x/deep; echo brought > /tmp/brought/deep/file; echo covered > /tmp/trial/rootfs/x/deep/file")
        .unwrap();
    let again = |source: &str| json!({"destination": "/again", "type": "bind", "source": source, "options": ["rbind", "ro"]});
    for source in ["/tmp/trial/rootfs/x/deep", "rootfs/./x/deep"] {
        let mounts = [bind("/tmp/brought", &["bind"]), again(source)];
        trial.mounts(
            "cat /again/file; echo x > /again/file || echo read-only",
            &mounts,
        );
        assert_eq!(trial.same(), "brought\nread-only\n");
    }
    // Without such a mount, and before it, it is the image's.
    trial.mounts(
        "cat /again/file",
        &[
            again("/tmp/trial/rootfs/x/deep"),
            bind("/tmp/brought", &["bind"]),
        ],
    );
    assert_eq!(trial.same(), "covered\n");
    trial.mounts(
        "true",
        &[
            bind("/tmp/brought", &["bind"]),
            again("/tmp/trial/rootfs/x/absent"),
        ],
    );
    trial.refused("no such file or directory", &["runc"]);
}

/// Gives a container a user namespace.
pub(super) fn map_users(config: &mut Value) {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    config["linux"]["uidMappings"] = maps.clone();
    config["linux"]["gidMappings"] = maps;
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
}

#[test]
fn a_bind_has_the_attributes_of_its_options_alone() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mkdir /tmp/ro && mount -t tmpfs -o nosuid,noatime t /tmp/ro && mkdir /tmp/ro/in \
        && mount -t tmpfs -o noexec t /tmp/ro/in && mount -o remount,bind,ro,nosuid /tmp/ro",
    )
    .unwrap();
    for (options, top, below) in [
        (&["bind"][..], "ro,nosuid,noatime", None),
        (&["rbind"], "ro,nosuid,noatime", Some("rw,noexec,relatime")),
        (&["bind", "rw"], "rw,noatime", None),
        (&["bind", "nodev"], "rw,nodev,noatime", None),
        (
            &["bind", "ro", "noexec", "nosymfollow"],
            "ro,noexec,noatime,nosymfollow",
            None,
        ),
        (&["bind", "ro", "relatime"], "ro,relatime", None),
        (
            &["bind", "strictatime", "nodiratime"],
            "rw,nodiratime",
            None,
        ),
        (&["rbind", "ro"], "ro,noatime", Some("rw,noexec,relatime")),
        (
            &["rbind", "rro", "rnosuid", "rnodev", "rnoexec"],
            "ro,nosuid,nodev,noexec,noatime",
            Some("ro,nosuid,nodev,noexec,relatime"),
        ),
        (
            &["rbind", "rnoatime", "rexec"],
            "ro,nosuid,noatime",
            Some("rw,noatime"),
        ),
        (&["rbind", "rstrictatime"], "ro,nosuid", Some("rw,noexec")),
    ] {
        trial.mounts(MOUNTED, &[bind("/tmp/ro", options)]);
        let shown = trial.same();
        let expected = match below {
            Some(below) => format!("/x {top}\n/x/in {below}\n"),
            None => format!("/x {top}\n"),
        };
        assert_eq!(shown, expected, "{options:?}");
    }
}

#[test]
fn a_user_namespace_keeps_the_locked_attributes_of_the_host() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh("mkdir /tmp/ro && mount -t tmpfs -o ro,nosuid,noatime t /tmp/ro")
        .unwrap();
    for (options, expected) in [
        (&["bind"][..], "/x ro,nosuid,noatime\n"),
        (&["bind", "nodev"], "/x ro,nosuid,nodev,noatime\n"),
        (&["bind", "ro", "noatime"], "/x ro,nosuid,noatime\n"),
    ] {
        map_users(trial.mounts(MOUNTED, &[bind("/tmp/ro", options)]));
        assert_eq!(trial.same(), expected, "{options:?}");
    }
    for cleared in ["rw", "suid", "relatime"] {
        map_users(trial.mounts("true", &[bind("/tmp/ro", &["bind", cleared])]));
        trial.refused("operation not permitted", &["runc"]);
    }
}

#[test]
fn propagation_is_that_of_runc_for_every_word() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mount --make-rshared /tmp; mkdir /tmp/sh && mount -t tmpfs t /tmp/sh \
        && mkdir /tmp/sh/in && mount -t tmpfs t /tmp/sh/in && mount --make-rshared /tmp/sh",
    )
    .unwrap();
    let (slave, shared) = ("/x rw,relatime master\n", "/x rw,relatime shared master\n");
    for (words, expected) in [
        (&[][..], Some(slave)),
        (&["private"], Some("/x rw,relatime\n")),
        (&["slave"], Some(slave)),
        (&["shared"], Some(shared)),
        (&["slave", "shared"], Some(shared)),
        (&["unbindable"], Some("/x rw,relatime unbindable\n")),
        (&["rprivate"], None),
        (&["rslave"], None),
        (&["rshared"], None),
        (&["runbindable"], None),
    ] {
        // A word for the whole tree shows in the mount below as well.
        let whole = expected.is_none();
        let options = [&[if whole { "rbind" } else { "bind" }], words].concat();
        trial.mounts(MOUNTED, &[bind("/tmp/sh", &options)]);
        let shown = trial.same();
        match expected {
            Some(expected) => assert_eq!(shown, expected, "{words:?}"),
            None => assert_eq!(shown.lines().count(), 2, "{words:?}: {shown}"),
        }
    }
    let root = MOUNTED.replace("/x*", "/|/x*");
    for word in [
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
        "unbindable",
    ] {
        let config = trial.mounts(&root, &[bind("/tmp/sh", &["rbind"])]);
        config["linux"]["rootfsPropagation"] = json!(word);
        let shown = trial.same();
        let kept = word.trim_start_matches('r');
        let of_root = shown.lines().next().unwrap_or_default().to_owned();
        assert_eq!(
            of_root.ends_with(kept),
            matches!(kept, "shared" | "unbindable"),
            "{shown}"
        );
    }
    // Nothing of all that has reached the host.
    let left = host
        .check_sh("grep -c trial/rootfs /proc/self/mountinfo || true")
        .unwrap();
    assert_eq!(left.trim(), "0");
}

#[test]
fn new_file_systems_take_their_options_at_the_right_time() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh("chmod 2750 /tmp/trial/rootfs/x").unwrap();
    let mode = format!("{MOUNTED}; busybox stat -c %a /x");
    for (options, expected) in [
        (&[][..], "/x rw,relatime\n2750\n"),
        (
            &["mode=1700", "nosuid", "nodev"],
            "/x rw,nosuid,nodev,relatime\n1700\n",
        ),
        (&["ro", "noexec", "strictatime"], "/x ro,noexec\n2750\n"),
    ] {
        trial.mounts(&mode, &[filesystem("tmpfs", options)]);
        assert_eq!(trial.same(), expected, "{options:?}");
    }
    // Read-only, and still something was mounted below and nodes were made.
    let mut below = filesystem("tmpfs", &["nosuid"]);
    below["destination"] = json!("/x/below");
    let config = trial.mounts(
        &format!("{MOUNTED}; >/dev/new || echo ro; echo >/dev/null"),
        &[filesystem("tmpfs", &["ro"]), below],
    );
    for mount in config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            mount["options"].as_array_mut().unwrap().push(json!("ro"));
        }
    }
    assert_eq!(
        trial.same(),
        "/x ro,relatime\n/x/below rw,nosuid,relatime\nro\n"
    );

    let size = "busybox df -k /x | busybox tail -n 1 | busybox awk '{print $2}'";
    let small = filesystem("tmpfs", &["size=64k", "nosuid"]);
    trial.mounts(
        &format!("{MOUNTED}; {size}"),
        &[
            small.clone(),
            filesystem("tmpfs", &["remount", "size=128k", "noexec"]),
        ],
    );
    assert_eq!(trial.same(), "/x rw,noexec,relatime\n128\n");
    trial.mounts(
        &format!("{MOUNTED}; {size}"),
        &[small, bind("/", &["remount", "bind", "ro"])],
    );
    assert_eq!(trial.same(), "/x ro,relatime\n64\n");

    // Longer than fsconfig takes.
    let long = format!("/tmp/{}", "l".repeat(200));
    host.check_sh(&format!(
        "mkdir -p {long}/a {long}/b /tmp/up /tmp/work && touch {long}/a/one {long}/b/two"
    ))
    .unwrap();
    let lower = format!("lowerdir={long}/a:{long}/b");
    let overlay = filesystem(
        "overlay",
        &[&lower, "upperdir=/tmp/up", "workdir=/tmp/work", "nosuid"],
    );
    trial.mounts(
        &format!("{MOUNTED}; ls /x | busybox grep -v new; echo >/x/new"),
        &[overlay],
    );
    assert_eq!(trial.same(), "/x rw,nosuid,relatime\none\ntwo\n");
    host.check_sh("test -e /tmp/up/new").unwrap();

    let proc = json!({"destination": "/proc", "type": "proc", "source": "proc",
        "options": ["hidepid=invisible", "subset=pid", "nosuid", "noexec"]});
    let config = trial.mounts("cat /proc/self/mountinfo; ls /proc", &[]);
    config["mounts"][0] = proc;
    let shown = trial.output();
    assert!(shown.contains("hidepid=invisible,subset=pid"), "{shown}");
    assert!(!shown.contains("meminfo"), "{shown}");
}

#[test]
fn a_tmpfs_starts_with_a_copy_of_what_it_covers() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "cd /tmp/trial/rootfs && mkdir -p x/sub/deep && echo text >x/sub/file \
        && ln -s /nowhere x/link && chown -hR 12:34 x/sub x/link && chmod 2751 x/sub \
        && chmod 4710 x/sub/file && chmod 1777 x && seq 20000 >x/sub/deep/long",
    )
    .unwrap();
    let list = "cd /x; for f in . link sub sub/file sub/deep sub/deep/long; do \
        busybox stat -c '%n %F %a %u %g' $f; done; busybox readlink link; \
        busybox md5sum sub/deep/long | busybox cut -c -32";
    let copied = filesystem("tmpfs", &["tmpcopyup", "nosuid"]);
    trial.mounts(&format!("{list}; {MOUNTED}"), std::slice::from_ref(&copied));
    let shown = trial.output();
    let sum = host
        .check_sh("md5sum /tmp/trial/rootfs/x/sub/deep/long | cut -c -32")
        .unwrap();
    let expected = format!(
        ". directory 1777 0 0\nlink symbolic link 777 12 34\nsub directory 2751 12 34\n\
         sub/file regular file 4710 12 34\nsub/deep directory 755 12 34\n\
         sub/deep/long regular file 644 0 0\n/nowhere\n{sum}/x rw,nosuid,relatime\n"
    );
    assert_eq!(shown, expected);
    // What runc copies it copies alike.
    assert_eq!(trial.same(), expected);

    trial.mounts("echo new >/x/sub/deep/long", &[copied]);
    trial.output();
    let kept = host
        .check_sh("wc -l </tmp/trial/rootfs/x/sub/deep/long")
        .unwrap();
    assert_eq!(kept, "20000\n", "the copy is written to, not the image");

    // What is copied may itself be a mount of the container, and need not fit.
    host.check_sh("mkdir /tmp/data && echo of the volume >/tmp/data/file")
        .unwrap();
    let mut over = filesystem("tmpfs", &["tmpcopyup"]);
    over["destination"] = json!("/x/");
    trial.mounts("cat /x/file", &[bind("/tmp/data", &["bind"]), over.clone()]);
    assert_eq!(trial.same(), "of the volume\n");
    host.check_sh("head -c 200000 /dev/zero >/tmp/data/big")
        .unwrap();
    over["options"] = json!(["tmpcopyup", "size=64k"]);
    trial.mounts("true", &[bind("/tmp/data", &["bind"]), over]);
    trial.refused("no space left on device", &["runc"]);
}

#[test]
fn ids_are_mapped_for_binds_and_for_file_systems_of_their_own() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mkdir -p /tmp/s/in && touch /tmp/s/f && chown 1000:1001 /tmp/s/f \
        && mount -t tmpfs t /tmp/s/in && touch /tmp/s/in/f && chown 1000:1001 /tmp/s/in/f",
    )
    .unwrap();
    let owners = "cd /x; for f in f in/f; do test -e $f && busybox stat -c '%u:%g' $f; done; true";
    let maps = |mut mount: Value| {
        mount["uidMappings"] = json!([{"containerID": 1000, "hostID": 5000, "size": 1}]);
        mount["gidMappings"] = json!([{"containerID": 1001, "hostID": 6001, "size": 1}]);
        mount
    };
    for (options, expected) in [
        (&["bind", "idmap"][..], "5000:6001\n"),
        (&["rbind", "idmap"], "5000:6001\n1000:1001\n"),
        (&["rbind", "ridmap"], "5000:6001\n5000:6001\n"),
    ] {
        trial.mounts(owners, &[maps(bind("/tmp/s", options))]);
        assert_eq!(trial.same(), expected, "{options:?}");
    }
    // The container's own maps.
    host.check_sh("umount /tmp/s/in").unwrap();
    map_users(trial.mounts(owners, &[bind("/tmp/s", &["bind", "idmap"])]));
    assert_eq!(trial.same(), "1000:1001\n");

    // What follows is crun's.
    let options = ["bind", "idmap=uids=1000-5000-1#0-70-1;gids=1001-6001-1"];
    trial.mounts(owners, &[bind("/tmp/s", &options)]);
    assert_eq!(trial.output(), "5000:6001\n");
    let relative = ["bind", "idmap=uids=@1000-3-1;gids=@1001-4-1"];
    map_users(trial.mounts(owners, &[bind("/tmp/s", &relative)]));
    assert_eq!(trial.output(), "3:4\n");
    let mut own = filesystem("tmpfs", &["mode=1777", "idmap"]);
    own["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    own["gidMappings"] = own["uidMappings"].clone();
    let made = format!("{MOUNTED}; echo >/x/f; {owners}");
    trial.mounts(&made, &[own.clone()]);
    assert_eq!(trial.output(), "/x rw,relatime,idmapped\n0:0\n");
    own["uidMappings"][0]["hostID"] = json!(100_000);
    own["gidMappings"][0]["hostID"] = json!(100_000);
    map_users(trial.mounts(&made, &[own]));
    assert_eq!(trial.output(), "/x rw,relatime,idmapped\n0:0\n");
}

#[test]
fn symlinks_are_followed_copied_or_mounted_as_asked() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mkdir /tmp/s && cd /tmp/s && echo text >file && ln -s /gone dangling && mkfifo fifo \
        && ln -s file link && cd /tmp/trial/rootfs && ln -s /made/here y && ln -s /etc z",
    )
    .unwrap();
    let _socket = UnixListener::bind(host.path("/tmp/s/socket")).unwrap();
    let at = |destination: &str, source: &str, options: &[&str]| {
        let mut mount = bind(&format!("/tmp/s/{source}"), options);
        mount["destination"] = json!(destination);
        mount
    };
    // A dangling link of the image leads to what is made inside; kinds of files stay.
    trial.mounts(
        "cat /made/here /followed; busybox stat -c %F /fifo /socket /null",
        &[
            at("/y", "file", &["bind"]),
            at("/followed", "link", &["bind", "ro"]),
            at("/fifo", "fifo", &["bind"]),
            at("/socket", "socket", &["bind"]),
            json!({"destination": "/null", "source": "/dev/null", "options": ["bind"]}),
        ],
    );
    assert_eq!(
        trial.same(),
        "text\ntext\nfifo\nsocket\ncharacter special file\n"
    );

    for (mount, script, expected) in [
        (
            at("/c/link", "dangling", &["bind", "copy-symlink"]),
            "busybox readlink /c/link",
            "/gone\n",
        ),
        (
            at("/c/file", "file", &["bind", "copy-symlink"]),
            "cat /c/file",
            "text\n",
        ),
        (
            at("/d", "dangling", &["bind", "src-nofollow"]),
            "busybox readlink /d",
            "/gone\n",
        ),
        (
            at("/z", "file", &["bind", "dest-nofollow"]),
            "cat /z; ls -d /etc",
            "text\n/etc\n",
        ),
        (
            at("/z", "dangling", &["bind", "src-nofollow", "dest-nofollow"]),
            "busybox readlink /z",
            "/gone\n",
        ),
    ] {
        trial.mounts(script, std::slice::from_ref(&mount));
        // Twice: the link of before is no obstacle.
        for _ in 0..2 {
            assert_eq!(trial.output(), expected, "{mount}");
        }
    }
}

#[test]
fn a_mount_that_cannot_be_is_refused_by_its_place_and_leaves_nothing() {
    let host = host();
    let mut trial = Trial::new(&host);
    host.check_sh(
        "mkdir -p /tmp/dir && cd /tmp/trial/rootfs \
        && touch file && ln -s /proc/sys into && ln -s /tmp proclink",
    )
    .unwrap();
    let before = settled(&host, &trial.bundle);
    let to = |destination: &str, mut mount: Value| {
        mount["destination"] = json!(destination);
        mount
    };
    for (mount, text) in [
        (bind("/nope", &["bind"]), "no such file or directory"),
        (bind("/etc/passwd", &["bind"]), "not a directory"),
        (to("/file", bind("/tmp/dir", &["bind"])), "not a directory"),
        (
            to("/file/below", filesystem("tmpfs", &[])),
            "not a directory",
        ),
        (filesystem("nosuchfs", &[]), "no such device"),
        (filesystem("tmpfs", &["size=abc"]), "invalid argument"),
        (filesystem("tmpfs", &["nosuchoption"]), "invalid argument"),
        (
            bind("/tmp/dir", &["bind", "size=1"]),
            "bind mounts cannot have any filesystem-specific options applied",
        ),
        (to("/proc/sys", filesystem("tmpfs", &[])), "inside /proc"),
        (
            to("/proc/self", bind("/tmp/dir", &["bind"])),
            "inside /proc",
        ),
        (to("/into", filesystem("tmpfs", &[])), "inside /proc"),
        (to("/proc", bind("/tmp/dir", &["bind"])), "not of type proc"),
        (
            to("/proclink", filesystem("proc", &[])),
            "must be mounted on ordinary directory",
        ),
    ] {
        let place = mount["destination"].as_str().unwrap_or_default().to_owned();
        trial.mounts("true", &[mount]);
        let said = trial.refused(text, &["runc"]);
        assert!(said.contains(&place), "no {place} in {said}");
    }
    let idmapped = |uid: Value, gid: Value| {
        let mut mount = bind("/tmp/dir", &["bind", "idmap"]);
        mount["uidMappings"] = uid;
        mount["gidMappings"] = gid;
        mount
    };
    let map = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    let empty = json!([{"containerID": 0, "hostID": 1, "size": 0}]);
    for (mount, field) in [
        (idmapped(map.clone(), json!(null)), "gidMappings"),
        (idmapped(json!(null), map.clone()), "uidMappings"),
        (idmapped(empty.clone(), map.clone()), "uidMappings[0]"),
        (idmapped(map, empty), "gidMappings[0]"),
        (bind("/tmp/dir", &["bind", "idmap"]), "options"),
        (bind("/tmp/dir", &["bind", "idmap=uids=0-1"]), "options"),
        (filesystem("overlay", &["tmpcopyup"]), "options"),
        (json!({"destination": "/x"}), "type"),
        (json!({"destination": "/x", "options": ["bind"]}), "source"),
    ] {
        let index = trial.mounts("true", &[mount])["mounts"]
            .as_array()
            .unwrap()
            .len()
            - 1;
        trial.refused(&format!("config.json: mounts[{index}].{field}"), &[]);
    }
    host.check_sh("rm -rf /run/runc").unwrap();
    assert_restored(&host, &before);
}
