//! Lazy mounts by the kernel where systemd runs the daemon, on another kernel than this machine's.

use std::time::Duration;

use integration::hosts::{Service, VmHost, VmOptions};

/// The unit's settings that matter are those of docs/xebec-snapshotter.service. Daemon and keeper
/// are killed at once while a container has much of its image still to read.
const BOTH_KILLED: &str = r#"
set -e
image=127.0.0.1:5000/redis
skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/redis:redis docker://$image:v1
xebec-snapshotter image convert $image:v1 $image:lazy >/dev/null
systemd-run -q --unit xs -p Type=notify -p KillMode=process -p FileDescriptorStoreMax=4 \
    -p FileDescriptorStorePreserve=yes -p Restart=always xebec-snapshotter serve
ctr images pull --snapshotter xebec $image:lazy >/dev/null
ctr run -d --snapshotter xebec --runtime io.containerd.xebec.v2 $image:lazy c sleep 1000
echo "mounts $(grep -c ' - erofs ' /proc/self/mountinfo)"
kill -9 $(systemctl show -P MainPID xs) $(pgrep -x xebec-keeper)
ctr tasks exec --exec-id read c sh -c 'sha256sum /usr/bin/redis-benchmark /usr/bin/bash' > /tmp/first
echo "status $?"
before=$(pgrep -x xebec-keeper)
systemctl restart xs
[ "$before" = "$(pgrep -x xebec-keeper)" ] && echo "keeper stays"
ctr tasks exec --exec-id again c sha256sum /usr/bin/redis-benchmark /usr/bin/bash | cmp - /tmp/first && echo "same bytes"
"#;

#[test]
fn systemd_keeps_the_watch_when_daemon_and_keeper_are_killed_at_once() {
    let options = VmOptions {
        images: vec!["redis".into()],
        services: vec![Service::Registry, Service::Containerd],
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["sh", "-c", BOTH_KILLED]).expect("a VM host runs a job");
    let lines: Vec<_> = output.stdout.lines().collect();
    for line in ["mounts 1", "status 0", "keeper stays", "same bytes"] {
        assert!(lines.contains(&line), "{line} is missing in {output:#?}");
    }
}
