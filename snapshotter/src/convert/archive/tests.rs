//! Archives as they are, as they should not be, and as they are written.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::convert::{
    Format, LayerReport, Observer, Options, Place, Report, Target, Undo, convert,
};
use crate::digest::Digest;
use crate::fetch::{Registry, RegistryConfig};

struct Silent;

impl Observer for Silent {
    fn read(&self, _: &Digest, _: u64) {}
    fn finished(&self, _: &Digest, _: &LayerReport) {}
    fn note(&self, _: &str) {}
}

/// An entry of an archive: its content, or where it links to.
enum Body<'a> {
    Content(&'a [u8]),
    Link(&'a str),
}

fn tar(entries: &[(&str, Body<'_>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in entries {
        let mut header = tar::Header::new_gnu();
        // Hostile names are what the crate would not write.
        let field = &mut header.as_mut_bytes()[..100];
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        let content = match body {
            Body::Content(content) => *content,
            Body::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name_literal(target).unwrap();
                &[]
            }
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn layer(name: &str) -> Vec<u8> {
    tar(&[(name, Body::Content(name.as_bytes()))])
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let rootfs = json!({"type": "layers", "diff_ids": ids});
    json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs})
        .to_string()
        .into_bytes()
}

fn list(config: &str, tags: &Value, layers: &[&str]) -> Vec<u8> {
    json!([{"Config": config, "RepoTags": tags, "Layers": layers}])
        .to_string()
        .into_bytes()
}

/// What `docker save` wrote up to version 24: plain layers, equal ones as links.
fn old_docker() -> Vec<u8> {
    let (one, two) = (layer("one"), layer("two"));
    let list = list(
        "c.json",
        &json!(["busybox:latest"]),
        &["a/layer.tar", "b/layer.tar", "c/layer.tar"],
    );
    tar(&[
        ("a/layer.tar", Body::Content(&one)),
        ("b/layer.tar", Body::Content(&two)),
        ("c/layer.tar", Body::Link("../a/layer.tar")),
        ("c.json", Body::Content(&config(&[&one, &two, &one]))),
        ("manifest.json", Body::Content(&list)),
    ])
}

fn run(from: &str, to: &str, target: Target, dir: &Path) -> Result<Report> {
    let options = Options {
        source: from.parse::<Place>()?,
        destination: to.parse::<Place>()?,
        format: Format::Layers(target),
        platforms: Vec::new(),
        chunk_size: None,
        level: None,
        prioritized: Vec::new(),
        rewrite: false,
        chunk_dict: None,
        oci_ref: false,
        temp_dir: dir.to_owned(),
    };
    let registry = Registry::new(RegistryConfig::default())?;
    convert(&registry, &options, &Silent, &Undo::new())
}

/// What lies in `dir`.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An archive's entries.
fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

#[test]
fn what_docker_saves_is_read_in_all_its_forms_and_packings() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let zipped_layer = gzip(&layer("one"));
    let blob = format!("blobs/sha256/{}", Digest::of(&zipped_layer).hex());
    let new = tar(&[
        (
            "manifest.json",
            Body::Content(&list("./blobs/sha256/c", &Value::Null, &[&blob])),
        ),
        ("blobs/sha256/c", Body::Content(&config(&[&layer("one")]))),
        (&blob, Body::Content(&zipped_layer)),
    ]);
    let zstd = zstd::encode_all(&old_docker()[..], 1).unwrap();
    let files = [
        ("old", old_docker(), 3),
        ("old.gz", gzip(&old_docker()), 3),
        ("old.zst", zstd, 3),
        ("new", new, 1),
    ];
    let mut digests = Vec::new();
    for (name, content, layers) in files {
        fs::write(at(name), content).unwrap();
        let from = format!("docker-archive:{}", at(name).display());
        let to = format!("oci:{}", at("out").display());
        let report = run(&from, &to, Target::ZstdChunked, dir.path()).unwrap();
        assert_eq!(report.images[0].layers.len(), layers, "{name}");
        digests.push(report.digest);
    }
    assert!(digests[0] == digests[1] && digests[0] == digests[2]);
}

#[test]
fn an_archive_is_the_same_each_time_and_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("in"), old_docker()).unwrap();
    let from = format!("docker-archive:{}:busybox", at("in").display());
    for transport in ["docker-archive", "oci-archive"] {
        let mut files = Vec::new();
        for name in ["a.tar", "b.tar"] {
            let to = format!("{transport}:{}:h.test/b:v1", at(name).display());
            run(&from, &to, Target::Estargz, dir.path()).unwrap();
            files.push(fs::read(at(name)).unwrap());
            let again = format!("oci:{}:{transport}", at("out").display());
            run(&to, &again, Target::Estargz, dir.path()).unwrap();
        }
        assert!(files[0] == files[1], "{transport}");
        let entries = read(&at("a.tar"));
        for (name, content) in &entries {
            if let Some(hex) = name.strip_prefix(BLOBS).filter(|hex| !hex.is_empty()) {
                assert_eq!(Digest::of(content).hex(), hex);
            }
        }
        let index: Value = serde_json::from_slice(&entries[INDEX]).unwrap();
        let annotations = &index["manifests"][0]["annotations"];
        if transport == "oci-archive" {
            assert_eq!(annotations[crate::convert::layout::REF_NAME], "h.test/b:v1");
            assert!(!entries.contains_key(MANIFEST));
        } else {
            assert_eq!(annotations["io.containerd.image.name"], "h.test/b:v1");
            let items: Value = serde_json::from_slice(&entries[MANIFEST]).unwrap();
            assert_eq!(items[0]["RepoTags"], json!(["h.test/b:v1"]));
            let layers = items[0]["Layers"].as_array().unwrap();
            let config = items[0]["Config"].as_str().unwrap();
            let config: Value = serde_json::from_slice(&entries[config]).unwrap();
            assert_eq!(layers.len(), 3);
            for (layer, id) in layers
                .iter()
                .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
            {
                let mut plain = Vec::new();
                flate2::read::MultiGzDecoder::new(&entries[layer.as_str().unwrap()][..])
                    .read_to_end(&mut plain)
                    .unwrap();
                assert_eq!(Digest::of(&plain).to_string(), id.as_str().unwrap());
            }
        }
        fs::remove_dir_all(at("out")).unwrap();
    }
    assert_eq!(names(dir.path()), ["a.tar", "b.tar", "in"]);
}

/// An entry whose header claims more than the archive has.
fn huge() -> Vec<u8> {
    let mut archive = old_docker();
    let mut header = tar::Header::new_gnu();
    header.set_path("x/layer.tar").unwrap();
    header.set_size(1 << 62);
    header.set_cksum();
    archive.truncate(archive.len() - 1024);
    archive.extend_from_slice(header.as_bytes());
    archive
}

#[test]
fn hostile_archives_are_one_clear_error_and_nothing_is_left() {
    let one = layer("one");
    let docker = |config: &[u8], layers: &[&str], content: &[u8]| {
        let list = list("c.json", &Value::Null, layers);
        tar(&[
            ("manifest.json", Body::Content(&list)),
            ("c.json", Body::Content(config)),
            ("l.tar", Body::Content(content)),
            ("loop", Body::Link("loop")),
            ("out", Body::Link("../../../etc/shadow")),
        ])
    };
    let good = config(&[&one]);
    let big = vec![b' '; 5 << 20];
    let escape = [("../../evil", Body::Content(b"x".as_slice()))];
    let cases: &[(&str, Vec<u8>, &str)] = &[
        (
            "docker",
            docker(&good, &["l.tar"], b"other bytes"),
            "digest mismatch",
        ),
        (
            "docker",
            docker(&good, &["no.tar"], &one),
            "no.tar in docker-archive",
        ),
        ("docker", docker(&good, &["loop"], &one), "leads nowhere"),
        (
            "docker",
            docker(&good, &["out"], &one),
            "out in docker-archive",
        ),
        (
            "docker",
            docker(&good, &["/../l.tar"], &one),
            "/../l.tar in docker-archive",
        ),
        (
            "docker",
            docker(&good, &["l.tar", "l.tar"], &one),
            "1 rootfs.diff_ids for 2 layers",
        ),
        (
            "docker",
            docker(b"{}", &["l.tar"], &one),
            "c.json in docker-archive",
        ),
        ("docker", docker(&big, &["l.tar"], &one), "larger than"),
        ("docker", tar(&[]), "manifest.json in docker-archive"),
        ("docker", tar(&escape), "unsafe path \"../../evil\""),
        ("docker", huge(), "x/layer.tar"),
        ("docker", old_docker()[..1500].to_vec(), "docker-archive"),
        ("docker", gzip(&old_docker())[..300].to_vec(), "unpack"),
        ("oci", old_docker(), "oci-layout in oci-archive"),
        ("oci", b"no archive at all".repeat(100), "oci-archive"),
    ];
    for (kind, content, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.tar");
        fs::write(&path, content).unwrap();
        let from = format!("{kind}-archive:{}", path.display());
        for to in ["oci", "oci-archive", "docker-archive"] {
            let to = format!("{to}:{}", dir.path().join("new").display());
            let error = run(&from, &to, Target::ZstdChunked, dir.path());
            let error = error.expect_err(says).to_string();
            assert!(error.contains(says), "{says} is not in {error}");
            assert!(error.contains("in.tar"), "no file in {error}");
            assert_eq!(names(dir.path()), ["in.tar"], "{says}");
        }
    }
}

#[test]
fn a_place_that_cannot_be_written_is_known_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    fs::write(&path, old_docker()).unwrap();
    let from = format!("docker-archive:{}", path.display());
    let to = "docker-archive:/no/such/dir/x.tar";
    let error = run(&from, to, Target::Estargz, dir.path()).unwrap_err();
    assert!(error.to_string().contains("/no/such/dir"), "{error}");
}
