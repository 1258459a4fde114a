//! The limits of the store: what is evicted, what never is, and what comes back. By both back ends;
//! needs a loop device for a disk that is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::daemon::{Client, Daemon, Mounted, root};
use crate::lazy::pull;
use crate::registry::Image;

const MODES: [&str; 2] = ["kernel", "fuse"];

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// Files of an image: large ones of their own and small ones that lie together.
pub(crate) fn files(seed: u64, megabytes: usize) -> Vec<(String, Vec<u8>)> {
    let large =
        (0..megabytes as u64).map(|n| (format!("large{n}"), noise(seed * 100 + n, 1 << 20)));
    let small = (50..80).map(|n| (format!("small{n}"), noise(seed * 100 + n, 10_000)));
    large.chain(small).collect()
}

pub(crate) fn image(files: &[(String, Vec<u8>)]) -> Image {
    let borrowed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    Image::serve(&[&borrowed])
}

#[track_caller]
fn check(tree: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let read = fs::read(tree.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read == *content, "wrong bytes in {name}");
    }
}

async fn start_in(dir: TempDir, mode: &str, store: &str) -> Daemon {
    let config = dir.path().join("config.toml");
    let text = format!("mount = \"{mode}\"\n[store]\n{store}\n");
    fs::write(&config, text).unwrap();
    Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await
}

/// Bytes that the store takes on disk, as `du` counts them.
fn stored(dir: &Path) -> u64 {
    let lazy = root(dir).join("lazy");
    let output = Command::new("du")
        .args(["-sB1", "--"])
        .arg(lazy.join("blobs"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split('\t').next().unwrap().parse().unwrap_or(0)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(2), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a container: mounts the image, reads everything and removes it again.
async fn run(daemon: &Daemon, client: &mut Client, image: &Image, files: &[(String, Vec<u8>)]) {
    run_at(daemon.dir(), client, image, files).await;
}

/// The same, with its mount point below `dir`.
async fn run_at(dir: &Path, client: &mut Client, image: &Image, files: &[(String, Vec<u8>)]) {
    let top = pull(client, "default", image).await;
    let mounts = client.prepare("run", &top).await.unwrap();
    let tree = Mounted::new(dir, &mounts[0]);
    check(tree.path(), files);
    drop(tree);
    client.remove("run").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_holds_and_what_is_mounted_never_loses_a_byte() {
    const QUOTA: u64 = 10 << 20;
    for mode in MODES {
        let contents: Vec<_> = (0..4).map(|seed| files(seed, 4)).collect();
        let images: Vec<_> = contents.iter().map(|files| image(files)).collect();
        let dir = tempfile::tempdir().unwrap();
        let daemon = start_in(dir, mode, "quota = \"10MiB\"").await;
        let mut client = daemon.client().await;
        let top = pull(&mut client, "default", &images[0]).await;
        let mounts = client.prepare("kept", &top).await.unwrap();
        let kept = Mounted::new(daemon.dir(), &mounts[0]);
        check(kept.path(), &contents[0]);
        let fetched = images[0].served();

        let is_over = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut rounds = 0;
                while !is_over.load(Ordering::SeqCst) {
                    // By the store, not from the page cache.
                    let _ = fs::write("/proc/sys/vm/drop_caches", "1");
                    check(kept.path(), &contents[0]);
                    rounds += 1;
                }
                rounds
            });
            let others = (images.iter().zip(&contents)).skip(1);
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    for round in others.clone().chain(others) {
                        run(&daemon, &mut client, round.0, round.1).await;
                        wait_until("the quota holds", || stored(daemon.dir()) <= QUOTA);
                    }
                });
            });
            is_over.store(true, Ordering::SeqCst);
            reader.join().unwrap()
        });
        assert!(reads > 1, "nobody was reading");
        assert_eq!(
            images[0].served(),
            fetched,
            "{mode}: nothing of it was fetched twice"
        );
        for (n, image) in images.iter().enumerate().skip(1) {
            let (served, size) = (image.served(), image.layers[0].size);
            assert!(
                served > size * 3 / 2,
                "{mode}: image {n} was evicted in between"
            );
        }
        drop(kept);
        let log = daemon.log();
        assert!(log.contains("evicted the data of a layer"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_lately_used_goes_first_whichever_daemon_has_seen_the_use() {
    let contents: Vec<_> = (0..3).map(|seed| files(seed, 4)).collect();
    let images: Vec<_> = contents.iter().map(|files| image(files)).collect();
    let mut daemon = start_in(tempfile::tempdir().unwrap(), "kernel", "").await;
    for n in [0, 1, 2, 0] {
        let mut client = daemon.client().await;
        run(&daemon, &mut client, &images[n], &contents[n]).await;
        drop(client);
        daemon = start_in(daemon.kill(), "kernel", "").await;
    }
    let served: Vec<_> = images.iter().map(Image::served).collect();
    // Room for two of them.
    let daemon = start_in(
        daemon.kill(),
        "kernel",
        "quota = \"11MiB\"\nlow_water = \"10MiB\"",
    )
    .await;
    wait_until("one is evicted", || stored(daemon.dir()) <= 10 << 20);
    let mut client = daemon.client().await;
    for n in [0, 2] {
        run(&daemon, &mut client, &images[n], &contents[n]).await;
        assert_eq!(images[n].served(), served[n], "image {n} is still there");
    }
    run(&daemon, &mut client, &images[1], &contents[1]).await;
    assert!(images[1].served() > served[1], "the oldest one was evicted");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_a_daemon_that_is_gone_are_mounts_all_the_same() {
    let (files, other) = (files(1, 4), files(2, 4));
    let (image, second) = (image(&files), image(&other));
    let daemon = start_in(tempfile::tempdir().unwrap(), "kernel", "").await;
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &image).await;
    let mounts = client.prepare("kept", &top).await.unwrap();
    let kept = Mounted::new(daemon.dir(), &mounts[0]);
    check(kept.path(), &files);
    let fetched = image.served();
    drop(client);
    // The quota leaves nothing to anyone.
    let daemon = start_in(daemon.kill(), "kernel", "quota = \"1MiB\"").await;
    let mut client = daemon.client().await;
    run(&daemon, &mut client, &second, &other).await;
    wait_until("the other one is evicted", || {
        stored(daemon.dir()) < 6 << 20
    });
    let _ = fs::write("/proc/sys/vm/drop_caches", "1");
    check(kept.path(), &files);
    assert_eq!(image.served(), fetched);
    drop(kept);
    client.remove("kept").await.unwrap();
    wait_until("now it may go", || stored(daemon.dir()) < 2 << 20);
    run(&daemon, &mut client, &image, &files).await;
    assert!(image.served() > fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_evicts_the_daemon_never_serves_a_wrong_byte() {
    for mode in MODES {
        let contents: Vec<_> = (0..2).map(|seed| files(seed, 3)).collect();
        let images: Vec<_> = contents.iter().map(|files| image(files)).collect();
        // Everything that is not mounted is evicted as soon as it is seen.
        let limits = "quota = \"100KiB\"\nlow_water = \"0\"";
        let mut daemon = start_in(tempfile::tempdir().unwrap(), mode, limits).await;
        for round in 0..12_u64 {
            let n = round as usize % 2;
            let mut client = daemon.client().await;
            run(&daemon, &mut client, &images[n], &contents[n]).await;
            drop(client);
            // From before the eviction's first step until behind its last.
            tokio::time::sleep(Duration::from_millis(round * 11 % 70)).await;
            daemon = start_in(daemon.kill(), mode, limits).await;
        }
        wait_until("what was left is evicted", || {
            stored(daemon.dir()) < 1 << 20
        });
    }
}

/// A small file system of its own; unmounted when it goes.
struct Disk {
    point: PathBuf,
    _image: TempDir,
}

impl Disk {
    fn new(megabytes: u64) -> Self {
        crate::daemon::own_mounts();
        let image = tempfile::tempdir().unwrap();
        let (file, point) = (image.path().join("disk"), image.path().join("mnt"));
        fs::create_dir(&point).unwrap();
        fs::File::create(&file)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        sh(Command::new("mkfs.ext4").args(["-qm0"]).arg(&file));
        sh(Command::new("mount")
            .args(["-o", "loop"])
            .args([&file, &point]));
        Self {
            point,
            _image: image,
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
    }
}

#[track_caller]
fn sh(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_evicts_and_is_eio_only_when_all_of_it_is_in_use() {
    for mode in MODES {
        let disk = Disk::new(28);
        let contents: Vec<_> = (0..4).map(|seed| files(seed, 8)).collect();
        let images: Vec<_> = contents.iter().map(|files| image(files)).collect();
        let dir = tempfile::tempdir_in(&disk.point).unwrap();
        // Nothing of the test's own is on the full disk.
        let points = tempfile::tempdir().unwrap();
        // No quota, and nothing is evicted before a write has failed.
        let daemon = start_in(dir, mode, "keep_free = \"0\"").await;
        let mut client = daemon.client().await;
        for (image, files) in images.iter().zip(&contents) {
            run_at(points.path(), &mut client, image, files).await;
        }
        let log = daemon.log();
        assert!(log.contains("evicted the data of a layer"), "{mode}: {log}");

        let mut kept = Vec::new();
        let mut failed = None;
        for (n, (image, files)) in images.iter().zip(&contents).enumerate() {
            let top = pull(&mut client, "default", image).await;
            let mounts = client.prepare(&format!("c{n}"), &top).await.unwrap();
            let tree = Mounted::new(points.path(), &mounts[0]);
            failed = files
                .iter()
                .find_map(|(name, _)| fs::read(tree.path().join(name)).err());
            kept.push(tree);
            if failed.is_some() {
                break;
            }
            check(kept[n].path(), files);
        }
        assert_eq!(failed.unwrap().raw_os_error(), Some(5), "{mode}");
        assert_eq!(kept.len(), 3, "two fit and the third does not");
        for (tree, files) in kept.iter().zip(&contents).take(2) {
            check(tree.path(), files);
        }
        // As soon as one of them is gone there is room again.
        let third = kept.pop().unwrap();
        kept.remove(0);
        let removed = client.remove("c0").await;
        assert!(removed.is_ok(), "{removed:?}: {}", daemon.log());
        check(third.path(), &contents[2]);
        drop((kept, third));
        drop(daemon);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_du_tell_what_is_on_disk_and_count_a_shared_layer_once() {
    let files = files(1, 3);
    let image = image(&files);
    let daemon = start_in(tempfile::tempdir().unwrap(), "kernel", "quota = \"1GiB\"").await;
    let mut client = daemon.client().await;
    // The same layer under two names: containerd's namespaces have each their own.
    let first = pull(&mut client, "default", &image).await;
    let before = client.usage(&first).await.unwrap();
    let mounts = client.prepare("c", &first).await.unwrap();
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    check(tree.path(), &files);
    fs::write(tree.path().join("new"), vec![1; 100_000]).unwrap();
    let blobs = root(daemon.dir()).join("lazy/blobs/sha256");
    let layer = fs::read_dir(blobs).unwrap().next().unwrap().unwrap().path();
    let usage = client.usage(&first).await.unwrap();
    let total = Command::new("du").arg("-sB1").arg(&layer).output().unwrap();
    let on_disk = String::from_utf8(total.stdout).unwrap();
    assert!(
        on_disk.starts_with(&format!("{}\t", usage.size)),
        "{usage:?} {on_disk}"
    );
    let found = Command::new("find").arg(&layer).output().unwrap();
    let inodes = String::from_utf8(found.stdout).unwrap().lines().count();
    assert_eq!(usage.inodes, inodes as i64);
    assert!(
        before.size < usage.size - (3 << 20),
        "{before:?} then {usage:?}"
    );
    let active = client.usage("c").await.unwrap();
    assert!((100_000..200_000).contains(&active.size), "{active:?}");
    assert_eq!(active.inodes, 2, "the root and a file");

    let du = |format: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_xebec-snapshotter"))
            .args(["du", "--format", format, "--address"])
            .arg(daemon.socket())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&du("json")).unwrap();
    let (layer, one) = (&json["layers"][0], &json["images"][0]);
    let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    assert_eq!(
        (&layer["total"], &layer["local"]),
        (&bytes.into(), &bytes.into())
    );
    assert_eq!(layer["disk"], usage.size, "{json}");
    assert_eq!(
        (&layer["mounted"], &one["mounted"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&one["disk"], &one["shared"]),
        (&usage.size.into(), &0.into())
    );
    assert_eq!(json["quota"], 1_u64 << 30);
    assert!(json["disk"].as_i64() >= Some(usage.size));
    let text = du("text");
    assert!(
        text.contains("mounted") && text.contains("quota 1.0 GiB"),
        "{text}"
    );
}
