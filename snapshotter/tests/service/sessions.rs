//! The FUSE back end: mounts that outlive the daemon, and what their readers notice of its end.
//! Needs Linux 6.9.

use std::collections::HashSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::daemon::{Client, Daemon, Mounted, START_LIMIT, code, keepers};
use crate::kernel::{
    FILES, check, container, content, image, kill, name, start_by, start_in, wait_until,
};
use crate::lazy::prepare;
use crate::registry::Image;

async fn start(deadline: u64) -> Daemon {
    start_in(tempfile::tempdir().unwrap(), "fuse", deadline).await
}

fn fuse_mounts(dir: &Path) -> usize {
    let table = crate::daemon::mount_table();
    let is_ours =
        |line: &&str| line.contains(dir.to_str().unwrap()) && line.contains(" - fuse.xebec ");
    table.lines().filter(is_ours).count()
}

/// Reads all files again and again until it is told to end.
fn read_on(root: &Path, seed: usize, end: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (root, end) = (root.to_owned(), Arc::clone(end));
    std::thread::spawn(move || {
        let mut round = 0;
        while !end.load(Ordering::SeqCst) {
            for n in 0..FILES {
                check(&root, (n * 11 + (round + seed) * 37) % FILES);
                // Nobody else has asked for this: every reader needs the daemon again and again, and
                // waits when there is none.
                let absent = format!("d/absent-{seed}-{round}-{n}");
                assert!(fs::metadata(root.join(absent)).is_err());
            }
            round += 1;
        }
    })
}

#[tokio::test]
async fn readers_notice_nothing_of_a_daemon_that_is_killed_or_ended_under_load() {
    let image = image();
    image.delay(Duration::from_millis(30));
    let mut daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    // The first close of a file on a mount asks the daemon. With that behind it, this process can
    // start a successor while readers have files open: its child closes copies of them.
    check(tree.path(), 0);
    let end = Arc::default();
    let readers: Vec<_> = (0..12).map(|n| read_on(tree.path(), n, &end)).collect();
    for round in 0..10 {
        tokio::time::sleep(Duration::from_millis(100 + 17 * round)).await;
        let dir = if round % 3 == 2 {
            let (status, dir) = daemon.terminate().await;
            assert!(status.success());
            dir
        } else {
            daemon.kill()
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        daemon = start_in(dir, "fuse", 60).await;
        assert_eq!(fuse_mounts(daemon.dir()), 1, "the mount stays");
    }
    end.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().expect("a reader failed");
    }
    assert_eq!(keepers(daemon.dir()).len(), 1);
    nothing_is_left(daemon, tree, "c").await;
}

/// The successor unmounts what it has gone on with, and the keeper ends when nothing is left.
async fn nothing_is_left(daemon: Daemon, tree: Mounted, key: &str) {
    let mut client = daemon.client().await;
    drop(tree);
    client.remove(key).await.unwrap();
    assert_eq!(fuse_mounts(daemon.dir()), 0);
    drop(client);
    let (status, dir) = daemon.terminate().await;
    assert!(status.success());
    wait_until("the keeper ends with a daemon that left nothing", || {
        keepers(dir.path()).is_empty()
    });
}

/// The kernel lets an inode be read in one way only, so successors must know how each is open.
#[tokio::test]
async fn large_files_stay_open_in_their_way_over_any_number_of_daemons() {
    let image = image();
    let settings = "mount = \"fuse\"\n[lazy]\npassthrough = \"always\"\n";
    let mut daemon = start_by(tempfile::tempdir().unwrap(), settings).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    let large: Vec<usize> = (3..FILES).step_by(10).collect();
    let path = |n: usize| tree.path().join(name(n));
    let reads = |file: &File, n: usize| {
        let mut bytes = vec![0; content(n).len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(n));
    };
    // The first time they are open while they are incomplete, the second time the kernel has them.
    let (cold, warm) = large.split_at(large.len() / 2);
    for n in warm {
        check(tree.path(), *n);
    }
    let mut open: Vec<(usize, File)> = Vec::new();
    for round in 0..4 {
        for &n in cold.iter().chain(warm) {
            let file = File::open(path(n)).unwrap();
            reads(&file, n);
            // Half of them are closed by another daemon than the one that has opened them.
            if (n / 10 + round) % 2 == 0 {
                open.push((n, file));
            }
        }
        daemon = start_by(daemon.kill(), settings).await;
        for (n, file) in &open {
            reads(file, *n);
        }
        if round % 2 == 1 {
            open.clear();
        }
    }
    drop(open);
    for &n in &large {
        let (first, second) = (File::open(path(n)).unwrap(), File::open(path(n)).unwrap());
        reads(&first, n);
        reads(&second, n);
    }
    nothing_is_left(daemon, tree, "c").await;
}

#[tokio::test]
async fn without_a_daemon_reads_are_eio_after_the_deadline_and_recover_with_one() {
    let image = image();
    let daemon = start(1).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    check(tree.path(), 4);
    let local = File::open(tree.path().join(name(4))).unwrap();
    drop(client);
    // One read is taken by the daemon that dies, and must not wait for ever either.
    image.delay(Duration::from_secs(5));
    let root = tree.path().to_owned();
    let taken = std::thread::spawn(move || fs::read(root.join(name(FILES - 5))));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let dir = daemon.kill();
    image.delay(Duration::ZERO);
    let mut bytes = vec![0; content(4).len()];
    local
        .read_exact_at(&mut bytes, 0)
        .expect("the kernel has it");
    assert!(bytes == content(4));
    let refused = |result: std::io::Result<Vec<u8>>| {
        assert_eq!(result.expect_err("nobody is there").raw_os_error(), Some(5));
    };
    refused(fs::read(tree.path().join(name(FILES - 1))));
    refused(taken.join().unwrap());
    refused(fs::read(tree.path().join(name(FILES - 2))));
    drop(local);
    let daemon = start_in(dir, "fuse", 1).await;
    (0..FILES).for_each(|n| check(tree.path(), n));
    nothing_is_left(daemon, tree, "c").await;
}

#[tokio::test]
async fn a_keeper_that_is_killed_is_replaced_and_keeps_all_the_sessions() {
    let image = image();
    image.delay(Duration::from_millis(20));
    let mut daemon = start(60).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    // The kernel asks once whether it must tell of files that are closed. Until it is answered, a
    // child of this process, which is born with the reader's files, could not even execute the
    // daemon: it closes them first.
    check(tree.path(), 0);
    drop(client);
    let end = Arc::default();
    let reader = read_on(tree.path(), 0, &end);
    for round in 1..=3 {
        kill(keepers(daemon.dir())[0]);
        // It has everything before the daemon says so.
        wait_until("another keeper", || {
            daemon.log().matches("there is a keeper again").count() == round
        });
        assert_eq!(keepers(daemon.dir()).len(), 1);
        daemon = start_in(daemon.kill(), "fuse", 60).await;
    }
    end.store(true, Ordering::SeqCst);
    reader.join().expect("the reader failed");
    nothing_is_left(daemon, tree, "c").await;
}

/// A lazy unmount leaves the tree to those who use it: over the daemon's death, too.
#[tokio::test]
async fn a_container_whose_snapshot_was_removed_reads_on_after_a_restart() {
    let image = image();
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let first = container(&daemon, &mut client, &image, "c").await;
    client.remove("c").await.unwrap();
    assert_eq!(fuse_mounts(daemon.dir()), 0);
    let second = container(&daemon, &mut client, &image, "d").await;
    drop(client);
    let daemon = start_in(daemon.kill(), "fuse", 60).await;
    (0..FILES).for_each(|n| check(first.path(), n));
    (0..FILES).for_each(|n| check(second.path(), n));
    drop(first);
    // And by a daemon that mounts in the other way.
    let daemon = start_in(daemon.kill(), "kernel", 60).await;
    let mut client = daemon.client().await;
    let third = container(&daemon, &mut client, &image, "e").await;
    assert_eq!(fuse_mounts(daemon.dir()), 1, "one mount serves both");
    (0..FILES).for_each(|n| check(second.path(), n));
    (0..FILES).for_each(|n| check(third.path(), n));
}

/// Layer `n` of an image on top of `parent`, under a name of its own.
async fn stack(client: &mut Client, image: &Image, n: usize, parent: &str, name: &str) {
    let mut labels = image.labels(n);
    labels.insert("containerd.io/snapshot.ref", name.to_owned());
    let answer = prepare(client, &format!("extract {name}"), parent, &labels).await;
    assert_eq!(code(answer), tonic::Code::AlreadyExists);
}

#[tokio::test]
async fn hundreds_of_sessions_do_not_delay_the_start_and_need_no_registry() {
    const CHAINS: usize = 200;
    let files: Vec<String> = (0..8).map(|n| format!("f{n}")).collect();
    let files: Vec<[(&str, &[u8]); 1]> = files
        .iter()
        .map(|name| [(name.as_str(), name.as_bytes())])
        .collect();
    let layers: Vec<_> = files.iter().map(<[_; 1]>::as_slice).collect();
    let image = Image::serve(&layers);
    let daemon = start(60).await;
    let mut client = daemon.client().await;
    let (mut stacked, mut trees) = (HashSet::new(), Vec::new());
    for chain in 0..CHAINS {
        let (mut parent, mut top) = (String::new(), String::new());
        for layer in [chain % 8, chain / 8 % 8, chain / 64] {
            top = format!("{parent}/{layer}");
            if stacked.insert(top.clone()) {
                stack(&mut client, &image, layer, &parent, &top).await;
            }
            parent.clone_from(&top);
        }
        let mounts = client.prepare(&format!("c{chain}"), &top).await.unwrap();
        trees.push(Mounted::new(daemon.dir(), &mounts[0]));
    }
    drop(client);
    assert_eq!(fuse_mounts(daemon.dir()), CHAINS);
    drop(image);
    let daemon = start_in(daemon.kill(), "fuse", 60).await;
    assert!(daemon.start_time < START_LIMIT, "{:?}", daemon.start_time);
    assert_eq!(fuse_mounts(daemon.dir()), CHAINS);
    for (chain, tree) in trees.iter().enumerate() {
        let absent = fs::metadata(tree.path().join("f9")).unwrap_err();
        assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
        let top = format!("f{}", chain / 64);
        assert_eq!(fs::metadata(tree.path().join(&top)).unwrap().len(), 2);
    }
}

/// What systemd's store gets, by name, until `count` descriptors are there.
fn stored(manager: &UnixDatagram, count: usize) -> Vec<(String, OwnedFd)> {
    let mut found = Vec::new();
    while found.len() < count {
        let (mut text, mut space) = ([0; 200], [MaybeUninit::uninit(); 64]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let len = recvmsg(manager, &mut parts, &mut ancillary, flags)
            .unwrap()
            .bytes;
        let text = std::str::from_utf8(&text[..len]).unwrap();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                let name = text.rsplit("FDNAME=").next().unwrap();
                found.extend(fds.map(|fd| (name.to_owned(), fd)));
            }
        }
    }
    found
}

#[tokio::test]
async fn what_systemd_has_stored_outlives_daemon_and_keeper() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "mount = \"fuse\"\n").unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let mut command = crate::daemon::command(dir.path());
    command.args(config).env("NOTIFY_SOCKET", &notify);
    let daemon = Daemon::start_by(dir, command).await;
    let mut client = daemon.client().await;
    let tree = container(&daemon, &mut client, &image, "c").await;
    drop(client);
    let [device, record] = stored(&manager, 2).try_into().unwrap();
    check(tree.path(), 1);
    let keeper = keepers(daemon.dir())[0];
    let dir = daemon.kill();
    kill(keeper);
    wait_until("the keeper is gone", || keepers(dir.path()).is_empty());
    let root = tree.path().to_owned();
    let reader = std::thread::spawn(move || (0..FILES).for_each(|n| check(&root, n)));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!reader.is_finished(), "reads wait for the successor");

    // Descriptors 3 and 4 and three variables, as systemd passes them on.
    let script = "exec 3<&0 4>&1 < /dev/null > /dev/null; \
                  export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$0\" \"$@\"";
    let program = env!("CARGO_BIN_EXE_xebec-snapshotter");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script, program, "serve", "--log", "debug", "--root"])
        .arg(crate::daemon::root(dir.path()))
        .arg("--address")
        .arg(crate::daemon::socket(dir.path()))
        .args(config)
        .env("LISTEN_FDNAMES", format!("{}:{}", device.0, record.0))
        .stdin(device.1)
        .stdout(record.1);
    let daemon = Daemon::start_by(dir, command).await;
    reader.join().expect("the reader failed");
    nothing_is_left(daemon, tree, "c").await;
}
