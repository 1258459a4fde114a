//! The snapshots API as containerd drives it, against a real daemon: ordinary layers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::daemon::{Client, Daemon, Mounted, code, labels, option, upper};
use tonic::Code;
use xebec_proto::prost_types::FieldMask;
use xebec_proto::snapshots::{Info, Kind, UpdateSnapshotRequest};

#[tokio::test]
async fn an_image_is_unpacked_layer_by_layer_and_taken_apart_again() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;

    let mounts = client.prepare("a", "").await.unwrap();
    assert_eq!(
        (mounts[0].r#type.as_str(), &mounts[0].options[..]),
        ("bind", &rw_bind()[..])
    );
    let mode = fs::metadata(upper(&mounts[0]))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o7777,
        0o755,
        "what becomes a container's / is open to its users"
    );
    fs::write(upper(&mounts[0]).join("file"), vec![1; 10_000]).unwrap();
    fs::hard_link(
        upper(&mounts[0]).join("file"),
        upper(&mounts[0]).join("link"),
    )
    .unwrap();
    client.commit("base", "a").await.unwrap();
    assert_eq!(code(client.stat("a").await), Code::NotFound);
    let usage = client.usage("base").await.unwrap();
    assert_eq!(usage.inodes, 2, "a directory and a file with two names");
    assert!((10_000..30_000).contains(&usage.size), "{usage:?}");

    let mounts = client.prepare("b", "base").await.unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    assert_eq!(option(&mounts[0], "lowerdir").split(':').count(), 1);
    assert_eq!(client.mounts("b").await.unwrap(), mounts);
    client.commit("top", "b").await.unwrap();

    let view = client.view("v", "top").await.unwrap();
    assert_eq!(view[0].r#type, "overlay");
    assert_eq!(option(&view[0], "lowerdir").split(':').count(), 2);
    assert!(
        !view[0]
            .options
            .iter()
            .any(|option| option.starts_with("upperdir"))
    );
    let view = client.view("w", "base").await.unwrap();
    assert_eq!(
        (view[0].r#type.as_str(), &view[0].options[..]),
        ("bind", &ro_bind()[..])
    );

    assert_eq!(code(client.remove("base").await), Code::FailedPrecondition);
    assert_eq!(code(client.remove("top").await), Code::FailedPrecondition);
    assert_eq!(daemon.layer_dirs().len(), 4);
    for key in ["v", "w", "top", "base"] {
        client.remove(key).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert!(daemon.layer_dirs().is_empty());
    assert!(client.names(&[]).await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_done_has_containerds_code() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("c", "").await;
    client.prepare("a", "c").await.unwrap();
    client.view("v", "c").await.unwrap();

    for key in ["a", "c", "v"] {
        assert_eq!(
            code(client.prepare(key, "").await),
            Code::AlreadyExists,
            "{key}"
        );
        assert_eq!(
            code(client.view(key, "c").await),
            Code::AlreadyExists,
            "{key}"
        );
    }
    for parent in ["a", "v"] {
        assert_eq!(
            code(client.prepare("x", parent).await),
            Code::InvalidArgument,
            "{parent}"
        );
    }
    assert_eq!(code(client.prepare("x", "none").await), Code::NotFound);
    assert_eq!(code(client.prepare("", "").await), Code::InvalidArgument);
    assert_eq!(
        code(client.commit("n", "v").await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(client.commit("n", "c").await),
        Code::FailedPrecondition
    );
    assert_eq!(code(client.commit("c", "a").await), Code::AlreadyExists);
    assert_eq!(code(client.commit("n", "none").await), Code::NotFound);
    assert_eq!(code(client.mounts("c").await), Code::FailedPrecondition);
    for answer in [
        client.mounts("none").await.map(drop),
        client.remove("none").await,
    ] {
        assert_eq!(code(answer), Code::NotFound);
    }
    assert_eq!(code(client.usage("none").await), Code::NotFound);
    assert_eq!(
        code(client.list(&["labels.=="]).await),
        Code::InvalidArgument
    );

    assert_eq!(client.names(&[]).await, ["a", "c", "v"]);
    assert_eq!(
        daemon.layer_dirs().len(),
        3,
        "a refused request leaves no directory"
    );
}

#[tokio::test]
async fn a_snapshot_tells_what_it_is() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("c", "").await;
    client
        .prepare_labelled("a", "c", &[("x", "1"), ("y", "2")])
        .await
        .unwrap();
    let active = client.stat("a").await.unwrap();
    assert_eq!((active.name.as_str(), active.parent.as_str()), ("a", "c"));
    assert_eq!(
        (active.kind(), &active.labels),
        (Kind::Active, &labels(&[("x", "1"), ("y", "2")]))
    );
    assert!(active.created_at.is_some() && active.created_at == active.updated_at);
    let committed = client.stat("c").await.unwrap();
    assert_eq!(committed.kind(), Kind::Committed);
    assert_eq!(committed.labels, labels(&[("by", "commit")]));
    assert_eq!(client.usage("a").await.unwrap().inodes, 1);

    let mut update = async |pairs: &[(&str, &str)], paths: &[&str]| {
        let info = Info {
            name: "a".into(),
            labels: labels(pairs),
            ..Default::default()
        };
        let paths = paths.iter().map(ToString::to_string).collect();
        let update_mask = Some(FieldMask { paths });
        let request = UpdateSnapshotRequest {
            snapshotter: String::new(),
            info: Some(info),
            update_mask,
        };
        client
            .0
            .update(request)
            .await
            .map(|answer| answer.into_inner().info.unwrap())
    };
    let updated = update(&[("x", "9"), ("z", "3")], &["labels.x"])
        .await
        .unwrap();
    assert_eq!(updated.labels, labels(&[("x", "9"), ("y", "2")]));
    assert_eq!(updated.created_at, active.created_at);
    assert!(updated.updated_at.unwrap().nanos != active.updated_at.unwrap().nanos);
    assert_eq!(code(update(&[], &["kind"]).await), Code::InvalidArgument);
    let updated = update(&[("z", "3")], &[]).await.unwrap();
    assert_eq!(updated.labels, labels(&[("z", "3")]));
    assert_eq!(client.stat("a").await.unwrap(), updated);
}

#[tokio::test]
async fn a_long_listing_arrives_in_parts_and_filters_narrow_it() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    for n in 0..120 {
        let parity = if n % 2 == 0 { "even" } else { "odd" };
        let pairs = [
            ("containerd.io/snapshot.ref", "sha256:chain"),
            ("parity", parity),
        ];
        client
            .prepare_labelled(&format!("s{n:03}"), "base", &pairs)
            .await
            .unwrap();
    }
    let batches = client.list(&[]).await.unwrap();
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100, 21]);
    assert_eq!(client.names(&["labels.parity==odd"]).await.len(), 60);
    assert_eq!(
        client.names(&["labels.parity==odd,name==s001"]).await,
        ["s001"]
    );
    assert_eq!(
        client.names(&["name==s001", "kind==committed"]).await,
        ["base", "s001"]
    );
    let question = r#"labels."containerd.io/snapshot.ref"==sha256:chain,parent=="base""#;
    assert_eq!(client.names(&[question]).await.len(), 120);
}

#[tokio::test]
async fn the_mounts_show_the_merged_layers_and_take_changes() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let base = client.prepare("base-work", "").await.unwrap();
    fs::write(upper(&base[0]).join("kept"), "kept").unwrap();
    fs::write(upper(&base[0]).join("gone"), "gone").unwrap();
    std::os::unix::fs::chown(upper(&base[0]), Some(1000), Some(1001)).unwrap();
    client.commit("base", "base-work").await.unwrap();

    let work = client.prepare("top-work", "base").await.unwrap();
    {
        let tree = Mounted::new(daemon.dir(), &work[0]);
        fs::remove_file(tree.path().join("gone")).unwrap();
        fs::write(tree.path().join("new"), "new").unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(tree.path()).unwrap());
        assert_eq!(owner, 1000, "the root directory keeps its owner");
    }
    client.commit("top", "top-work").await.unwrap();
    let view = client.view("v", "top").await.unwrap();
    let tree = Mounted::new(daemon.dir(), &view[0]);
    let mut names: Vec<_> = fs::read_dir(tree.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["kept", "new"]);
    assert!(
        fs::write(tree.path().join("x"), "x").is_err(),
        "a view is read-only"
    );
}

#[tokio::test]
async fn what_is_mounted_inside_a_removed_layer_survives_its_deletion() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    let mounts = client.prepare("a", "").await.unwrap();
    let precious = daemon.dir().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    let point = upper(&mounts[0]).join("volume");
    fs::create_dir(&point).unwrap();
    rustix::mount::mount_bind(&precious, &point).unwrap();
    client.remove("a").await.unwrap();
    client.cleanup().await.unwrap();
    assert!(daemon.layer_dirs().is_empty());
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"kept");
}

#[tokio::test]
async fn id_mapped_snapshots_belong_to_the_mapped_root() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("c", "").await;
    let pairs = [
        ("containerd.io/snapshot/uidmapping", "0:5000:100"),
        ("containerd.io/snapshot/gidmapping", "0:6000:100"),
    ];
    let mounts = client.prepare_labelled("a", "c", &pairs).await.unwrap();
    assert_eq!(option(&mounts[0], "uidmap"), "0:5000:100");
    assert_eq!(option(&mounts[0], "gidmap"), "0:6000:100");
    let metadata = fs::metadata(upper(&mounts[0])).unwrap();
    let owner = (
        std::os::unix::fs::MetadataExt::uid(&metadata),
        std::os::unix::fs::MetadataExt::gid(&metadata),
    );
    assert_eq!(owner, (5000, 6000));
    let bad = client.prepare_labelled("b", "c", &[("containerd.io/snapshot/uidmapping", "x")]);
    assert_eq!(code(bad.await), Code::InvalidArgument);
}

#[tokio::test]
async fn requests_in_parallel_do_not_disturb_each_other() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client().await;
    client.layer("base", "").await;
    let work = (0..8).map(|n| {
        let mut client: Client = client.clone();
        tokio::spawn(async move {
            for round in 0..5 {
                let name = format!("l{n}-{round}");
                client.layer(&name, "base").await;
                client.view(&format!("v{n}-{round}"), &name).await.unwrap();
                client.remove(&format!("v{n}-{round}")).await.unwrap();
                client.cleanup().await.unwrap();
            }
        })
    });
    for work in work.collect::<Vec<_>>() {
        work.await.unwrap();
    }
    assert_eq!(client.names(&["parent==base"]).await.len(), 40);
    assert_eq!(daemon.layer_dirs().len(), 41);
}

fn rw_bind() -> [String; 2] {
    ["rw".into(), "rbind".into()]
}

fn ro_bind() -> [String; 2] {
    ["ro".into(), "rbind".into()]
}
