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

/// Converts a corpus image in the registry to one in the repository `to`, with further `flags`; the
/// references of both.
fn convert(host: &NativeHost, name: &str, to: &str, flags: &str) -> (String, String) {
    let image = host.push(name).expect("the image is pushed");
    let converted = format!("{}/{to}:nydus", Service::REGISTRY);
    let script = format!(
        "xebec-snapshotter image convert --plain-http {image} {converted} --to nydus {flags}"
    );
    host.check_sh(&script).expect("the image is converted");
    (image, converted)
}

#[test]
fn a_converted_image_runs_lazily_by_the_kernel_and_every_file_is_right() {
    every_file_is_right("kernel", "redis", "");
}

#[test]
fn a_converted_image_runs_lazily_by_fuse_and_every_file_is_right() {
    every_file_is_right("fuse", "redis", "");
}

#[test]
fn an_image_whose_gzip_layers_stay_as_they_are_runs_lazily_by_the_kernel_and_every_file_is_right() {
    every_file_is_right("kernel", "redis-apart", "--oci-ref");
}

#[test]
fn an_image_whose_gzip_layers_stay_as_they_are_runs_lazily_by_fuse_and_every_file_is_right() {
    every_file_is_right("fuse", "redis-apart", "--oci-ref");
}

fn every_file_is_right(mount: &str, to: &str, flags: &str) {
    let config = format!("mount = \"{mount}\"\n");
    let options = HostOptions::default().file("/etc/xebec/snapshotter.toml", &config);
    let host = NativeHost::start(options).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let (image, converted) = convert(&host, "redis", to, flags);
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
fn layers_that_stay_as_they_are_keep_their_digests_and_get_a_bootstrap_without_fault() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let script = r#"cd /tmp
        blob() { echo $1/blobs/sha256/${2#sha256:}; }
        for out in out again; do
            xebec-snapshotter image convert oci:/srv/corpus/redis oci:/tmp/$out --to nydus --oci-ref
        done
        diff -r out again && echo the same again
        source=$(jq -r .manifests[0].digest /srv/corpus/redis/index.json)
        manifest=$(blob out $(jq -r .manifests[0].digest out/index.json))
        test $(jq -r .subject.digest $manifest) = $source
        cmp $(blob out $source) $(blob /srv/corpus/redis $source)
        jq -r .layers[].digest $(blob out $source) > layers
        jq -r '.layers[].annotations["containerd.io/snapshot/nydus-ref"] // empty' $manifest | diff - layers
        for layer in $(cat layers); do cmp $(blob out $layer) $(blob /srv/corpus/redis $layer); done && echo unchanged
        tar -xzf $(blob out $(jq -r .layers[-1].digest $manifest))
        for device in one two; do truncate -s 1G $device; done
        fsck.erofs --device=one --device=two image/image.boot
        dump.erofs --device=one --device=two --path=/usr/bin/redis-server image/image.boot"#;
    let output = host
        .check_sh(&format!("set -e; {script}"))
        .expect("all is as it must be");
    let lines: Vec<&str> = output.lines().collect();
    assert!(
        lines.contains(&"the same again") && lines.contains(&"unchanged"),
        "{output}"
    );
    assert!(output.contains("Path : /usr/bin/redis-server"), "{output}");
}

#[test]
fn a_layer_that_is_not_packed_by_gzip_cannot_stay_as_it_is_and_nothing_is_left() {
    let host = NativeHost::start(HostOptions::bare()).expect("a native host starts");
    let script = "cd /tmp && xebec-snapshotter image convert oci:/srv/corpus/busybox oci:/tmp/zstd --to zstd-chunked > log 2>&1
        layer=$(jq -r .manifests[0].digest zstd/index.json)
        layer=$(jq -r .layers[0].digest zstd/blobs/sha256/${layer#sha256:})
        xebec-snapshotter image convert oci:/tmp/zstd oci:/tmp/out --to nydus --oci-ref 2>&1 | grep -c \"layer $layer.*gzip\"
        test ! -e out && echo nothing";
    let output = host.check_sh(script).expect("the script runs");
    assert_eq!(output, "1\nnothing\n");
}

#[test]
fn an_image_whose_chunks_lie_in_the_blobs_of_another_is_read_right() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let (_, known) = convert(&host, "redis", "redis", "");
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

/// Converts the image $1 with the flags $2, lays contents where the bootstrap says that they are,
/// mounts it by the kernel alone, and says whether that is what an ordinary unpack is.
const BY_THE_KERNEL: &str = r#"
set -e
mkdir -p /var/lib/by-the-kernel; cd /var/lib/by-the-kernel
blob() { echo out/blobs/sha256/${1#sha256:}; }
rm -rf out image device-*
xebec-snapshotter image convert oci:/srv/corpus/redis oci:out --to nydus $2
manifest=$(blob $(jq -r '.manifests[0].digest' out/index.json))
test "$2" = "" || manifest=$(blob $(jq -r '.manifests[-1].digest' out/index.json))
tar -xzf $(blob $(jq -r '.layers[-1].digest' $manifest))
truncate -s 1G device-1 device-2
mkdir -p plain boot
ctr images mount --snapshotter overlayfs $1 plain > /dev/null
(cd plain; find usr/bin etc -type f) > files
while read -r file; do
    dump.erofs -e --device=device-1 --device=device-2 --path=/$file image/image.boot |
        tr -s '.:|#' ' ' | awk -v file=$file '$NF ~ /^[12]$/ && $(NF-1) == "device" { print file, $2, $4, $5, $NF }'
done < files > extents
while read -r file from len to device; do
    dd if=plain/$file of=device-$device bs=4096 skip=$((from / 4096)) seek=$((to / 4096)) \
        count=$((len / 4096)) conv=notrunc status=none
done < extents
mount -t erofs -o ro,X-mount.noloop,device=$PWD/device-1,device=$PWD/device-2 image/image.boot boot
for tree in plain boot; do
    (cd $tree; find . -mindepth 1 \( -type d -printf '%p %y %m %U %G %T@\n' \
        -o -printf '%p %y %m %U %G %T@ %n %s %l\n' \) | sort > ../$tree.tree
     xargs sha256sum < ../files > ../$tree.sums)
done
umount boot
ctr images unmount --snapshotter overlayfs $PWD/plain > /dev/null
cut -d' ' -f5 extents | sort -u | xargs
wc -l < plain.tree
wc -l < plain.sums
diff plain.tree boot.tree >&2 && diff plain.sums boot.sums >&2 && echo the same
"#;

#[test]
fn the_kernel_itself_reads_what_is_converted_with_and_without_its_layers() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let image = host.push("redis").expect("the image is pushed");
    Ctr::new(&host).pull(&image, "overlayfs").unwrap();
    for flags in ["", "--oci-ref"] {
        let told = host.check(&["bash", "-c", BY_THE_KERNEL, "sh", &image, flags]);
        let told = told.expect("the bootstrap is read");
        let lines: Vec<&str> = told.lines().collect();
        let [.., devices, names, files, same] = lines[..] else {
            panic!("{told}");
        };
        assert_eq!((devices, same), ("1 2", "the same"), "{told}");
        let number = |text: &str| text.trim().parse::<u32>().unwrap();
        assert!(number(names) > 4000 && number(files) > 300, "{told}");
    }
}
