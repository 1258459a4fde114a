//! What nodes tell each other by way of the registry: profiles of starts.

use integration::ctr::{Ctr, Stack};
use integration::demo::FORGET;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::{Proxy, Shape};

const NODE: [Service; 2] = [Service::Containerd, Service::Snapshotter];
const CONFIG: &str = "/etc/xebec/snapshotter.toml";
const OVERLAYFS: Stack = Stack {
    snapshotter: "overlayfs",
    ..Stack::XEBEC
};
const READ: [&str; 3] = ["sh", "-c", "sha256sum < /usr/bin/redis-server"];
/// All that is in an image, by digest.
const EVERYTHING: [&str; 3] = [
    "sh",
    "-c",
    "find / -xdev -type f -exec sha256sum {} + | sort",
];

/// Puts an artifact with a blob that is no profile in the place of the one beside the image $1.
const FORGE: &str = r#"
set -e
repository=http://${1%%/*}/v2/${1#*/}; repository=${repository%:*}; tag=${1##*:}
put() { curl -sf -X PUT -H "Content-Type: application/vnd.oci.image.$2.v1+json" --data-binary @"$3" "$repository/manifests/$1"; }
printf 'no frame' > /tmp/blob
subject=$(curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "$repository/manifests/$tag" | sha256sum | cut -d' ' -f1)
digest=sha256:$(sha256sum /tmp/blob | cut -d' ' -f1)
upload=$(curl -sf -D- -o /dev/null -X POST "$repository/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @/tmp/blob "$upload&digest=$digest"
curl -sf -H 'Accept: application/vnd.oci.image.index.v1+json' "$repository/manifests/sha256-$subject" > /tmp/index
jq ".manifests[0].annotations += {\"dev.xebec.profile.digest\": \"$digest\",
    \"dev.xebec.profile.size\": \"$(stat -c %s /tmp/blob)\"}" /tmp/index > /tmp/forged
put sha256-$subject index /tmp/forged
"#;

/// Makes the host a node that has never seen an image, and lets `prepare` happen before it starts.
fn forget(host: &NativeHost, prepare: &str) {
    for service in NODE {
        host.stop(service).unwrap();
    }
    host.check_sh(&format!("{FORGET}; {prepare}")).unwrap();
    host.start_services(&NODE).unwrap();
}

/// Waits until nothing has come over a link for a second.
fn wait_until_quiet(link: &Proxy) {
    let mut before = link.counters().down;
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = link.counters().down;
        if now == before {
            return;
        }
        before = now;
    }
}

#[test]
fn a_node_finds_what_another_has_pushed_and_a_forged_profile_does_no_harm() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    let absent = host
        .run(&["xebec-snapshotter", "profile", "pull", &image])
        .unwrap();
    assert!(
        !absent.success() && absent.stderr.contains("not found"),
        "{absent:?}"
    );
    let (_link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let first = ctr.run(Stack::XEBEC, &remote, "first", &READ).unwrap();
    assert!(first.success(), "{first:?}");
    // The profile is written when the container's tree is unmounted, or when its window closes.
    for service in NODE {
        host.stop(service).unwrap();
    }
    host.check(&["xebec-snapshotter", "profile", "push", &image])
        .unwrap();
    let again = host
        .run(&["xebec-snapshotter", "profile", "push", &image])
        .unwrap();
    assert!(
        again.success() && again.stderr.contains("already"),
        "{again:?}"
    );

    // This registry has no referrers API: the artifact is found by its subject's tag.
    forget(&host, "true");
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    wait_until_quiet(&link);
    link.cut();
    let second = ctr.run(Stack::XEBEC, &remote, "second", &READ).unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(second.success(), "{second:?}\n{log}");
    assert_eq!(second.stdout, first.stdout);
    assert!(log.contains("found a profile in the registry"), "{log}");

    host.check(&["bash", "-c", FORGE, "forge", &image]).unwrap();
    forget(&host, "true");
    let (_link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let third = ctr.run(Stack::XEBEC, &remote, "third", &READ).unwrap();
    assert_eq!(
        (third.success(), &third.stdout),
        (true, &first.stdout),
        "{third:?}"
    );
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("is of no use"), "{log}");
}

/// Records a start of an image; gives what it has printed. The daemon is stopped then.
fn record(host: &NativeHost, image: &str) -> String {
    let ctr = Ctr::new(host);
    ctr.pull(image, "xebec").unwrap();
    let ran = ctr.run(Stack::XEBEC, image, "recorded", &READ).unwrap();
    assert!(ran.success(), "{ran:?}");
    for service in NODE {
        host.stop(service).unwrap();
    }
    let export = [
        "xebec-snapshotter",
        "profile",
        "export",
        "-o",
        "/tmp/profile",
        image,
    ];
    host.check(&export).unwrap();
    ran.stdout
}

#[test]
fn an_image_that_is_cut_by_what_a_start_reads_starts_over_fuse_and_every_file_is_right() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let plain = host.push("redis").unwrap();
    ctr.pull(&plain, "overlayfs").unwrap();
    let truth = ctr.run(OVERLAYFS, &plain, "truth", &EVERYTHING).unwrap();
    assert!(
        truth.success() && truth.stdout.lines().count() > 1000,
        "{truth:?}"
    );
    let config = host.read_file(CONFIG).unwrap();
    host.write_file(CONFIG, format!("mount = \"fuse\"\n{config}"))
        .unwrap();
    forget(&host, "true");
    let ordinary = host.convert(&plain).unwrap();
    let printed = record(&host, &ordinary);

    for format in ["estargz", "zstd-chunked"] {
        let guided = format!("{ordinary}-{format}");
        let convert = [
            "xebec-snapshotter",
            "image",
            "convert",
            "--profile",
            "/tmp/profile",
        ];
        let convert = [&convert[..], &["--to", format, &ordinary, &guided]].concat();
        host.check(&convert).unwrap();
        // The profile has come along, in terms of the new layers.
        forget(&host, "true");
        let (link, remote) = host.through_link(&guided, Shape::new(2, 1000.0)).unwrap();
        ctr.pull(&remote, "xebec").unwrap();
        wait_until_quiet(&link);
        link.cut();
        let start = ctr.run(Stack::XEBEC, &remote, "start", &READ).unwrap();
        let log = host.log(Service::Snapshotter);
        assert!(log.contains("mounted by FUSE"), "{log}");
        assert_eq!(start.stdout, printed, "{format}: {start:?}\n{log}");

        forget(&host, "true");
        ctr.pull(&guided, "xebec").unwrap();
        let all = ctr.run(Stack::XEBEC, &guided, "all", &EVERYTHING).unwrap();
        assert!(all.success() && all.stderr.is_empty(), "{format}: {all:?}");
        let wrong = all
            .stdout
            .lines()
            .zip(truth.stdout.lines())
            .find(|(is, was)| is != was);
        assert_eq!(wrong, None, "{format}");
        assert_eq!(all.stdout.len(), truth.stdout.len(), "{format}");
    }
}

/// Adds settings to the snapshotter's, from its next start on.
fn configure(host: &NativeHost, settings: &str) {
    let config = host.read_file(CONFIG).unwrap();
    host.write_file(CONFIG, format!("{config}\n{settings}"))
        .unwrap();
}

fn layers_size(host: &NativeHost, image: &str) -> u64 {
    let layers = "skopeo inspect --tls-verify=false docker://$0 | jq '[.LayersData[].Size] | add'";
    let size = host.check(&["sh", "-c", layers, image]).unwrap();
    size.trim().parse().unwrap()
}

/// Starts a container from a part of a plain image's layers, and gives the link that they came by.
fn start_from_a_part(host: &NativeHost, image: &str, id: &str) -> (Proxy, String) {
    let ctr = Ctr::new(host);
    let (link, remote) = host.through_link(image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let sleep = ["sh", "-c", "redis-server --version; sleep 1000"];
    ctr.start(Stack::XEBEC, &remote, id, &sleep).unwrap();
    ctr.exec(id, &["redis-server", "--version"]).unwrap();
    let (fetched, all) = (link.counters().down, layers_size(host, image));
    let log = host.log(Service::Snapshotter);
    assert!(fetched * 2 < all, "{fetched} bytes of {all}\n{log}");
    (link, remote)
}

#[test]
fn indexes_beside_a_plain_image_make_it_lazy_and_the_rest_comes_in_the_background() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let image = host.push("redis").unwrap();
    let manifest = "skopeo inspect --raw --tls-verify=false docker://$0 | sha256sum";
    let manifest = || host.check(&["sh", "-c", manifest, &image]).unwrap();
    let before = manifest();

    // By command.
    let index = ["xebec-snapshotter", "image", "index", "--push", &image];
    host.check(&index).unwrap();
    let again = host.run(&index).unwrap();
    assert!(
        again.success() && again.stderr.contains("nothing to push"),
        "{again:?}"
    );
    assert_eq!(manifest(), before, "the image stays as it is");
    forget(&host, "true");
    configure(
        &host,
        "[index]\ntrust_referrers = true\npush = true\n\
         [fill]\nbackground = true\ndelay = 8\n[metrics]\naddress = \"127.0.0.1:9110\"",
    );
    forget(&host, "true");
    let (link, remote) = start_from_a_part(&host, &image, "first");

    assert_timeline(&host, &remote, "first");
    assert_background_fill_survives_a_kill(&host, &link, "first");
    assert_first_node_pushes(&host);
}

/// What happened is told, by the image's name and by the container's.
fn assert_timeline(host: &NativeHost, image: &str, container: &str) {
    let timeline = |name: &str, format: &str| {
        let argv = ["xebec-snapshotter", "timeline", name, "--format", format];
        host.check(&argv).unwrap()
    };
    let text = timeline(image, "text");
    for part in [
        "prepare: layer",
        "open: layer",
        "mount: by",
        "fetch for read",
        "wait: ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.contains(" of /usr/bin/redis-"), "{text}");
    let svg = timeline(container, "svg");
    assert!(
        svg.starts_with("<svg ") && svg.contains("/usr/bin/redis-"),
        "{svg}"
    );
    let events = "xebec-snapshotter timeline $0 --format json | jq '[.events[] | select(.kind == \"wait\")] | length'";
    let waits = host.check(&["sh", "-c", events, container]).unwrap();
    assert!(waits.trim().parse::<u32>().unwrap() > 0, "{waits}");
    let unknown = host
        .run(&["xebec-snapshotter", "timeline", "nobody"])
        .unwrap();
    assert!(
        !unknown.success() && unknown.stderr.contains("nobody"),
        "{unknown:?}"
    );
}

/// A daemon that is killed in the middle goes on where it was, until nobody needs the registry.
fn assert_background_fill_survives_a_kill(host: &NativeHost, link: &Proxy, container: &str) {
    let ctr = Ctr::new(host);
    let pending = "for i in $(seq 300); do curl -sf http://127.0.0.1:9110/metrics > /tmp/m; \
                   grep -qx 'xebec_background_pending 0' /tmp/m && \
                   grep -q 'xebec_cold_reads_total' /tmp/m && exit; sleep 0.1; done; cat /tmp/m; exit 1";
    host.kill(Service::Snapshotter).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
    host.check_sh(&format!("sleep 1; {pending}")).unwrap();
    let background = "for=\"background\"} ";
    let metrics = host.check_sh("cat /tmp/m").unwrap();
    let fetched = metrics.lines().filter(|line| line.contains(background));
    let fetched = fetched.filter(|line| !line.ends_with("} 0")).count();
    assert!(fetched > 0, "{metrics}");
    link.cut();
    let read = [
        "sh",
        "-c",
        "find / -xdev -type f -exec cat {} + > /dev/null",
    ];
    let read = ctr.exec(container, &read).unwrap();
    assert!(read.success() && read.stderr.is_empty(), "{read:?}");
    ctr.remove(container).unwrap();
}

/// The first node that pulls an image makes it lazy for the next one.
fn assert_first_node_pushes(host: &NativeHost) {
    let ctr = Ctr::new(host);
    let other = host.push("nginx").unwrap();
    forget(host, "true");
    ctr.pull(&other, "xebec").unwrap();
    let pushed =
        "for i in $(seq 100); do grep -q 'pushed indexes' $0 && exit; sleep 0.1; done; exit 1";
    let log = host.log_directory().join("snapshotter.log");
    let found = std::process::Command::new("sh")
        .args(["-c", pushed])
        .arg(&log)
        .status();
    assert!(
        found.unwrap().success(),
        "{}",
        host.log(Service::Snapshotter)
    );
    forget(host, "true");
    let (link, remote) = host.through_link(&other, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let version = ctr
        .run(Stack::XEBEC, &remote, "second", &["nginx", "-v"])
        .unwrap();
    assert!(version.success(), "{version:?}");
    let (fetched, all) = (link.counters().down, layers_size(host, &other));
    assert!(fetched * 2 < all, "{fetched} bytes of {all}");
}
