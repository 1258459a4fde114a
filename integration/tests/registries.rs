//! Registries that are not as they should be, and what stands before them.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};

/// Reads every file of a container's image to the end; fails after errors.
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + > /dev/null";

/// A second registry at 127.0.0.1:5001, whose disk has eaten some bytes of every layer.
const MAKE_BAD_MIRROR: &str = r"
set -e
cp -a /var/lib/registry /var/lib/mirror
find /var/lib/mirror -name data -size +500k | while read -r blob; do
  size=$(stat -c %s $blob)
  for tenth in 1 2 3 4 5 6 7 8; do
    head -c 64 /dev/urandom | dd of=$blob bs=1 seek=$((size / 10 * tenth)) conv=notrunc status=none
  done
done
sed 's|/var/lib/registry|/var/lib/mirror|; s|127.0.0.1:5000|127.0.0.1:5001|' \
  /etc/xebec/registry.yml > /etc/xebec/mirror.yml
";

#[test]
fn what_a_mirror_has_spoilt_comes_from_the_registry_and_the_mirror_is_named() {
    let host = NativeHost::start(HostOptions::default()).unwrap();
    let ctr = Ctr::new(&host);
    let ordinary = host.push("busybox").unwrap();
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    host.check_sh(MAKE_BAD_MIRROR).unwrap();
    let mut mirror = host
        .spawn(&["docker-registry", "serve", "/etc/xebec/mirror.yml"])
        .unwrap();
    host.check_sh("until curl -sf http://127.0.0.1:5001/v2/ > /dev/null; do sleep 0.05; done")
        .unwrap();
    let hosts = format!(
        "server = \"http://{0}\"\n[host.\"http://127.0.0.1:5001\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        Service::REGISTRY
    );
    let file = format!("/etc/containerd/certs.d/{}/hosts.toml", Service::REGISTRY);
    host.write_file(file, hosts).unwrap();

    for image in [&lazy, &ordinary] {
        ctr.pull(image, "xebec").unwrap();
        let read = ctr
            .run(Stack::XEBEC, image, "c", &["sh", "-c", READ_ALL])
            .unwrap();
        assert!(
            read.success() && read.stderr.is_empty(),
            "{image}: {read:?}"
        );
    }
    let log = host.log(Service::Snapshotter);
    let convicted = |line: &&str| line.contains("sends wrong bytes") && line.contains("sha256:");
    let line = log.lines().find(convicted).expect("it is logged");
    assert!(line.contains("127.0.0.1:5001"), "{line}");
    assert!(!log.contains("get EIO"), "{log}");
    let status = host.check(&["xebec-snapshotter", "status"]).unwrap();
    let line = status.lines().find(|line| line.contains("127.0.0.1:5001"));
    assert!(line.unwrap().contains("wrong bytes"), "{status}");
    mirror.kill().unwrap();
    mirror.wait().unwrap();
}
