//! What somebody may have put into a checkpoint, mutated: no panic, no hang, and nothing beside the
//! directory that it was unpacked into. The manner is that of the snapshotter's fuzzing, whose harness
//! it is.

#[path = "../../../../snapshotter/tests/fuzz/harness.rs"]
mod harness;
mod store;

use std::fs;
use std::path::{Path, PathBuf};

use xebec_checkpoints::archive::{Compression, Packer, unpack};
use xebec_checkpoints::import::{Wishes, make_bundle};
use xebec_checkpoints::inspect::{inspect, to_text};
use xebec_checkpoints::{Files, Room};

/// A directory for a target, on whatever is in memory here.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// An archive of podman's, without its pages.
fn archive(compression: Compression) -> Vec<u8> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/podman");
    let mut packer = Packer::new(Vec::new(), compression).expect("a packer");
    let entries = fs::read_dir(corpus).expect("a corpus");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().expect("a name");
        packer.add_path(Path::new(name), &path).expect("added");
    }
    packer.finish().expect("an archive")
}

#[test]
fn archives() {
    let seeds = [Compression::None, Compression::Gzip, Compression::Zstd].map(archive);
    let directory = scratch();
    harness::run("archives", seeds.into(), |bytes| {
        let room = Room::make(&directory.path().join("room")).expect("a room");
        // Whether it is refused or not.
        let _ = unpack(bytes, "a.tar", &room);
        drop(room);
        let left = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(left, 0, "something was left");
    });
}

#[test]
fn inspections() {
    let seeds = vec![archive(Compression::None)];
    let directory = scratch();
    let path = directory.path().join("a.tar");
    harness::run("inspections", seeds, |bytes| {
        fs::write(&path, bytes).expect("written");
        if let Ok(report) = Files::open(&path).and_then(|mut files| inspect(&mut files)) {
            let text = to_text(&report);
            assert!(!text.contains('\u{1b}'), "an escape");
            serde_json::to_string(&report).expect("JSON");
        }
    });
}

#[test]
fn imports() {
    let seeds = vec![archive(Compression::None)];
    let directory = scratch();
    let rootfs = directory.path().join("root");
    let path = directory.path().join("a.tar");
    let wishes = Wishes {
        rootfs: rootfs.clone(),
        bundle: directory.path().join("bundle"),
        ..Wishes::default()
    };
    harness::run("imports", seeds, |bytes| {
        fs::create_dir(&rootfs).expect("made");
        fs::write(&path, bytes).expect("written");
        let file = fs::File::open(&path).expect("there");
        if let Ok(bundle) = make_bundle(file, "a.tar", &wishes) {
            let config = fs::read(bundle.path().join("config.json")).expect("there");
            let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
            assert!(config.get("hooks").is_none(), "a hook");
        }
        fs::remove_dir_all(&rootfs).expect("removed");
        let left = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(left, 1, "something was left");
    });
}
