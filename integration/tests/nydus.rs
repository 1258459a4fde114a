//! Nydus images as `image convert --to nydus` writes them, pulled lazily.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};

/// Everything there is to know of a tree: metadata with links, then contents.
const DESCRIBE: &str = "cd / && find . -mindepth 1 -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' \
                        ! -path './run*' ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        \\( -type d -printf '%p %y %m %U %G %T@\\n' \
                        -o -printf '%p %y %m %U %G %T@ %n %l\\n' \\) | sort; \
                        find . -xdev -type f ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        -exec sha256sum {} + | sort -k2";

/// Converts a corpus image in the registry; the references of both.
fn convert(host: &NativeHost, name: &str) -> (String, String) {
    let image = host.push(name).expect("the image is pushed");
    let converted = format!("{}/{name}:nydus", Service::REGISTRY);
    let script =
        format!("xebec-snapshotter image convert --plain-http {image} {converted} --to nydus");
    host.check_sh(&script).expect("the image is converted");
    (image, converted)
}

#[test]
fn a_converted_image_runs_lazily_by_the_kernel_and_every_file_is_right() {
    every_file_is_right("kernel");
}

#[test]
fn a_converted_image_runs_lazily_by_fuse_and_every_file_is_right() {
    every_file_is_right("fuse");
}

fn every_file_is_right(mount: &str) {
    let config = format!("mount = \"{mount}\"\n");
    let options = HostOptions::default().file("/etc/xebec/snapshotter.toml", &config);
    let host = NativeHost::start(options).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let (image, converted) = convert(&host, "redis");
    ctr.pull(&converted, "xebec").unwrap();
    let describe = ["sh", "-c", DESCRIBE];
    let ours = ctr
        .run(Stack::XEBEC, &converted, "ours", &describe)
        .unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(ours.success(), "{ours:?}\n{log}");
    assert!(log.contains(&format!("by=\"{mount}\"")), "{log}");
    ctr.pull(&image, "overlayfs").unwrap();
    let stack = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let theirs = ctr.run(stack, &image, "theirs", &describe).unwrap();
    assert!(theirs.stdout.lines().count() > 500, "{theirs:?}");
    let mut lines = ours.stdout.lines().zip(theirs.stdout.lines());
    assert_eq!(lines.find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.stdout.len(), theirs.stdout.len());
}

#[test]
fn the_bootstrap_is_an_erofs_image_without_fault() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let script = "cd /tmp && xebec-snapshotter image convert oci:/srv/corpus/busybox oci:/tmp/out --to nydus
        manifest=$(jq -r .manifests[0].digest out/index.json)
        layer=$(jq -r .layers[-1].digest out/blobs/sha256/${manifest#sha256:})
        tar -xzf out/blobs/sha256/${layer#sha256:}
        dd if=/dev/zero of=device bs=1M count=64 status=none
        fsck.erofs --device=/tmp/device image/image.boot && dump.erofs --device=/tmp/device -s image/image.boot";
    let output = host.check_sh(script).expect("fsck.erofs finds no fault");
    assert!(output.contains("0xE0F5E1E2"), "{output}");
}

#[test]
fn an_image_whose_chunks_lie_in_the_blobs_of_another_is_read_right() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let (_, known) = convert(&host, "redis");
    let image = host.push("nginx").expect("the image is pushed");
    let converted = format!("{}/nginx:nydus", Service::REGISTRY);
    let script = format!(
        "xebec-snapshotter image convert --plain-http {image} {converted} --to nydus --chunk-dict {known} --format json"
    );
    let report = host.check_sh(&script).expect("the image is converted");
    let sizes =
        format!("printf %s '{report}' | jq -c '[.images[0].layers[] | .size * 10 < .source_size]'");
    // Both have the same base.
    assert_eq!(host.check_sh(&sizes).unwrap().trim(), "[true,false]");
    ctr.pull(&converted, "xebec").unwrap();
    let sum = [
        "sh",
        "-c",
        "find /bin/ /etc /usr/bin /usr/sbin -type f | sort | xargs sha256sum",
    ];
    let ours = ctr.run(Stack::XEBEC, &converted, "ours", &sum).unwrap();
    assert!(
        ours.success(),
        "{ours:?}\n{}",
        host.log(Service::Snapshotter)
    );
    ctr.pull(&image, "overlayfs").unwrap();
    let stack = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let theirs = ctr.run(stack, &image, "theirs", &sum).unwrap();
    assert!(theirs.stdout.lines().count() > 300, "{theirs:?}");
    assert_eq!(ours.stdout, theirs.stdout);
}
