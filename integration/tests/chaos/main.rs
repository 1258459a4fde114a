//! Chaos: a daemon that is killed and restarted, a registry that comes and goes, a disk that is
//! full, all at random while many threads read, look up and list. No byte may be wrong, and no read
//! may fail but where the documentation says so (docs/operations.md, "What survives what").
//!
//! `XEBEC_CHAOS_SECONDS` makes it longer, `XEBEC_CHAOS_SEED` repeats a run's choices; each run
//! prints its seed.

mod readers;
mod storm;

use std::time::{Duration, Instant};

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use integration::proxy::Shape;
use integration::random::{self, Random, setting};

use readers::Trees;
use storm::Storm;

/// How long it is stormy before everything is looked at and begun anew.
const EPOCH: u64 = 15;
/// What the daemon forgives a registry; see `registry.patience`.
const PATIENCE: u64 = 2;
/// The root of all that the daemon keeps.
const ROOT: &str = "/var/lib/xebec-snapshotter";

/// A host whose snapshotter has a small disk of its own.
fn host(mode: &str) -> NativeHost {
    let settings = format!("mount = \"{mode}\"\n[registry]\npatience = {PATIENCE}\n");
    let options = HostOptions::with(&[Service::Registry]);
    let options = options.file("/etc/xebec/snapshotter.toml", settings);
    let host = NativeHost::start(options).expect("a native host starts");
    // The loop device goes with the mount, and the mount with the host.
    let disk = format!(
        "for n in 0 1 2 3 4 5 6 7; do [ -b /dev/loop$n ] || mknod /dev/loop$n b 7 $n; done
         [ -c /dev/loop-control ] || mknod /dev/loop-control c 10 237
         truncate -s 600M /srv/disk && mkfs.ext4 -q -O ^has_journal /srv/disk
         mkdir -p {ROOT} && mount -o loop /srv/disk {ROOT}"
    );
    host.check_sh(&disk).expect("a small disk");
    let rest = [Service::Snapshotter, Service::Containerd];
    host.start_services(&rest).expect("the daemons start");
    host
}

/// Storms over a host that mounts by `mode`, with an image in the form that `convert` makes too.
fn storm_over(mode: &str, convert: &str) {
    let mut random = Random::new(setting("XEBEC_CHAOS_SEED").unwrap_or_else(random::seed));
    println!("XEBEC_CHAOS_SEED={} mode {mode}", random.seed());
    let seconds = setting("XEBEC_CHAOS_SECONDS").unwrap_or(EPOCH);
    let host = host(mode);
    let ctr = Ctr::new(&host);
    let ordinary = host.push("redis").unwrap();
    let other = format!("{}/redis:other", Service::REGISTRY);
    let lazy = host.convert(&ordinary).unwrap();
    let argv = ["xebec-snapshotter", "image", "convert", "--to", convert];
    host.check(&[&argv[..], &[&ordinary, &other]].concat())
        .unwrap();
    ctr.pull(&ordinary, "overlayfs").unwrap();
    let overlayfs = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    ctr.start(overlayfs, &ordinary, "right", &["sleep", "100000"])
        .unwrap();
    // Its configuration is that of zstd:chunked too, and would hold the snapshots of that.
    ctr.check(&["images", "rm", "--sync", &ordinary]).unwrap();
    let before = Inventory::of(&host).unwrap();
    let mut left = seconds;
    while left > 0 {
        let epoch = left.min(EPOCH);
        left -= epoch;
        let (link, lazy) = host.through_link(&lazy, Shape::new(5, 60.0)).unwrap();
        let port = link.address().to_string();
        let images = [lazy, other.replacen(Service::REGISTRY, &port, 1)];
        for (n, image) in images.iter().enumerate() {
            ctr.pull(image, "xebec").unwrap();
            let id = format!("lazy{n}");
            ctr.start(Stack::XEBEC, image, &id, &["sleep", "100000"])
                .unwrap();
        }
        let trees = Trees::of(&host, "right", &["lazy0", "lazy1"]);
        let mut storm = Storm::new(&host, &link, mode, &images);
        let report = trees.read_during(random.next(), || {
            storm.rage(&mut random, Duration::from_secs(epoch));
        });
        println!("{}", storm.report(&report));
        storm.judge(&report);
        storm.wait_for_calm();
        trees.all_are_right();
        storm.end(&["lazy0", "lazy1"]);
        nothing_stays(&host, &before);
    }
}

/// Of all that has come and gone the daemon and its keeper are left, with an empty store.
fn nothing_stays(host: &NativeHost, before: &Inventory) {
    let end = Instant::now() + Duration::from_secs(10);
    let stored = format!("ls -A {ROOT}/lazy/blobs/sha256 {ROOT}/lazy/mnt {ROOT}/snapshots");
    loop {
        let mut stayed = Inventory::of(host).unwrap().added_since(before);
        // New ones in the place of the old ones, and the container that stays.
        let daemons = [
            "xebec-snapshotter serve",
            "xebec-keeper keeper",
            "sleep 100000",
        ];
        stayed.retain(|line| !daemons.iter().any(|daemon| line.contains(daemon)));
        let stored = host.check_sh(&stored).unwrap();
        let stored = stored
            .lines()
            .filter(|line| !line.is_empty() && !line.ends_with(':'));
        stayed.extend(stored.map(str::to_owned));
        if stayed.is_empty() {
            break;
        }
        if Instant::now() > end {
            let known =
                "ctr containers ls; ctr snapshots --snapshotter xebec ls; xebec-snapshotter status";
            panic!("left over: {stayed:#?}\n{:?}", host.sh(known));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let daemons = host
        .check_sh("pgrep -c -x xebec-keeper; pgrep -c -x sleep")
        .unwrap();
    assert_eq!(daemons, "1\n1\n", "keepers, and containers");
}

#[test]
fn a_storm_over_mounts_by_the_kernel_harms_no_reader() {
    storm_over("kernel", "zstd-chunked");
}

#[test]
fn a_storm_over_mounts_by_fuse_harms_no_reader() {
    storm_over("fuse", "nydus");
}
