//! Checkpoints in registries: pushed, pulled, and restored by their names.

use base64::Engine as _;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use serde_json::{Value, json};

use super::kept::{goes_on, number, overlay_bundle, restore};
use super::ok;

const NAME: &str = "org.criu.checkpoint.container.name";

/// What a registry has under a name.
fn document(host: &NativeHost, image: &str) -> Value {
    let raw = format!("skopeo inspect --raw --tls-verify=false docker://{image}");
    let text = host.check_sh(&raw).expect("it is there");
    serde_json::from_str(&text).expect("JSON")
}

/// An import is refused with these words, and nothing of it is left.
#[track_caller]
fn assert_refused(host: &NativeHost, before: &Inventory, image: &str, words: &[&str]) {
    let refused = restore(host, image, "--network /run/netns/t");
    assert_eq!(refused.status, 1, "{image}: {refused:?}");
    for word in words {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    super::assert_restored(host, before);
    let left = "ls -ad /srv/bundle /srv/.xebec* /var/tmp/.xebec* 2>/dev/null || true";
    assert_eq!(host.check_sh(left).expect("a list"), "", "{image}");
}

#[test]
fn a_checkpoint_in_a_registry_is_restored_by_its_name_alone() {
    let services = [Service::Registry, Service::PrivateRegistry];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let _bundle = overlay_bundle(&host);
    // What is written when the checkpoint comes in between is empty for ever.
    let at = number(&host, "cat /srv/disk/up/tmp/count");
    let export = ["checkpoint", "--export", "/srv/a.tar", "--image", "web:1"];
    ok(&host, &[&export[..], &["a"]].concat());
    let image = format!("{}/checkpoints/web:1", Service::REGISTRY);
    let pushed = ok(&host, &["checkpoint", "push", "/srv/a.tar", &image]);
    assert!(
        pushed.starts_with(&format!("{image}@sha256:")),
        "{pushed:?}"
    );

    // CRI-O looks at the manifest, containerd at the index.
    let index = document(&host, &image);
    let digest = index["manifests"][0]["digest"].as_str().expect("an index");
    let manifest = document(
        &host,
        &format!("{}/checkpoints/web@{digest}", Service::REGISTRY),
    );
    for annotations in [&index["annotations"], &manifest["annotations"]] {
        assert_eq!(annotations[NAME], "a");
        assert_eq!(annotations["org.criu.checkpoint.rootfsImageName"], "web:1");
        assert_eq!(annotations["org.criu.checkpoint.engine.name"], "xebec");
    }

    host.check_sh("mkdir -p /srv/work").expect("made");
    let before = Inventory::of(&host).expect("an inventory");
    let none = format!("{}/checkpoints/none:1", Service::REGISTRY);
    assert_refused(&host, &before, &none, &["checkpoints/none"]);
    let busybox = host.push("busybox").expect("pushed");
    assert_refused(&host, &before, &busybox, &["the image is not a checkpoint"]);
    let private = format!("docker://{}/checkpoints/web:1", Service::PRIVATE_REGISTRY);
    assert_refused(&host, &before, &private, &["not authorized"]);
    let alone = host
        .sh(&format!(
            "mkdir /srv/alone; cp $(readlink -f $(which xebec)) /srv/alone; \
             PATH=/usr/sbin:/usr/bin /srv/alone/xebec checkpoint pull {image} /srv/b.tar"
        ))
        .expect("it runs");
    assert!(
        alone.stderr.contains("xebec-snapshotter is needed"),
        "{alone:?}"
    );

    let restored = restore(&host, &image, "--network /run/netns/t");
    let log = host
        .sh("tail -n 30 /srv/work/restore.log")
        .expect("a log")
        .stdout;
    assert!(restored.success(), "{restored:?}\n{log}");
    goes_on(&host, "/srv/root/tmp/count");
    assert!(number(&host, "cat /srv/root/tmp/count") > at);
    ok(&host, &["delete", "--force", "web"]);
}

#[test]
fn checkpoints_are_pushed_and_pulled_by_who_may_and_come_back_the_same() {
    let services = [Service::Registry, Service::PrivateRegistry];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let _bundle = overlay_bundle(&host);
    for to in ["/srv/a.tar", "oci:/srv/layout"] {
        let export = ["checkpoint", "--leave-running", "--export", to, "a"];
        ok(&host, &export);
    }
    let image = |tag| format!("{}/checkpoints/web:{tag}", Service::PRIVATE_REGISTRY);
    let pull = |tag, to: &str| {
        let image = image(tag);
        host.sh(&format!("xebec checkpoint pull {image} {to}"))
            .expect("it runs")
    };
    let push = |from: &str, tag| {
        let image = image(tag);
        host.sh(&format!("xebec checkpoint push {from} {image}"))
            .expect("it runs")
    };
    for refused in [push("/srv/a.tar", "1"), pull("1", "/srv/b.tar")] {
        assert!(refused.stderr.contains("not authorized"), "{refused:?}");
    }
    let login = format!("{}:{}", Service::USER, Service::PASSWORD);
    let login = base64::engine::general_purpose::STANDARD.encode(login);
    let login = json!({"auths": {Service::PRIVATE_REGISTRY: {"auth": login}}});
    host.write_file("/root/.docker/config.json", login.to_string())
        .expect("written");
    for (from, tag) in [("/srv/a.tar", "1"), ("oci:/srv/layout", "2")] {
        let pushed = push(from, tag);
        assert!(pushed.success(), "{from}: {pushed:?}");
    }
    for (tag, to) in [("1", "/srv/b.tar"), ("2", "oci:/srv/again")] {
        let pulled = pull(tag, to);
        assert!(pulled.success(), "{to}: {pulled:?}");
        // What is there stays.
        let again = pull(tag, to);
        assert!(again.stderr.contains("already exists"), "{again:?}");
    }
    host.check_sh(
        "cmp /srv/a.tar /srv/b.tar; diff -r /srv/layout/blobs /srv/again/blobs; \
         test $(stat -c %a /srv/b.tar) = 600; test $(stat -c %a /srv/again) = 700",
    )
    .expect("they are the same");
    ok(
        &host,
        &["checkpoint", "push", "oci:/srv/again", &image("3")],
    );
    // Neither is what is cut short, or no checkpoint, an image of one.
    host.check_sh("head -c 5000 /srv/a.tar >/srv/cut.tar; tar cf /srv/other.tar -C /etc hostname")
        .expect("files");
    for (archive, word) in [("/srv/cut.tar", "ends"), ("/srv/other.tar", "config.dump")] {
        let refused = push(archive, "4");
        assert!(
            refused.status == 1 && refused.stderr.contains(word),
            "{refused:?}"
        );
    }
    let left = "ls -ad /srv/.xebec* /var/tmp/.xebec* 2>/dev/null || true";
    assert_eq!(host.check_sh(left).expect("a list"), "");
    ok(&host, &["delete", "--force", "a"]);
}
