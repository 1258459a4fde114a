//! Nydus images as nydus-image writes them.

use super::*;
use crate::formats::nydus;

/// A Nydus image among the fixtures: its blobs, and the layer of its bootstrap.
fn fixture(name: &str) -> (Vec<Vec<u8>>, Vec<u8>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/nydus")
        .join(name);
    let files = fs::read_dir(&directory).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    let blobs = paths.filter(|path| !path.ends_with("bootstrap.tar.gz"));
    let unpack = |path| {
        let mut blob = Vec::new();
        let file = fs::File::open(path).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut blob).unwrap();
        blob
    };
    (
        blobs.map(unpack).collect(),
        fs::read(directory.join("bootstrap.tar.gz")).unwrap(),
    )
}

#[test]
fn a_nydus_image_is_one_tree_whatever_its_blobs_and_survives_a_restart() {
    let mut bench = Bench::new(LazyConfig::default());
    let (blobs, bootstrap) = fixture("v6-zstd-blake3");
    let mut chain = Vec::new();
    for blob in blobs {
        let source = bench.push_annotated(blob, nydus::BLOB_ANNOTATION);
        chain.push(bench.lazy().add_layer(&source).unwrap().unwrap());
    }
    assert_eq!(bench.requests(), 0, "blobs are not looked at");
    assert_eq!(chain, [LayerId::empty(); 2]);
    let source = bench.push_annotated(bootstrap, nydus::BOOTSTRAP_ANNOTATION);
    chain.push(bench.lazy().add_layer(&source).unwrap().unwrap());
    assert_eq!(bench.requests(), 1, "the bootstrap's layer is read whole");
    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        let point = bench.lazy().mount(&chain).unwrap();
        let path = |name: &str| point.path().join(name);
        assert_eq!(fs::read(path("etc/conf")).unwrap(), b"new\nnew\nnew\n");
        assert_eq!(fs::read(path("opq/above")).unwrap(), b"above");
        assert!(!path("opq/below").exists() && !path("gone").exists());
        let su = fs::metadata(path("bin/su")).unwrap();
        assert_eq!(
            (su.mode() & 0o7777, su.nlink(), su.len()),
            (0o4755, 2, 6000)
        );
        assert_eq!(su.ino(), fs::metadata(path("bin/hard")).unwrap().ino());
        assert_eq!(fs::read(path("usr/lib/zeros")).unwrap(), vec![0; 20_000]);
        assert_eq!(fs::read_dir(path("many")).unwrap().count(), 120);
        bench.lazy().unmount(&chain).unwrap();
    }
}

#[test]
fn a_nydus_image_that_cannot_be_read_is_an_error_not_an_ordinary_layer() {
    let bench = Bench::new(LazyConfig::default());
    let (_, bootstrap) = fixture("v6-zstd-blake3");
    let other = bench.push_annotated(b"no archive".to_vec(), nydus::BOOTSTRAP_ANNOTATION);
    let source = bench.push_annotated(bootstrap, nydus::BOOTSTRAP_ANNOTATION);
    let error = bench.lazy().add_layer(&other).unwrap_err().to_string();
    assert!(error.contains(&other.layer.to_string()), "{error}");
    bench.corrupt(source.layer.into(), 500);
    let error = bench.lazy().add_layer(&source).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

/// A text of the fixture `v6-zran`, as its `zran.py` makes it.
fn text(seed: u32, lines: u32) -> String {
    let tail = "which is what makes this file long and the layer short; ".repeat(5);
    let line = |i: u32| {
        let entry = u64::from(i) * 7919 % 1_000_003;
        format!(
            "entry {entry:06} of list {seed}: the same words as on every other line, so that little \
             is left of it when it is packed, {tail}\n"
        )
    };
    (0..lines).map(line).collect()
}

/// Puts the image of unchanged gzip layers into the registry; the layer of its bootstrap.
fn zran(bench: &Bench) -> LayerSource {
    let (blobs, bootstrap) = fixture("v6-zran");
    for blob in blobs {
        bench.push_annotated(blob, nydus::BLOB_ANNOTATION);
    }
    bench.push_annotated(bootstrap, nydus::BOOTSTRAP_ANNOTATION)
}

#[test]
fn an_image_of_unchanged_gzip_layers_is_read_in_pieces_by_its_inflate_contexts() {
    let mut bench = Bench::new(LazyConfig::default());
    let layer = bench.lazy().add_layer(&zran(&bench)).unwrap().unwrap();
    let point = bench.lazy().mount(&[layer]).unwrap();
    let path = |name: &str| point.path().join(name);
    let tail = &text(3, 2500)[800_000..];
    let mut file = fs::File::open(path("three")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(800_000)).unwrap();
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut read).unwrap();
    drop(file);
    assert!(read == tail.as_bytes());
    let layers: Vec<_> = bench.lazy().layers().unwrap();
    assert_eq!(layers, [layer]);
    bench.lazy().unmount(&[layer]).unwrap();

    bench.restart();
    let point = bench.lazy().mount(&[layer]).unwrap();
    let path = |name: &str| point.path().join(name);
    for (name, seed, lines) in [("one", 1, 4000), ("two", 2, 5000), ("three", 3, 2500)] {
        assert!(
            fs::read(path(name)).unwrap() == text(seed, lines).as_bytes(),
            "{name}"
        );
    }
    assert_eq!(fs::read(path("etc/conf")).unwrap(), b"line\n".repeat(2000));
    assert!(!path("etc/old").exists());
    assert_eq!(fs::read_dir(path("many")).unwrap().count(), 120);
    bench.lazy().unmount(&[layer]).unwrap();
}

#[test]
fn neither_a_changed_gzip_layer_nor_changed_contexts_give_wrong_bytes() {
    let (blobs, _) = fixture("v6-zran");
    for blob in &blobs {
        let bench = Bench::new(LazyConfig::default());
        let bootstrap = zran(&bench);
        let digest = LayerId::from(Digest::of(blob));
        let is_layer = blob.starts_with(&[0x1f, 0x8b]);
        // Within the deflate data, or within the packed table.
        bench.corrupt(digest, if is_layer { blob.len() / 3 } else { 560 });
        let Ok(layer) = bench.lazy().add_layer(&bootstrap) else {
            assert!(!is_layer);
            continue;
        };
        let layer = layer.unwrap();
        let point = bench.lazy().mount(&[layer]).unwrap();
        let mut failed = 0;
        for (name, expected) in [
            ("one", Some(text(1, 4000))),
            ("two", Some(text(2, 5000))),
            ("three", Some(text(3, 2500))),
            ("etc/conf", Some("line\n".repeat(2000))),
            // Noise, which takes most of its layer.
            ("bin/su", None),
        ] {
            match fs::read(point.path().join(name)) {
                Ok(read) => {
                    let is_right = expected.is_none_or(|expected| read == expected.as_bytes());
                    assert!(is_right, "{name}");
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5), "EIO of {name}");
                    failed += 1;
                }
            }
        }
        // A table has fields that nobody needs.
        assert!(failed > 0 || !is_layer, "{digest} was changed");
        bench.lazy().unmount(&[layer]).unwrap();
    }
}
