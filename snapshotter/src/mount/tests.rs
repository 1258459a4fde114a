//! The engine end to end: real mounts of layers that a source in memory delivers. Needs root and
//! /dev/fuse, as the daemon does.

mod background;
mod nydus;
mod opening;
mod profiles;

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::fetch::FetchedManifest;
use crate::fetch::artifact::Artifact;
use crate::fetch::manifest::OCI_MANIFEST;
use crate::formats::estargz::footer::{EXTERNAL_FOOTER_LEN, FOOTER_LEN};
use crate::formats::estargz::sample::{Finished, Sample, noise};
use crate::formats::estargz::toc::{EntryType, TOC_DIGEST_ANNOTATION, TOC_OF_LAYER_ANNOTATION};
use crate::index::OBJECT_MIN;

/// A registry in memory that can be cut off and counts what it is asked for.
#[derive(Default)]
struct Registry {
    /// In manifests they are layers in the order of their digests.
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// Layers whose TOC is a blob of its own, by that blob.
    tocs: Mutex<BTreeMap<Digest, Digest>>,
    /// What manifests say of blobs besides their size.
    annotations: Mutex<BTreeMap<Digest, BTreeMap<String, String>>>,
    /// What refers to an image, and the blobs of these artifacts.
    referrers: Mutex<Vec<(Digest, Descriptor)>>,
    beside: Mutex<HashMap<Digest, Vec<u8>>>,
    /// Requests for blobs that are answered only together.
    meeting: Meeting,
    dead: AtomicBool,
    requests: AtomicU64,
}

/// Where callers wait for each other.
#[derive(Default)]
struct Meeting {
    missing: Mutex<u64>,
    complete: Condvar,
}

impl Meeting {
    /// From now on nobody passes before `count` have come.
    fn call(&self, count: u64) {
        *self.missing.lock().unwrap() = count;
    }

    /// Whether all have come in good time.
    fn attend(&self) -> bool {
        let mut missing = self.missing.lock().unwrap();
        *missing = missing.saturating_sub(1);
        self.complete.notify_all();
        let some = |missing: &mut u64| *missing > 0;
        let patience = std::time::Duration::from_secs(20);
        let waited = self.complete.wait_timeout_while(missing, patience, some);
        !waited.unwrap().1.timed_out()
    }
}

struct Handle {
    registry: Arc<Registry>,
    layer: Digest,
    size: u64,
}

struct Access(Arc<Registry>);

impl Blobs for Access {
    fn blob(&self, _: &ImageRef, layer: &Digest, size: u64) -> Result<Arc<dyn BlobSource>> {
        Ok(Arc::new(Handle {
            registry: Arc::clone(&self.0),
            layer: *layer,
            size,
        }))
    }

    fn publish(&self, _: &ImageRef, artifact: &Artifact<'_>, contents: &[&[u8]]) -> Result<Digest> {
        let (descriptor, _) = artifact.manifest()?;
        let digest = descriptor.digest;
        let contents = contents.iter();
        let blobs = contents.map(|content| (Digest::of(content), content.to_vec()));
        self.0.beside.lock().unwrap().extend(blobs);
        let mut referrers = self.0.referrers.lock().unwrap();
        referrers.push((artifact.subject.digest, descriptor));
        Ok(digest)
    }
}

/// Every image holds all blobs.
impl Manifests for Access {
    fn manifest(&self, image: &ImageRef) -> Result<FetchedManifest> {
        let blobs = self.0.blobs.lock().unwrap();
        let annotations = self.0.annotations.lock().unwrap();
        let layers = blobs.iter().map(|(digest, blob)| {
            let tocs = self.0.tocs.lock().unwrap();
            let toc_of = tocs
                .get(digest)
                .filter(|_| image.to_string().ends_with("-esgztoc"))
                .map(|layer| (TOC_OF_LAYER_ANNOTATION.to_owned(), layer.to_string()));
            let mut annotations = annotations.get(digest).cloned().unwrap_or_default();
            annotations.extend(toc_of);
            serde_json::json!({"mediaType": "l", "digest": digest.to_string(),
                "size": blob.len(), "annotations": annotations})
        });
        let config = Digest::of(b"{}").to_string();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "c", "digest": config, "size": 2},
            "layers": layers.collect::<Vec<_>>(),
        });
        let bytes = manifest.to_string().into_bytes();
        Ok(FetchedManifest {
            media_type: OCI_MANIFEST.to_owned(),
            digest: image.digest().unwrap_or_else(|| Digest::of(&bytes)),
            bytes,
        })
    }

    fn referrers(&self, _: &ImageRef, subject: &Digest, wanted: &str) -> Result<Vec<Descriptor>> {
        let all = self.0.referrers.lock().unwrap();
        let of_it = all
            .iter()
            .filter(|(of, one)| of == subject && one.artifact_type() == Some(wanted));
        Ok(of_it.map(|(_, one)| one.clone()).collect())
    }
}

impl BlobSource for Handle {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.registry.requests.fetch_add(1, Ordering::SeqCst);
        assert!(self.registry.meeting.attend(), "asked one after the other");
        if self.registry.dead.load(Ordering::SeqCst) {
            return Err(Error::Unavailable {
                what: format!("blob {}", self.layer),
                reason: "cut off".to_owned(),
            });
        }
        let beside = self.registry.beside.lock().unwrap();
        let blobs = self.registry.blobs.lock().unwrap();
        let blob = beside
            .get(&self.layer)
            .unwrap_or_else(|| &blobs[&self.layer]);
        Ok(blob[offset as usize..][..len as usize].to_vec())
    }
}

/// Waits for something that happens by itself.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(2), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An engine over a registry in memory, in a directory that is gone afterwards.
struct Bench {
    registry: Arc<Registry>,
    lazy: Option<Lazy>,
    root: tempfile::TempDir,
    config: LazyConfig,
}

impl Bench {
    fn new(config: LazyConfig) -> Self {
        let mut bench = Self {
            registry: Arc::default(),
            lazy: None,
            root: tempfile::tempdir().unwrap(),
            config,
        };
        bench.restart();
        bench
    }

    fn restart(&mut self) {
        self.lazy = None;
        let blobs = Arc::new(Access(Arc::clone(&self.registry)));
        self.lazy = Some(Lazy::open(self.root.path(), blobs, self.config.clone()).unwrap());
    }

    fn lazy(&self) -> &Lazy {
        self.lazy.as_ref().unwrap()
    }

    /// Registers a blob whose layer digest is that of the bytes given, not of a later corruption.
    fn push(&self, layer: &Finished) -> LayerSource {
        let digest = Digest::of(&layer.blob);
        let mut blobs = self.registry.blobs.lock().unwrap();
        blobs.insert(digest, layer.blob.clone());
        LayerSource {
            size: layer.blob.len() as u64,
            annotations: [(
                TOC_DIGEST_ANNOTATION.to_owned(),
                layer.toc_digest.to_string(),
            )]
            .into(),
            ..LayerSource::new(ImageRef::parse("registry.test/app:v1").unwrap(), digest)
        }
    }

    fn add(&self, layer: &Finished) -> LayerId {
        self.lazy().add_layer(&self.push(layer)).unwrap().unwrap()
    }

    /// Registers a blob of which the manifest says `annotation`.
    fn push_annotated(&self, blob: Vec<u8>, annotation: &str) -> LayerSource {
        let digest = Digest::of(&blob);
        let annotations = BTreeMap::from([(annotation.to_owned(), "true".to_owned())]);
        let mut known = self.registry.annotations.lock().unwrap();
        known.insert(digest, annotations.clone());
        self.registry.blobs.lock().unwrap().insert(digest, blob);
        LayerSource {
            annotations,
            ..LayerSource::new(ImageRef::parse("registry.test/app:v1").unwrap(), digest)
        }
    }

    fn corrupt(&self, layer: LayerId, at: usize) {
        self.registry
            .blobs
            .lock()
            .unwrap()
            .get_mut(layer.digest())
            .unwrap()[at] ^= 0xff;
    }

    fn requests(&self) -> u64 {
        self.registry.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.lazy = None;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.root.path().to_str().unwrap();
        assert!(!mounts.contains(root), "a mount is left over below {root}");
    }
}

const BIG: usize = 3 * OBJECT_MIN as usize + 12_345;

fn base() -> Finished {
    let mut sample = Sample::default();
    sample.dir("bin/");
    sample.file("bin/tool", &noise(1, BIG), 100_000);
    sample.toc.entries.last_mut().unwrap();
    sample.link(EntryType::Hardlink, "bin/tool2", "bin/tool");
    sample.link(EntryType::Symlink, "bin/sh", "tool");
    sample.dir("etc/").mode = 0o1777;
    sample.packed(&[
        ("etc/a", b"first"),
        ("etc/b", b"second"),
        ("etc/old", b"gone"),
    ]);
    sample.file("etc/empty", b"", 1);
    sample.dir("dev/");
    let null = sample.entry(EntryType::Char, "dev/null");
    (null.dev_major, null.dev_minor) = (1, 3);
    sample.entry(EntryType::Fifo, "dev/fifo");
    sample.file("bin/ping", b"ping", 10);
    sample.xattr(
        "security.capability",
        &[
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    );
    let owner = sample.toc.entries.last_mut().unwrap();
    (owner.uid, owner.gid, owner.mode) = (1234, 99_999, 0o4751);
    sample.finish()
}

fn upper() -> Finished {
    let mut sample = Sample::default();
    sample.dir("etc/");
    sample.file("etc/.wh.old", b"", 1);
    sample.file("etc/b", b"replaced", 100);
    sample.dir("usr/lib/");
    sample.file("usr/lib/lib.so", &noise(2, 70_000), 50_000);
    sample.finish()
}

#[test]
fn a_chain_reads_like_the_merged_layers() {
    let bench = Bench::new(LazyConfig::default());
    let chain = [bench.add(&base()), bench.add(&upper())];
    let point = bench.lazy().mount(&chain).unwrap();
    let at = |name: &str| point.path().join(name);

    assert!(fs::read(at("bin/tool")).unwrap() == noise(1, BIG));
    assert!(fs::read(at("usr/lib/lib.so")).unwrap() == noise(2, 70_000));
    assert_eq!(fs::read(at("etc/a")).unwrap(), b"first");
    assert_eq!(fs::read(at("etc/b")).unwrap(), b"replaced");
    assert_eq!(fs::read(at("etc/empty")).unwrap(), b"");
    assert!(!at("etc/old").exists());

    let tool = fs::metadata(at("bin/tool")).unwrap();
    assert_eq!(
        (tool.nlink(), tool.size(), tool.mode()),
        (2, BIG as u64, 0o100_644)
    );
    assert_eq!(tool.ino(), fs::metadata(at("bin/tool2")).unwrap().ino());
    assert_eq!(
        (tool.mtime(), tool.mtime_nsec()),
        (1_714_979_289, 500_000_000)
    );
    assert_eq!(tool.blocks(), (BIG as u64).div_ceil(512));
    assert_eq!(fs::read_link(at("bin/sh")).unwrap(), Path::new("tool"));
    let null = fs::symlink_metadata(at("dev/null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert!(
        fs::symlink_metadata(at("dev/fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let ping = fs::metadata(at("bin/ping")).unwrap();
    assert_eq!(
        (ping.uid(), ping.gid(), ping.mode()),
        (1234, 99_999, 0o104_751)
    );
    assert_eq!(
        fs::metadata(at("etc")).unwrap().mode(),
        0o040_755,
        "the upper layer's entry"
    );
    assert_eq!(fs::metadata(at("usr")).unwrap().nlink(), 3);

    let mut value = [0; 64];
    let len = rustix::fs::getxattr(at("bin/ping"), "security.capability", &mut value).unwrap();
    assert_eq!((len, value[5]), (20, 0x20));
    let len = rustix::fs::listxattr(at("bin/ping"), &mut value).unwrap();
    assert_eq!(&value[..len], b"security.capability\0");
    let missing = rustix::fs::getxattr(at("bin/tool"), "security.capability", &mut value);
    assert_eq!(missing.unwrap_err(), rustix::io::Errno::NODATA);

    let mut names: Vec<_> = fs::read_dir(at("etc"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b", "empty"]);
    assert!(rustix::fs::statvfs(point.path()).unwrap().f_blocks > 0);
    bench.lazy().unmount(&chain).unwrap();
    assert!(!point.path().exists());
}

#[test]
fn an_overlay_on_top_works_and_outlives_a_lazy_unmount() {
    let bench = Bench::new(LazyConfig::default());
    let chain = [bench.add(&base())];
    let point = bench.lazy().mount(&chain).unwrap();
    let merged = bench.root.path().join("merged");
    for name in ["merged", "up", "work"] {
        fs::create_dir(bench.root.path().join(name)).unwrap();
    }
    let root = bench.root.path().display();
    let options = format!(
        "lowerdir={},upperdir={root}/up,workdir={root}/work",
        point.path().display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &merged, "overlay", flags, &*options).unwrap();
    bench.lazy().unmount(&chain).unwrap();
    let read = fs::read(merged.join("bin/tool"));
    // Complete by now: the kernel reads it by itself, through the overlay.
    let again = fs::read(merged.join("bin/tool"));
    let written = fs::write(merged.join("etc/a"), b"changed");
    let changed = fs::read(merged.join("etc/a"));
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(read.unwrap() == noise(1, BIG));
    assert!(again.unwrap() == noise(1, BIG));
    written.unwrap();
    assert_eq!(changed.unwrap(), b"changed");
}

#[test]
fn a_corrupt_chunk_is_eio_and_never_stored() {
    let bench = Bench::new(LazyConfig::default());
    let layer = bench.add(&base());
    let point = bench.lazy().mount(&[layer]).unwrap();
    // In the middle of the first member's deflate data.
    bench.corrupt(layer, 5000);
    let path = point.path().join("bin/tool");
    for _ in 0..2 {
        let error = fs::read(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "EIO");
    }
    assert_eq!(
        fs::read(point.path().join("etc/a")).unwrap(),
        b"first",
        "others are served"
    );
    bench.corrupt(layer, 5000);
    assert!(
        fs::read(&path).unwrap() == noise(1, BIG),
        "served once the bytes are right"
    );
}

#[test]
fn a_dead_registry_is_eio_for_what_is_absent_only_and_recovers() {
    let bench = Bench::new(LazyConfig::default());
    let mut sample = Sample::default();
    sample.file("near", b"near", 10);
    for i in 0..40 {
        sample.file(&format!("between{i}"), &noise(i, 100_000), 100_000);
    }
    sample.file("far", b"far", 10);
    let layer = bench.add(&sample.finish());
    let point = bench.lazy().mount(&[layer]).unwrap();
    let at = |name: &str| point.path().join(name);
    assert_eq!(fs::read(at("near")).unwrap(), b"near");
    bench.registry.dead.store(true, Ordering::SeqCst);
    assert_eq!(fs::read(at("near")).unwrap(), b"near");
    assert_eq!(fs::read(at("far")).unwrap_err().raw_os_error(), Some(5));
    bench.registry.dead.store(false, Ordering::SeqCst);
    assert_eq!(fs::read(at("far")).unwrap(), b"far");
}

#[test]
fn a_restart_serves_what_is_local_without_a_registry() {
    let mut bench = Bench::new(LazyConfig::default());
    let layer = bench.add(&base());
    let path = bench.lazy().mount(&[layer]).unwrap().path().to_owned();
    let before = fs::read(path.join("bin/tool")).unwrap();
    let (bytes, inodes) = bench.lazy().usage(layer).unwrap();
    assert!(bytes >= BIG as u64 && inodes == 13, "{bytes} {inodes}");
    bench.registry.dead.store(true, Ordering::SeqCst);
    bench.restart();
    let again = bench.lazy().mount(&[layer]).unwrap();
    assert_eq!(again.path(), path, "the same place as before");
    assert!(fs::read(path.join("bin/tool")).unwrap() == before);
}

#[test]
fn the_mount_of_a_killed_daemon_is_replaced() {
    let bench = Bench::new(LazyConfig::default());
    let layer = bench.add(&base());
    let path = bench.root.path().join("mnt").join("0123");
    fs::create_dir_all(&path).unwrap();
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("dead", &path, "fuse.xebec", flags, &*options).unwrap();
    drop(device);
    assert_eq!(
        fs::metadata(&path).unwrap_err().raw_os_error(),
        Some(107),
        "ENOTCONN"
    );
    let mut bench = bench;
    bench.restart();
    assert!(!path.exists());
    bench.lazy().mount(&[layer]).unwrap();
}

/// Whether the kernel reads `path`, whose content is the whole of the layer's first object, by
/// itself: that shows a change of the stored object, which no server saw.
fn is_passed(bench: &Bench, layer: LayerId, path: &Path, content: &[u8]) -> bool {
    let object = bench
        .root
        .path()
        .join("blobs/sha256")
        .join(layer.digest().hex())
        .join("obj/1");
    let mut changed = content.to_vec();
    changed[0] ^= 1;
    fs::write(&object, &changed).unwrap();
    let seen = fs::read(path).unwrap();
    fs::write(&object, content).unwrap();
    seen == changed
}

#[test]
fn complete_large_files_are_read_by_the_kernel_and_others_from_the_page_cache() {
    // A first recording would see to it that no read is hidden from it.
    let bench = Bench::new(LazyConfig {
        passthrough: Passthrough::Always,
        profile_seconds: 0,
        ..LazyConfig::default()
    });
    let layer = bench.add(&base());
    let point = bench.lazy().mount(&[layer]).unwrap();
    let path = point.path().join("bin/tool");
    let first = fs::File::open(&path).unwrap();
    assert!(fs::read(&path).unwrap() == noise(1, BIG));
    // Open since before it was complete: the same way for everyone until the last close.
    assert!(!is_passed(&bench, layer, &path, &noise(1, BIG)));
    drop(first);
    // The kernel tells of a close when it is over.
    let passed = (0..6000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        is_passed(&bench, layer, &path, &noise(1, BIG))
    });
    assert!(passed, "passthrough is not in use");
    assert!(fs::read(&path).unwrap() == noise(1, BIG));
}

#[test]
fn only_an_image_of_few_large_files_has_them_read_by_the_kernel_by_default() {
    let bench = Bench::new(LazyConfig {
        profile_seconds: 0,
        ..LazyConfig::default()
    });
    let content = noise(3, 4 << 20);
    let mut sample = Sample::default();
    sample.file("model", &content, 1 << 20);
    let (few, many) = (bench.add(&sample.finish()), bench.add(&base()));
    let point = bench.lazy().mount(&[few]).unwrap();
    bench.lazy().fill(few).unwrap();
    assert!(is_passed(
        &bench,
        few,
        &point.path().join("model"),
        &content
    ));
    let point = bench.lazy().mount(&[many]).unwrap();
    bench.lazy().fill(many).unwrap();
    let path = point.path().join("bin/tool");
    assert!(fs::read(&path).unwrap() == noise(1, BIG));
    assert!(!is_passed(&bench, many, &path, &noise(1, BIG)));
}

#[test]
fn a_mount_is_shared_counted_and_guards_its_layers() {
    let bench = Bench::new(LazyConfig::default());
    let layer = bench.add(&base());
    let first = bench.lazy().mount(&[layer]).unwrap();
    assert_eq!(bench.lazy().mount(&[layer]).unwrap(), first);
    bench.lazy().unmount(&[layer]).unwrap();
    assert!(first.path().join("bin/tool").exists(), "still in use once");
    let refused = bench.lazy().remove(layer).unwrap_err();
    assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused}");
    bench.lazy().unmount(&[layer]).unwrap();
    assert!(bench.lazy().unmount(&[layer]).is_err());
    bench.lazy().remove(layer).unwrap();
    assert!(matches!(bench.lazy().usage(layer), Err(Error::NotFound(_))));
    assert!(matches!(
        bench.lazy().mount(&[layer]),
        Err(Error::NotFound(_))
    ));
    let left = fs::read_dir(bench.root.path().join("blobs/sha256")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn what_cannot_be_lazy_is_left_to_containerd_and_leaves_nothing() {
    let bench = Bench::new(LazyConfig::default());
    let good = base();
    let ordinary = Finished {
        blob: crate::formats::estargz::sample::gzip(b"a tar archive"),
        toc_digest: good.toc_digest,
        toc_offset: 0,
    };
    let mut forged = base();
    forged.toc_digest = Digest::of(b"another TOC");
    let mut cut = base();
    let toc = cut.toc_offset as usize;
    cut.blob.drain(toc + 10..toc + 200);
    for layer in [ordinary, forged, cut] {
        assert_eq!(bench.lazy().add_layer(&bench.push(&layer)).unwrap(), None);
    }
    let mut anonymous = bench.push(&good);
    anonymous.annotations.clear();
    // The manifest of the other one is remembered for a moment.
    anonymous.image = ImageRef::parse("registry.test/app:v2").unwrap();
    assert_eq!(bench.lazy().add_layer(&anonymous).unwrap(), None);
    let left = fs::read_dir(bench.root.path().join("blobs/sha256")).unwrap();
    assert_eq!(left.count(), 0);
    let trusting = Bench::new(LazyConfig {
        allow_unverified_toc: true,
        ..LazyConfig::default()
    });
    let mut anonymous = trusting.push(&good);
    anonymous.annotations.clear();
    assert!(trusting.lazy().add_layer(&anonymous).unwrap().is_some());
}

#[test]
fn prioritised_files_are_there_before_anyone_asks() {
    let bench = Bench::new(LazyConfig::default());
    let mut sample = Sample::default();
    for i in 0..30 {
        sample.file(&format!("wanted{i}"), &noise(i, 90_000), 30_000);
    }
    sample.landmark();
    sample.file("rest", b"rest", 10);
    let layer = bench.add(&sample.finish());
    let point = bench.lazy().mount(&[layer]).unwrap();
    for _ in 0..500 {
        if bench.lazy().fetched(layer).unwrap() > 30 * 90_000 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let before = bench.requests();
    assert!(before < 10, "few large requests, not {before}");
    bench.registry.dead.store(true, Ordering::SeqCst);
    for i in 0..30 {
        assert!(fs::read(point.path().join(format!("wanted{i}"))).unwrap() == noise(i, 90_000));
    }
    assert!(fs::read(point.path().join("rest")).is_err());
    assert!(!point.path().join(".prefetch.landmark").exists());
}

#[test]
fn many_readers_of_one_cold_file_fetch_it_once() {
    let bench = Bench::new(LazyConfig {
        passthrough: Passthrough::Never,
        ..LazyConfig::default()
    });
    let layer = bench.add(&base());
    let point = bench.lazy().mount(&[layer]).unwrap();
    let path = point.path().join("bin/tool");
    let expected = noise(1, BIG);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(fs::read(&path).unwrap() == expected));
        }
    });
    let whole = bench.lazy().fetched(layer).unwrap();
    assert!(whole <= base().blob.len() as u64, "fetched {whole} bytes");
}

#[test]
fn a_full_disk_is_eio_and_reads_go_on_when_there_is_room() {
    let mut bench = Bench::new(LazyConfig::default());
    bench.lazy = None;
    let small = bench.root.path().join("blobs");
    fs::create_dir_all(&small).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, c"size=400k").unwrap();
    bench.restart();
    let layer = bench.add(&base());
    let point = bench.lazy().mount(&[layer]).unwrap();
    let failed = fs::read(point.path().join("bin/tool"));
    rustix::mount::mount_remount(&small, flags, c"size=4m").unwrap();
    let read = fs::read(point.path().join("bin/tool"));
    drop(bench.lazy.take());
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(5), "EIO");
    assert!(read.unwrap() == noise(1, BIG));
}

#[test]
fn names_that_are_not_utf8_free_are_listed_as_bytes() {
    let bench = Bench::new(LazyConfig::default());
    let mut sample = Sample::default();
    sample.file("grüße", b"x", 1);
    let layer = bench.add(&sample.finish());
    let point = bench.lazy().mount(&[layer]).unwrap();
    let names: Vec<_> = fs::read_dir(point.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names[0].as_bytes(), "grüße".as_bytes());
}

#[test]
fn a_toc_in_an_image_beside_the_layers_is_found_and_checked() {
    let mut bench = Bench::new(LazyConfig::default());
    let mut layer = base();
    let (toc_at, toc_end) = (layer.toc_offset as usize, layer.blob.len() - FOOTER_LEN);
    let toc = layer.blob[toc_at..toc_end].to_vec();
    layer.blob.truncate(toc_at);
    let head = [
        0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 21, 0, b'S', b'G', 17, 0,
    ];
    layer.blob.extend(head);
    layer.blob.extend(b"STARGZEXTERNALTOC");
    layer
        .blob
        .extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(layer.blob.len(), toc_at + EXTERNAL_FOOTER_LEN);

    let source = bench.push(&layer);
    let missing = bench.lazy().add_layer(&source).unwrap_err().to_string();
    assert!(missing.contains("app:v1-esgztoc"), "{missing}");
    let of_toc = Digest::of(&toc);
    bench.registry.blobs.lock().unwrap().insert(of_toc, toc);
    bench
        .registry
        .tocs
        .lock()
        .unwrap()
        .insert(of_toc, source.layer);
    let mut forged = source.clone();
    let wrong = Digest::of(b"another TOC").to_string();
    forged
        .annotations
        .insert(TOC_DIGEST_ANNOTATION.to_owned(), wrong);
    // What was remembered of the TOC image is older than the TOC.
    bench.restart();
    assert_eq!(bench.lazy().add_layer(&forged).unwrap(), None);
    let layer = bench.lazy().add_layer(&source).unwrap().unwrap();
    let point = bench.lazy().mount(&[layer]).unwrap();
    assert_eq!(
        fs::read(point.path().join("bin/tool")).unwrap(),
        noise(1, BIG)
    );
    bench.lazy().unmount(&[layer]).unwrap();
}

#[test]
fn what_is_mounted_is_not_evicted_and_what_was_evicted_is_fetched_again() {
    let bench = Bench::new(LazyConfig::default());
    let (lower, top) = (bench.add(&base()), bench.add(&upper()));
    let point = bench.lazy().mount(&[lower, top]).unwrap();
    let tool = point.path().join("bin/tool");
    assert!(fs::read(&tool).unwrap() == noise(1, BIG));
    let stored = bench.lazy().stored(lower.digest()).unwrap().unwrap();
    assert!(stored.data >= BIG as u64);
    assert_eq!(bench.lazy().evict(lower).unwrap(), None, "mounted");

    // Unmounted, but somebody is still inside.
    let inside = fs::File::open(&tool).unwrap();
    bench.lazy().unmount(&[lower, top]).unwrap();
    assert_eq!(bench.lazy().evict(lower).unwrap(), None, "in use");
    drop(inside);
    let begun = std::time::Instant::now();
    let freed = loop {
        // The kernel tells the last close when it likes.
        match bench.lazy().evict(lower).unwrap() {
            Some(bytes) => break bytes,
            None => assert!(begun.elapsed().as_secs() < 20, "never free again"),
        }
    };
    assert!(freed >= BIG as u64, "{freed}");
    let evictions = bench.lazy().space().evictions();
    assert_eq!((evictions.count, evictions.bytes), (1, freed));

    let before = bench.requests();
    let point = bench.lazy().mount(&[lower, top]).unwrap();
    assert!(fs::read(point.path().join("bin/tool")).unwrap() == noise(1, BIG));
    assert!(bench.requests() > before, "it came from the registry");
    let used = bench.lazy().stored(lower.digest()).unwrap().unwrap().used;
    assert!(used > stored.used, "a mount is a use");
    bench.lazy().unmount(&[lower, top]).unwrap();
}
