//! The store over restarts, reboots and torn files.

mod seals;

use std::path::PathBuf;

use super::*;
use crate::index::{ChunkSpec, Codec, LayerBuilder, Meta, OBJECT_MIN};

const BOOT: &str = "01234567-0123-0123-0123-0123456789ab";

struct Place {
    root: tempfile::TempDir,
    index: LayerIndex,
}

impl Place {
    /// A layer of a small file (chunk 0) and a large one of two chunks (1 and 2).
    fn new() -> Self {
        let mut builder = LayerBuilder::new(Digest::of(b"layer"), Digest::of(b"toc"), 1000);
        for (name, size, chunk) in [("small", 5, 5), ("large", OBJECT_MIN, OBJECT_MIN / 2)] {
            let file = builder.file(name, &Meta::default(), size).unwrap().unwrap();
            for at in (0..size).step_by(chunk as usize) {
                let spec = ChunkSpec {
                    file_offset: at,
                    len: chunk,
                    unit_offset: at / 1000,
                    unit_len: 10,
                    codec: Codec::Plain,
                    inner: 0,
                    digest: Digest::of(b""),
                };
                let spec = match name {
                    "small" => ChunkSpec {
                        unit_offset: 900,
                        ..spec
                    },
                    _ => spec,
                };
                builder.chunk(file, spec).unwrap();
            }
        }
        Self {
            root: tempfile::tempdir().unwrap(),
            index: builder.finish().unwrap(),
        }
    }

    /// The store as it is opened in the boot `boot`.
    fn store(&self, boot: &str) -> Store {
        let mut store = Store::open(self.root.path()).unwrap();
        boot.clone_into(&mut store.boot);
        store
    }

    fn create(&self) -> (Store, Blob) {
        let store = self.store(BOOT);
        let origin = Origin {
            image: "h.example/app:v1".to_owned(),
            size: 1000,
            diff_id: None,
        };
        let blob = store.create(&self.index, &origin).unwrap();
        assert_eq!(store.origin(&self.layer()).unwrap(), origin);
        (store, blob)
    }

    fn layer(&self) -> Digest {
        self.index.layer()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root
            .path()
            .join("blobs/sha256")
            .join(self.layer().hex())
            .join(name)
    }

    /// Which chunks are there when the store is opened again.
    fn present(&self, boot: &str) -> Vec<u32> {
        let blob = self.store(boot).load(&self.layer()).unwrap();
        (0..3).filter(|chunk| blob.has(*chunk)).collect()
    }
}

/// Another boot of the machine.
const NEXT_BOOT: &str = "99999999-0123-0123-0123-0123456789ab";

#[test]
fn written_chunks_are_read_and_survive_a_restart_of_the_daemon() {
    let place = Place::new();
    let (_, blob) = place.create();
    let large = blob.index().inode(2);
    let half = vec![7; OBJECT_MIN as usize / 2];
    blob.write_chunk(0, b"hello").unwrap();
    blob.write_chunk(2, &half).unwrap();
    assert!(!blob.is_complete(&large));
    blob.write_chunk(1, &half).unwrap();
    assert!(blob.is_complete(&large));
    let mut buffer = [0; 3];
    blob.read(&blob.index().inode(1), 2, &mut buffer).unwrap();
    assert_eq!(&buffer, b"llo");
    blob.read(&large, OBJECT_MIN - 3, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 3]);
    drop(blob);
    assert_eq!(place.present(BOOT), [0, 1, 2]);
}

#[test]
fn after_a_power_failure_only_what_was_synced_counts() {
    let place = Place::new();
    let (_, blob) = place.create();
    blob.write_chunk(0, b"hello").unwrap();
    blob.sync().unwrap();
    blob.write_chunk(1, &vec![1; OBJECT_MIN as usize / 2])
        .unwrap();
    drop(blob);
    assert_eq!(place.present(NEXT_BOOT), [0]);
    assert_eq!(
        place.present(NEXT_BOOT),
        [0],
        "and in that boot it stays so"
    );
}

#[test]
fn never_synced_means_nothing_after_a_power_failure() {
    let place = Place::new();
    let (_, blob) = place.create();
    blob.write_chunk(0, b"hello").unwrap();
    drop(blob);
    assert!(place.present(NEXT_BOOT).is_empty());
}

#[test]
fn torn_bitmaps_claim_nothing() {
    let place = Place::new();
    let (_, blob) = place.create();
    blob.write_chunk(0, b"hello").unwrap();
    blob.sync().unwrap();
    drop(blob);
    let durable = fs::read(place.file("durable")).unwrap();
    for torn in [
        durable[..durable.len() - 1].to_vec(),
        [&durable[..durable.len() - 1], &[0xff]].concat(),
        Vec::new(),
    ] {
        fs::write(place.file("durable"), &torn).unwrap();
        assert!(place.present(NEXT_BOOT).is_empty(), "{torn:?}");
        fs::remove_file(place.file("live")).unwrap();
    }
    let live = [BOOT.as_bytes(), &[0xff, 0xff]].concat();
    fs::write(place.file("live"), live).unwrap();
    fs::remove_file(place.file("durable")).unwrap();
    assert!(place.present(BOOT).is_empty(), "a bitmap of another length");
}

#[test]
fn a_broken_index_is_an_error_that_names_the_layer() {
    let place = Place::new();
    drop(place.create());
    let mut image = fs::read(place.file("index")).unwrap();
    image[50] ^= 1;
    fs::remove_file(place.file("index")).unwrap();
    fs::write(place.file("index"), image).unwrap();
    let error = place
        .store(BOOT)
        .load(&place.layer())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&place.layer().hex()) && error.contains("checksum"),
        "{error}"
    );
}

#[test]
fn half_made_and_half_removed_layers_are_gone_at_the_next_start() {
    let place = Place::new();
    let (store, _) = place.create();
    for suffix in ["new", "old"] {
        let hex = Digest::of(suffix.as_bytes()).hex();
        let half = store.blobs.join(format!("{hex}.{suffix}"));
        fs::create_dir_all(half.join("obj")).unwrap();
        fs::write(half.join("data"), b"x").unwrap();
    }
    assert_eq!(place.store(BOOT).layers().unwrap(), [place.layer()]);
    assert_eq!(store.names().unwrap().len(), 1);
}

#[test]
fn usage_counts_what_is_allocated_and_removal_leaves_nothing() {
    let place = Place::new();
    let (store, blob) = place.create();
    let before = store.footprint(&place.layer()).unwrap().bytes;
    assert!(before < OBJECT_MIN, "sparse files take no room: {before}");
    blob.write_chunk(1, &vec![1; OBJECT_MIN as usize / 2])
        .unwrap();
    blob.write_chunk(2, &vec![1; OBJECT_MIN as usize / 2])
        .unwrap();
    blob.sync().unwrap();
    let after = store.footprint(&place.layer()).unwrap().bytes;
    assert!(after >= before + OBJECT_MIN, "{before} then {after}");
    drop(blob);
    store.remove(&place.layer()).unwrap();
    assert!(matches!(
        store.load(&place.layer()),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        store.remove(&place.layer()),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        store.footprint(&place.layer()),
        Err(Error::NotFound(_))
    ));
    assert!(store.layers().unwrap().is_empty());
}

#[test]
fn another_image_may_become_the_origin() {
    let place = Place::new();
    let (store, _) = place.create();
    let other = Origin {
        image: "h.example/other:v2".to_owned(),
        size: 1000,
        diff_id: None,
    };
    store.set_origin(&place.layer(), &other).unwrap();
    assert_eq!(store.origin(&place.layer()).unwrap(), other);
}

/// A layer that is whole, durable and closed.
fn whole() -> (Place, Store) {
    let place = Place::new();
    let (store, blob) = place.create();
    let half = vec![7; OBJECT_MIN as usize / 2];
    for (chunk, bytes) in [(0, &b"hello"[..]), (1, &half), (2, &half)] {
        blob.write_chunk(chunk, bytes).unwrap();
    }
    blob.sync().unwrap();
    (place, store)
}

#[test]
fn an_evicted_layer_keeps_its_index_and_takes_its_data_again() {
    let (place, store) = whole();
    let before = store.stored(&place.layer()).unwrap().unwrap();
    assert!(before.data >= OBJECT_MIN, "{before:?}");
    let freed = store.evict(&place.layer()).unwrap().unwrap();
    assert_eq!(freed, before.data);
    let after = store.stored(&place.layer()).unwrap().unwrap();
    assert_eq!(after.data, 0);
    assert_eq!(after.used, before.used);
    for boot in [BOOT, NEXT_BOOT] {
        assert!(place.present(boot).is_empty());
    }
    let blob = store.load(&place.layer()).unwrap();
    blob.write_chunk(0, b"again").unwrap();
    let mut buffer = [0; 5];
    blob.read(&blob.index().inode(1), 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"again");
    blob.sync().unwrap();
    drop(blob);
    assert_eq!(place.present(NEXT_BOOT), [0]);
    assert!(store.origin(&place.layer()).is_ok());
}

#[test]
fn who_has_data_open_keeps_it_and_the_layer_is_not_evicted() {
    let (place, store) = whole();
    for name in ["data", "obj/1"] {
        let reader = fs::File::open(place.file(name)).unwrap();
        assert_eq!(store.evict(&place.layer()).unwrap(), None, "{name}");
        assert_eq!(place.present(BOOT), [0, 1, 2]);
        drop(reader);
    }
    assert!(store.evict(&place.layer()).unwrap().is_some());
}

#[test]
fn an_eviction_that_was_cut_off_at_any_step_claims_nothing_that_is_gone() {
    let steps = ["durable", "live", "data", "obj/1"];
    for done in 0..=steps.len() {
        let (place, store) = whole();
        drop(store);
        for step in &steps[..done] {
            fs::remove_file(place.file(step)).unwrap();
        }
        for boot in [BOOT, NEXT_BOOT] {
            let blob = place.store(boot).load(&place.layer()).unwrap();
            let mut buffer = [0; 5];
            for (chunk, file) in [(0, 1), (1, 2), (2, 2)] {
                if blob.has(chunk) {
                    assert!(done < 3, "data was gone and chunk {chunk} is claimed");
                    let offset = u64::from(chunk == 2) * (OBJECT_MIN - 5);
                    blob.read(&blob.index().inode(file), offset, &mut buffer)
                        .unwrap();
                    assert!(
                        buffer == *b"hello" || buffer == [7; 5],
                        "{done}: {buffer:?}"
                    );
                }
            }
        }
        // The next eviction, and the next use, find nothing in their way.
        let store = place.store(BOOT);
        store.evict(&place.layer()).unwrap().unwrap();
        let blob = store.load(&place.layer()).unwrap();
        blob.write_chunk(0, b"hello").unwrap();
    }
}

#[test]
fn the_last_use_is_the_last_touch() {
    let (place, store) = whole();
    let before = store.stored(&place.layer()).unwrap().unwrap().used;
    std::thread::sleep(std::time::Duration::from_millis(20));
    store.touch(&place.layer());
    let after = place
        .store(BOOT)
        .stored(&place.layer())
        .unwrap()
        .unwrap()
        .used;
    assert!(after > before);
    assert_eq!(store.stored(&Digest::of(b"another")).unwrap(), None);
}
