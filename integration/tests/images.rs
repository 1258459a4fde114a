//! `image convert` from and to archives and containerd, what other tools make of them, and what
//! `image inspect` says of images.

use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::Shape;

/// `describe DIR` tells everything there is to know of a tree, but not what eStargz adds to it; `api`
/// speaks to dockerd, whose own command Debian packs apart.
const TOOLS: &str = r#"set -e
mkdir -p /var/lib/story && cd /var/lib/story
describe() {
    cd "$1"
    find . -mindepth 1 ! -name .no.prefetch.landmark ! -name .prefetch.landmark ! -name stargz.index.json \
        \( -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %T@ %n %l\n' \) | sort
    find . -type f ! -name .no.prefetch.landmark ! -name .prefetch.landmark ! -name stargz.index.json \
        -exec sha256sum {} + | sort -k2
    cd - > /dev/null
}
same() { cmp $1 $2 || { diff $1 $2 | head -5; echo "$2 differs"; exit 1; }; echo "$2 is right"; }
api() {
    method=$1; path=$2; shift 2
    curl -sf --max-time 60 --unix-socket /run/docker.sock -X $method "$@" http://docker/v1.44$path
}
docker_up() {
    dockerd --iptables=false --ip6tables=false --bridge=none > dockerd.log 2>&1 & dockerd=$!
    until api GET /_ping > /dev/null; do sleep 0.1; done
}
docker_load() {
    api POST '/images/load?quiet=1' -H 'Content-Type: application/x-tar' --data-binary @$1 | grep -q Loaded
}
podman_describe() { describe $(podman image mount $1); }
convert() { xebec-snapshotter image convert "$@" > /dev/null; }
"#;

fn tell(host: &NativeHost, script: &str) -> String {
    let output = host.sh(&format!("{TOOLS}{script}")).expect("a script runs");
    assert!(output.success(), "{}\n{}", output.stdout, output.stderr);
    output.stdout
}

#[test]
fn archives_of_docker_and_podman_are_converted_and_docker_podman_and_containerd_load_the_result() {
    let services = [Service::Containerd, Service::Snapshotter];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let told = tell(
        &host,
        r#"
docker_up
skopeo copy -q oci:/srv/corpus/busybox:busybox docker-daemon:busybox:v1
api GET /images/busybox:v1/get > docker.tar
podman pull -q oci:/srv/corpus/busybox:busybox > /dev/null
podman save -q --format docker-archive -o podman.tar $(podman images -q)
podman_describe $(podman images -q) > source

convert docker-archive:docker.tar docker-archive:stargz.tar:busybox:stargz --to estargz
convert docker-archive:podman.tar docker-archive:chunked.tar:h.test/busybox:chunked --to zstd-chunked
# Both writers saved the same layers, compressed or not, so the images are the same too.
gzip -1 < docker.tar > docker.tar.gz
convert docker-archive:docker.tar.gz:busybox:v1 oci-archive:from-docker.tar:v1 --to zstd-chunked
convert docker-archive:podman.tar oci-archive:from-podman.tar:v1 --to zstd-chunked
cmp from-docker.tar from-podman.tar && echo "docker's and podman's give the same"

docker_load stargz.tar; docker_load chunked.tar
ids() { api GET /images/$1/json | jq -c .RootFS.Layers; }
[ "$(ids h.test/busybox:chunked)" = "$(ids busybox:v1)" ] && echo "docker: diff IDs are kept"
[ "$(ids busybox:stargz)" = "$(skopeo inspect --config docker-archive:stargz.tar | jq -c .rootfs.diff_ids)" ] \
    && echo "docker: diff IDs are right"
kill $dockerd; wait $dockerd || true

podman load -q -i stargz.tar > /dev/null; podman load -q -i chunked.tar > /dev/null
podman_describe docker.io/library/busybox:stargz > by-podman-stargz; same source by-podman-stargz
podman_describe h.test/busybox:chunked > by-podman-chunked; same source by-podman-chunked

# containerd takes the layout in docker's archive, with the annotations that make layers lazy.
ctr images import --snapshotter overlayfs stargz.tar > /dev/null
ctr images mount --snapshotter overlayfs docker.io/library/busybox:stargz /mnt > /dev/null
describe /mnt > by-containerd; ctr images unmount /mnt > /dev/null; same source by-containerd
manifest=$(ctr images ls name==docker.io/library/busybox:stargz | awk 'END {print $3}')
ctr content get $manifest | grep -c stargz/toc.digest
ctr images import --snapshotter overlayfs --base-name h.test/oci from-docker.tar > /dev/null
ctr images mount --snapshotter overlayfs h.test/oci:v1 /mnt > /dev/null
describe /mnt > by-containerd-oci; ctr images unmount /mnt > /dev/null; same source by-containerd-oci
ls -A | tr '\n' ' '

# eStargz by its specification and ordinary tools: the footer, the TOC, the digest of every chunk.
mkdir layout && tar -xf stargz.tar -C layout && cd layout/blobs/sha256
manifest=$(jq -r '.manifests[0].digest' ../../index.json)
jq -r '.layers[0] | .digest + " " + .annotations["containerd.io/snapshot/stargz/toc.digest"]' \
    ${manifest#sha256:} > ../line
read layer toc < ../line; blob=${layer#sha256:}
footer=$(tail -c 51 $blob | head -c 38 | tail -c 22); echo; echo ${footer#????????????????}
offset=$((0x${footer%STARGZ}))
tail -c +$((offset + 1)) $blob | head -c -51 | gunzip | tar -xO > ../toc
[ $toc = sha256:$(sha256sum < ../toc | cut -c -64) ] && echo "the footer leads to the TOC"
jq -r '([.entries[] | select(.type == "reg") | {(.name): (.size // 0)}] | add) as $sizes
    | .entries[] | select(.chunkDigest) | "\(.offset) \(.innerOffset // 0) " +
    "\(if (.chunkSize // 0) > 0 then .chunkSize else $sizes[.name] - (.chunkOffset // 0) end) \(.chunkDigest)"' \
    ../toc > ../chunks
while read offset inner length digest; do
    tail -c +$((offset + 1)) $blob | gunzip 2>/dev/null | tail -c +$((inner + 1)) | head -c $length |
        sha256sum | grep -q ${digest#sha256:} || echo "$digest is wrong"
done < ../chunks
[ $(wc -l < ../chunks) -gt 5 ] && echo "every chunk was looked at"
"#,
    );
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "docker's and podman's give the same",
            "docker: diff IDs are kept",
            "docker: diff IDs are right",
            "by-podman-stargz is right",
            "by-podman-chunked is right",
            "by-containerd is right",
            "1",
            "by-containerd-oci is right",
            "by-containerd by-containerd-oci by-podman-chunked by-podman-stargz chunked.tar docker.tar \
             docker.tar.gz dockerd.log from-docker.tar from-podman.tar podman.tar source stargz.tar ",
            "STARGZ",
            "the footer leads to the TOC",
            "every chunk was looked at",
        ]
    );
}

#[test]
fn a_conversion_that_is_interrupted_or_fails_leaves_nothing() {
    let host = NativeHost::start(HostOptions::bare()).expect("a native host starts");
    let told = tell(
        &host,
        r#"
until_there() { until [ -n "$(find $1 -type f 2>/dev/null)" ]; do sleep 0.05; done; }
interrupted() {
    mkdir out
    xebec-snapshotter image convert oci:/srv/corpus/python3-numpy $1 2> errors & pid=$!
    until_there out; kill -$2 $pid
    wait $pid && status=0 || status=$?
    echo "$status, left: $(find out -mindepth 1 | wc -l), $(tail -1 errors)"
    rm -r out
}
interrupted oci-archive:out/x.tar INT
interrupted oci:out/deep/layout TERM
mkdir out spoilt; cp -r /srv/corpus/busybox/. spoilt; cp -r spoilt before
for blob in spoilt/blobs/sha256/*; do
    [ $(stat -c %s $blob) -lt 100000 ] || printf x | dd of=$blob bs=1 seek=50000 conv=notrunc status=none
done
for to in oci:out/new docker-archive:out/x.tar oci:before:again; do
    convert oci:spoilt $to 2>> refused && echo "converted to $to"
done
echo "left: $(find out -mindepth 1 | wc -l)"; diff -r /srv/corpus/busybox before
grep -c 'digest mismatch' refused
"#,
    );
    let line = "xebec-snapshotter: interrupted: nothing was left behind";
    let lines: Vec<_> = told.lines().collect();
    let interrupted = |code: &str| format!("{code}, left: 0, {line}");
    let expected = [
        interrupted("130"),
        interrupted("143"),
        "left: 0".into(),
        "3".into(),
    ];
    assert_eq!(lines, expected, "{told}");
}

#[test]
fn images_in_containerd_are_converted_there_and_outlive_its_collector() {
    let services = [Service::Registry, Service::Containerd, Service::Snapshotter];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let image = host.push("busybox").expect("the image is pushed");
    let told = tell(
        &host,
        &format!(
            "image={image}\n{}",
            r#"
tree() { ctr $2 images mount --snapshotter overlayfs $1 /mnt > /dev/null; describe /mnt
         ctr $2 images unmount --rm --snapshotter overlayfs /mnt > /dev/null; }
collect() { ctr images tag $image collect:v1 > /dev/null; ctr images rm --sync collect:v1 > /dev/null; }
ctr images pull --hosts-dir /etc/containerd/certs.d --snapshotter overlayfs $image > /dev/null
tree $image > source
convert containerd:$image containerd:h.test/stargz:v1
convert containerd:$image containerd:h.test/stargz:v1
convert containerd:$image containerd:h.test/chunked:v1 --to zstd-chunked
convert oci:/srv/corpus/busybox containerd:h.test/other:v1 --namespace other
collect
echo "leases: $(ctr leases ls -q | wc -l)"
for name in stargz chunked; do tree h.test/$name:v1 > $name; same source $name; done
tree h.test/other:v1 "-n other" > other; same source other
convert containerd:h.test/stargz:v1 oci-archive:again.tar
skopeo inspect --raw oci-archive:again.tar | sha256sum | cut -c -64 > digest
ctr images ls name==h.test/stargz:v1 | grep -c $(cat digest)

convert containerd:h.test/nothere:v1 oci:out 2>&1 || true
convert containerd:$image oci:out --containerd-address /nowhere.sock 2>&1 || true
convert containerd:$image containerd:x --to index 2>&1 || true
echo $(ls)

# What an interrupted conversion has stored goes with its lease.
ctr content ls -q | sort > before
skopeo copy -q oci:/srv/corpus/redis oci:big
xebec-snapshotter image convert oci:big containerd:h.test/big:v1 2> errors & pid=$!
until [ "$(ctr content ls -q | wc -l)" -gt "$(wc -l < before)" ]; do sleep 0.02; done
kill -INT $pid; wait $pid || echo $?
tail -1 errors
echo "leases: $(ctr leases ls -q | wc -l)"
collect; ctr content ls -q | sort > after; same before after
"#
        ),
    );
    let lines: Vec<_> = told.lines().collect();
    let says = |line: &str| format!("xebec-snapshotter: {line}");
    let expected = [
        "leases: 0".to_owned(),
        "stargz is right".into(),
        "chunked is right".into(),
        "other is right".into(),
        "1".into(),
        says("image h.test/nothere:v1 in namespace default in containerd: not found"),
        says("containerd at /nowhere.sock: unavailable: No such file or directory (os error 2)"),
        says(
            "containerd keeps no index beside an image: convert it in a registry: invalid argument",
        ),
        "again.tar chunked digest other source stargz".into(),
        "130".into(),
        says("interrupted: nothing was left behind"),
        "leases: 0".into(),
        "after is right".into(),
    ];
    assert_eq!(lines, expected, "{told}");
}

#[test]
fn inspect_tells_what_is_wasted_of_plain_and_lazy_layers_and_fetches_only_what_it_must() {
    let host = NativeHost::start(HostOptions::with(&[Service::Registry])).expect("a host starts");
    let told = tell(
        &host,
        r#"
container=$(buildah from oci:/srv/corpus/busybox:busybox); root=$(buildah mount $container)
mkdir $root/big; head -c 300000 /dev/urandom > $root/big/file; echo x > $root/small
buildah commit -q $container oci:one > /dev/null
container=$(buildah from oci:one); root=$(buildah mount $container)
rm -r $root/big; echo other > $root/small
buildah commit -q $container oci:two > /dev/null
inspect() { xebec-snapshotter image inspect --files --format json "$@"; }
inspect oci:two > plain
jq -c '.waste.size, (.waste.files[] | [.path, .size, .layer, .hidden_by, .how])' plain
jq '.waste.efficiency < 1 and .waste.unpacked - .waste.size == ([.files[].size] | add)' plain
jq -c '[.layers[] | [.format, .files > 0, .unpacked > 0]]' plain
for to in estargz zstd-chunked index; do
    convert oci:two oci:$to --to $to; inspect oci:$to > lazy
    jq -c '[.layers[] | [.format, .chunks > 0]]' lazy
    for file in plain lazy; do jq -S '[.waste, .files, [.layers[] | .files, .unpacked]]' $file > $file.same; done
    same plain.same lazy.same
done
convert oci:two docker-archive:two.tar; inspect docker-archive:two.tar | jq -S .waste > 1
jq -S .waste plain > 2; same 2 1
xebec-snapshotter image inspect oci:two | tail -n +5
xebec-snapshotter image inspect --quick oci:two | wc -l
"#,
    );
    let lines: Vec<_> = told.lines().collect();
    let expected = [
        "300002",
        r#"["big/file",300000,1,2,"removed"]"#,
        r#"["small",2,1,2,"overwritten"]"#,
        "true",
        r#"[["tar",true,true],["tar",true,true],["tar",true,true]]"#,
        r#"[["estargz",true],["estargz",true],["estargz",true]]"#,
        "lazy.same is right",
        r#"[["zstd-chunked",true],["zstd-chunked",true],["zstd-chunked",true]]"#,
        "lazy.same is right",
        r#"[["indexed",true],["indexed",true],["indexed",true]]"#,
        "lazy.same is right",
        "1 is right",
    ];
    assert_eq!(lines[..12], expected, "{told}");
    assert!(lines[12].starts_with("wasted: 292.97 KiB of "), "{told}");
    assert!(
        lines[13].ends_with("/big/file  of layer 2, removed by layer 3"),
        "{told}"
    );
    assert_eq!(lines.last(), Some(&"4"), "{told}");

    // A layer with an index is not downloaded.
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    let (link, remote) = host.through_link(&lazy, Shape::new(0, 10_000.0)).unwrap();
    let inspect = [
        "xebec-snapshotter",
        "image",
        "inspect",
        "--plain-http",
        &remote,
    ];
    let told = host.check(&inspect).unwrap();
    assert!(told.contains("eStargz (lazy), "), "{told}");
    let fetched = link.counters().down;
    assert!(fetched < 1 << 20, "{fetched} bytes for an index");
}

const OPTIMIZE: &str = r#"
mkdir -p temp; export TMPDIR=$PWD/temp
optimize() { xebec-snapshotter image optimize --plain-http "$@"; }
left() { echo "left: $(find temp -mindepth 1 | wc -l) files, $(xebec list -q | wc -l) containers"; }
inspect() { xebec-snapshotter image inspect --format json --plain-http "$@"; }
by_profile() { xebec-snapshotter image convert --plain-http --profile profile "$@"; }
"#;

const FIRST: &str = r#"
optimize $image $image-fast --list-output list --profile-output profile > /dev/null 2> log; left
grep -xE 'usr/(s?bin/redis-[a-z-]+|bin/redis-server)' list | head -1
grep -c 'libc.so.6$' list
[ $(wc -l < list) -lt 1000 ] && echo "a few files"
inspect --files --profile profile $image-fast > fast
jq '.start_up.size * 2 < .size, .start_up.files > 3' fast
jq -r '.files[] | select(.start_up) | .path' fast | grep -c 'libc.so.6$'
# It lies beside the image as well, and what comes first is marked in the layers themselves.
skopeo inspect --raw --tls-verify=false docker://$image-fast | jq -r '.layers[0].digest' > digest
curl -s http://127.0.0.1:5000/v2/redis/blobs/$(cat digest) | tar -tzf - | grep -n landmark
"#;

const BY_PROFILE: &str = r"
# The same again by the profile alone, into other formats.
by_profile $image-fast oci:again --to zstd-chunked --profile-output again.json > /dev/null 2>> log; left
inspect --files --profile again.json oci:again > again.out
jq '.start_up.size * 2 < .size' again.out
# There it has chunks of its own, which are packed harder.
jq -s '.[0].start_up.size < .[1].start_up.size * 0.95' again.out fast
jq -r '.files[] | select(.start_up) | .path' again.out | grep -c 'libc.so.6$'
by_profile $image-fast $image-nydus --to nydus > /dev/null 2>> log && echo nydus
by_profile oci:/srv/corpus/busybox oci:foreign 2>&1 | grep -c 'not one of oci:/srv/corpus/busybox as it is now'; left
";

const BY_LAYOUT: &str = r#"
# What the registry does not have to know: a layout, in a format that keeps its order.
optimize oci:/srv/corpus/busybox oci:out --to zstd-chunked --profile-output p \
    -- sh -c 'cat /etc/passwd' > /dev/null 2>> log; left
xebec-snapshotter image inspect --files --profile p oci:out | grep '\*' | sed 's/.*\* //' | sort | tr '\n' ' '; echo
optimize oci:/srv/corpus/busybox oci:bad -- nosuch 2>&1 | tail -1 | grep -c 'nothing is to be learnt'; left
optimize oci:/srv/corpus/busybox oci:bad --seconds 100 --ready-line 'I am' \
    -- sh -c 'echo I am ready; exec sleep 1001' > /dev/null 2>> log; left
xebec-snapshotter image optimize oci:/srv/corpus/busybox oci:worse -- sleep 1002 2> errors & pid=$!
until pgrep -f 'sleep 1002' -u root > /dev/null && [ -n "$(xebec list -q)" ]; do sleep 0.1; done
kill -INT $pid; wait $pid || echo $?; tail -1 errors; left
ls -d worse 2>&1 | grep -c 'No such file'
"#;

#[test]
fn an_image_is_optimized_by_what_a_container_of_it_reads_and_nothing_is_left_of_the_trial() {
    let services = [Service::Registry, Service::Containerd, Service::Snapshotter];
    let host = NativeHost::start(HostOptions::with(&services)).expect("a native host starts");
    let image = host.push("redis").expect("the image is pushed");
    // In parts, because a command has two minutes.
    let told: String = [FIRST, BY_PROFILE, BY_LAYOUT]
        .iter()
        .map(|part| tell(&host, &format!("image={image}{OPTIMIZE}{part}")))
        .collect();
    let lines: Vec<_> = told.lines().collect();
    let none = "left: 0 files, 0 containers";
    assert_eq!(lines[0], none, "{told}");
    assert!(lines[1].contains("redis"), "{told}");
    assert_eq!(
        lines[2..7],
        ["1", "a few files", "true", "true", "1"],
        "{told}"
    );
    let landmark: usize = lines[7].split(':').next().unwrap().parse().unwrap();
    assert!(
        lines[7].ends_with(".prefetch.landmark") && landmark > 5,
        "{told}"
    );
    assert_eq!(
        lines[8..15],
        [none, "true", "true", "1", "nydus", "1", none],
        "{told}"
    );
    assert_eq!(lines[15], none, "{told}");
    assert!(lines[16].contains("/bin/busybox /etc/passwd"), "{told}");
    let interrupted = "xebec-snapshotter: interrupted: nothing was left behind";
    let expected = ["1", none, none, "130", interrupted, none, "1"];
    assert_eq!(lines[17..], expected, "{told}");
}

/// Everything in a tree but the times of what is written while it is looked at.
const TREE: &str = "cd $1 && find . -mindepth 1 -printf '%p %y %m %U %G %l\\n' | sort && \
                    find . -type f -exec sha256sum {} + | sort -k2";

#[test]
fn an_image_is_mounted_by_command_and_neither_containerd_nor_a_killed_daemon_takes_it_away() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let tree = |dir: &str| host.check(&["sh", "-ec", TREE, "sh", dir]).unwrap();
    let image = host.push("redis").unwrap();
    let lazy = host.convert(&image).unwrap();
    host.check_sh("mkdir -p /srv/image /srv/other").unwrap();

    let mount = ["xebec-snapshotter", "image", "mount"];
    host.check(&[&mount[..], &[&lazy, "/srv/image"]].concat())
        .unwrap();
    host.check(&[&mount[..], &[&lazy, "/srv/image"]].concat())
        .expect("it is there already");
    let ctr = integration::ctr::Ctr::new(&host);
    ctr.pull(&image, "overlayfs").unwrap();
    ctr.check(&["images", "mount", &image, "/srv/other"])
        .unwrap();
    let first = tree("/srv/image");
    assert!(first.lines().count() > 2000, "{first}");
    assert_eq!(first, tree("/srv/other"), "{}", host.logs());

    // containerd removes whatever it finds in a snapshotter and knows nothing of.
    ctr.pull(&lazy, "xebec").unwrap();
    ctr.check(&["images", "rm", "--sync", &lazy]).unwrap();
    host.kill(Service::Snapshotter).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
    ctr.check(&["content", "prune", "references"]).unwrap();
    assert_eq!(first, tree("/srv/image"), "{}", host.logs());

    let busybox = host.push("busybox").unwrap();
    let other = host.run(&[&mount[..], &[&busybox, "/srv/image"]].concat());
    let other = other.unwrap();
    assert!(
        !other.success()
            && other
                .stderr
                .contains("another image is mounted at /srv/image"),
        "{other:?}"
    );
    let unmount = ["xebec-snapshotter", "image", "unmount", "/srv/image"];
    host.check(&unmount).unwrap();
    let again = host.run(&unmount).unwrap();
    assert!(
        !again.success()
            && again
                .stderr
                .contains("image mounted at /srv/image: not found"),
        "{again:?}"
    );
    let status = host.check(&["xebec-snapshotter", "status", "--format", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status.unwrap()).unwrap();
    assert_eq!(
        status["snapshots"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    assert_eq!(tree("/srv/image"), "", "nothing is mounted");
    ctr.check(&["images", "unmount", "--rm", "/srv/other"])
        .unwrap();
}
