//! containerd's garbage collection over lazily pulled layers: what a lease holds stays, with all that
//! is local of it, and what nothing names any more leaves the disk.

use std::time::{Duration, Instant};

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost};

/// Layers in the store, bytes of their files that are local, and bytes on disk.
fn store(host: &NativeHost) -> (u64, u64, u64) {
    let script = "xebec-snapshotter du --format json | jq '(.layers | length), .local, .disk'";
    let said = host.check_sh(script).unwrap();
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[test]
fn a_lazy_layer_stays_as_long_as_a_lease_holds_it_and_then_leaves_the_disk() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let empty = store(&host);
    let image = host.convert(&host.push("busybox").unwrap()).unwrap();
    ctr.pull(&image, "xebec").unwrap();
    let run = |id| ctr.run(Stack::XEBEC, &image, id, &["echo", "ran"]).unwrap();
    assert_eq!(run("before").stdout, "ran\n");

    // Without the references to its blobs, of which a lazy image has none here anyway.
    ctr.check(&["content", "prune", "references"]).unwrap();
    let (layers, local, disk) = store(&host);
    assert!(
        layers == 1 && local > 0 && disk > empty.2,
        "{layers} {local} {disk}"
    );
    assert_eq!(run("pruned").stdout, "ran\n");

    // A mount of the image is a snapshot of its own under a lease.
    host.check_sh("mkdir /mnt/image").unwrap();
    let mount = ["images", "mount", "--snapshotter", "xebec", &image];
    ctr.check(&[mount.as_slice(), &["/mnt/image"]].concat())
        .unwrap();
    ctr.check(&["images", "rm", "--sync", &image]).unwrap();
    let (layers, still, _) = store(&host);
    assert!(layers == 1 && still >= local, "{still} of {local} bytes");
    let said = host
        .check(&["/mnt/image/bin/busybox", "echo", "alive"])
        .unwrap();
    assert_eq!(said, "alive\n");

    // Pulled again, it is the layer that was kept.
    ctr.pull(&image, "xebec").unwrap();
    let (layers, again, _) = store(&host);
    assert!(layers == 1 && again >= still, "{again} of {still} bytes");
    ctr.check(&["images", "rm", "--sync", &image]).unwrap();
    assert_eq!(store(&host).0, 1);

    host.check_sh("umount /mnt/image").unwrap();
    ctr.check(&["leases", "rm", "--sync", "/mnt/image"])
        .unwrap();
    let end = Instant::now() + Duration::from_mins(2);
    while store(&host) != empty {
        assert!(Instant::now() < end, "{:?}, not {empty:?}", store(&host));
        std::thread::sleep(Duration::from_millis(100));
    }
    let left = ctr
        .check(&["snapshots", "--snapshotter", "xebec", "ls"])
        .unwrap();
    assert_eq!(left.lines().count(), 1, "{left}");
}
