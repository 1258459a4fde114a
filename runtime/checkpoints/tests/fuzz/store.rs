//! What a store's records, page maps and sealed files may say.

use std::fs;
use std::path::Path;

use xebec_checkpoints::sealed::unpack;
use xebec_checkpoints::store::{Keep, Label, Limits, Store, cuts_by, read_record};

use super::{harness, scratch};

/// The record of a checkpoint of these files, without its code.
fn record(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (images, root) = (scratch(), scratch());
    for (name, content) in files {
        fs::write(images.path().join(name), content).unwrap();
    }
    let label = Label {
        name: "c".to_owned(),
        container: "web".to_owned(),
        created: 7,
    };
    let keep = Keep {
        label,
        recipients: None,
        pinned: false,
        limits: Limits::default(),
    };
    let store = Store::make(root.path()).unwrap();
    store.save(images.path(), &keep).unwrap();
    let mut record = fs::read(root.path().join("records/c")).unwrap();
    record.truncate(record.len() - 32);
    record
}

#[test]
fn records() {
    let small = record(&[("a.img", b"content"), ("b.img", b"")]);
    let large = vec![7; 300_000];
    let large = record(&[("a.img", &large), ("b.img", &large[1..])]);
    assert_eq!(read_record("c", &small).unwrap(), 7);
    harness::run("records", vec![small, large], |bytes| {
        // Refused or not, and what is accepted adds up.
        let _ = read_record("c", bytes);
    });
}

#[test]
fn page_maps() {
    // A head, then two entries: three pages at 0x1000, two at 0x20000.
    let entries: [&[u8]; 3] = [
        &[8, 1],
        &[8, 0x80, 0x20, 16, 3, 32, 4],
        &[8, 0x80, 0x80, 8, 16, 2, 32, 4],
    ];
    let mut map = vec![0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];
    for entry in entries {
        map.extend((entry.len() as u32).to_le_bytes());
        map.extend(entry);
    }
    let size = 5 * 4096;
    assert_eq!(cuts_by(&map, size), Some(vec![3 * 4096, 2 * 4096]));
    harness::run("page_maps", vec![map], |bytes| {
        if let Some(lengths) = cuts_by(bytes, size) {
            assert!(
                lengths
                    .iter()
                    .all(|length| (1..=256 << 10).contains(length))
            );
            assert_eq!(
                lengths.iter().map(|length| u64::from(*length)).sum::<u64>(),
                size
            );
        }
    });
}

#[test]
fn sealed_archives() {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, size) in [("pages-1.img", 5000), ("descriptors.json", 20)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        let content = vec![7; size as usize];
        archive.append_data(&mut header, name, &*content).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    let directory = scratch();
    let target = |packed: &[u8]| {
        let images = directory.path().join("images");
        fs::create_dir(&images).unwrap();
        let _ = unpack("fuzz", packed, &images);
        fs::remove_dir_all(&images).unwrap();
        assert!(is_empty(directory.path()), "something beside the images");
    };
    // What was sealed is only seen by who forged all of it: compressed anew each time.
    harness::run("sealed_archives", vec![archive], |bytes| {
        // Claims of gigabytes are bounded by the tmpfs of a restore, not here.
        let bytes = &bytes[..bytes.len().min(64 << 10)];
        target(bytes);
        target(&zstd::encode_all(bytes, 1).unwrap());
    });
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}
