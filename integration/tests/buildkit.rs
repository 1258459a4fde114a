//! BuildKit builds on an image that is not here. It asks for lazy layers only of a snapshotter whose
//! name is `stargz`, so that is what containerd calls ours here, as docs/containerd.md says.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::setup::tools;

const CONFIG: &str = "/etc/containerd/config.toml";

const OURS: Stack = Stack {
    snapshotter: "stargz",
    ..Stack::XEBEC
};

/// BuildKit as part of dockerd on containerd's image store; buildx is its client.
const BUILD: &str = r#"
mkdir -p /etc/docker /tmp/context
cat > /etc/docker/daemon.json <<'END'
{"features": {"containerd-snapshotter": true}, "storage-driver": "stargz", "insecure-registries":
 ["127.0.0.1:5000"], "iptables": false, "ip6tables": false, "bridge": "none", "default-runtime": "xebec",
 "runtimes": {"xebec": {"path": "/usr/local/bin/xebec"}}}
END
dockerd --containerd /run/containerd/containerd.sock > /tmp/dockerd.log 2>&1 & dockerd=$!
until curl -s --unix-socket /run/docker.sock http://docker/_ping | grep -q OK; do
    kill -0 $dockerd; sleep 0.1
done
cd /tmp/context
echo hello > file
cat > Dockerfile <<'END'
FROM 127.0.0.1:5000/busybox:lazy
COPY file /file
RUN --network=none cat /file > /made; rm /etc/passwd
CMD ["cat", "/made"]
END
docker-buildx build --progress plain --push -t 127.0.0.1:5000/built:v1 . 2>&1
xebec-snapshotter status --format json | jq -r '.snapshots[] | select(.layer) | "lazy \(.layer)"'
kill $dockerd; wait
"#;

#[test]
fn buildkit_builds_on_a_layer_that_it_never_fetches_and_pushes_the_result() {
    let options =
        HostOptions::with(&[Service::Registry, Service::Snapshotter]).tool(&tools::CLIENTS);
    let host = NativeHost::start(options).expect("a native host starts");
    let config = host.read_file(CONFIG).unwrap();
    let config = config
        .replace("[proxy_plugins.xebec", "[proxy_plugins.stargz")
        .replace("snapshotter = 'xebec'", "snapshotter = 'stargz'");
    host.write_file(CONFIG, config).unwrap();
    host.start_services(&[Service::Containerd]).unwrap();
    host.convert(&host.push("busybox").unwrap()).unwrap();

    let said = host.check_sh(BUILD).unwrap();
    let lazy = said
        .lines()
        .filter(|line| line.starts_with("lazy "))
        .count();
    assert_eq!(lazy, 1, "{said}");

    let ctr = Ctr::new(&host);
    let built = format!("{}/built:v1", Service::REGISTRY);
    ctr.pull(&built, OURS.snapshotter).unwrap();
    let ran = ctr.run(OURS, &built, "built", &[]).unwrap();
    assert_eq!((ran.status, &*ran.stdout), (0, "hello\n"), "{ran:?}");
    let ran = ctr
        .run(OURS, &built, "removed", &["ls", "/etc/passwd"])
        .unwrap();
    assert!(!ran.success(), "{ran:?}");
}
