//! What can be told of seals where nothing can be sealed: descriptors, refused files and lengths. A
//! sealed store is tried in the VM host.

use super::super::seal::Sealing;
use super::*;

const SEALABLE: Sealing = Sealing::On;

impl Place {
    /// The store as it is where files may be sealed.
    fn sealing(&self, boot: &str) -> Store {
        let mut store = Store::open_by(self.root.path(), None, SEALABLE).unwrap();
        boot.clone_into(&mut store.boot);
        store
    }

    /// Notes that segments are sealed, which they are not.
    fn note(&self, segments: &[u32]) {
        let mut notes = Vec::new();
        for segment in segments {
            notes.extend_from_slice(&segment.to_le_bytes());
            notes.extend_from_slice(Digest::of(b"sealed").as_bytes());
        }
        summed::write(&self.file("seals"), &notes).unwrap();
    }
}

fn chunks_of(blob: &Blob) -> Vec<u32> {
    (0..3).filter(|chunk| blob.has(*chunk)).collect()
}

#[test]
fn who_reads_holds_no_file_open_for_writing() {
    let (place, _) = whole();
    let blob = place.sealing(BOOT).load(&place.layer()).unwrap();
    for segment in 0..2 {
        let file = blob.segment(segment).unwrap();
        let flags = rustix::fs::fcntl_getfl(&*file).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::RDWR), "{segment}");
    }
    blob.seal();
    assert_eq!(chunks_of(&blob), [0, 1, 2], "what cannot be sealed stays");
}

#[test]
fn chunks_are_written_and_read_where_files_may_be_sealed() {
    let place = Place::new();
    drop(place.create());
    let blob = place.sealing(BOOT).load(&place.layer()).unwrap();
    blob.write_chunk(0, b"hello").unwrap();
    let mut buffer = [0; 5];
    blob.read(&blob.index().inode(1), 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
    blob.write_chunk(1, &vec![1; OBJECT_MIN as usize / 2])
        .unwrap();
    blob.sync().unwrap();
    blob.seal();
    drop(blob);
    assert_eq!(place.present(NEXT_BOOT), [0, 1]);
}

#[test]
fn a_file_in_the_place_of_a_sealed_one_is_fetched_again() {
    let (place, _) = whole();
    place.note(&[1]);
    let store = place.sealing(BOOT);
    let blob = store.load(&place.layer()).unwrap();
    assert_eq!(chunks_of(&blob), [0], "the other segment stays");
    assert_eq!(store.sealer().refused(), 1);
    assert!(!place.file("obj/1").exists());
    let half = vec![9; OBJECT_MIN as usize / 2];
    for chunk in [1, 2] {
        blob.write_chunk(chunk, &half).unwrap();
    }
    blob.sync().unwrap();
    drop(blob);
    let blob = place.sealing(NEXT_BOOT).load(&place.layer()).unwrap();
    assert_eq!(chunks_of(&blob), [0, 1, 2], "it is not refused again");
}

#[test]
fn a_refusal_that_was_cut_off_at_any_step_claims_nothing_of_the_file() {
    for done in 0..3 {
        let (place, store) = whole();
        if done > 0 {
            // Its bits are gone.
            let mut bits = fs::read(place.file("live")).unwrap();
            *bits.last_mut().unwrap() = 1;
            fs::write(place.file("live"), bits).unwrap();
            summed::write(&place.file("durable"), &[1]).unwrap();
        }
        if done > 1 {
            fs::remove_file(place.file("obj/1")).unwrap();
        }
        drop(store);
        place.note(&[1]);
        for boot in [BOOT, NEXT_BOOT] {
            let blob = place.sealing(boot).load(&place.layer()).unwrap();
            assert_eq!(chunks_of(&blob), [0], "{done}");
            assert_eq!(fs::read(place.file("seals")).unwrap().len(), 32, "no note");
        }
    }
}

#[test]
fn an_evicted_layer_has_no_seals() {
    let (place, store) = whole();
    place.note(&[0, 1]);
    store.evict(&place.layer()).unwrap().unwrap();
    assert!(!place.file("seals").exists());
    let store = place.sealing(BOOT);
    assert!(chunks_of(&store.load(&place.layer()).unwrap()).is_empty());
    assert_eq!(store.sealer().refused(), 0);
}

#[test]
fn files_get_the_length_that_the_back_end_wants() {
    let (place, _) = whole();
    let path = place.file("obj/1");
    let other_len = |len| {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
    };
    let len = || fs::metadata(&path).unwrap().len();
    other_len(OBJECT_MIN + 1000);
    let blob = place.sealing(BOOT).load(&place.layer()).unwrap();
    drop(blob.segment(1).unwrap());
    assert_eq!(len(), OBJECT_MIN);
    // As it is done with a sealed file, which nobody can cut.
    other_len(OBJECT_MIN + 1000);
    let index = fs::read(place.file("index")).unwrap();
    let index = LayerIndex::from_image(Box::new(index)).unwrap();
    let segments = segments::Segments::new(place.file(""), None, true, index);
    let before = fs::File::open(&path).unwrap();
    segments.copy_anew(1).unwrap();
    assert_eq!(len(), OBJECT_MIN);
    assert_eq!(before.metadata().unwrap().len(), OBJECT_MIN + 1000);
    assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 7));
}
