//! The snapshotter's kernel back end under containerd: EROFS mounts that outlive the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::Shape;

/// Digests of every file, and what there is to know of everything else.
const DESCRIBE: &str = "cd / && find . -mindepth 1 -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' \
                        ! -path './run*' ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        \\( -type d -printf '%p %y %m %U %G %T@\\n' \
                        -o -printf '%p %y %m %U %G %T@ %n %l\\n' \\) | sort; \
                        find . -xdev -type f ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        -exec sha256sum {} + | sort -k2";

const OVERLAYFS: Stack = Stack {
    snapshotter: "overlayfs",
    ..Stack::XEBEC
};

fn host() -> NativeHost {
    let options = HostOptions::default().file(
        "/etc/xebec/snapshotter.toml",
        "mount = \"kernel\"\n[lazy]\nkeeper_deadline = 30\n",
    );
    NativeHost::start(options).expect("a native host starts")
}

/// What an ordinary unpack of the image shows.
fn described(host: &NativeHost, image: &str) -> String {
    let ctr = Ctr::new(host);
    ctr.pull(image, "overlayfs").unwrap();
    let ran = ctr.run(OVERLAYFS, image, "ordinary", &["sh", "-c", DESCRIBE]);
    let ran = ran.unwrap();
    assert!(
        ran.success() && ran.stdout.lines().count() > 2000,
        "{ran:?}"
    );
    ran.stdout
}

fn assert_same(ours: &str, theirs: &str) {
    let mut lines = ours.lines().zip(theirs.lines());
    assert_eq!(lines.find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn every_file_is_as_in_an_ordinary_unpack_and_the_image_is_sound() {
    let host = host();
    let ctr = Ctr::new(&host);
    let ordinary = host.push("redis").unwrap();
    let lazy = host.convert(&ordinary).unwrap();
    ctr.pull(&lazy, "xebec").unwrap();
    let ours = ctr.run(Stack::XEBEC, &lazy, "ours", &["sh", "-c", DESCRIBE]);
    let ours = ours.unwrap();
    assert!(ours.success() && ours.stderr.is_empty(), "{}", ours.stderr);
    assert_same(&ours.stdout, &described(&host, &ordinary));
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("by=\"kernel\""), "{log}");

    let image = only_tree(&host);
    let mut fsck = vec!["fsck.erofs".to_owned(), "--extract=/tmp/tree".to_owned()];
    fsck.extend(
        devices(&host, &image)
            .iter()
            .map(|path| format!("--device={}", path.display())),
    );
    fsck.push(image.display().to_string());
    let checked = host.run(&fsck).unwrap();
    assert!(checked.success(), "{checked:?}");
    // By another reader of EROFS than the kernel, the same bytes.
    let sum = host
        .check_sh("cd /tmp/tree && sha256sum ./usr/bin/redis-check-rdb")
        .unwrap();
    assert!(ours.stdout.contains(sum.trim_end()), "{sum}");
}

const BLOBS: &str = "/var/lib/xebec-snapshotter/lazy/blobs/sha256";

/// The one image of a merged tree that there is, by its path on the host.
fn only_tree(host: &NativeHost) -> PathBuf {
    let found = host.check_sh(&format!("ls -d {BLOBS}/*/tree-*")).unwrap();
    assert_eq!(found.lines().count(), 1, "{found}");
    found.trim().into()
}

/// The files that an image refers to, by what its device table says: the layer of each.
fn devices(host: &NativeHost, image: &Path) -> Vec<PathBuf> {
    let bytes = fs::read(host.path(image)).unwrap();
    let count = u16::from_le_bytes([bytes[1024 + 86], bytes[1024 + 87]]);
    let (mut devices, mut last, mut object) = (Vec::new(), String::new(), 0);
    for slot in bytes[1152..].chunks(128).take(count.into()) {
        let layer = String::from_utf8(slot[..64].to_vec()).unwrap();
        let directory = Path::new(BLOBS).join(&layer);
        let data = directory.join("data");
        let has_small_files = fs::metadata(host.path(&data)).unwrap().len() > 0;
        if layer != last {
            object = u32::from(!has_small_files);
        }
        devices.push(match object {
            0 => data,
            object => directory.join("obj").join(object.to_string()),
        });
        object += 1;
        last = layer;
    }
    devices
}

#[test]
fn a_container_reads_on_while_its_daemon_is_killed_again_and_again() {
    let host = host();
    let ctr = Ctr::new(&host);
    let ordinary = host.push("redis").unwrap();
    let lazy = host.convert(&ordinary).unwrap();
    let right = described(&host, &ordinary);
    let (_link, remote) = host.through_link(&lazy, Shape::new(5, 100.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let output = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let ctr = Ctr::new(&host);
            ctr.run(Stack::XEBEC, &remote, "reader", &["sh", "-c", DESCRIBE])
        });
        let mut killed = 0;
        while !reading.is_finished() {
            std::thread::sleep(Duration::from_millis(1500));
            host.kill(Service::Snapshotter).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            host.start_services(&[Service::Snapshotter]).unwrap();
            killed += 1;
        }
        assert!(killed >= 2, "it was over too soon: {killed}");
        reading.join().unwrap().unwrap()
    });
    assert!(
        output.success() && output.stderr.is_empty(),
        "{}",
        output.stderr
    );
    assert_same(&output.stdout, &right);
    let keepers = host.check_sh("pgrep -c xebec-keeper").unwrap();
    assert_eq!(keepers.trim(), "1");
    // The snapshot of the container that has ended goes, and its mount with it: when containerd next
    // collects snapshots, if no daemon was there to be told of it.
    let connected = "for i in $(seq 100); do ctr snapshots --snapshotter xebec ls && exit; sleep 0.1; done; exit 1";
    host.check_sh(connected).unwrap();
    ctr.check(&["images", "rm", "--sync", &remote]).unwrap();
    let mounts = host
        .check_sh("grep -c ' - erofs ' /proc/self/mountinfo || true")
        .unwrap();
    assert_eq!(mounts.trim(), "0");
}

#[test]
fn a_user_namespace_sees_its_own_owners_and_nothing_is_copied() {
    let host = host();
    let ctr = Ctr::new(&host);
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    ctr.pull(&lazy, "xebec").unwrap();
    let mut argv = Stack::XEBEC.run_arguments().to_vec();
    let script = "cat /proc/self/uid_map; stat -c '%u %g %U' /usr/bin/redis-server; touch /new";
    argv.extend([
        "--remap-labels",
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
        "--rm",
        &lazy,
        "mapped",
        "sh",
        "-c",
        script,
    ]);
    let ran = host.run(&argv).unwrap();
    assert!(ran.success(), "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().map(str::trim).collect();
    assert!(lines[0].contains("100000"), "{ran:?}");
    assert_eq!(lines[1], "0 0 root");
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("by=\"kernel\""), "{log}");
}
