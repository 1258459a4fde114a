//! What a store promises, by its public face.

use std::fs;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret as _;
use prost::Message as _;
use tempfile::TempDir;
use xebec_proto::criu_images::{PagemapEntry, PagemapHead};

use super::*;
use crate::PrivateDir;

const PAGE: usize = 4096;

/// Somebody who may open what is sealed.
struct Person {
    recipients: Recipients,
    identities: Identities,
}

fn person() -> Person {
    let identity = age::x25519::Identity::generate();
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("key");
    fs::write(
        &file,
        format!("# a comment\n{}\n", identity.to_string().expose_secret()),
    )
    .expect("written");
    Person {
        recipients: Recipients::parse(&[identity.to_public().to_string()]).expect("a recipient"),
        identities: Identities::read(&[file]).expect("an identity"),
    }
}

/// Bytes that cannot be compressed, other ones for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Images of a process with so many pages, some of which are its `version`'s own. One more comes to
/// lie before all others with each version.
fn images(version: u64, pages: usize) -> TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut map = vec![0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];
    let mut add = |message: Vec<u8>| {
        map.extend((message.len() as u32).to_le_bytes());
        map.extend(message);
    };
    add(PagemapHead { pages_id: 1 }.encode_to_vec());
    let mut content = Vec::new();
    for (first, count) in [(0x1000, version as usize + 1), (0x9000, pages)] {
        let entry = PagemapEntry {
            vaddr: first * PAGE as u64,
            compat_nr_pages: Some(count as u32),
            flags: Some(4),
            ..PagemapEntry::default()
        };
        add(entry.encode_to_vec());
        content.extend(noise(first, count * PAGE));
    }
    let last = content.len() - PAGE;
    content[last..].copy_from_slice(&noise(version, PAGE));
    for (name, bytes) in [
        ("pagemap-1.img", &map),
        ("pages-1.img", &content),
        ("empty.img", &Vec::new()),
    ] {
        fs::write(directory.path().join(name), bytes).expect("written");
    }
    directory
}

fn keep<'a>(name: &str, recipients: Option<&'a Recipients>) -> Keep<'a> {
    let label = Label {
        name: name.to_owned(),
        container: "web".to_owned(),
        created: 1_000_000_000 + name.bytes().map(u64::from).sum::<u64>(),
    };
    Keep {
        label,
        recipients,
        pinned: false,
        limits: Limits::default(),
    }
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let images = flat::open_all(directory).expect("flat");
    let read = |image: &flat::Image| fs::read(directory.join(&image.name)).expect("read");
    images
        .iter()
        .map(|image| (image.name.clone(), read(image)))
        .collect()
}

fn load(store: &Store, name: &str, identities: &Identities) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir().expect("temporary directory");
    store.load(name, identities, directory.path())?;
    Ok(files(directory.path()))
}

fn memory() -> PrivateDir {
    PrivateDir::of_size(4 << 20).expect("made as root")
}

/// All files below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry"));
    let files = entries.flat_map(|entry| {
        if entry.path().is_dir() {
            below(&entry.path())
        } else {
            vec![entry.path()]
        }
    });
    files.collect()
}

fn size(directory: &Path) -> u64 {
    below(directory)
        .iter()
        .map(|file| fs::metadata(file).expect("there").len())
        .sum()
}

#[test]
fn checkpoints_come_back_and_share_what_they_have_in_common() {
    let person = person();
    for recipients in [None, Some(&person.recipients)] {
        let (root, memory) = (tempfile::tempdir().expect("temporary directory"), memory());
        let disk = Disk::make(root.path())
            .expect("a store")
            .with_memory(&memory.path());
        disk.make_secret().expect("a secret");
        let store = Store { disk };
        let all: Vec<_> = (0..5).map(|version| images(version, 400)).collect();
        let mut first = 0;
        for (version, images) in all.iter().enumerate() {
            store
                .save(images.path(), &keep(&format!("c{version}"), recipients))
                .expect("saved");
            if version == 0 {
                first = size(root.path());
            }
        }
        // Each one has moved the pages of the last one by a page.
        let total = size(root.path());
        assert!(total < first + first / 2, "{total} after {first}");
        for (version, images) in all.iter().enumerate() {
            let loaded = load(&store, &format!("c{version}"), &person.identities).expect("loaded");
            assert_eq!(loaded, files(images.path()), "{version}");
        }
        let again = store
            .save(all[0].path(), &keep("c0", recipients))
            .expect_err("a name twice");
        assert!(again.to_string().contains("\"c0\""), "{again}");
    }
}

#[test]
fn what_is_sealed_is_opened_by_its_recipients_alone() {
    let (person, other) = (person(), person());
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::make(root.path()).expect("a store");
    let images = images(0, 40);
    store
        .save(images.path(), &keep("c", Some(&person.recipients)))
        .expect("saved");
    for wrong in [&other.identities, &Identities::default()] {
        let error = load(&store, "c", wrong)
            .expect_err("not for them")
            .to_string();
        assert!(error.contains("\"c\""), "{error}");
    }
    let secret = &noise(0x9000, PAGE)[..32];
    let shows = |root: &Path| {
        let files = below(root)
            .into_iter()
            .map(|file| fs::read(file).expect("read"));
        files
            .flat_map(|content| content.windows(32).map(<[u8]>::to_vec).collect::<Vec<_>>())
            .any(|part| part == secret)
    };
    assert!(!shows(root.path()));
    store
        .save(images.path(), &keep("plain", None))
        .expect("saved");
    assert!(shows(root.path()), "this test sees what is not sealed");
}

#[test]
fn whatever_is_changed_in_a_store_is_noticed_before_it_is_used() {
    let person = person();
    for recipients in [None, Some(&person.recipients)] {
        let root = tempfile::tempdir().expect("temporary directory");
        let store = Store::make(root.path()).expect("a store");
        let images = images(0, 40);
        let expected = files(images.path());
        store
            .save(images.path(), &keep("c", recipients))
            .expect("saved");
        let parts = below(root.path())
            .into_iter()
            .filter(|file| !file.ends_with("lock"));
        let parts: Vec<_> = parts.collect();
        for part in &parts {
            let whole = fs::read(part).expect("read");
            let places = (0..whole.len())
                .step_by(whole.len() / 23 + 1)
                .chain([whole.len() - 1]);
            for place in places {
                let mut other = whole.clone();
                other[place] ^= 0x10;
                fs::write(part, &other).expect("written");
                match load(&store, "c", &person.identities) {
                    Ok(loaded) => assert_eq!(loaded, expected, "{place} of {}", part.display()),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                fs::write(part, &whole[..place]).expect("written");
                assert!(
                    load(&store, "c", &person.identities).is_err(),
                    "{place} of {}",
                    part.display()
                );
            }
            fs::write(part, &whole).expect("written");
        }
        let chunks: Vec<_> = parts
            .iter()
            .filter(|part| part.starts_with(root.path().join("chunks")))
            .collect();
        let (one, two) = (
            fs::read(chunks[0]).expect("read"),
            fs::read(chunks[1]).expect("read"),
        );
        fs::write(chunks[0], two).expect("written");
        fs::write(chunks[1], one).expect("written");
        assert!(
            load(&store, "c", &person.identities).is_err(),
            "swapped chunks"
        );
    }
}

#[test]
fn a_record_under_another_name_is_refused() {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::make(root.path()).expect("a store");
    store
        .save(images(0, 4).path(), &keep("one", None))
        .expect("saved");
    fs::rename(
        root.path().join("records/one"),
        root.path().join("records/two"),
    )
    .expect("renamed");
    let error = load(&store, "two", &Identities::default())
        .expect_err("another's")
        .to_string();
    assert!(error.contains("that of \"one\""), "{error}");
    let listed = store.list().expect("a list");
    assert!(
        listed[0]
            .damage
            .as_ref()
            .is_some_and(|damage| damage.contains("one")),
        "{listed:?}"
    );
}

#[test]
fn limits_make_room_before_a_write_and_pins_hold() {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::make(root.path()).expect("a store");
    let limits = Limits {
        count: Some(2),
        ..Limits::default()
    };
    let save = |name: &str| {
        let keep = Keep {
            limits,
            ..keep(name, None)
        };
        store
            .save(images(name.len() as u64, 40).path(), &keep)
            .expect("saved")
            .removed
    };
    let names = || {
        store
            .list()
            .expect("a list")
            .into_iter()
            .map(|one| one.name)
            .collect::<Vec<_>>()
    };
    save("a");
    store.set_pinned("a", true).expect("pinned");
    save("bb");
    save("ccc");
    assert_eq!(save("dddd"), ["bb"]);
    assert_eq!(names(), ["a", "ccc", "dddd"]);
    store.set_pinned("a", false).expect("unpinned");
    assert_eq!(store.prune(limits).expect("pruned"), ["a"]);
    store.remove(&["ccc".to_owned()]).expect("removed");
    let gone = store
        .remove(&["ccc".to_owned()])
        .expect_err("gone")
        .to_string();
    assert!(gone.contains("\"ccc\""), "{gone}");
    assert_eq!(
        load(&store, "dddd", &Identities::default()).expect("whole"),
        files(images(4, 40).path())
    );
    store.remove(&["dddd".to_owned()]).expect("removed");
    assert!(below(&root.path().join("chunks")).is_empty());
}

#[test]
fn a_store_without_room_refuses_and_stays_as_it_was() {
    let disk = PrivateDir::of_size(2 << 20).expect("a small disk");
    let store = Store::make(&disk.path()).expect("a store");
    store
        .save(images(0, 40).path(), &keep("small", None))
        .expect("fits");
    let before = below(&disk.path());
    let large = tempfile::tempdir().expect("temporary directory");
    fs::write(large.path().join("pages-9.img"), noise(9, 4 << 20)).expect("written");
    let error = store
        .save(large.path(), &keep("large", None))
        .expect_err("too large")
        .to_string();
    assert!(error.contains("no room"), "{error}");
    let limits = Limits {
        bytes: Some(1 << 20),
        ..Limits::default()
    };
    let keep = Keep {
        limits,
        ..keep("large", None)
    };
    assert!(store.save(large.path(), &keep).is_err());
    assert_eq!(below(&disk.path()), before);
    assert_eq!(
        load(&store, "small", &Identities::default()).expect("whole"),
        files(images(0, 40).path())
    );
}

#[test]
fn what_a_killed_writer_has_left_goes_with_the_next_write_unless_a_record_is_damaged() {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::make(root.path()).expect("a store");
    store
        .save(images(0, 4).path(), &keep("a", None))
        .expect("saved");
    let (staged, orphan) = (
        root.path().join("staging/x"),
        root.path().join("chunks/00/orphan"),
    );
    let leave = || {
        fs::create_dir_all(orphan.parent().expect("a parent")).expect("made");
        fs::write(&staged, "x").expect("written");
        fs::write(&orphan, "x").expect("written");
        fs::write(root.path().join("pins/lost"), "").expect("written");
    };
    leave();
    store
        .save(images(1, 4).path(), &keep("b", None))
        .expect("saved");
    assert!(!staged.exists() && !orphan.exists() && !root.path().join("pins/lost").exists());
    leave();
    fs::write(root.path().join("records/a"), "damaged").expect("written");
    store
        .save(images(2, 4).path(), &keep("c", None))
        .expect("saved");
    assert!(!staged.exists() && orphan.exists());
    store.remove(&["a".to_owned()]).expect("removed");
    assert!(!orphan.exists());
    for name in ["b", "c"] {
        load(&store, name, &Identities::default()).expect("whole");
    }
}
