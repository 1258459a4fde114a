//! Lazy layers through the snapshots API: real ranges over HTTP, real mounts by the back end that is
//! best here; the main story by each.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use xebec_proto::types::Mount;

use crate::daemon::{Client, Daemon, Mounted, code, option, root, upper};
use crate::registry::Image;

/// Two layers: the upper one changes, adds and removes something.
fn image() -> Image {
    let large = noise(6 << 20);
    Image::serve(&[
        &[
            ("d/", b""),
            ("d/kept", b"kept"),
            ("d/gone", b"gone"),
            ("d/both", b"old"),
            ("large", &large),
        ],
        &[
            ("d/", b""),
            ("d/.wh.gone", b""),
            ("d/both", b"new"),
            ("d/more", b"more"),
        ],
    ])
}

pub(crate) async fn prepare(
    client: &mut Client,
    key: &str,
    parent: &str,
    labels: &BTreeMap<&'static str, String>,
) -> Result<Vec<Mount>, Status> {
    let pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    client.prepare_labelled(key, parent, &pairs).await
}

/// Does what containerd's unpacker does for every layer; the name of the topmost snapshot.
pub(crate) async fn pull(client: &mut Client, namespace: &str, image: &Image) -> String {
    let mut parent = String::new();
    for (n, layer) in image.layers.iter().enumerate() {
        let key = format!("{namespace}/{n}/extract {}", layer.chain_id);
        let answer = prepare(client, &key, &parent, &image.labels(n)).await;
        assert_eq!(code(answer), Code::AlreadyExists);
        let question = format!(
            r#"labels."containerd.io/snapshot.ref"=={},parent=="{parent}""#,
            layer.chain_id
        );
        let found = client.names(&[&question]).await;
        assert_eq!(found.len(), 1, "{question}");
        parent = found.into_iter().next().unwrap();
    }
    parent
}

#[tokio::test]
async fn a_lazy_image_is_mounted_read_changed_and_removed() {
    for mode in ["kernel", "fuse"] {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("mode.toml");
        fs::write(&config, format!("mount = \"{mode}\"\n")).unwrap();
        let daemon = Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await;
        life_of_an_image(&daemon).await;
    }
}

async fn life_of_an_image(daemon: &Daemon) {
    let image = image();
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &image).await;
    let info = client.stat(&top).await.unwrap();
    assert!(info.labels.contains_key("containerd.io/snapshot/remote"));
    assert!(daemon.layer_dirs().is_empty(), "nothing was unpacked");
    let total: u64 = image.layers.iter().map(|layer| layer.size).sum();
    assert!(
        image.served() < total / 2,
        "{} of {total} bytes for two mounts",
        image.served()
    );

    let mounts = client.prepare("c", &top).await.unwrap();
    assert_eq!(
        option(&mounts[0], "lowerdir").split(':').count(),
        1,
        "one tree for all layers"
    );
    {
        let tree = Mounted::new(daemon.dir(), &mounts[0]);
        assert_eq!(
            contents(&tree.path().join("d")),
            ["both=new", "kept=kept", "more=more"]
        );
        let large = fs::read(tree.path().join("large")).unwrap();
        assert_eq!(large, noise(6 << 20));
        fs::write(tree.path().join("d/kept"), "changed").unwrap();
        fs::remove_file(tree.path().join("d/more")).unwrap();
        fs::write(tree.path().join("new"), "new").unwrap();
    }
    client.commit("committed", "c").await.unwrap();
    assert!(client.usage("committed").await.unwrap().inodes >= 4);

    let view = client.view("v", "committed").await.unwrap();
    {
        let tree = Mounted::new(daemon.dir(), &view[0]);
        assert_eq!(
            contents(&tree.path().join("d")),
            ["both=new", "kept=changed"]
        );
    }
    let plain = client.view("w", &top).await.unwrap();
    assert_eq!(plain[0].r#type, "bind", "one tree needs no overlay");
    assert_eq!(
        contents(Path::new(&plain[0].source).join("d").as_path()).len(),
        3
    );

    assert_eq!(code(client.remove(&top).await), Code::FailedPrecondition);
    assert_eq!(lazy_mounts(daemon.dir()).len(), 1);
    for key in ["v", "w", "committed", &top, &image.layers[0].chain_id] {
        client.remove(key).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert!(lazy_mounts(daemon.dir()).is_empty());
    assert!(lazy_layers(daemon).is_empty(), "{:?}", lazy_layers(daemon));
    assert!(daemon.layer_dirs().is_empty());
}

#[tokio::test]
async fn another_namespace_shares_the_layers_without_asking_again() {
    let image = image();
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &image).await;
    let served = image.served();
    assert_eq!(pull(&mut client, "k8s.io", &image).await, top);
    assert_eq!(image.served(), served);
    assert_eq!(client.names(&[]).await.len(), 2);
}

#[tokio::test]
async fn many_pulls_of_one_image_at_once_make_one_snapshot_a_layer() {
    let image = std::sync::Arc::new(image());
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let pulls: Vec<_> = (0..8)
        .map(|n| {
            let (mut client, image) = (client.clone(), image.clone());
            tokio::spawn(async move { pull(&mut client, &format!("ns{n}"), &image).await })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), image.layers[1].chain_id);
    }
    assert_eq!(client.clone().names(&[]).await.len(), 2);
}

#[tokio::test]
async fn lazy_snapshots_survive_a_crash_and_a_dead_registry() {
    let image = image();
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &image).await;
    let mounts = client.prepare("c", &top).await.unwrap();
    {
        let tree = Mounted::new(daemon.dir(), &mounts[0]);
        assert_eq!(fs::read(tree.path().join("d/both")).unwrap(), b"new");
    }
    drop(image);
    let daemon = daemon.kill_and_restart().await;
    assert!(
        daemon.start_time < crate::daemon::START_LIMIT,
        "{:?}",
        daemon.start_time
    );
    let mut client = daemon.client().await;
    assert_eq!(
        client.mounts("c").await.unwrap(),
        mounts,
        "the same paths as before"
    );
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    assert_eq!(
        fs::read(tree.path().join("d/both")).unwrap(),
        b"new",
        "it was fetched before"
    );
    drop(tree);
    for key in ["c", &top] {
        client.remove(key).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert!(lazy_mounts(daemon.dir()).is_empty());
}

#[tokio::test]
async fn what_cannot_be_lazy_becomes_an_ordinary_pull_with_a_reason() {
    let image = image();
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let zeros = format!("sha256:{}", "0".repeat(64));
    // Bound and dropped: nothing listens there any more.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let cases = [
        (
            "containerd.io/snapshot/stargz/toc.digest",
            zeros.clone(),
            "digest mismatch",
        ),
        (
            "containerd.io/snapshot/cri.layer-digest",
            zeros,
            "not found",
        ),
        (
            "containerd.io/snapshot/cri.layer-digest",
            "sha256:short".into(),
            "sha256:short",
        ),
        (
            "containerd.io/snapshot/cri.image-ref",
            format!("{nobody}/image:tag"),
            &nobody,
        ),
    ];
    for (n, (label, value, reason)) in cases.into_iter().enumerate() {
        let mut labels = image.labels(0);
        labels.insert(label, value);
        let mounts = prepare(&mut client, &format!("k{n}"), "", &labels)
            .await
            .unwrap();
        assert_eq!(mounts[0].r#type, "bind", "{label}");
        let log = daemon.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("not lazy"))
            .unwrap_or_default();
        assert!(line.contains(reason), "{label}: {line}");
    }
    client.commit("ordinary", "k0").await.unwrap();
    let mounts = prepare(&mut client, "k", "ordinary", &image.labels(1))
        .await
        .unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    assert!(
        daemon
            .log()
            .contains("not lazy: it lies on an ordinary layer")
    );
    client.cleanup().await.unwrap();
    assert!(
        lazy_layers(&daemon).is_empty(),
        "a layer that was refused leaves nothing"
    );
}

#[tokio::test]
async fn a_registry_that_hangs_delays_nobody_else() {
    let image = image();
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    // Accepts connections in its backlog and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut labels = image.labels(0);
    let reference = format!("{}/image:tag", silent.local_addr().unwrap());
    labels.insert("containerd.io/snapshot/cri.image-ref", reference);
    labels.insert(
        "containerd.io/snapshot/cri.layer-digest",
        format!("sha256:{}", "a".repeat(64)),
    );
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { prepare(&mut client, "k", "", &labels).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    client.stat("base").await.unwrap();
    client.prepare("a", "base").await.unwrap();
    client.mounts("a").await.unwrap();
    let top = pull(&mut client, "default", &image).await;
    client.view("v", &top).await.unwrap();
    for key in ["a", "v"] {
        client.remove(key).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert!(
        !waiting.is_finished(),
        "the registry was not asked: {}",
        daemon.log()
    );
    waiting.abort();
}

#[tokio::test]
async fn without_lazy_mounts_an_image_is_pulled_and_a_lazy_one_is_refused() {
    let image = image();
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &image).await;
    drop(client);
    let (_, dir) = daemon.terminate().await;
    fs::write(dir.path().join("off.toml"), "mount = \"off\"\n").unwrap();
    let config = dir.path().join("off.toml");
    let daemon = Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await;
    let mut client = daemon.client().await;
    assert_eq!(
        code(client.prepare("c", &top).await),
        Code::FailedPrecondition
    );
    assert!(daemon.layer_dirs().is_empty());
    let mounts = prepare(&mut client, "k", "", &image.labels(0))
        .await
        .unwrap();
    assert_eq!(upper(&mounts[0]).file_name().unwrap(), "fs");
}

/// Bytes that do not compress, the same every time (xorshift).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// `name=content` of every file of a directory, sorted.
fn contents(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut contents: Vec<_> = entries
        .map(|entry| {
            let content = fs::read_to_string(entry.path()).unwrap();
            format!("{}={content}", entry.file_name().display())
        })
        .collect();
    contents.sort();
    contents
}

fn lazy_mounts(dir: &Path) -> Vec<String> {
    let table = crate::daemon::mount_table();
    let trees = root(dir).join("lazy/mnt");
    let below = |line: &&str| line.contains(trees.to_str().unwrap());
    table.lines().filter(below).map(str::to_owned).collect()
}

fn lazy_layers(daemon: &Daemon) -> Vec<PathBuf> {
    let blobs = root(daemon.dir()).join("lazy/blobs/sha256");
    fs::read_dir(blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}
