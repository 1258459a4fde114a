//! Ordinary gzip images with an index of SOCI's: read lazily, the same files as an unpack gives.

mod ztoc;

use std::fs;

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::listing::Listing;
use integration::proxy::Shape;
use serde_json::{Value, json};

use self::ztoc::digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const V1: &str = "application/vnd.amazon.soci.index.v1+json";
const V2: &str = "application/vnd.amazon.soci.index.v2+json";
const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";
const CORPUS: &str = "/srv/corpus/redis/blobs/sha256";
const METRICS: &str = "[metrics]\naddress = \"127.0.0.1:9110\"\n";
/// SOCI's own tool takes 4 MiB, and makes no ztoc of a layer below 10 MiB.
const SPAN: usize = 4 << 20;
const LEAST: u64 = 10 << 20;

/// Puts the file $2 into the repository $1, as a blob, or with the media type $3 as the manifest $4.
const PUT: &str = r#"
set -e
repository=http://${1%%/*}/v2/${1#*/}
if [ $# = 4 ]; then
    exec curl -sfS -X PUT -H "Content-Type: $3" --data-binary @$2 $repository/manifests/$4
fi
upload=$(curl -sfS -X POST -D - -o /dev/null $repository/blobs/uploads/ | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
curl -sfS -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$2 \
    "$upload&digest=sha256:$(sha256sum < $2 | cut -d' ' -f1)"
"#;

/// The image `redis` in the registry, and what its author puts beside it there.
struct Author<'a> {
    host: &'a NativeHost,
    repository: String,
    /// The bytes of its manifest.
    manifest: String,
}

impl<'a> Author<'a> {
    fn of_redis(host: &'a NativeHost) -> Self {
        let image = host.push("redis").unwrap();
        let raw = "skopeo inspect --raw --tls-verify=false docker://$0";
        Self {
            host,
            manifest: host.check(&["sh", "-c", raw, &image]).unwrap(),
            repository: image.replace(":v1", ""),
        }
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.repository)
    }

    fn put(&self, bytes: &[u8], more: &[&str]) -> String {
        self.host.write_file("/tmp/put", bytes).unwrap();
        let argv = ["sh", "-c", PUT, "sh", &self.repository, "/tmp/put"];
        self.host.check(&[&argv, more].concat()).unwrap();
        digest(bytes)
    }

    /// Puts a blob; its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        descriptor(media_type, &self.put(bytes, &[]), bytes.len())
    }

    /// Puts a manifest by its digest; its descriptor.
    fn manifest(&self, manifest: &Value) -> Value {
        let bytes = manifest.to_string();
        let digest = digest(bytes.as_bytes());
        self.put(bytes.as_bytes(), &[MANIFEST, &digest]);
        descriptor(MANIFEST, &digest, bytes.len())
    }

    /// Puts an index of images under a tag.
    fn index(&self, manifests: &[Value], tag: &str) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.put(index.to_string().as_bytes(), &[INDEX, tag]);
    }

    /// The large layers: what an index lists for each, and how many spans it has.
    fn ztocs(&self) -> Vec<(Value, usize)> {
        let manifest: Value = serde_json::from_str(&self.manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let large: Vec<_> = layers
            .filter(|layer| layer["size"].as_u64().unwrap() >= LEAST)
            .map(|layer| self.ztoc(layer))
            .collect();
        assert!(!large.is_empty(), "{manifest}");
        large
    }

    fn ztoc(&self, layer: &Value) -> (Value, usize) {
        let name = layer["digest"].as_str().unwrap();
        let path = format!("{CORPUS}/{}", name.trim_start_matches("sha256:"));
        let (ztoc, spans) = ztoc::of(&fs::read(self.host.path(path)).unwrap(), SPAN);
        assert!(spans > 10, "{spans} spans");
        let mut listed = self.blob("application/octet-stream", &ztoc);
        listed["annotations"] = json!({
            "com.amazon.soci.image-layer-digest": name,
            "com.amazon.soci.image-layer-mediaType": layer["mediaType"],
            "com.amazon.soci.span-size": SPAN.to_string(),
        });
        (listed, spans)
    }

    /// An index of SOCI's of this type that lists these blobs.
    fn soci_index(&self, media_type: &str, listed: &[Value]) -> Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": media_type,
            "config": self.blob(media_type, b"{}"), "layers": listed,
            "annotations": {"com.amazon.soci.build-tool-identifier": "tests of xebec"},
        })
    }

    /// Puts an index of the first version, which refers to the image as it is.
    fn put_v1(&self) {
        let ztocs: Vec<_> = self.ztocs().into_iter().map(|(listed, _)| listed).collect();
        let mut index = self.soci_index(V1, &ztocs);
        let subject = digest(self.manifest.as_bytes());
        index["subject"] = descriptor(MANIFEST, &subject, self.manifest.len());
        let mut entry = self.manifest(&index);
        entry["artifactType"] = V1.into();
        // This registry has no referrers API: they are found by their subject's tag.
        self.index(&[entry], &subject.replace(':', "-"));
    }

    /// Puts an image with an index of the second version under the tag `soci`, as `soci convert`
    /// does: the manifest names the index, and both are in the index of images. The last span of
    /// each large layer is wanted first.
    fn put_v2(&self) {
        let mut listed = Vec::new();
        for (ztoc, spans) in self.ztocs() {
            let last = spans - 1;
            let wanted = json!({"version": "1.0", "prefetch_spans": [
                {"start_span": last, "end_span": last, "priority": 0}]});
            let mut prefetch = self.blob(PREFETCH, wanted.to_string().as_bytes());
            prefetch["annotations"] = ztoc["annotations"].clone();
            listed.extend([ztoc, prefetch]);
        }
        let mut index = self.manifest(&self.soci_index(V2, &listed));
        let mut manifest: Value = serde_json::from_str(&self.manifest).unwrap();
        manifest["annotations"] = json!({"com.amazon.soci.index-digest": index["digest"]});
        let mut image = self.manifest(&manifest);
        image["platform"] = json!({"os": "linux", "architecture": architecture()});
        index["artifactType"] = V2.into();
        index["annotations"] = json!({"com.amazon.soci.image-manifest-digest": image["digest"]});
        self.index(&[image, index], "soci");
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn host_with(config: &str) -> NativeHost {
    let config = format!("{config}{METRICS}");
    let options = HostOptions::default().file("/etc/xebec/snapshotter.toml", config);
    NativeHost::start(options).expect("a native host starts")
}

/// Runs what needs little of the image: of the layers less than half is fetched. The image's
/// reference by way of a link.
fn starts_from_a_part(host: &NativeHost, image: &str) -> String {
    let ctr = Ctr::new(host);
    let (link, remote) = host.through_link(image, Shape::new(2, 1000.0)).unwrap();
    ctr.pull(&remote, "xebec").unwrap();
    let version = ["redis-server", "--version"];
    let ran = ctr.run(Stack::XEBEC, &remote, "start", &version).unwrap();
    assert!(ran.stdout.contains("Redis server"), "{ran:?}");
    let fetched = link.counters().down;
    let layers = "skopeo inspect --tls-verify=false docker://$0 | jq '[.LayersData[].Size] | add'";
    let layers = host.check(&["sh", "-c", layers, image]).unwrap();
    let layers: u64 = layers.trim().parse().unwrap();
    assert!(
        fetched * 2 < layers,
        "{fetched} bytes for a start, layers of {layers}\n{}",
        host.log(Service::Snapshotter)
    );
    shows_what_an_unpack_is(host, image);
    remote
}

/// Everything of the image, read lazily from the registry itself, against an ordinary unpack.
fn shows_what_an_unpack_is(host: &NativeHost, image: &str) {
    let ctr = Ctr::new(host);
    let list = |snapshotter| {
        ctr.pull(image, snapshotter).unwrap();
        let mount = "mkdir -p /mnt/image; ctr images mount --snapshotter $0 $1 /mnt/image";
        host.check(&["sh", "-ec", mount, snapshotter, image])
            .unwrap();
        let listing = Listing::of(&host.path("/mnt/image")).unwrap();
        let unmount = "ctr images unmount --rm --snapshotter $0 /mnt/image";
        host.check(&["sh", "-ec", unmount, snapshotter]).unwrap();
        listing.without_root()
    };
    let (ours, theirs) = (list("xebec"), list("overlayfs"));
    assert!(theirs.len() > 4000, "{} files", theirs.len());
    let differences = theirs.differences(&ours, 10);
    assert!(differences.is_empty(), "{differences:?}");
}

/// How many layers were streamed, not read lazily.
fn streamed(host: &NativeHost) -> usize {
    let log = host.log(Service::Snapshotter);
    log.matches("streamed an ordinary layer").count()
}

#[test]
fn an_image_is_read_by_the_index_that_refers_to_it_where_referrers_are_trusted() {
    let host = host_with("[index]\ntrust_referrers = true\n");
    let author = Author::of_redis(&host);
    author.put_v1();
    starts_from_a_part(&host, &author.image("v1"));
    assert_eq!(streamed(&host), 1, "only the small layer, which has none");
}

#[test]
fn an_index_that_nobody_vouches_for_is_left_alone() {
    let host = host_with("");
    let author = Author::of_redis(&host);
    author.put_v1();
    let image = author.image("v1");
    Ctr::new(&host).pull(&image, "xebec").unwrap();
    assert_eq!(streamed(&host), 2, "{}", host.log(Service::Snapshotter));
}

#[test]
fn an_image_is_read_by_the_index_that_it_names_and_what_is_wanted_first_is_fetched_first() {
    let host = host_with("");
    let author = Author::of_redis(&host);
    author.put_v2();
    let remote = starts_from_a_part(&host, &author.image("soci"));
    assert_eq!(streamed(&host), 1, "only the small layer, which has none");
    let metrics = host.check_sh("curl -sf http://127.0.0.1:9110/metrics");
    let metrics = metrics.unwrap();
    let ahead = format!("xebec_fetched_bytes_total{{image=\"{remote}\"");
    let ahead = metrics.lines().filter(|line| {
        line.starts_with(&ahead) && line.contains("for=\"prefetch\"") && !line.ends_with(" 0")
    });
    assert_eq!(ahead.count(), 1, "{metrics}");
}
