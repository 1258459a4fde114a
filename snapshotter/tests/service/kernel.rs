//! The kernel back end: EROFS mounts whose files are filled when they are read, and who outlives
//! whom. Needs Linux 6.14 and a temporary directory on ext4, xfs or btrfs.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemon::{Client, Daemon, Mounted, keepers};
use crate::lazy::pull;
use crate::registry::Image;

pub(crate) const FILES: usize = 150;

/// Bytes that are different for each file and do not compress.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Lengths below, at and above block and object boundaries.
pub(crate) fn content(n: usize) -> Vec<u8> {
    let len = match n % 10 {
        0 => 1 + n,
        1 => 4096,
        2 => 128 << 10,
        3 => (700 << 10) + n,
        _ => (20 << 10) + 977 * n,
    };
    noise(n, len)
}

pub(crate) fn name(n: usize) -> String {
    format!("d/f{n:03}")
}

pub(crate) fn image() -> Image {
    let files: Vec<(String, Vec<u8>)> = (0..FILES).map(|n| (name(n), content(n))).collect();
    let (lower, upper) = files.split_at(FILES / 2);
    let layer = |files: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
        let mut layer = vec![("d/".to_owned(), Vec::new())];
        layer.extend_from_slice(files);
        layer
    };
    let layers = [layer(lower), layer(upper)];
    let borrowed: Vec<Vec<(&str, &[u8])>> = layers
        .iter()
        .map(|layer| {
            layer
                .iter()
                .map(|(name, bytes)| (&**name, &**bytes))
                .collect()
        })
        .collect();
    Image::serve(&[&borrowed[0], &borrowed[1]])
}

pub(crate) async fn start_in(dir: TempDir, mode: &str, deadline: u64) -> Daemon {
    start_by(
        dir,
        &format!("mount = \"{mode}\"\n[lazy]\nkeeper_deadline = {deadline}\n"),
    )
    .await
}

pub(crate) async fn start_by(dir: TempDir, settings: &str) -> Daemon {
    let config = dir.path().join("config.toml");
    fs::write(&config, settings).unwrap();
    Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await
}

async fn start(deadline: u64) -> Daemon {
    start_in(tempfile::tempdir().unwrap(), "kernel", deadline).await
}

/// A container's root file system on the image, as containerd would mount it.
pub(crate) async fn container(
    daemon: &Daemon,
    client: &mut Client,
    image: &Image,
    key: &str,
) -> Mounted {
    let top = pull(client, "default", image).await;
    let mounts = client.prepare(key, &top).await.unwrap();
    Mounted::new(daemon.dir(), &mounts[0])
}

fn erofs_mounts(dir: &Path) -> usize {
    let table = crate::daemon::mount_table();
    let below = |line: &&str| line.contains(dir.to_str().unwrap()) && line.contains(" - erofs ");
    table.lines().filter(below).count()
}

pub(crate) fn check(root: &Path, n: usize) {
    let read = fs::read(root.join(name(n)));
    let read = read.unwrap_or_else(|error| panic!("{}: {error}", name(n)));
    assert!(read == content(n), "wrong bytes in {}", name(n));
}

pub(crate) fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        // Less than after what a keeper without a daemon ends anyway.
        assert!(begun.elapsed() < Duration::from_secs(50), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn the_kernel_serves_a_chain_and_nothing_is_left_of_it() {
    let image = image();
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    assert_eq!(erofs_mounts(daemon.dir()), 1);
    let total: u64 = image.layers.iter().map(|layer| layer.size).sum();
    assert!(image.served() < total / 2, "{} of {total}", image.served());
    assert_eq!(fs::read_dir(tree.path().join("d")).unwrap().count(), FILES);
    for n in (0..FILES).rev() {
        check(tree.path(), n);
    }
    fs::write(tree.path().join(name(1)), "changed").unwrap();
    assert_eq!(fs::read(tree.path().join(name(1))).unwrap(), b"changed");
    drop(tree);
    let names = client.names(&[]).await;
    client.remove("c").await.unwrap();
    let kept = "the tree stays for the next container";
    assert_eq!(erofs_mounts(daemon.dir()), 1, "{kept}");
    let top = &image.layers[1].chain_id;
    let mounts = client.prepare("again", top).await.unwrap();
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    assert_eq!(erofs_mounts(daemon.dir()), 1, "{kept}");
    (0..FILES).for_each(|n| check(tree.path(), n));
    drop(tree);
    client.remove("again").await.unwrap();
    for name in [&image.layers[1].chain_id, &image.layers[0].chain_id] {
        assert!(names.contains(name));
        client.remove(name).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert_eq!(erofs_mounts(daemon.dir()), 0, "its layers are gone");
    drop(client);
    let log = daemon.log();
    assert!(
        log.contains("mounted by the kernel: the configuration says so"),
        "{log}"
    );
    let (status, dir) = daemon.terminate().await;
    assert!(status.success());
    wait_until("the keeper ends with a daemon that left nothing", || {
        keepers(dir.path()).is_empty()
    });
}

#[tokio::test]
async fn files_can_be_read_in_every_way() {
    let image = image();
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    let at = |n: usize| tree.path().join(name(n));

    // By sendfile or what else the standard library picks to copy.
    let copy = daemon.dir().join("copy");
    fs::copy(at(3), &copy).unwrap();
    assert!(fs::read(&copy).unwrap() == content(3));
    // From the end, and past it.
    let file = File::open(at(13)).unwrap();
    let expected = content(13);
    let mut buffer = [0; 100];
    let near_end = expected.len() as u64 - 50;
    assert_eq!(file.read_at(&mut buffer, near_end).unwrap(), 50);
    assert_eq!(&buffer[..50], &expected[expected.len() - 50..]);
    assert_eq!(file.read_at(&mut buffer, near_end + 51).unwrap(), 0);
    // Past the page cache, in a mount of its own: overlayfs asks the same of EROFS.
    let direct = fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(at(23));
    if let Ok(mut direct) = direct {
        let mut pages = vec![0; 3 * 4096];
        let start = pages.as_ptr().align_offset(4096);
        direct.seek(SeekFrom::Start(8192)).unwrap();
        let read = direct.read(&mut pages[start..start + 4096]).unwrap();
        assert!(pages[start..start + read] == content(23)[8192..8192 + read]);
        assert!(read > 0);
    }
    // By page faults, one page in the middle first; and by executing.
    let script = "import mmap,sys; f=open(sys.argv[1],'rb'); \
                  m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
                  m[400000]; sys.stdout.buffer.write(m[:])";
    let mapped = Command::new("python3")
        .args(["-c", script, at(33).to_str().unwrap()])
        .output()
        .unwrap();
    assert!(
        mapped.stdout == content(33),
        "{}",
        String::from_utf8_lossy(&mapped.stderr)
    );
    // By many at once.
    std::thread::scope(|scope| {
        for reader in 0..64 {
            let root = tree.path();
            scope.spawn(move || (0..30).for_each(|n| check(root, (n + 7 * reader) % FILES)));
        }
    });
    let total: u64 = image.layers.iter().map(|layer| layer.size).sum();
    assert!(
        image.served() <= total + (1 << 20),
        "{} of {total}",
        image.served()
    );
}

#[tokio::test]
async fn a_daemon_that_is_killed_under_load_costs_no_reader_anything() {
    let image = image();
    image.delay(Duration::from_millis(30));
    let mut daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    let readers: Vec<_> = (0..16)
        .map(|reader| {
            let root = tree.path().to_owned();
            let work =
                move || (0..FILES).for_each(|n| check(&root, (n * 11 + reader * 37) % FILES));
            std::thread::spawn(work)
        })
        .collect();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let dir = daemon.kill();
        tokio::time::sleep(Duration::from_millis(50)).await;
        daemon = start_in(dir, "kernel", 60).await;
        assert_eq!(erofs_mounts(daemon.dir()), 1, "the mount stays");
    }
    for reader in readers {
        reader.join().expect("a reader failed");
    }
    (0..FILES).for_each(|n| check(tree.path(), n));
    assert_eq!(keepers(daemon.dir()).len(), 1);
    let mut client = daemon.client().await;
    drop(tree);
    client.remove("c").await.unwrap();
    for layer in image.layers.iter().rev() {
        client.remove(&layer.chain_id).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert_eq!(
        erofs_mounts(daemon.dir()),
        0,
        "the successor unmounts what it has adopted"
    );
}

#[tokio::test]
async fn without_a_daemon_what_is_local_is_read_and_holes_are_eio_after_the_deadline() {
    let image = image();
    let daemon = start(1).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    check(tree.path(), 3);
    drop(client);
    let dir = daemon.kill();
    check(tree.path(), 3);
    let begun = Instant::now();
    let absent = FILES - 2;
    let error = fs::read(tree.path().join(name(absent))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    assert!(
        begun.elapsed() > Duration::from_millis(800),
        "it waits first"
    );
    let begun = Instant::now();
    assert!(fs::read(tree.path().join(name(absent))).is_err());
    assert!(
        begun.elapsed() < Duration::from_millis(800),
        "and does not wait again"
    );
    let _daemon = start_in(dir, "kernel", 1).await;
    (0..FILES).for_each(|n| check(tree.path(), n));
}

#[tokio::test]
async fn an_orderly_end_leaves_the_mounts_to_the_successor() {
    let image = image();
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    check(tree.path(), 0);
    drop(client);
    let keeper = keepers(daemon.dir());
    let (status, dir) = daemon.terminate().await;
    assert!(status.success());
    let root = tree.path().to_owned();
    let reader = std::thread::spawn(move || check(&root, FILES - 2));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!reader.is_finished(), "the read waits");
    // Even for a successor that mounts by FUSE.
    let daemon = start_in(dir, "fuse", 60).await;
    reader.join().unwrap();
    (0..FILES).for_each(|n| check(tree.path(), n));
    assert_eq!(keepers(daemon.dir()), keeper, "the same one all the time");
}

#[tokio::test]
async fn a_keeper_that_is_killed_is_replaced_and_reads_go_on() {
    let image = image();
    image.delay(Duration::from_millis(20));
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    let root = tree.path().to_owned();
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    let reader = std::thread::spawn(move || {
        for n in 0..FILES {
            // Zeros never; EIO for the read that the keeper took with it, at most.
            match fs::read(root.join(name(n))) {
                Ok(read) => assert!(read == content(n), "wrong bytes in {}", name(n)),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5));
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = keepers(daemon.dir());
        assert_eq!(before.len(), 1);
        kill(before[0]);
        wait_until("another keeper", || {
            keepers(daemon.dir())
                .first()
                .is_some_and(|keeper| *keeper != before[0])
        });
    }
    reader.join().unwrap();
    assert!(failed.load(Ordering::SeqCst) <= 3);
    // The new one is as good: it serves the next daemon.
    let dir = daemon.kill();
    let _daemon = start_in(dir, "kernel", 60).await;
    (0..FILES).for_each(|n| check(tree.path(), n));
}

#[tokio::test]
async fn after_the_death_of_both_the_successor_says_so_and_guards_again() {
    let image = image();
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    check(tree.path(), 3);
    drop(client);
    let keeper = keepers(daemon.dir())[0];
    kill_process(
        Pid::from_raw(keeper.as_raw_nonzero().get()).unwrap(),
        Signal::STOP,
    )
    .unwrap();
    let dir = daemon.kill();
    kill(keeper);
    wait_until("the keeper is gone", || keepers(dir.path()).is_empty());
    let daemon = start_in(dir, "kernel", 60).await;
    assert!(daemon.log().contains("Restart them"), "{}", daemon.log());
    // Holes that nobody read in the meantime are filled as ever, for old mounts and new ones.
    (0..FILES).for_each(|n| check(tree.path(), n));
    let mut client = daemon.client().await;
    let again = client.mounts("c").await.unwrap();
    let again = Mounted::new(daemon.dir(), &again[0]);
    (0..FILES).for_each(|n| check(again.path(), n));
}

/// What systemd's store gets: the descriptor of the first message that has one.
pub(crate) fn stored(manager: &std::os::unix::net::UnixDatagram) -> OwnedFd {
    loop {
        let (mut text, mut space) = ([0; 200], [MaybeUninit::uninit(); 64]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        recvmsg(manager, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                assert!(text.starts_with(b"FDSTORE=1\n"));
                return fds.next().unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_systemd_has_stored_outlives_both_and_no_hole_is_read() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "mount = \"kernel\"\n").unwrap();
    let mut command = crate::daemon::command(dir.path());
    command
        .arg("--config")
        .arg(&config)
        .env("NOTIFY_SOCKET", &notify);
    let daemon = Daemon::start_by(dir, command).await;
    let group = stored(&manager);
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    let keeper = keepers(daemon.dir())[0];
    let dir = daemon.kill();
    kill(keeper);
    wait_until("the keeper is gone", || keepers(dir.path()).is_empty());
    let root = tree.path().to_owned();
    let reader = std::thread::spawn(move || check(&root, FILES - 2));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!reader.is_finished(), "the read waits for the successor");

    // Descriptor 3 and three variables, as systemd passes it on.
    let script = "exec 3<&0 < /dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_xebec-snapshotter"),
            "serve",
        ])
        .args(["--log", "debug", "--root"])
        .arg(crate::daemon::root(dir.path()))
        .arg("--address")
        .arg(crate::daemon::socket(dir.path()))
        .arg("--config")
        .arg(&config)
        .env("LISTEN_FDNAMES", "xebec-group")
        .stdin(group);
    let daemon = Daemon::start_by(dir, command).await;
    reader.join().unwrap();
    (0..FILES).for_each(|n| check(tree.path(), n));
    assert!(!daemon.log().contains("Restart them"), "{}", daemon.log());
    assert_eq!(keepers(daemon.dir()).len(), 1);
}

#[tokio::test]
async fn a_chunk_with_another_digest_is_eio_and_never_stored() {
    let image = image();
    let blob = image.blob(1);
    let good = fs::read(&blob).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 4..bad.len() / 2;
    for at in middle.step_by(16 << 10) {
        bad[at] ^= 0xff;
    }
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    fs::write(&blob, bad).unwrap();
    let mut refused = 0;
    for n in FILES / 2..FILES {
        match fs::read(tree.path().join(name(n))) {
            Ok(read) => assert!(read == content(n), "wrong bytes in {}", name(n)),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                refused += 1;
            }
        }
    }
    assert!(refused > 3, "{refused}");
    assert!(
        daemon.log().contains("digest mismatch") || daemon.log().contains("cannot be unpacked")
    );
    fs::write(&blob, good).unwrap();
    (0..FILES).for_each(|n| check(tree.path(), n));
}

#[tokio::test]
async fn where_events_before_reads_are_missing_the_kernel_back_end_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let small = crate::daemon::root(dir.path());
    fs::create_dir(&small).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, c"size=1m").unwrap();
    let config: PathBuf = dir.path().join("config.toml");
    fs::write(&config, "mount = \"kernel\"\n").unwrap();
    let mut command = crate::daemon::command(dir.path());
    let (status, error) = crate::daemon::ended(command.arg("--config").arg(&config));
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(status, Some(1));
    let line = error.lines().last().unwrap();
    assert!(
        line.contains("mount = \"kernel\"") && line.contains("ext4"),
        "{error}"
    );
}
