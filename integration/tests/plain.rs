//! Ordinary images through the snapshotter: streamed whole, the same files as an unpack gives, and
//! no need for the registry afterwards.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::Shape;

const OVERLAYFS: Stack = Stack {
    snapshotter: "overlayfs",
    ..Stack::XEBEC
};

/// Makes the image `odd`: busybox with three more layers, of which the first holds one of
/// everything and the others hide, replace and add, each packed in another way.
const MAKE_ODD: &str = r#"
set -e
mkdir -p /tmp/1/odd/sub /tmp/1/odd/hidden/deep /tmp/2/odd/hidden /tmp/3/odd
cd /tmp/1/odd
head -c 3000000 /dev/urandom > large; echo text > small; : > empty
ln small second; ln -s ../odd/small link; mkfifo pipe; mknod device c 1 3
echo old > hidden/old; echo old > hidden/deep/old; echo gone > gone; echo old > replaced
long=$(printf 'n%.0s' $(seq 200)); mkdir -p $long/$long; echo long > $long/$long/$long
cp /bin/true capable; setcap cap_net_raw+ep capable
cp /bin/true setuid; chown 12345:54321 setuid; chmod 4711 setuid; chmod 1777 sub
touch -d '2001-02-03 04:05:06.789012345' small; touch -d '1975-01-01' empty
echo new > /tmp/2/odd/hidden/new; : > /tmp/2/odd/hidden/.wh..wh..opq; : > /tmp/2/odd/.wh.gone
mkdir /tmp/2/odd/replaced; echo in > /tmp/2/odd/replaced/in
echo again > /tmp/3/odd/gone; head -c 5000000 /dev/zero > /tmp/3/odd/zeros
pack="tar --format=pax --xattrs --xattrs-include=* --numeric-owner --sort=name -cf - ."
for n in 1 2 3; do (cd /tmp/$n && $pack) > /tmp/$n.tar; done
(head -c 1000000 /tmp/1.tar | gzip; tail -c +1000001 /tmp/1.tar | gzip -9) > /tmp/1.blob
cp /tmp/2.tar /tmp/2.blob; gzip -1 < /tmp/3.tar > /tmp/3.blob
skopeo copy -q --src-tls-verify=false docker://$1/busybox:v1 dir:/tmp/image
cd /tmp/image
add() {
  digest=$(sha256sum $1 | cut -d' ' -f1); cp $1 $digest
  jq ".layers += [{mediaType: \"$3\", digest: \"sha256:$digest\", size: $(stat -c %s $1)}]" manifest.json > m
  mv m manifest.json
  old=$(jq -r .config.digest manifest.json); old=${old#sha256:}
  jq ".rootfs.diff_ids += [\"sha256:$(sha256sum $2 | cut -d' ' -f1)\"] | del(.history)" $old > c
  new=$(sha256sum c | cut -d' ' -f1); mv c $new
  jq ".config.digest = \"sha256:$new\" | .config.size = $(stat -c %s $new)" manifest.json > m
  mv m manifest.json
}
layer=application/vnd.oci.image.layer.v1.tar
add /tmp/1.blob /tmp/1.tar $layer+gzip
add /tmp/2.blob /tmp/2.tar $layer
add /tmp/3.blob /tmp/3.tar $layer+gzip
skopeo copy -q --dest-tls-verify=false dir:/tmp/image docker://$1/odd:v1
"#;

/// Makes the image `forged`: it has busybox's configuration, and with it busybox's chain ID, but
/// another layer.
const MAKE_FORGED: &str = r#"
set -e
skopeo copy -q --src-tls-verify=false docker://$1/busybox:v1 dir:/tmp/forged
mkdir -p /tmp/other/bin; echo forged > /tmp/other/bin/sh
cd /tmp/forged
tar -C /tmp/other -czf layer .
digest=$(sha256sum layer | cut -d' ' -f1); mv layer $digest
jq ".layers = [{mediaType: \"application/vnd.oci.image.layer.v1.tar+gzip\",
    digest: \"sha256:$digest\", size: $(stat -c %s $digest)}]" manifest.json > m
mv m manifest.json
skopeo copy -q --dest-tls-verify=false dir:/tmp/forged docker://$1/forged:v1
"#;

/// Everything there is to know of a tree: metadata, capabilities, device numbers, contents.
const DESCRIBE: &str = r#"
cd "$1"
skip="-xdev ( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./etc/hosts -o -path ./etc/resolv.conf ) -prune -o"
set -f
{ find . -mindepth 1 $skip -type d -printf '%p %y %m %U %G %T@\n'
  find . -mindepth 1 $skip ! -type d -printf '%p %y %m %U %G %T@ %n %l\n'; } | sort
find . $skip -type c -print0 | xargs -0r stat -c '%n %t:%T'
find . $skip -type f -print0 | sort -z | xargs -0 sha256sum
find . $skip -type f -print0 | sort -z | xargs -0 getcap
"#;

/// The root of a new container, described by the host's tools.
fn describe(host: &NativeHost, stack: Stack, image: &str, id: &str) -> String {
    let ctr = Ctr::new(host);
    ctr.start(stack, image, id, &["sleep", "1000"]).unwrap();
    let (pid, _) = ctr.task(id).unwrap().expect("a task");
    let root = format!("/proc/{pid}/root");
    host.check(&["sh", "-c", DESCRIBE, "describe", &root])
        .unwrap()
}

fn assert_same(ours: &str, theirs: &str, least: usize) {
    assert!(
        ours.lines().count() >= least,
        "the walk is too short:\n{ours}"
    );
    let mut lines = ours.lines().zip(theirs.lines());
    assert_eq!(lines.find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn an_ordinary_image_is_streamed_once_and_has_every_file_that_an_unpack_gives() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let fetched = link.counters().down;
    let layers = "skopeo inspect --tls-verify=false docker://$0 | jq '[.LayersData[].Size] | add'";
    let layers = host.check(&["sh", "-c", layers, &image]).unwrap();
    let layers: u64 = layers.trim().parse().unwrap();
    assert!(
        (layers..layers + layers / 50).contains(&fetched),
        "{fetched} bytes for layers of {layers}"
    );
    let log = host.log(Service::Snapshotter);
    assert_eq!(
        log.matches("streamed an ordinary layer").count(),
        2,
        "{log}"
    );

    // From here on nobody needs the registry.
    link.cut();
    let ours = describe(&host, Stack::XEBEC, &remote, "ours");
    ctr.pull(&image, "overlayfs").unwrap();
    let theirs = describe(&host, OVERLAYFS, &image, "theirs");
    assert_same(&ours, &theirs, 4000);

    // Nor when the daemon died and another has taken its place.
    ctr.remove("ours").unwrap();
    host.kill(Service::Snapshotter).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
    // containerd connects again when its back-off is over.
    let connected = "for i in $(seq 100); do ctr snapshots --snapshotter xebec ls && exit; sleep 0.1; done; exit 1";
    host.check_sh(connected).unwrap();
    let again = describe(&host, Stack::XEBEC, &remote, "again");
    assert_same(&again, &theirs, 4000);
}

#[test]
fn odd_layers_of_every_packing_are_the_same_as_unpacked() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    host.push("busybox").unwrap();
    host.check(&["bash", "-c", MAKE_ODD, "odd", Service::REGISTRY])
        .unwrap();
    let image = format!("{}/odd:v1", Service::REGISTRY);
    for snapshotter in ["xebec", "overlayfs"] {
        ctr.pull(&image, snapshotter).unwrap();
    }
    let log = host.log(Service::Snapshotter);
    assert!(!log.contains("containerd is to pull"), "{log}");
    let ours = describe(&host, Stack::XEBEC, &image, "ours");
    let theirs = describe(&host, OVERLAYFS, &image, "theirs");
    for expected in [
        "./odd/capable cap_net_raw=ep",
        "./odd/device 1:3",
        " p ",
        "4711 12345 54321",
    ] {
        assert!(theirs.contains(expected), "{expected}: {theirs}");
    }
    assert!(!theirs.contains("hidden/old"), "{theirs}");
    assert_same(&ours, &theirs, 30);
}

#[test]
fn a_layer_with_another_digest_is_not_taken_and_nothing_of_it_is_left() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("busybox").unwrap();
    let blob =
        "d=$(skopeo inspect --raw --tls-verify=false docker://$0 | jq -r '.layers[0].digest')
                echo ${d#sha256:}";
    let digest = host.check(&["sh", "-c", blob, &image]).unwrap();
    let digest = digest.trim();
    // The time in the gzip header: everything unpacks as before, only the digest is another.
    let blobs = "/var/lib/registry/docker/registry/v2/blobs/sha256";
    let spoil = format!(
        "printf '\\1' | dd of={blobs}/{}/{digest}/data bs=1 seek=4 conv=notrunc status=none",
        &digest[..2]
    );
    host.check_sh(&spoil).unwrap();
    let pulled = ctr.try_pull(&image, "xebec").unwrap();
    assert!(!pulled.success(), "{pulled:?}");
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("digest mismatch") && log.contains(digest),
        "{log}"
    );
    let left = host
        .check_sh("ls -R /var/lib/xebec-snapshotter/lazy/blobs")
        .unwrap();
    assert!(!left.contains(digest), "{left}");
}

#[test]
fn a_node_may_leave_ordinary_images_to_containerd() {
    let options = HostOptions::default().file(
        "/etc/xebec/snapshotter.toml",
        "[lazy]\nplain = \"off\"\n".to_owned(),
    );
    let host = NativeHost::start(options).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("busybox").unwrap();
    ctr.pull(&image, "xebec").unwrap();
    let ran = ctr
        .run(Stack::XEBEC, &image, "plain", &["echo", "hello"])
        .unwrap();
    assert_eq!(ran.stdout.trim(), "hello", "{ran:?}");
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("not lazy: an ordinary layer"), "{log}");
}

#[test]
fn an_image_with_an_index_beside_it_starts_from_a_part_of_its_own_layers() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let indexed = image.replace(":v1", ":indexed");
    let convert = [
        "xebec-snapshotter",
        "image",
        "convert",
        "--to",
        "index",
        &image,
        &indexed,
    ];
    host.check(&convert).unwrap();
    // The same layers and the same configuration: the image has its ID.
    let parts = "skopeo inspect --raw --tls-verify=false docker://$0 | jq -c '[.config.digest, .layers[].digest]'";
    let parts = |image: &str| host.check(&["sh", "-c", parts, image]).unwrap();
    assert_eq!(parts(&image), parts(&indexed));

    let (link, remote) = host.through_link(&indexed, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let version = ["redis-server", "--version"];
    let ran = ctr.run(Stack::XEBEC, &remote, "start", &version).unwrap();
    assert!(ran.stdout.contains("Redis server"), "{ran:?}");
    let started = link.counters().down;
    let layers = "skopeo inspect --tls-verify=false docker://$0 | jq '[.LayersData[].Size] | add'";
    let layers = host.check(&["sh", "-c", layers, &image]).unwrap();
    let layers: u64 = layers.trim().parse().unwrap();
    assert!(
        started * 2 < layers,
        "{started} bytes for a start, layers of {layers}"
    );

    let ours = describe(&host, Stack::XEBEC, &remote, "ours");
    ctr.pull(&image, "overlayfs").unwrap();
    let theirs = describe(&host, OVERLAYFS, &image, "theirs");
    assert_same(&ours, &theirs, 4000);
}

#[test]
fn an_image_cannot_give_its_layer_the_name_of_another_images() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("busybox").unwrap();
    host.check(&["bash", "-c", MAKE_FORGED, "forged", Service::REGISTRY])
        .unwrap();
    let forged = format!("{}/forged:v1", Service::REGISTRY);
    let error = ctr.pull(&forged, "xebec").unwrap_err().to_string();
    assert!(error.contains("diff"), "{error}");
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("gives the layer another diff ID"), "{log}");
    ctr.pull(&image, "xebec").unwrap();
    let output = ctr.run(Stack::XEBEC, &image, "honest", &["echo", "honest"]);
    assert_eq!(output.unwrap().stdout.trim(), "honest");
}
