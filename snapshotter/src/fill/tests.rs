//! Cold reads against a source in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::digest::Algorithm;
use crate::formats::estargz::sample::{Sample, noise};
use crate::formats::estargz::toc::TOC_DIGEST_ANNOTATION;
use crate::index::{ChunkSpec, Codec, Kind, LayerBuilder, Meta};
use crate::profile::Profile;
use crate::store::{Origin, Store};

/// Delivers a blob and remembers what it was asked for.
struct Source {
    blob: Mutex<Vec<u8>>,
    asked: Mutex<Vec<(u64, u64)>>,
    /// How many ranges each request had that may have several; none may.
    several: Mutex<Option<Vec<usize>>>,
    dead: AtomicBool,
    /// Bytes of the blob from here on do not arrive for now.
    gate: AtomicU64,
}

impl Source {
    fn new(blob: Vec<u8>) -> Self {
        Self {
            blob: Mutex::new(blob),
            asked: Mutex::default(),
            several: Mutex::default(),
            dead: AtomicBool::new(false),
            gate: AtomicU64::new(u64::MAX),
        }
    }
}

impl BlobSource for Source {
    fn size(&self) -> u64 {
        self.blob.lock().unwrap().len() as u64
    }

    fn read_range(&self, offset: u64, len: u64) -> crate::Result<Vec<u8>> {
        self.asked.lock().unwrap().push((offset, len));
        if self.dead.load(Ordering::SeqCst) {
            return Err(Error::Internal("dead".to_owned()));
        }
        Ok(self.blob.lock().unwrap()[offset as usize..][..len as usize].to_vec())
    }

    fn read_parts(&self, offset: u64, len: u64, part: &mut dyn FnMut(&[u8])) -> crate::Result<()> {
        let bytes = self.read_range(offset, len)?;
        let mut given = 0;
        while given < bytes.len() {
            let gate = self.gate.load(Ordering::SeqCst).saturating_sub(offset);
            let end = bytes.len().min(usize::try_from(gate).unwrap_or(usize::MAX));
            part(&bytes[given..end]);
            given = end;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    fn read_ranges(&self, ranges: &[Range<u64>], part: &mut dyn FnMut(&[u8])) -> crate::Result<()> {
        if let Some(several) = &mut *self.several.lock().unwrap() {
            several.push(ranges.len());
        }
        let mut ranges = ranges.iter();
        ranges.try_for_each(|range| self.read_parts(range.start, range.end - range.start, part))
    }

    fn takes_several(&self) -> bool {
        self.several.lock().unwrap().is_some()
    }
}

struct Bench {
    source: Arc<Source>,
    filler: Arc<Filler>,
    pool: Arc<Pool>,
    _root: tempfile::TempDir,
}

fn open(source: &Source, layer: Digest, toc: Digest) -> crate::Result<Opened> {
    open_layer(&LayerQuery {
        skip_footer: false,
        trust_referrers: false,
        blob: source,
        layer,
        media_type: "",
        annotations: &[(TOC_DIGEST_ANNOTATION.to_owned(), toc.to_string())].into(),
        image: None,
        allow_unverified: false,
    })
}

fn bench(sample: Sample) -> Bench {
    let finished = sample.finish();
    let layer = Digest::of(&finished.blob);
    let source = Arc::new(Source::new(finished.blob));
    let opened = open(&source, layer, finished.toc_digest).unwrap();
    let Opened::Lazy(index) = opened else {
        panic!("not lazy: {opened:?}");
    };
    assert_eq!(source.asked.lock().unwrap().len(), 1, "one round trip");
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let origin = Origin {
        image: "h.example/a:v1".to_owned(),
        size: source.size(),
        diff_id: None,
    };
    let blob = Arc::new(store.create(&index, &origin).unwrap());
    source.asked.lock().unwrap().clear();
    let pool = Arc::new(Pool::default());
    let filler = Filler::new(blob, Arc::clone(&source) as _, Arc::clone(&pool));
    Bench {
        source,
        filler,
        pool,
        _root: root,
    }
}

impl Bench {
    /// The regular file number `n` in the order of the layer.
    fn file(&self, n: usize) -> Inode {
        let index = self.filler.blob().index();
        let mut files = (0..index.inodes()).map(|id| index.inode(id));
        files
            .by_ref()
            .filter(|inode| inode.kind() == Kind::File)
            .nth(n)
            .unwrap()
    }

    fn settle(&self) {
        // Work in the background of a read is over when the pool can be drained.
        let (sender, receiver) = std::sync::mpsc::channel();
        self.pool
            .run(Class::Background, move || sender.send(()).unwrap());
        receiver.recv().unwrap();
    }
}

/// Files of `len` bytes that hardly compress.
fn files(count: u64, len: usize) -> Sample {
    let mut sample = Sample::default();
    for i in 0..count {
        sample.file(&format!("f{i:04}"), &noise(i, len), len);
    }
    sample
}

#[test]
fn any_range_of_a_file_is_read_right() {
    let mut sample = Sample::default();
    let content = noise(1, 10_000);
    sample.file("f", &content, 900);
    let bench = bench(sample);
    let file = bench.file(0);
    for (offset, len) in [
        (0, 10_000),
        (899, 2),
        (9_999, 5),
        (10_000, 5),
        (0, 0),
        (5, u64::MAX),
    ] {
        let end = u64::saturating_add(offset, len).min(10_000);
        let expected = &content[offset as usize..end as usize];
        assert_eq!(bench.filler.read(&file, offset, len).unwrap(), expected);
    }
}

#[test]
fn a_miss_fetches_neighbours_in_the_same_request() {
    let bench = bench(files(100, 20_000));
    bench.filler.read(&bench.file(50), 0, 20_000).unwrap();
    bench.settle();
    let asked = bench.source.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].1 > 250_000 && asked[0].1 < 300_000, "{asked:?}");
    assert_eq!(asked[0].0, bench.filler.index().unit(50).offset);
    assert!(bench.filler.is_local(&bench.file(55), 0, 20_000));
    assert!(!bench.filler.is_local(&bench.file(49), 0, 20_000));
}

#[test]
fn a_reader_does_not_wait_for_what_is_fetched_along() {
    let bench = bench(files(100, 20_000));
    let unit = bench.filler.index().unit(50);
    bench.source.gate.store(unit.end(), Ordering::SeqCst);
    assert_eq!(
        bench.filler.read(&bench.file(50), 0, 20_000).unwrap(),
        noise(50, 20_000)
    );
    assert!(!bench.filler.is_local(&bench.file(51), 0, 20_000));
    bench.source.gate.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(
        bench.filler.read(&bench.file(51), 0, 20_000).unwrap(),
        noise(51, 20_000)
    );
    assert_eq!(
        bench.source.asked.lock().unwrap().len(),
        1,
        "it was under way"
    );
}

#[test]
fn a_walk_soon_fetches_in_large_pieces() {
    let bench = bench(files(200, 20_000));
    for i in 0..200 {
        assert_eq!(
            bench.filler.read(&bench.file(i), 0, 20_000).unwrap(),
            noise(i as u64, 20_000)
        );
        bench.settle();
    }
    let asked = bench.source.asked.lock().unwrap().len();
    assert!(asked < 25, "{asked} requests for 4 MB");
}

#[test]
fn chunks_of_two_blobs_are_each_read_from_their_own() {
    let contents = [noise(1, 9000), noise(2, 9000), noise(3, 9000)];
    let blobs: Vec<Vec<u8>> = vec![
        [&[0; 100][..], &lz4_flex::block::compress(&contents[0])].concat(),
        [&[0; 100][..], &contents[1], &contents[2]].concat(),
    ];
    let table = [&blobs[0], &blobs[1]].map(|blob| (Digest::of(blob), blob.len() as u64));
    let mut builder =
        LayerBuilder::of_blobs(Digest::of(b"image"), Digest::of(b"toc"), &table).unwrap();
    builder.algorithm(Algorithm::Blake3);
    for (i, content) in contents.iter().enumerate() {
        let file = builder.file(format!("f{i}"), &Meta::default(), 9000);
        let file = file.unwrap().unwrap();
        let (blob, unit_offset, codec) = [
            (0, 100, Codec::Lz4Block),
            (1, 100, Codec::Plain),
            (1, 9100, Codec::Plain),
        ][i];
        let unit_len = match codec {
            Codec::Lz4Block => blobs[0].len() as u64 - 100,
            _ => 9000,
        };
        let spec = ChunkSpec {
            file_offset: 0,
            len: 9000,
            unit_offset,
            unit_len,
            codec,
            inner: 0,
            digest: Digest::from_bytes(Algorithm::Blake3.of(content)),
        };
        builder.chunk_of_blob(file, blob, spec).unwrap();
    }
    let index = builder.finish().unwrap();
    let root = tempfile::tempdir().unwrap();
    let origin = Origin {
        image: "h.example/a:v1".to_owned(),
        size: index.blob_size(),
        diff_id: None,
    };
    let store = Store::open(root.path()).unwrap();
    let blob = Arc::new(store.create(&index, &origin).unwrap());
    assert!(blob.index().blobs().eq(table), "the store knows the blobs");
    let sources = blobs.iter().map(|blob| Arc::new(Source::new(blob.clone())));
    let sources: Vec<Arc<Source>> = sources.collect();
    let filler = Filler::with_sources(
        blob,
        sources
            .iter()
            .map(|source| Arc::clone(source) as _)
            .collect(),
        Arc::new(Pool::default()),
    );
    let (all, _) = filler.claim(0..filler.index().units());
    filler.fetch(all, Class::Read);
    for (i, content) in contents.iter().enumerate() {
        let file = filler.blob().index().inode(i as u32 + 1);
        assert!(filler.is_local(&file, 0, 9000), "file {i}");
        assert_eq!(filler.read(&file, 0, 9000).unwrap(), *content, "file {i}");
    }
    let asked = |i: usize| sources[i].asked.lock().unwrap().clone();
    let packed = blobs[0].len() as u64 - 100;
    assert_eq!(asked(0), [(100, packed)]);
    assert_eq!(asked(1), [(100, 18_000)], "neighbours in one request");
}

#[test]
fn damage_in_one_file_leaves_its_neighbours_alone() {
    let bench = bench(files(10, 20_000));
    let unit = bench.filler.blob().index().unit(4);
    bench.source.blob.lock().unwrap()[unit.offset as usize + 9000] ^= 1;
    let error = bench
        .filler
        .read(&bench.file(4), 0, 10)
        .unwrap_err()
        .to_string();
    let layer = bench.filler.layer().to_string();
    assert!(error.contains(&layer), "{error}");
    bench.filler.read(&bench.file(3), 0, 10).unwrap();
    bench.settle();
    for i in (0..10).filter(|i| *i != 4) {
        assert_eq!(
            bench.filler.read(&bench.file(i), 0, 20_000).unwrap(),
            noise(i as u64, 20_000)
        );
    }
    assert!(!bench.filler.blob().has(4), "nothing of it is kept");
    assert!(bench.filler.read(&bench.file(4), 0, 10).is_err());
}

#[test]
fn a_failure_is_told_and_forgotten() {
    let bench = bench(files(2, 1000));
    bench.source.dead.store(true, Ordering::SeqCst);
    assert!(bench.filler.read(&bench.file(0), 0, 10).is_err());
    bench.settle();
    bench.source.dead.store(false, Ordering::SeqCst);
    assert_eq!(
        bench.filler.read(&bench.file(0), 0, 10).unwrap(),
        noise(0, 10)
    );
}

#[test]
fn landmarks_are_followed_within_the_limit_and_in_few_requests() {
    let mut sample = files(100, 50_000);
    sample.landmark();
    sample.file("rest", b"rest", 4);
    let bench = bench(sample);
    bench.filler.prefetch(3_000_000);
    bench.settle();
    let asked = bench.source.asked.lock().unwrap().clone();
    assert!(asked.len() == 3, "{asked:?}");
    assert!(bench.filler.fetched() > 2_900_000 && bench.filler.fetched() <= 3_000_000);
    assert!(bench.filler.is_local(&bench.file(0), 0, 50_000));
    while let Some(piece) = bench.filler.absent_piece() {
        assert!(bench.filler.fetch_in_background(piece).unwrap() > 0);
    }
    for i in 0..=100 {
        assert!(bench.filler.is_local(&bench.file(i), 0, 50_000), "file {i}");
    }
}

#[test]
fn a_toc_longer_than_the_first_read_costs_one_more() {
    let mut sample = Sample::default();
    for i in 0..20_000 {
        let name = format!(
            "{}{i}",
            noise(i, 4)
                .iter()
                .fold(String::new(), |s, b| s + &b.to_string())
        );
        sample.file(&name, b"", 1);
    }
    let finished = sample.finish();
    let source = Source::new(finished.blob);
    let layer = Digest::of(b"layer");
    let opened = open(&source, layer, finished.toc_digest).unwrap();
    assert!(matches!(&opened, Opened::Lazy(index) if index.inodes() == 20_001));
    let asked = source.asked.lock().unwrap().len();
    assert!(asked <= 2, "{asked} requests");
    let wrong = open(&source, layer, Digest::of(b"x")).unwrap_err();
    assert!(matches!(wrong, Error::DigestMismatch { .. }), "{wrong}");
    assert!(wrong.to_string().contains(&layer.to_string()), "{wrong}");
}

/// What a container notes that reads the files number `order`, one after the other.
fn profile_of(bench: &Bench, order: &[usize]) -> Profile {
    let layers = vec![bench.filler.layer()];
    let recording = Arc::new(Recording::new(
        layers,
        std::time::Duration::from_mins(1),
        true,
    ));
    bench.filler.record(Arc::clone(&recording), 0);
    for &n in order {
        let file = bench.file(n);
        // Twice, and in pieces: only the first need of a unit is noted.
        bench.filler.touch(&file, 0, file.size);
        bench.filler.touch(&file, 10, 20);
    }
    recording.finish().unwrap()
}

#[test]
fn a_profile_holds_each_unit_that_was_read_once_and_in_order() {
    let bench = bench(files(100, 20_000));
    let profile = profile_of(&bench, &[70, 3, 4, 70]);
    let index = bench.filler.index();
    let places: Vec<_> = profile.reads().iter().map(|read| read.offset).collect();
    assert_eq!(places, [70, 3, 4].map(|unit| index.unit(unit).offset));
    assert!(bench.source.asked.lock().unwrap().is_empty());
}

#[test]
fn what_a_profile_holds_is_fetched_before_anyone_asks_and_nothing_else() {
    let order = [70, 3, 4, 5, 71, 90];
    let profile = profile_of(&bench(files(100, 20_000)), &order);
    let fresh = bench(files(100, 20_000));
    let plan = Plan::new(profile, Arc::clone(&fresh.pool));
    plan.begin(&fresh.filler, u64::MAX);
    fresh.settle();
    let asked = fresh.source.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "neighbours share a request: {asked:?}");
    for n in 0..100 {
        let is_local = fresh.filler.is_local(&fresh.file(n), 0, 20_000);
        assert_eq!(is_local, order.contains(&n), "file {n}");
    }
    let bytes = fresh.filler.counts().fetched_for(Class::Profile);
    assert!(
        bytes == fresh.filler.fetched() && bytes < 130_000,
        "{bytes}"
    );
    // A reader of something else fetches little along with it.
    fresh.filler.read(&fresh.file(30), 0, 20_000).unwrap();
    fresh.settle();
    assert!(fresh.filler.fetched() - bytes < 80_000);
    plan.begin(&fresh.filler, u64::MAX);
    fresh.settle();
    assert_eq!(fresh.source.asked.lock().unwrap().len(), 4, "begun once");
}

#[test]
fn scattered_ranges_of_a_profile_share_a_request_where_a_server_sends_several() {
    let order = [70, 3, 4, 5, 71, 90];
    let profile = profile_of(&bench(files(100, 20_000)), &order);
    let fresh = bench(files(100, 20_000));
    *fresh.source.several.lock().unwrap() = Some(Vec::new());
    Plan::new(profile, Arc::clone(&fresh.pool)).begin(&fresh.filler, u64::MAX);
    fresh.settle();
    assert_eq!(*fresh.source.several.lock().unwrap(), Some(vec![3]));
    for n in 0..100 {
        let is_local = fresh.filler.is_local(&fresh.file(n), 0, 20_000);
        assert_eq!(is_local, order.contains(&n), "file {n}");
    }
    for n in order {
        let bytes = fresh.filler.read(&fresh.file(n), 0, 20_000).unwrap();
        assert_eq!(bytes, noise(n as u64, 20_000));
    }
}

#[test]
fn a_profile_of_much_is_fetched_in_requests_of_little() {
    let order: Vec<usize> = (0..100).step_by(5).collect();
    let profile = profile_of(&bench(files(100, 40_000)), &order);
    let fresh = bench(files(100, 40_000));
    *fresh.source.several.lock().unwrap() = Some(Vec::new());
    Plan::new(profile, Arc::clone(&fresh.pool)).begin(&fresh.filler, u64::MAX);
    fresh.settle();
    let several = fresh.source.several.lock().unwrap().clone().unwrap();
    assert_eq!(several.iter().sum::<usize>(), order.len());
    assert_eq!(several.len(), 4, "six of 40 KB in 256 KiB: {several:?}");
}

#[test]
fn a_foreign_profile_costs_no_more_than_the_limit() {
    let fresh = bench(files(100, 20_000));
    let everything = Profile::new(
        vec![Digest::of(b"another"), fresh.filler.layer()],
        vec![(1, 0, u64::MAX >> 1, 0).into()],
    );
    let plan = Plan::new(everything, Arc::clone(&fresh.pool));
    plan.begin(&fresh.filler, 100_000);
    fresh.settle();
    let fetched = fresh.filler.fetched();
    assert!(fetched <= 100_000 && fetched > 70_000, "{fetched}");
    let unknown = Profile::new(vec![Digest::of(b"x")], vec![(0, 0, 9, 0).into()]);
    let before = fresh.source.asked.lock().unwrap().len();
    Plan::new(unknown, Arc::clone(&fresh.pool)).begin(&fresh.filler, u64::MAX);
    fresh.settle();
    assert_eq!(fresh.source.asked.lock().unwrap().len(), before);
}
