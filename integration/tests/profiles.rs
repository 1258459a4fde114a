//! What nodes tell each other by way of the registry: profiles of starts.

use integration::ctr::{Ctr, Stack};
use integration::demo::FORGET;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::proxy::{Proxy, Shape};

const NODE: [Service; 2] = [Service::Containerd, Service::Snapshotter];
const READ: [&str; 3] = ["sh", "-c", "cat /usr/bin/redis-server | sha256sum"];

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
