//! The store's limits on a whole host: what runs never loses a byte, what was used least lately goes,
//! what went comes back and is the same, and what is said of disk space is what `du` says.

use std::time::{Duration, Instant};

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use serde_json::Value;

const OVERLAYFS: Stack = Stack {
    snapshotter: "overlayfs",
    ..Stack::XEBEC
};

const CONFIG: &str = "/etc/xebec/snapshotter.toml";
const LAYERS: &str = "/var/lib/xebec-snapshotter/lazy/blobs/sha256";
const PATIENCE: Duration = Duration::from_secs(90);

/// A digest of many names and contents of an image, of each of its layers.
const DIGEST: [&str; 3] = [
    "sh",
    "-c",
    "find /usr/bin /usr/sbin /var/lib/dpkg -type f -exec sha256sum {} + | sort | sha256sum",
];

/// Runs an image to its end; a digest of all that is in it.
fn digest(ctr: Ctr<'_>, stack: Stack, image: &str, id: &str) -> String {
    let ran = ctr.run(stack, image, id, &DIGEST).unwrap();
    assert!(ran.success() && ran.stderr.is_empty(), "{image}: {ran:?}");
    ran.stdout
}

fn wait_until(host: &NativeHost, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        let log = || host.log(Service::Snapshotter);
        assert!(begun.elapsed() < PATIENCE, "not seen: {what}; {}", log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What `xebec-snapshotter du` tells.
fn du(host: &NativeHost) -> Value {
    let text = host.check(&["xebec-snapshotter", "du", "--format", "json"]);
    serde_json::from_str(&text.unwrap()).unwrap()
}

/// One image of it.
fn of_image<'a>(du: &'a Value, image: &str) -> &'a Value {
    let mut images = du["images"].as_array().unwrap().iter();
    images.find(|one| one["name"] == image).expect("an image")
}

fn local(host: &NativeHost, image: &str) -> u64 {
    of_image(&du(host), image)["local"].as_u64().unwrap()
}

/// The store as `du` measures it: all of it, and then each layer, in order.
fn measured(host: &NativeHost) -> Vec<u64> {
    let script =
        format!("cd {LAYERS} && du -sB1 . && for one in *; do du -sB1 $one; done | sort -n");
    let text = host.check_sh(&script).unwrap();
    let sizes = text.lines().map(|line| line.split('\t').next().unwrap());
    sizes.map(|size| size.parse().unwrap()).collect()
}

/// The same as our own `du` tells it.
fn told(host: &NativeHost) -> Vec<u64> {
    let du = du(host);
    let layers = du["layers"].as_array().unwrap().iter();
    let mut sizes: Vec<_> = layers.map(|one| one["disk"].as_u64().unwrap()).collect();
    sizes.sort_unstable();
    sizes.insert(0, du["disk"].as_u64().unwrap());
    sizes
}

/// The sizes of the lazy snapshots as containerd is told them, in order.
fn told_to_containerd(host: &NativeHost) -> Vec<u64> {
    let script = "xebec='ctr snapshots --snapshotter xebec'; \
                  for key in $($xebec ls | awk '$NF == \"Committed\" {print $1}'); do \
                  $xebec usage -b $key | awk 'NR == 2 {print $2}'; done | sort -n";
    let text = host.check_sh(script).unwrap();
    text.lines().map(|size| size.parse().unwrap()).collect()
}

/// From now on there is room for what is stored now less half of what `image` takes.
fn limit(host: &NativeHost, image: &str) {
    let du = du(host);
    let disk = |value: &Value| value["disk"].as_u64().unwrap();
    let quota = disk(&du) - disk(of_image(&du, image)) / 2;
    configure(
        host,
        "",
        &format!("[store]\nquota = {quota}\nlow_water = \"100%\"\n"),
    );
}

/// Another daemon takes over, with more in its configuration: at the head and at the end.
fn configure(host: &NativeHost, head: &str, end: &str) {
    let config = host.read_file(CONFIG).unwrap();
    host.write_file(CONFIG, format!("{head}\n{config}\n{end}"))
        .unwrap();
    host.kill(Service::Snapshotter).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
}

/// Two images of two layers each, and room for one and a half.
fn story(mode: &str) {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    configure(&host, &format!("mount = \"{mode}\""), "");
    let ctr = Ctr::new(&host);
    let (redis, plain) = (host.push("redis").unwrap(), host.push("nginx").unwrap());
    let lazy = host.convert(&redis).unwrap();
    let truths = [(&redis, "redis"), (&plain, "nginx")].map(|(image, id)| {
        ctr.pull(image, "overlayfs").unwrap();
        digest(ctr, OVERLAYFS, image, id)
    });

    for image in [&lazy, &plain] {
        ctr.pull(image, "xebec").unwrap();
    }
    assert_eq!(digest(ctr, Stack::XEBEC, &lazy, "first"), truths[0]);
    ctr.start(Stack::XEBEC, &plain, "kept", &["sleep", "1000"])
        .unwrap();
    let kept = |why: &str| {
        let found = ctr.exec("kept", &DIGEST).unwrap();
        assert_eq!(found.stdout, truths[1], "{why}: {found:?}");
    };
    kept("a container that was just started");
    // All at one moment: what was written last takes its blocks in its own time.
    wait_until(&host, "what is told is what is on disk", || {
        let told = told(&host);
        told[1..] == told_to_containerd(&host) && told == measured(&host)
    });

    let before = local(&host, &lazy);
    let is_evicted = || local(&host, &lazy) < before / 2;
    limit(&host, &lazy);
    wait_until(&host, "what does not run is evicted", is_evicted);
    assert_eq!(digest(ctr, Stack::XEBEC, &lazy, "again"), truths[0]);
    wait_until(&host, "it is again, though it was used last", is_evicted);
    host.kill(Service::Registry).unwrap();
    host.check_sh("echo 1 > /proc/sys/vm/drop_caches").unwrap();
    kept("what runs needs no registry: nothing of it has gone");
    host.start_services(&[Service::Registry]).unwrap();

    ctr.remove("kept").unwrap();
    assert_eq!(digest(ctr, Stack::XEBEC, &lazy, "third"), truths[0]);
    wait_until(&host, "what was used before it is evicted", || {
        let du = du(&host);
        du["disk"].as_u64() <= du["quota"].as_u64()
    });
    assert!(!is_evicted(), "and nothing else");
    host.kill(Service::Registry).unwrap();
    assert_eq!(digest(ctr, Stack::XEBEC, &lazy, "fourth"), truths[0]);
    host.start_services(&[Service::Registry]).unwrap();
    assert_eq!(digest(ctr, Stack::XEBEC, &plain, "back"), truths[1]);
}

#[test]
fn by_the_kernel_the_quota_holds_and_what_went_comes_back() {
    story("kernel");
}

#[test]
fn by_fuse_the_quota_holds_and_what_went_comes_back() {
    story("fuse");
}
