//! zstd:chunked images as podman, buildah and skopeo push them, pulled lazily.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::Shape;

/// Everything there is to know of a tree: metadata with links and attributes, then contents.
const DESCRIBE: &str = "cd / && find . -mindepth 1 -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' \
                        ! -path './run*' ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        \\( -type d -printf '%p %y %m %U %G %T@\\n' \
                        -o -printf '%p %y %m %U %G %T@ %n %l\\n' \\) | sort; \
                        find . -xdev -type f ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        -exec sha256sum {} + | sort -k2";

/// Pushes a corpus image, recompressed by skopeo; its reference.
fn push_by_skopeo(host: &NativeHost, name: &str) -> String {
    let image = format!("{}/{name}:zstd", Service::REGISTRY);
    let (from, to) = (
        format!("oci:/srv/corpus/{name}"),
        format!("docker://{image}"),
    );
    host.check(&[
        "skopeo",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-compress-format",
        "zstd:chunked",
        "--dest-force-compress-format",
        &from,
        &to,
    ])
    .expect("skopeo pushes");
    image
}

/// The same image with its annotations under the names that stargz-snapshotter gives them.
fn rename_annotations(host: &NativeHost, image: &str) -> String {
    let renamed = format!("{image}-old");
    let script = format!(
        "skopeo copy -q --src-tls-verify=false docker://{image} dir:/tmp/old && cd /tmp/old
         grep -q io.github.containers.zstd-chunked.manifest-position manifest.json || exit 1
         sed -i 's/io.github.containers.zstd-chunked/io.containers.zstd-chunked/g' manifest.json
         skopeo copy -q --dest-tls-verify=false dir:/tmp/old docker://{renamed}"
    );
    host.check_sh(&script).expect("the image is rewritten");
    renamed
}

/// What all of an image's files are, by an ordinary pull.
fn describe_by_overlayfs(ctr: Ctr<'_>, image: &str) -> String {
    ctr.pull(image, "overlayfs").unwrap();
    let stack = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let described = ctr
        .run(stack, image, "theirs", &["sh", "-c", DESCRIBE])
        .unwrap();
    assert!(described.success(), "{described:?}");
    assert!(
        described.stdout.lines().count() > 500,
        "{}",
        described.stdout
    );
    described.stdout
}

#[track_caller]
fn assert_same(ours: &str, theirs: &str) {
    let mut lines = ours.lines().zip(theirs.lines());
    assert_eq!(lines.find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.len(), theirs.len());
}

/// Layers that the daemon keeps lazily.
fn lazy_layers(host: &NativeHost) -> usize {
    let script =
        "xebec-snapshotter status --format json | jq '[.snapshots[] | select(.layer)] | length'";
    host.check_sh(script).unwrap().trim().parse().unwrap()
}

#[test]
fn what_skopeo_pushes_starts_lazily_and_every_file_is_right() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = push_by_skopeo(&host, "redis");
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();

    ctr.pull(&remote, "xebec").unwrap();
    assert_eq!(lazy_layers(&host), 2, "{}", host.log(Service::Snapshotter));
    let ran = ctr.run(Stack::XEBEC, &remote, "start", &[]).unwrap();
    assert!(ran.success(), "{ran:?}");
    let started = link.counters().down;
    let theirs = describe_by_overlayfs(ctr, &remote);
    let whole = link.counters().down;
    assert!(
        started * 2 < whole,
        "{started} bytes for a start, {whole} for a full pull"
    );

    let describe = ["sh", "-c", DESCRIBE];
    let ours = ctr.run(Stack::XEBEC, &remote, "ours", &describe).unwrap();
    assert!(ours.success(), "{ours:?}");
    assert_same(&ours.stdout, &theirs);

    // What has been read once is local.
    link.cut();
    let again = ctr.run(Stack::XEBEC, &remote, "again", &describe).unwrap();
    assert_same(&again.stdout, &theirs);
}

#[test]
fn the_annotations_of_stargz_snapshotter_are_understood_as_well() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = rename_annotations(&host, &push_by_skopeo(&host, "busybox"));
    ctr.pull(&image, "xebec").unwrap();
    assert_eq!(lazy_layers(&host), 1, "{}", host.log(Service::Snapshotter));
    let read = ["sh", "-c", "cat /etc/passwd && sha256sum /bin/busybox"];
    let ours = ctr.run(Stack::XEBEC, &image, "ours", &read).unwrap();
    assert!(ours.success(), "{ours:?}");
    ctr.pull(&image, "overlayfs").unwrap();
    let stack = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let theirs = ctr.run(stack, &image, "theirs", &read).unwrap();
    assert_eq!(ours.stdout, theirs.stdout);
}

#[test]
fn a_forged_checksum_means_an_ordinary_pull_that_says_why() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = push_by_skopeo(&host, "busybox");
    let forged = format!("{image}-forged");
    let script = format!(
        "skopeo copy -q --src-tls-verify=false docker://{image} dir:/tmp/forged && cd /tmp/forged
         key=io.github.containers.zstd-chunked.manifest-checksum
         jq \".layers[0].annotations[\\\"$key\\\"] = \\\"sha256:$(printf %064d 1)\\\"\" manifest.json > m
         mv m manifest.json
         skopeo copy -q --dest-tls-verify=false dir:/tmp/forged docker://{forged}"
    );
    host.check_sh(&script).unwrap();
    ctr.pull(&forged, "xebec").unwrap();
    assert_eq!(lazy_layers(&host), 0);
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("not lazy") && log.contains("digest mismatch: expected sha256:0000"),
        "{log}"
    );
    let ran = ctr
        .run(Stack::XEBEC, &forged, "c", &["cat", "/etc/passwd"])
        .unwrap();
    assert!(ran.success() && ran.stdout.starts_with("root:"), "{ran:?}");
}

/// Converts a corpus image by our own tool; its reference.
fn push_by_ourselves(host: &NativeHost, name: &str) -> String {
    let image = format!("{}/{name}:ours", Service::REGISTRY);
    let from = format!("oci:/srv/corpus/{name}");
    let convert = [
        "xebec-snapshotter",
        "image",
        "convert",
        "--to",
        "zstd-chunked",
    ];
    host.check(&[&convert[..], &[&from, &image]].concat())
        .expect("conversion");
    image
}

#[test]
fn what_we_convert_is_reproducible_keeps_its_diff_ids_and_is_read_lazily_by_ourselves() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = push_by_ourselves(&host, "redis");
    let raw = |image: &str| {
        let script = format!("skopeo inspect --raw --tls-verify=false docker://{image}");
        host.check_sh(&script).unwrap()
    };
    let manifest = raw(&image);
    assert!(manifest.contains("io.github.containers.zstd-chunked.tarsplit-position"));
    push_by_ourselves(&host, "redis");
    assert_eq!(raw(&image), manifest, "the same input gives the same image");
    let diff_ids = |image: &str| {
        let script = format!("skopeo inspect --config --tls-verify=false {image}");
        host.check_sh(&format!("{script} | jq -c .rootfs.diff_ids"))
            .unwrap()
    };
    assert_eq!(
        diff_ids(&format!("docker://{image}")),
        diff_ids("oci:/srv/corpus/redis")
    );

    // What is in the format already is taken as it is.
    let again = format!("{}/redis:again", Service::REGISTRY);
    let convert = [
        "xebec-snapshotter",
        "image",
        "convert",
        "--to",
        "zstd-chunked",
    ];
    host.check(&[&convert[..], &[&image, &again]].concat())
        .unwrap();
    assert_eq!(raw(&again), manifest);

    ctr.pull(&image, "xebec").unwrap();
    assert_eq!(lazy_layers(&host), 2, "{}", host.log(Service::Snapshotter));
    let theirs = describe_by_overlayfs(ctr, &image);
    let ours = ctr
        .run(Stack::XEBEC, &image, "ours", &["sh", "-c", DESCRIBE])
        .unwrap();
    assert_same(&ours.stdout, &theirs);
}

#[test]
fn podman_pulls_what_we_convert_in_parts_and_gives_back_the_same_layers() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let image = push_by_ourselves(&host, "redis");
    host.check_sh(
        "mkdir -p /etc/containers && cat > /etc/containers/storage.conf <<'END'
[storage]
driver = \"overlay\"
runroot = \"/run/containers/storage\"
graphroot = \"/var/lib/containers/storage\"
[storage.options]
pull_options = {enable_partial_images = \"true\", use_hard_links = \"false\", ostree_repos = \"\"}
END",
    )
    .unwrap();
    let pulled = host
        .check_sh(&format!(
            "podman --log-level debug pull --tls-verify=false {image} 2>&1"
        ))
        .unwrap();
    assert_eq!(
        pulled.matches("Retrieved partial blob").count(),
        2,
        "podman pulled whole layers: {pulled}"
    );
    // The layers that podman gives back are those of the source, to the byte: it had to put the
    // archives together from files and tar-split.
    let script = format!(
        "podman save -q --format oci-dir -o /tmp/saved {image} &&
         skopeo copy -q --dest-decompress oci:/tmp/saved dir:/tmp/plain && cd /tmp/plain &&
         jq -r '.layers[].digest' manifest.json | while read -r digest; do
             sha256sum ${{digest#sha256:}} | cut -d' ' -f1; done"
    );
    let saved = host.check_sh(&script).unwrap();
    let source = "skopeo inspect --config oci:/srv/corpus/redis | jq -r '.rootfs.diff_ids[]'";
    let source = host.check_sh(source).unwrap().replace("sha256:", "");
    assert_eq!(source.lines().count(), 2);
    assert_eq!(saved, source);
}
