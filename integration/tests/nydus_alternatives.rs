//! Ordinary images that have a Nydus form: what containerd takes for ordinary layers is read from it.

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};

/// Metadata of a tree with links, then contents of a part of it.
const DESCRIBE: &str = "cd / && find . -mindepth 1 -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' \
                        ! -path './run*' ! -path './etc/hosts' ! -path './etc/resolv.conf' \
                        \\( -type d -printf '%p %y %m %U %G %T@\\n' \
                        -o -printf '%p %y %m %U %G %T@ %n %l\\n' \\) | sort; \
                        find bin/ etc usr/bin var -xdev -type f ! -path etc/hosts ! -path etc/resolv.conf \
                        -exec sha256sum {} + | sort -k2";

/// Puts the index `$1:$4` of the images `$1:$2` and, marked as Nydus' tools do so that containerd
/// leaves it alone, `$1:$3`.
const INDEX: &str = r#"
set -e
registry=http://${1%%/*}/v2/${1#*/}
entry() {
    skopeo inspect --raw --tls-verify=false docker://$1 > /tmp/manifest
    jq -n --arg digest sha256:$(sha256sum < /tmp/manifest | cut -d' ' -f1) \
        --argjson size $(wc -c < /tmp/manifest) --slurpfile manifest /tmp/manifest --argjson more "$2" \
        '{mediaType: $manifest[0].mediaType, digest: $digest, size: $size,
          platform: {os: "linux", architecture: "amd64"}} + $more'
}
skopeo inspect --raw --tls-verify=false docker://$1:$3 |
    jq -c '.config.mediaType = "application/vnd.nydus.image.config.v1+json"' > /tmp/marked
curl -sfS -X PUT -H "Content-Type: application/vnd.oci.image.manifest.v1+json" \
    --data-binary @/tmp/marked $registry/manifests/$3
entry $1:$2 '{}' > /tmp/one
entry $1:$3 '{"artifactType": "application/vnd.nydus.image.manifest.v1+json"}' > /tmp/other
type=application/vnd.oci.image.index.v1+json
jq -n --arg type $type --slurpfile one /tmp/one --slurpfile other /tmp/other \
    '{schemaVersion: 2, mediaType: $type, manifests: ($one + $other)}' > /tmp/index
curl -sfS -X PUT -H "Content-Type: $type" --data-binary @/tmp/index $registry/manifests/$4
"#;

/// Runs a container that describes itself; what it says, line by line.
fn describe(ctr: Ctr<'_>, snapshotter: &'static str, image: &str) -> Vec<String> {
    let stack = Stack {
        snapshotter,
        ..Stack::XEBEC
    };
    let name = image.replace(['/', ':'], "-");
    let output = ctr
        .run(stack, image, &name, &["sh", "-c", DESCRIBE])
        .unwrap();
    assert!(output.success(), "{output:?}");
    let lines: Vec<_> = output.stdout.lines().map(str::to_owned).collect();
    assert!(lines.len() > 500, "{output:?}");
    lines
}

/// The image pulled in the ordinary way has the same files.
fn check(ctr: Ctr<'_>, image: &str, ours: &[String]) {
    ctr.pull(image, "overlayfs").unwrap();
    let theirs = describe(ctr, "overlayfs", image);
    let mut pairs = ours.iter().zip(&theirs);
    assert_eq!(pairs.find(|(ours, theirs)| ours != theirs), None, "{image}");
    assert_eq!(ours.len(), theirs.len(), "{image}");
}

#[test]
fn an_ordinary_image_is_read_from_the_nydus_form_that_its_index_lists() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("redis").unwrap();
    let repository = format!("{}/redis", Service::REGISTRY);
    host.check_sh(&format!(
        "xebec-snapshotter image convert --plain-http {image} {repository}:alone --to nydus"
    ))
    .unwrap();
    let both = format!("{repository}:both");
    host.check(&["sh", "-c", INDEX, "sh", &repository, "v1", "alone", "both"])
        .unwrap();
    ctr.pull(&both, "xebec").unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("has a Nydus form") && log.contains("place=\"index\""),
        "{log}"
    );
    let ours = describe(ctr, "xebec", &both);
    check(ctr, &both, &ours);
    let log = host.log(Service::Snapshotter);
    assert!(!log.contains("streamed an ordinary layer"), "{log}");

    // Another image, without such a form, has the same layer at its bottom: that was never fetched.
    let other = host.push("nginx").unwrap();
    ctr.pull(&other, "xebec").unwrap();
    let log = host.log(Service::Snapshotter);
    assert_eq!(
        log.matches("streamed an ordinary layer").count(),
        2,
        "{log}"
    );
    let ours = describe(ctr, "xebec", &other);
    check(ctr, &other, &ours);
}

#[test]
fn a_nydus_form_that_only_refers_to_the_image_is_taken_where_that_is_allowed() {
    let config =
        "mount = \"fuse\"\n[lazy]\nallow_unverified_toc = true\nnydus_tag_suffix = \".rafs\"\n";
    let options = HostOptions::default().file("/etc/xebec/snapshotter.toml", config);
    let host = NativeHost::start(options).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let tagged = host.push("busybox").unwrap();
    host.check_sh(&format!(
        "xebec-snapshotter image convert --plain-http {tagged} {tagged}.rafs --to nydus"
    ))
    .unwrap();
    ctr.pull(&tagged, "xebec").unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("place=\"tag\""), "{log}");
    let busybox = [
        "sh",
        "-c",
        "md5sum /bin/busybox; ls -ld /tmp; readlink /bin/sh",
    ];
    let ours = ctr.run(Stack::XEBEC, &tagged, "ours", &busybox).unwrap();
    ctr.pull(&tagged, "overlayfs").unwrap();
    let overlayfs = Stack {
        snapshotter: "overlayfs",
        ..Stack::XEBEC
    };
    let theirs = ctr.run(overlayfs, &tagged, "theirs", &busybox).unwrap();
    assert!(ours.success() && theirs.success(), "{ours:?} {theirs:?}");
    assert_eq!(ours.stdout, theirs.stdout);

    // With a referrer it needs no tag of its own.
    ctr.check(&["images", "rm", "--sync", &tagged]).unwrap();
    let script = r#"set -e
        type=application/vnd.oci.image.manifest.v1+json
        manifests=http://${1%%/*}/v2/busybox/manifests
        skopeo inspect --raw --tls-verify=false docker://$1 > /tmp/subject
        skopeo inspect --raw --tls-verify=false docker://$1.rafs |
            jq -c --arg digest sha256:$(sha256sum < /tmp/subject | cut -d' ' -f1) \
                --argjson size $(wc -c < /tmp/subject) \
                '.artifactType = "application/vnd.nydus.image.manifest.v1+json"
                 | .subject = {mediaType, digest: $digest, size: $size}' > /tmp/nydus
        curl -sfS -X PUT -H "Content-Type: $type" --data-binary @/tmp/nydus $manifests/referring
        curl -sfS -X PUT -H "Content-Type: $type" --data-binary @/tmp/subject $manifests/v2
        jq -n --arg type $type --arg digest sha256:$(sha256sum < /tmp/nydus | cut -d' ' -f1) \
            --argjson size $(wc -c < /tmp/nydus) \
            '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [
              {mediaType: $type, digest: $digest, size: $size,
               artifactType: "application/vnd.nydus.image.manifest.v1+json"}]}' > /tmp/referrers
        curl -sfS -X PUT -H "Content-Type: application/vnd.oci.image.index.v1+json" \
            --data-binary @/tmp/referrers \
            $manifests/sha256-$(sha256sum < /tmp/subject | cut -d' ' -f1)"#;
    host.check(&["sh", "-c", script, "sh", &tagged]).unwrap();
    let referred = tagged.replace(":v1", ":v2");
    ctr.pull(&referred, "xebec").unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(log.contains("place=\"referrer\""), "{log}");
    assert!(!log.contains("streamed an ordinary layer"), "{log}");
    let again = ctr.run(Stack::XEBEC, &referred, "again", &busybox).unwrap();
    assert_eq!(again.stdout, theirs.stdout);
}
