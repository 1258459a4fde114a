//! Lazy pulling: what is fetched, that it is right, and what happens when it cannot be.

use integration::ctr::{Ctr, Stack};
use integration::demo::FORGET;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use integration::proxy::{Proxy, Shape};

/// Reads every file of a container's image to the end, or up to the first error.
const READ_ALL: &str =
    "find / -xdev -type f | while read -r f; do cat \"$f\" > /dev/null || exit 1; done";

/// Everything there is to know of a tree: metadata, then contents.
const DESCRIBE: &str = "cd / && find . -mindepth 1 -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' \
                        ! -path './run*' ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        \\( -type d -printf '%p %y %m %U %G %T@\\n' \
                        -o -printf '%p %y %m %U %G %T@ %n %l\\n' \\) | sort; \
                        find . -xdev -type f ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        -exec sha256sum {} + | sort -k2";

fn host_with(options: HostOptions) -> NativeHost {
    NativeHost::start(options).expect("a native host starts")
}

#[test]
fn a_lazy_start_fetches_less_than_half_and_every_file_is_right() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let lazy = host.convert(&image).unwrap();

    let (link, remote) = host.through_link(&lazy, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let ran = ctr.run(Stack::XEBEC, &remote, "start", &[]).unwrap();
    assert!(ran.success(), "{ran:?}");
    let started = link.counters().down;

    let (full_link, full_remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&full_remote, "overlayfs").unwrap();
    let full = full_link.counters().down;
    assert!(
        started * 2 < full,
        "{started} bytes for a start, {full} for a full pull"
    );

    let describe = ["sh", "-c", DESCRIBE];
    let ours = ctr.run(Stack::XEBEC, &remote, "ours", &describe).unwrap();
    let overlayfs = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let theirs = ctr
        .run(overlayfs, &full_remote, "theirs", &describe)
        .unwrap();
    assert!(
        ours.success() && theirs.success(),
        "{} {}",
        ours.stderr,
        theirs.stderr
    );
    assert!(
        ours.stdout.lines().count() > 2000,
        "the walk is too short:\n{}",
        ours.stdout
    );
    let mut lines = ours.stdout.lines().zip(theirs.stdout.lines());
    assert_eq!(lines.find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.stdout.len(), theirs.stdout.len());

    // What has been read once is local: the registry is not needed any more.
    link.cut();
    let again = ctr.run(Stack::XEBEC, &remote, "again", &describe).unwrap();
    assert_eq!(again.stdout, ours.stdout);
}

#[test]
fn registries_with_tls_and_with_a_password_serve_lazy_layers() {
    let credentials = base64(&format!("{}:{}", Service::USER, Service::PASSWORD));
    let docker = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"{credentials}\"}}}}}}",
        Service::PRIVATE_REGISTRY
    );
    let options = HostOptions::with(&[
        Service::Registry,
        Service::TlsRegistry,
        Service::PrivateRegistry,
        Service::Snapshotter,
        Service::Containerd,
    ])
    .file("/root/.docker/config.json", docker);
    let host = host_with(options);
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let lazy = host.convert(&image).unwrap();
    let user = format!("{}:{}", Service::USER, Service::PASSWORD);
    for (registry, user) in [
        (Service::TLS_REGISTRY, None),
        (Service::PRIVATE_REGISTRY, Some(user.as_str())),
    ] {
        let image = lazy.replacen(Service::REGISTRY, registry, 1);
        let mut pull = vec!["images", "pull", "--hosts-dir", "/etc/containerd/certs.d"];
        pull.extend(user.map(|user| ["--user", user]).into_iter().flatten());
        pull.extend(["--snapshotter", "xebec", &image]);
        ctr.check(&pull).unwrap();
        let read = ctr
            .run(Stack::XEBEC, &image, "c", &["sh", "-c", READ_ALL])
            .unwrap();
        assert!(
            read.success() && read.stderr.is_empty(),
            "{registry}: {read:?}"
        );
        // The layers of the next registry are the same: they must come from there.
        ctr.check(&["images", "rm", "--sync", &image]).unwrap();
    }

    // The converter resolves the same credentials, and says so when they are wrong.
    let private = lazy.replacen(Service::REGISTRY, Service::PRIVATE_REGISTRY, 1);
    let copy = private.replacen(":lazy", ":again", 1);
    host.check(&["xebec-snapshotter", "image", "convert", &private, &copy])
        .unwrap();
    let wrong = base64("xebec:wrong");
    let docker = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"{wrong}\"}}}}}}",
        Service::PRIVATE_REGISTRY
    );
    host.write_file("/root/.docker/config.json", docker)
        .unwrap();
    let refused = host
        .run(&["xebec-snapshotter", "image", "convert", &private, &copy])
        .unwrap();
    assert_one_clear_error(&refused, &[Service::PRIVATE_REGISTRY, "401"]);
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[track_caller]
fn assert_one_clear_error(output: &integration::command::Output, names: &[&str]) {
    assert_eq!(output.status, 1, "{output:?}");
    assert_eq!(
        output.stderr.lines().count(),
        1,
        "one line, please: {}",
        output.stderr
    );
    for name in names {
        assert!(
            output.stderr.contains(name),
            "{name} is not named in {}",
            output.stderr
        );
    }
}

#[test]
fn what_cannot_be_pulled_is_named_and_leaves_nothing() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let before = Inventory::of(&host).unwrap();
    let absent = format!("{}/nothere:v1", Service::REGISTRY);
    let unreachable = "127.0.0.1:9/redis:v1";
    for (image, says) in [(absent.as_str(), "not found"), (unreachable, "refused")] {
        let pulled = ctr.try_pull(image, "xebec").unwrap();
        assert!(
            !pulled.success() && pulled.stderr.contains(says),
            "{pulled:?}"
        );
        let target = format!("{}/x:v1", Service::REGISTRY);
        let converted = host
            .run(&["xebec-snapshotter", "image", "convert", image, &target])
            .unwrap();
        let registry = image.split('/').next().unwrap_or_default();
        assert_one_clear_error(&converted, &[registry]);
    }
    let bad = host
        .run(&["xebec-snapshotter", "image", "convert", "No Image", "x"])
        .unwrap();
    assert!(
        !bad.success() && bad.stderr.contains("\"No Image\""),
        "{bad:?}"
    );
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn a_registry_that_dies_in_the_middle_of_a_read_means_eio_until_it_is_back() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    ctr.start(Stack::XEBEC, &remote, "c", &["sleep", "1000"])
        .unwrap();
    let whole = ctr
        .exec("c", &["sh", "-c", "wc -c < /usr/bin/redis-server"])
        .unwrap();

    // The tools and the list are here before the cut: only what they read is not.
    let prepare = "find / -xdev -type f > /tmp/list; cat /dev/null";
    let prepared = ctr.exec("c", &["sh", "-c", prepare]).unwrap();
    assert!(prepared.success(), "{prepared:?}");
    let read_list = "while read -r f; do cat \"$f\" > /dev/null || exit 1; done < /tmp/list";
    link.cut_after(1 << 20);
    let read = ctr.exec("c", &["sh", "-c", read_list]).unwrap();
    assert!(
        !read.success() && read.stderr.contains("Input/output error"),
        "{read:?}"
    );
    assert_eq!(
        ctr.exec("c", &["sh", "-c", "echo alive"]).unwrap().stdout,
        "alive\n"
    );

    // Once it is known to be dead nobody waits for it: these take their 30 s each otherwise, which
    // is more than the limit of all commands here.
    let fail_often = "n=0; while read -r f; do cat \"$f\" > /dev/null 2>&1 || n=$((n+1))
                      [ $n -lt 20 ] || break; done < /tmp/list; echo $n";
    let failed = ctr.exec("c", &["sh", "-c", fail_often]).unwrap();
    assert_eq!(failed.stdout, "20\n", "{failed:?}");
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("does not answer") && log.contains(&last_layer(&host, &image)),
        "{log}"
    );

    // It is asked again now and then, without anyone's help.
    link.restore();
    let come_back = format!("until ({READ_ALL}) 2> /dev/null; do sleep 1; done; {READ_ALL}");
    let read = ctr.exec("c", &["sh", "-c", &come_back]).unwrap();
    assert!(
        read.success() && read.stderr.is_empty(),
        "after the registry's return: {read:?}"
    );
    let again = ctr
        .exec("c", &["sh", "-c", "wc -c < /usr/bin/redis-server"])
        .unwrap();
    assert_eq!(again.stdout, whole.stdout);
    ctr.remove("c").unwrap();
}

/// Path of a blob in the registry's own storage.
fn blob_file(digest: &str) -> String {
    let hex = digest.trim().trim_start_matches("sha256:");
    format!(
        "/var/lib/registry/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    )
}

/// Digest of the last, and largest, layer of an image in the plain registry.
fn last_layer(host: &NativeHost, image: &str) -> String {
    let inspect = format!(
        "skopeo inspect --raw --tls-verify=false docker://{image} | jq -r '.layers[-1].digest'"
    );
    host.check_sh(&inspect).unwrap().trim().to_owned()
}

#[test]
fn a_chunk_with_another_digest_is_eio_and_never_wrong_bytes() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let ordinary = host.push("redis").unwrap();
    let image = host.convert(&ordinary).unwrap();
    ctr.pull(&ordinary, "overlayfs").unwrap();
    let describe = [
        "sh",
        "-c",
        "find / -xdev -type f -exec sha256sum {} + | sort -k2",
    ];
    let overlayfs = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let right = ctr
        .run(overlayfs, &ordinary, "right", &describe)
        .unwrap()
        .stdout;

    // One byte in every 64 KiB of the middle of the layer is turned.
    let file = host.path(blob_file(&last_layer(&host, &image)));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 4..bytes.len() / 2;
    for position in middle.step_by(64 << 10) {
        bytes[position] ^= 0xff;
    }
    std::fs::write(&file, bytes).unwrap();

    ctr.pull(&image, "xebec").unwrap();
    let read = ctr.run(Stack::XEBEC, &image, "spoilt", &describe).unwrap();
    assert!(
        read.stderr.contains("Input/output error"),
        "{}",
        read.stderr
    );
    let sums = read.stdout.lines().filter(|line| !line.contains(" /etc/"));
    let wrong: Vec<_> = sums.filter(|line| !right.contains(*line)).collect();
    assert!(wrong.is_empty(), "wrong bytes were read: {wrong:#?}");
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("digest"),
        "the log does not name the digest: {log}"
    );
}

#[test]
fn a_truncated_toc_is_refused_or_the_layer_is_pulled_whole() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    // The layer's end, where its table of contents is, is cut off in a copy whose manifest agrees.
    let script = format!(
        "skopeo copy -q --src-tls-verify=false docker://{image} dir:/tmp/cut && cd /tmp/cut
         old=$(jq -r '.layers[-1].digest' manifest.json); file=${{old#sha256:}}
         size=$(($(stat -c %s $file) - 1500)); truncate -s $size $file
         new=$(sha256sum $file | cut -d' ' -f1); mv $file $new
         jq \".layers[-1].digest = \\\"sha256:$new\\\" | .layers[-1].size = $size\" manifest.json > m
         mv m manifest.json
         skopeo copy -q --dest-tls-verify=false dir:/tmp/cut docker://{}/redis:cut
         echo $new",
        Service::REGISTRY
    );
    let digest = host.check_sh(&script).unwrap();
    let cut = format!("{}/redis:cut", Service::REGISTRY);
    let pulled = ctr.try_pull(&cut, "xebec").unwrap();
    // Cut short, it is no gzip stream either: an ordinary pull has to fail too, and clearly.
    assert!(
        !pulled.success(),
        "a layer without its end was taken: {pulled:?}"
    );
    assert!(
        pulled.stderr.contains("unexpected EOF") || pulled.stderr.contains(digest.trim()),
        "{pulled:?}"
    );
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains(digest.trim()),
        "the log does not say why it is not lazy: {log}"
    );
    let snapshots = ctr
        .check(&["snapshots", "--snapshotter", "xebec", "ls"])
        .unwrap();
    assert!(
        !snapshots.contains("extract-"),
        "an unfinished snapshot stayed: {snapshots}"
    );
}

#[test]
fn a_full_disk_means_eio_and_a_clear_log() {
    let mut options = HostOptions::default();
    options
        .services
        .retain(|service| *service == Service::Registry);
    let host = host_with(options);
    host.check_sh(
        "mkdir -p /var/lib/xebec-snapshotter && \
         mount -t tmpfs -o size=32m tmpfs /var/lib/xebec-snapshotter",
    )
    .unwrap();
    host.start_services(&[Service::Snapshotter, Service::Containerd])
        .unwrap();
    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    ctr.pull(&image, "xebec").unwrap();
    ctr.start(Stack::XEBEC, &image, "c", &["sleep", "1000"])
        .unwrap();
    // Whichever program of the pipeline meets the full disk says so; the status is the last one's.
    let read = ctr.exec("c", &["sh", "-c", READ_ALL]).unwrap();
    assert!(read.stderr.contains("Input/output error"), "{read:?}");
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("No space left on device"), "{log}");

    host.check_sh("mount -o remount,size=1g /var/lib/xebec-snapshotter")
        .unwrap();
    let read = ctr.exec("c", &["sh", "-c", READ_ALL]).unwrap();
    assert!(
        read.success() && read.stderr.is_empty(),
        "after space was made: {read:?}"
    );
    ctr.remove("c").unwrap();
}

#[test]
fn what_one_node_has_read_first_the_next_fetches_before_it_is_asked() {
    let host = host_with(HostOptions::default());
    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    let read = ["sh", "-c", "cat /usr/bin/redis-server | sha256sum"];
    let (_link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let first = ctr.run(Stack::XEBEC, &remote, "first", &read).unwrap();
    assert!(first.success(), "{first:?}");

    // A node that has seen nothing but the profile.
    let node = [Service::Containerd, Service::Snapshotter];
    for service in node {
        host.stop(service).unwrap();
    }
    let profile = "xebec-snapshotter profile";
    let carry = format!(
        "{profile} export -o /tmp/profile.json {image}; \
         {FORGET}; {profile} import /tmp/profile.json"
    );
    host.check_sh(&carry).unwrap();
    host.start_services(&node).unwrap();
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    wait_until_quiet(&link);
    // All that the container needs is here: it starts without a registry.
    link.cut();
    let second = ctr.run(Stack::XEBEC, &remote, "second", &read).unwrap();
    assert!(
        second.success(),
        "{second:?}\n{}",
        host.log(Service::Snapshotter)
    );
    assert_eq!(second.stdout, first.stdout);

    let absent = host
        .run(&[
            "xebec-snapshotter",
            "profile",
            "export",
            &format!("{}/x:v1", Service::REGISTRY),
        ])
        .unwrap();
    assert_one_clear_error(&absent, &["/x", "not found"]);
    host.check_sh("echo '{}' > /tmp/forged.json").unwrap();
    let forged = host
        .run(&["xebec-snapshotter", "profile", "import", "/tmp/forged.json"])
        .unwrap();
    assert_one_clear_error(&forged, &["/tmp/forged.json"]);
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
fn what_was_fetched_is_told_and_the_rest_of_an_image_is_fetched_by_command() {
    let host = host_with(HostOptions::default());
    let config = host.check_sh("cat /etc/xebec/snapshotter.toml").unwrap();
    let metrics = "\n[metrics]\naddress = \"127.0.0.1:9110\"\n";
    host.write_file("/etc/xebec/snapshotter.toml", config + metrics)
        .unwrap();
    let node = [Service::Containerd, Service::Snapshotter];
    for service in node {
        host.stop(service).unwrap();
    }
    host.start_services(&node).unwrap();

    let ctr = Ctr::new(&host);
    let image = host.convert(&host.push("redis").unwrap()).unwrap();
    let (link, remote) = host.through_link(&image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    ctr.start(Stack::XEBEC, &remote, "c", &["sleep", "1000"])
        .unwrap();
    let shown = host
        .check_sh("curl -sf http://127.0.0.1:9110/metrics")
        .unwrap();
    let has = |start: &str, end: &str| {
        let mut lines = shown.lines();
        lines.any(|line| line.starts_with(start) && !line.ends_with(end))
    };
    let fetched = format!("xebec_fetched_bytes_total{{image=\"{remote}\"");
    assert!(has(&fetched, "for=\"read\"} 0"), "{shown}");
    assert!(has("xebec_cold_reads_total{", "} 0"), "{shown}");
    let registry = format!("xebec_registry_state{{host=\"{}\"}} 0", link.address());
    assert!(shown.contains(&registry), "{shown}");
    let status = host.check(&["xebec-snapshotter", "status"]).unwrap();
    let answers = format!("{}  answers", link.address());
    assert!(status.contains(&answers), "{status}");

    let prefetch = ["xebec-snapshotter", "prefetch", "--format", "json", &remote];
    let told = host.check(&prefetch).unwrap();
    link.cut();
    host.write_file("/tmp/prefetched", &told).unwrap();
    let told = host.check_sh(
        "jq -c '[.image, (.layers | length), (.layers | all(.local_bytes >= .data_bytes))]' /tmp/prefetched
         as_they_are='.layers[] | {digest, data_bytes, blob_bytes, inodes}'
         jq -c \"$as_they_are\" /tmp/prefetched > /tmp/layers
         xebec-snapshotter status --format json | jq -c \"$as_they_are\" | grep -cFxf /tmp/layers",
    );
    assert_eq!(told.unwrap(), format!("[\"{remote}\",2,true]\n2\n"));
    let read = ctr.exec("c", &["sh", "-c", READ_ALL]).unwrap();
    assert!(read.success() && read.stderr.is_empty(), "{read:?}");
    let absent = format!("{}/busybox:v1", Service::REGISTRY);
    host.push("busybox").unwrap();
    let refused = host
        .run(&["xebec-snapshotter", "prefetch", &absent])
        .unwrap();
    assert_one_clear_error(&refused, &["busybox", "not found"]);
    ctr.remove("c").unwrap();
}
