//! What pulls, builds and mounts by way of containerd, on images that are read lazily: CRI's two ways
//! to pull, pods with users of their own, image volumes, dockerd on containerd's image store.

use integration::cri::{Container, Cri};
use integration::ctr::Ctr;
use integration::hosts::{HostOptions, NativeHost, Service};

/// The handler to which containerd gives every feature: runc's name with our path.
const HANDLER: &str = "xebec-as-runc";

fn host_mounting(mount: &str) -> NativeHost {
    let options = HostOptions::default().file(
        "/etc/xebec/snapshotter.toml",
        format!("mount = \"{mount}\"\n"),
    );
    NativeHost::start(options).expect("a native host starts")
}

/// Lazy layers that the daemon has.
fn lazy_layers(host: &NativeHost) -> usize {
    let script =
        "xebec-snapshotter status --format json | jq '[.snapshots[] | select(.layer)] | length'";
    host.check_sh(script).unwrap().trim().parse().unwrap()
}

#[test]
fn a_pod_with_its_own_users_and_a_volume_of_an_image_reads_both_lazily_by_the_kernel() {
    own_users_and_a_volume("kernel");
}

#[test]
fn a_pod_with_its_own_users_and_a_volume_of_an_image_reads_both_lazily_by_fuse() {
    own_users_and_a_volume("fuse");
}

fn own_users_and_a_volume(mount: &str) {
    let host = host_mounting(mount);
    host.push("pause").unwrap();
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    let volume = host.convert(&host.push("busybox").unwrap()).unwrap();
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    for image in [&lazy, &volume] {
        cri.pull(image, HANDLER).unwrap();
    }
    assert_eq!(lazy_layers(&host), 3, "{}", host.log(Service::Snapshotter));
    let main = Container {
        name: "main",
        image: &lazy,
        command: &["sleep", "1000"],
    };

    let pod = cri.run_pod("volume", HANDLER).unwrap();
    let id = cri
        .create_with_image(&pod, &main, &volume, "/volume")
        .unwrap();
    cri.start(&id).unwrap();
    let script = "/volume/bin/busybox echo lazily; echo x > /volume/new || echo refused";
    let ran = cri.exec_sync(&id, &["sh", "-c", script]).unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "lazily\nrefused\n", "{ran:?}");
    cri.stop_pod(&pod).unwrap();
    cri.remove(&id).unwrap();
    cri.remove_pod(&pod).unwrap();

    let before = used(&host);
    let pod = cri
        .run_mapped_pod("mapped", HANDLER, (200_000, 65536))
        .unwrap();
    let id = cri.create(&pod, &main).unwrap();
    cri.start(&id).unwrap();
    let script =
        "redis-server --version > /version && stat -c %u:%g /usr/bin/redis-server /version";
    let ran = cri.exec_sync(&id, &["sh", "-c", script]).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "0:0\n0:0\n",
        "{ran:?}"
    );
    let owner = "stat -c %u /proc/$(pgrep -nx sleep)/root/version";
    assert_eq!(host.check_sh(owner).unwrap(), "200000\n");
    // Owners are right inside, and yet nothing of the image was copied to change them.
    let copied = used(&host) - before;
    assert!(copied < 1 << 20, "{copied} bytes were written");
    cri.stop_pod(&pod).unwrap();
    cri.remove(&id).unwrap();
    cri.remove_pod(&pod).unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(log.contains(&format!("by=\"{mount}\"")), "{log}");
}

/// Bytes in the upper directories of containers.
fn used(host: &NativeHost) -> i64 {
    let script = "du -sb /var/lib/xebec-snapshotter/snapshots | cut -f1";
    host.check_sh(script).unwrap().trim().parse().unwrap()
}

#[test]
fn cri_pulls_lazily_by_its_own_client_as_by_the_transfer_service() {
    let host = NativeHost::start(HostOptions::with(&[
        Service::Registry,
        Service::Snapshotter,
    ]));
    let host = host.expect("a native host starts");
    host.push("pause").unwrap();
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    let config = host.read_file("/etc/containerd/config.toml").unwrap();
    let local = "use_local_image_pull = true\ndisable_snapshot_annotations = false\n";
    let images = "[plugins.'io.containerd.cri.v1.images']\n";
    let by_itself = config.replacen(images, &format!("{images}{local}"), 1);
    assert_ne!(by_itself, config);
    for config in [&config, &by_itself] {
        host.write_file("/etc/containerd/config.toml", config)
            .unwrap();
        host.start_services(&[Service::Containerd]).unwrap();
        let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
        cri.pull(&lazy, "xebec").unwrap();
        assert_eq!(lazy_layers(&host), 2, "{}", host.log(Service::Snapshotter));
        let remove = ["-n", "k8s.io", "images", "rm", "--sync", &lazy];
        Ctr::new(&host).check(&remove).unwrap();
        let digests = "ctr -n k8s.io images ls -q | xargs -r ctr -n k8s.io images rm --sync";
        host.check_sh(digests).unwrap();
        assert_eq!(lazy_layers(&host), 0, "layers outlived their image");
        host.stop(Service::Containerd).unwrap();
    }
}

/// Debian packs docker's own command apart; its API is as good.
const DOCKER: &str = r#"
mkdir -p /etc/docker /tmp/context
cat > /etc/docker/daemon.json <<'END'
{"features": {"containerd-snapshotter": true}, "storage-driver": "xebec", "insecure-registries":
 ["127.0.0.1:5000"], "iptables": false, "ip6tables": false, "bridge": "none", "default-runtime": "xebec",
 "runtimes": {"xebec": {"path": "/usr/local/bin/xebec"}}}
END
dockerd --containerd /run/containerd/containerd.sock > /tmp/dockerd.log 2>&1 & dockerd=$!
api() {
    method=$1 path=$2; shift 2
    curl -s --max-time 60 --unix-socket /run/docker.sock -X $method "$@" "http://docker/v1.44$path"; echo
}
for i in $(seq 150); do api GET /info | grep -q '"Driver"' && break; sleep 0.2; done
echo "driver $(api GET /info | jq -r .Driver)"
api POST "/images/create?fromImage=127.0.0.1:5000/redis&tag=lazy" > /dev/null
echo "lazy $(xebec-snapshotter status --format json | jq '[.snapshots[] | select(.layer)] | length')"
cd /tmp/context; echo hello > file
printf 'FROM 127.0.0.1:5000/redis:lazy\nCOPY file /file\nRUN cat /file > /made; rm /etc/passwd\nCMD ["cat","/made"]\n' > Dockerfile
tar -cf ../context.tar .
api POST "/build?t=built&networkmode=none" -H 'Content-Type: application/x-tar' --data-binary @/tmp/context.tar \
    | grep -q 'Successfully built' && echo 'built'
json='Content-Type: application/json'
api POST "/containers/create?name=c1" -H "$json" -d '{"Image": "built", "HostConfig": {"NetworkMode": "none"}}' > /dev/null
api POST /containers/c1/start
echo "status $(api POST /containers/c1/wait | jq .StatusCode)"
echo "said $(curl -s --unix-socket /run/docker.sock 'http://d/containers/c1/logs?stdout=1&stderr=1' | tr -dc a-z)"
api DELETE /containers/c1 > /dev/null
for image in built 127.0.0.1:5000/redis:lazy; do api DELETE "/images/$image?force=1" > /dev/null; done
kill $dockerd; wait
echo "left $(ctr -n moby snapshots --snapshotter xebec ls | tail -n +2 | wc -l)"
"#;

#[test]
fn dockerd_on_containerds_image_store_pulls_lazily_and_builds_on_what_is_not_here() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.convert(&host.push("redis").unwrap()).unwrap();
    let output = host.sh(DOCKER).unwrap();
    let said: Vec<_> = output
        .stdout
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    let expected = [
        "driver xebec",
        "lazy 2",
        "built",
        "status 0",
        "said hello",
        "left 0",
    ];
    assert_eq!(said, expected, "{output:?}");
}
