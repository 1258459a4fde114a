use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;
use crate::beneath::Room;
use crate::error::Result;

/// A member as a hostile writer would have it: its header says what it likes.
fn member(name: &str, kind: EntryType, content: &[u8]) -> Vec<u8> {
    forged(name, kind, content, |_| {})
}

fn forged(name: &str, kind: EntryType, content: &[u8], forge: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().expect("a GNU header").name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    forge(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Unpacks into a directory beside a file that must stay as it is.
fn try_unpack(archive: &[u8]) -> (Result<()>, Vec<String>) {
    let directory = tempfile::tempdir().expect("a directory");
    let canary = directory.path().join("canary");
    fs::write(&canary, "untouched").expect("written");
    let room = Room::make(&directory.path().join("room")).expect("a room");
    let result = unpack(archive, "a.tar", &room);
    let mut names = Vec::new();
    for entry in fs::read_dir(room.path()).expect("listed") {
        names.push(
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    drop(room);
    assert_eq!(fs::read(&canary).expect("there"), b"untouched");
    let left = fs::read_dir(directory.path()).expect("listed").count();
    assert_eq!(left, 1, "something was left");
    names.sort();
    (result, names)
}

#[track_caller]
fn refused(archive: &[u8], words: &[&str]) {
    let error = try_unpack(archive).0.expect_err("refused").to_string();
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn an_archive_comes_back_in_every_compression() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = directory.path().join("images");
    fs::create_dir_all(images.join("inner")).expect("made");
    fs::write(images.join("pages-1.img"), vec![7; 300_000]).expect("written");
    let long = "n".repeat(200);
    fs::write(images.join("inner").join(&long), "long").expect("written");
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut packer = Packer::new(Vec::new(), compression).expect("a packer");
        packer.add_bytes(CONFIG_DUMP, b"{}").expect("added");
        packer
            .add_path(Path::new(CHECKPOINT), &images)
            .expect("added");
        let bytes = packer.finish().expect("an archive");
        assert_eq!(Compression::of(&bytes), compression);
        let room = Room::make_in(directory.path()).expect("a room");
        unpack(bytes.as_slice(), "a.tar", &room).expect("unpacked");
        let checkpoint = room.path().join(CHECKPOINT);
        let pages = fs::read(checkpoint.join("pages-1.img")).expect("there");
        assert_eq!(pages, vec![7; 300_000]);
        assert_eq!(
            fs::read(checkpoint.join("inner").join(&long)).expect("there"),
            b"long"
        );
        let mode = fs::metadata(room.path())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../canary", "checkpoint/../../canary", "/canary"] {
        let archive = member(name, EntryType::Regular, b"x");
        refused(&archive, &["a.tar", name, "its name"]);
    }
    let long = member("././@LongLink", EntryType::GNULongName, b"../canary\0");
    let archive = [long, member("fine", EntryType::Regular, b"x")].concat();
    refused(&archive, &["../canary", "upwards"]);
    let pax = member("pax", EntryType::XHeader, b"18 path=../canary\n");
    let archive = [pax, member("fine", EntryType::Regular, b"x")].concat();
    refused(&archive, &["../canary", "upwards"]);
}

#[test]
fn links_devices_and_fifos_are_refused_by_name() {
    for (kind, word) in [
        (EntryType::Symlink, "symlink"),
        (EntryType::Link, "hard link"),
        (EntryType::Fifo, "fifo"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
    ] {
        let archive = forged("checkpoint/evil", kind, b"", |header| {
            header.set_link_name("../../canary").expect("a link");
            header.set_device_major(8).expect("a number");
            header.set_device_minor(0).expect("a number");
        });
        refused(&archive, &["checkpoint/evil", word]);
    }
    let sparse = member("s", EntryType::GNUSparse, b"");
    refused(&sparse, &["s: it is of an unknown kind"]);
}

#[test]
fn sizes_that_are_negative_or_too_large_are_refused() {
    let huge = forged("pages", EntryType::Regular, b"", |header| {
        header.set_size(1 << 60);
    });
    refused(&huge, &["pages", "more than"]);
    let negative = forged("pages", EntryType::Regular, b"", |header| {
        header.as_gnu_mut().expect("GNU").size = [0xff; 12];
    });
    refused(&negative, &["pages", "negative"]);
    let short = &member("pages", EntryType::Regular, &[1; 2000])[..1024];
    refused(short, &["pages", "ends in it"]);
    let name = forged("x", EntryType::GNULongName, b"", |header| {
        header.set_size(1 << 40);
    });
    refused(&name, &["a name of 1099511627776 bytes"]);
}

#[test]
fn a_member_that_is_there_twice_or_in_the_way_is_refused() {
    let one = member("config.dump", EntryType::Regular, b"{}");
    refused(
        &[one.clone(), one.clone()].concat(),
        &["config.dump", "twice"],
    );
    let other = member("./config.dump", EntryType::Regular, b"{}");
    refused(&[one.clone(), other].concat(), &["config.dump", "twice"]);
    let below = member("config.dump/x", EntryType::Regular, b"{}");
    refused(&[one, below].concat(), &["config.dump/x", "in its way"]);
}

#[test]
fn a_bomb_is_refused_before_the_disk_is_full() {
    let head = forged(
        "checkpoint/pages-1.img",
        EntryType::Regular,
        b"",
        |header| {
            header.set_size(1 << 50);
        },
    );
    let mut packed = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
    packed.write_all(&head).expect("written");
    packed.write_all(&vec![0; 64 << 20]).expect("written");
    let packed = packed.finish().expect("packed");
    assert!(packed.len() < 10_000);
    refused(&packed, &["checkpoint/pages-1.img", "bytes"]);
}

#[test]
fn more_members_than_agreed_are_refused() {
    let archive: Vec<u8> = (0..5)
        .flat_map(|number| member(&format!("m{number}"), EntryType::Regular, b""))
        .collect();
    let limits = Limits {
        members: 3,
        bytes: 10,
    };
    let mut seen = 0;
    let result = read_members(&mut archive.as_slice(), "a.tar", limits, &mut |_, _| {
        seen += 1;
        Ok(())
    });
    let error = result.expect_err("refused").to_string();
    assert!(
        error.contains("m3: there are more than 3 members"),
        "{error}"
    );
    assert_eq!(seen, 3);
}

#[test]
fn archives_are_named_as_kubelet_names_them() {
    assert_eq!(
        archive_name("web-0", "default", "server", "2026-11-27T19:00:00Z"),
        "checkpoint-web-0_default-server-2026-11-27T19:00:00Z.tar"
    );
}

proptest! {
    /// Whatever the names: all that is unpacked is below the room, and a refused archive leaves
    /// nothing.
    #[test]
    fn any_names_stay_inside(names in proptest::collection::vec("[a./]{0,9}", 1..6)) {
        let archive: Vec<u8> = names
            .iter()
            .flat_map(|name| member(name, EntryType::Regular, b"content"))
            .collect();
        let (result, _) = try_unpack(&archive);
        let leads_out = names.iter().any(|name| name.starts_with('/') || name.split('/').any(|part| part == ".."));
        prop_assert!(!(leads_out && result.is_ok()));
    }
}
