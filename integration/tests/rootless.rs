//! A user without privileges: containerd and the snapshotter in a user namespace of theirs, as
//! rootlesskit makes it, with nothing that root has prepared but subordinate ids.

use integration::command::Output;
use integration::hosts::{HostOptions, NativeHost, Service};

/// A user with ids to give away, on a file system that can take an overlay's upper directory.
/// /dev/fuse is everybody's wherever udev runs.
const ALICE: &str = "mkdir /var/lib/home && useradd --base-dir /var/lib/home --create-home --uid 1000 alice && \
     echo alice:100000:65536 | tee /etc/subuid > /etc/subgid && chmod 666 /dev/fuse && \
     mkdir -p /run/user/1000 && chown alice /run/user/1000";

/// The user, and what a session has in its environment.
const AS_ALICE: &str = "exec setpriv --reuid 1000 --regid 1000 --clear-groups \
     env HOME=/var/lib/home/alice XDG_RUNTIME_DIR=/run/user/1000 \
     CONTAINERD_ADDRESS=/run/user/1000/containerd/containerd.sock CONTAINERD_SNAPSHOTTER=xebec \"$@\"";

/// A user namespace that lasts: what its programs expect below /run is theirs.
const NAMESPACE: &str = "mount --rbind /run/user/1000 /mnt && mount -t tmpfs run /run && \
     mkdir -p /run/user/1000 && mount --move /mnt /run/user/1000 && echo $$ > $XDG_RUNTIME_DIR/pid.new && \
     mv $XDG_RUNTIME_DIR/pid.new $XDG_RUNTIME_DIR/pid && exec sleep infinity";

const CONTAINERD: &str = "version = 3
root = '/var/lib/home/alice/.local/share/containerd'
state = '/run/user/1000/containerd'
disabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri']
[grpc]
address = '/run/user/1000/containerd/containerd.sock'
[proxy_plugins.xebec]
type = 'snapshot'
address = '/run/user/1000/xebec-snapshotter/snapshotter.sock'
[proxy_plugins.xebec.exports]
enable_remote_snapshot_annotations = 'true'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/amd64'
snapshotter = 'xebec'
differ = 'walking'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/amd64'
snapshotter = 'overlayfs'
differ = 'walking'
";

const START_SNAPSHOTTER: &str = "setsid xebec-snapshotter serve < /dev/null >> ~/snapshotter.log 2>&1 & \
     echo $! > ~/snapshotter.pid; until xebec-snapshotter status > /dev/null 2>&1; do sleep 0.1; done";
const START_CONTAINERD: &str = "setsid containerd -c ~/containerd.toml < /dev/null > ~/containerd.log 2>&1 & \
     echo $! > ~/containerd.pid; until ctr version > /dev/null 2>&1; do sleep 0.1; done";

const DIGEST: &str = "find /usr/bin /usr/sbin -type f -exec sha256sum {} + | sort | sha256sum";

/// `ctr run` without a cgroup, which a user has none of.
const RUN: &str = "ctr run --cgroup '' --runtime io.containerd.xebec.v2";

struct Alice {
    host: NativeHost,
}

impl Alice {
    fn start() -> Self {
        let host = NativeHost::start(HostOptions::with(&[Service::Registry]));
        let host = host.expect("a native host starts");
        host.check_sh(ALICE).unwrap();
        host.write_file("/var/lib/home/alice/containerd.toml", CONTAINERD)
            .unwrap();
        Self { host }
    }

    /// A command of hers, outside of any namespace.
    fn run(&self, command: &[&str]) -> Output {
        let mut argv = vec!["sh", "-c", AS_ALICE, "sh"];
        argv.extend(command);
        self.host.run(&argv).unwrap()
    }

    fn make_namespace(&self) {
        let enter = "setsid unshare --user --map-auto --map-root-user --mount sh -c \"$0\" \
                     < /dev/null > /dev/null 2>&1 & \
                     until [ -e $XDG_RUNTIME_DIR/pid ]; do sleep 0.1; done";
        let made = self.run(&["sh", "-c", enter, NAMESPACE]);
        assert!(made.success(), "{made:?}");
    }

    /// A script in her namespace; its standard output.
    #[track_caller]
    fn inside(&self, script: &str) -> String {
        let enter = "exec nsenter --user --preserve-credentials --mount \
                     --target $(cat $XDG_RUNTIME_DIR/pid) sh -c \"$0\"";
        let ran = self.run(&["sh", "-c", enter, script]);
        if !ran.success() {
            let logs = self.host.check_sh("tail -n 30 /var/lib/home/alice/*.log");
            panic!("{script}: {ran:?}\n{}", logs.unwrap());
        }
        ran.stdout
    }
}

#[test]
fn a_user_pulls_lazily_and_runs_containers_that_outlive_their_daemon() {
    let alice = Alice::start();
    let ordinary = alice.host.push("redis").unwrap();
    let lazy = alice.host.convert(&ordinary).unwrap();
    let refused = alice.run(&["xebec-snapshotter", "serve"]);
    let error = refused.stderr.trim();
    assert!(
        !refused.success() && error.lines().count() == 1,
        "{refused:?}"
    );
    assert!(
        error.contains("user 1000") && error.contains("user namespace"),
        "{error}"
    );

    alice.make_namespace();
    alice.inside(START_SNAPSHOTTER);
    alice.inside(START_CONTAINERD);
    alice.inside(&format!("ctr images pull --plain-http {lazy}"));
    let version = alice.inside(&format!("{RUN} --rm {lazy} first redis-server --version"));
    assert!(version.contains("Redis server"), "{version}");
    let part = alice.inside("xebec-snapshotter du --format json | jq '.local * 2 < .total'");
    assert_eq!(part.trim(), "true", "a part of it was enough");

    alice.inside(&format!(
        "ctr images pull --plain-http --snapshotter overlayfs {ordinary}"
    ));
    let truth = alice.inside(&format!(
        "{RUN} --rm --snapshotter overlayfs {ordinary} truth sh -c '{DIGEST}'"
    ));
    alice.inside(&format!("{RUN} -d {lazy} kept sleep 1000"));
    // A directory in the place of another hides all of it: overlayfs has other marks for users.
    let emptied = alice.inside(
        "ctr tasks exec --exec-id dir kept \
         sh -c 'rm -r /usr/share/doc && mkdir /usr/share/doc && ls -A /usr/share/doc | wc -l'",
    );
    assert_eq!(emptied.trim(), "0");
    alice.inside("kill -9 $(cat ~/snapshotter.pid)");
    alice.inside(START_SNAPSHOTTER);
    let found = alice.inside(&format!(
        "ctr tasks exec --exec-id digest kept sh -c '{DIGEST}'"
    ));
    assert_eq!(found, truth, "read by way of a mount of the daemon before");
    alice.inside("ctr tasks rm -f kept && ctr containers rm kept");

    let log = alice
        .host
        .read_file("/var/lib/home/alice/snapshotter.log")
        .unwrap();
    assert!(
        log.contains("mounted by FUSE") && log.contains("in a user namespace"),
        "{log}"
    );
    let roots = alice.host.check_sh(
        "find /var/lib/home/alice -uid 0 ! -name containerd.toml; grep fuse.xebec /proc/mounts || true",
    );
    assert_eq!(
        roots.unwrap(),
        "",
        "nothing of it is root's, nor seen outside"
    );
    alice.inside("kill $(cat ~/snapshotter.pid ~/containerd.pid)");
}
