//! Start, end, crash and restart of the daemon.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::daemon::{Client, Daemon, START_LIMIT, command, ended, root};
use tonic::Code;
use xebec_snapshotter::daemon::status::Report;

#[tokio::test]
async fn a_restart_keeps_everything() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    client.layer("top", "base").await;
    let mounts = client.prepare("a", "top").await.unwrap();
    let (infos, usage) = everything(&mut client).await;
    drop(client);

    let socket = daemon.socket();
    let (status, dir) = daemon.terminate().await;
    assert!(status.success(), "{status:?}");
    assert!(!socket.exists() && !socket.with_extension("status").exists());

    let daemon = Daemon::start_in(dir).await.kill_and_restart().await;
    let mut client = daemon.client().await;
    assert_eq!(everything(&mut client).await, (infos, usage));
    assert_eq!(client.mounts("a").await.unwrap(), mounts);
    assert_eq!(daemon.layer_dirs().len(), 3);
}

async fn everything(client: &mut Client) -> (Vec<String>, Vec<String>) {
    let (mut infos, mut usage) = (Vec::new(), Vec::new());
    for name in client.names(&[]).await {
        infos.push(format!("{:?}", client.stat(&name).await.unwrap()));
        usage.push(format!("{:?}", client.usage(&name).await.unwrap()));
    }
    (infos, usage)
}

#[tokio::test]
async fn sigkill_at_any_moment_leaves_records_and_directories_in_step() {
    let mut daemon = Daemon::start().await;
    daemon.client().await.layer("base", "").await;
    for round in 0..12u64 {
        let mut client = daemon.client().await;
        let work = tokio::spawn(async move {
            for n in 0.. {
                let (key, name) = (format!("k{round}-{n}"), format!("c{round}-{n}"));
                let steps = async {
                    client.prepare(&key, "base").await?;
                    client.commit(&name, &key).await?;
                    client.view(&key, &name).await?;
                    client.remove(&key).await?;
                    client.remove(&name).await?;
                    client.cleanup().await
                };
                if steps.await.is_err() {
                    return n;
                }
            }
            unreachable!("the loop has no end")
        });
        tokio::time::sleep(Duration::from_millis(15 + 7 * round)).await;
        daemon = daemon.kill_and_restart().await;
        work.await.unwrap();

        let mut client = daemon.client().await;
        client.cleanup().await.unwrap();
        let names = client.names(&[]).await;
        assert_eq!(
            daemon.layer_dirs().len(),
            names.len(),
            "round {round}: {names:?}"
        );
        // Keys sort after the names of the committed snapshots that they build on.
        for name in names.iter().rev().filter(|name| *name != "base") {
            client.usage(name).await.unwrap();
            client.remove(name).await.unwrap();
        }
    }
}

#[tokio::test]
async fn directories_that_no_snapshot_owns_are_gone_after_a_start() {
    let daemon = Daemon::start().await;
    daemon.client().await.layer("base", "").await;
    let dir = daemon.kill();
    let orphan = root(dir.path()).join("snapshots/77/fs");
    std::fs::create_dir_all(orphan.join("deep")).unwrap();
    let daemon = Daemon::start_in(dir).await;
    let started = Instant::now();
    while daemon.layer_dirs().len() != 1 {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            daemon.layer_dirs()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn hundreds_of_snapshots_do_not_delay_the_start() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    for n in 0..500 {
        client.prepare(&format!("s{n}"), "base").await.unwrap();
    }
    let daemon = daemon.kill_and_restart().await;
    assert!(daemon.start_time < START_LIMIT, "{:?}", daemon.start_time);
    assert_eq!(daemon.client().await.names(&[]).await.len(), 501);
}

#[tokio::test]
async fn a_root_is_served_once_and_the_second_daemon_says_so() {
    let daemon = Daemon::start().await;
    let mut second = command(daemon.dir());
    let other = daemon.dir().join("other.sock");
    let (code, text) = ended(second.arg("--address").arg(&other));
    assert_eq!(code, Some(2), "clap refuses the option twice: {text}");
    let mut second = Command::new(env!("CARGO_BIN_EXE_xebec-snapshotter"));
    second
        .args(["serve", "--root"])
        .arg(root(daemon.dir()))
        .arg("--address")
        .arg(&other);
    let (code, text) = ended(&mut second);
    assert_eq!(code, Some(1));
    assert!(text.contains("already served"), "{text}");
    assert!(!other.exists());
    daemon.client().await.prepare("a", "").await.unwrap();
}

#[tokio::test]
async fn the_service_manager_hears_when_the_daemon_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut command = command(dir.path());
    command.env("NOTIFY_SOCKET", &path);
    let _daemon = Daemon::start_by(dir, command).await;
    let said = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(said(), "FDSTORE=1\nFDPOLL=0\nFDNAME=xebec-group");
    assert_eq!(said(), "READY=1");
}

#[test]
fn a_wrong_key_in_the_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "root = \"/x\"\nadress = \"/y\"\n").unwrap();
    let (code, text) = ended(command(dir.path()).arg("--config").arg(&file));
    assert_eq!(code, Some(1));
    assert!(text.contains("c.toml") && text.contains("adress"), "{text}");
    assert!(!root(dir.path()).exists());
}

#[tokio::test]
async fn the_status_command_shows_what_there_is() {
    let daemon = Daemon::start().await;
    daemon.client().await.layer("base", "").await;
    let status = |format: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_xebec-snapshotter"))
            .args(["status", "--format", format, "--address"])
            .arg(daemon.socket())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Report = serde_json::from_str(&status("json")).unwrap();
    assert_eq!(report.snapshots.len(), 1);
    assert_eq!(
        (report.snapshots[0].name.as_str(), report.layers.len()),
        ("base", 0)
    );
    assert!(status("text").contains("snapshots: 1, 0 of them lazy"));
}

#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(root(dir.path())).unwrap();
    let _disk = SmallDisk::new(&root(dir.path()));
    let daemon = Daemon::start_in(dir).await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    let filler = root(daemon.dir()).join("filler");
    fill(&filler);

    // Large labels make the database grow.
    let label = [("large", "x".repeat(4000))];
    let label = label.each_ref().map(|(key, value)| (*key, value.as_str()));
    let mut refused = Ok(Vec::new());
    for n in 0..2000 {
        refused = client
            .prepare_labelled(&format!("a{n}"), "base", &label)
            .await;
        if refused.is_err() {
            break;
        }
    }
    let refused = refused.expect_err("the disk is full");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    client.stat("base").await.expect("reading needs no space");

    std::fs::remove_file(&filler).unwrap();
    client.prepare("after", "base").await.unwrap();
    client.cleanup().await.unwrap();
    assert_eq!(daemon.layer_dirs().len(), client.names(&[]).await.len());
}

/// A tmpfs of a few megabytes; it goes with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, c"size=6m").unwrap();
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Writes until there is no space left.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let full = (0..100_000).find_map(|_| file.write_all(&[7; 4096]).err());
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
}
