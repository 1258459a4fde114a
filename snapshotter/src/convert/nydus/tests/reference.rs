//! Images whose gzip layers stay as they are.

use std::io::Write;

use super::*;
use crate::formats::nydus::REFERENCE_ANNOTATION;
use crate::index::Codec;
use crate::sys::{Blocks, Inflater, Stop};

/// Text that packs to many blocks.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let noise = noise(seed, len / 8);
    let words = noise.chunks(2).flat_map(|pair| {
        format!("word{:05} ", pair[0] as usize * 256 + pair[1] as usize).into_bytes()
    });
    words.take(len).collect()
}

fn gzip(archive: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

fn refer(root: &Path, layers: &[Vec<u8>], chunk_size: u64) -> Result<Converted> {
    convert_in(root, layers, |options| {
        options.chunk_size = Some(chunk_size);
        options.oci_ref = true;
    })
}

fn two_layers() -> [Vec<u8>; 2] {
    let below = layer(&[
        ("f", "one", &text(1, 3_000_000)[..]),
        ("f", "small", b"small"),
        ("f", "empty", b""),
        ("f", "gone", &noise(3, 100_000)),
        ("f", "two", &text(2, 5_500_000)),
    ]);
    let above = layer(&[
        ("f", ".wh.gone", b""),
        ("f", "again", &text(1, 3_000_000)),
        ("h", "linked", b"again"),
        ("f", "noise", &noise(4, 3_300_000)),
    ]);
    [gzip(&below), gzip(&above)]
}

#[test]
fn layers_that_stay_as_they_are_give_every_file() {
    let root = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let converted = refer(root.path(), &layers, CHUNK_SIZE).unwrap();
    let originals: Vec<Digest> = converted.index.blobs().map(|(digest, _)| digest).collect();
    assert_eq!(originals, layers.each_ref().map(|one| Digest::of(one)));
    let parts = &converted.manifest.layers;
    for (part, original) in parts.iter().zip(&originals) {
        assert_eq!(part.annotations[REFERENCE_ANNOTATION], original.to_string());
        assert!(part.size < 400_000, "{} bytes of contexts", part.size);
    }
    let subject = &converted.manifest.other["subject"]["digest"];
    let stored = |digest: &str| {
        root.path()
            .join("to/blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    };
    assert!(
        stored(subject.as_str().unwrap()).exists(),
        "the original goes along"
    );
    let mut expected = vec![
        file("one", &text(1, 3_000_000), 1),
        file("small", b"small", 1),
        file("empty", b"", 1),
        file("two", &text(2, 5_500_000), 1),
        file("again", &text(1, 3_000_000), 2),
        file("linked", &text(1, 3_000_000), 2),
        file("noise", &noise(4, 3_300_000), 1),
    ];
    expected.sort();
    assert_eq!(converted.listing(), expected);
}

/// What a reader of Nydus does with a context: it gives the inflater just the bytes that the context
/// names, wants just as many as it promises, and takes a stream's end for a failure.
#[test]
fn each_inflate_context_gives_what_it_promises_from_just_the_bytes_that_it_names() {
    let root = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let converted = refer(root.path(), &layers, CHUNK_SIZE).unwrap();
    let mut tried = 0;
    for (packed, part) in layers.iter().zip(&converted.manifest.layers) {
        let blob = &converted.blobs[&part.digest];
        let long = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
        };
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
        };
        let header = &blob[blob.len() - 512 - 4096..];
        let (at, packed_len, len) = (long(header, 16), long(header, 24), long(header, 32));
        let codec = match word(header, 8) {
            0 => Codec::Plain,
            _ => Codec::Zstd,
        };
        let table = unpack(codec, &blob[at..at + packed_len], len).unwrap();
        let (contexts, count) = (long(header, 40), word(header, 56));
        let windows = contexts + count * 40;
        for number in 0..count {
            let context = &table[contexts + number * 40..];
            let (begin, window) = (long(context, 0), windows + long(context, 16));
            let (packed_len, len, window_len) =
                (word(context, 24), word(context, 28), word(context, 32));
            let (byte, bits) = (context[36], context[37]);
            let window = &table[window..window + window_len];
            let mut inflater = Inflater::resume(bits, byte, window).unwrap();
            let mut out = vec![0; len];
            let step = inflater
                .step(&packed[begin..begin + packed_len], &mut out, Blocks::Pass)
                .unwrap();
            assert_eq!(step.written, len, "context {number}");
            assert_ne!(step.stop, Stop::End, "context {number}");
            tried += 1;
        }
    }
    assert!(tried > 5, "{tried}");
}

#[test]
fn the_same_image_is_described_by_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layers = two_layers();
    let [first, second] = [&one, &two].map(|root| refer(root.path(), &layers, 8192).unwrap());
    assert_eq!(first.report.digest, second.report.digest);
    assert_eq!(first.blobs, second.blobs);
}

#[test]
fn what_cannot_be_referred_to_is_named() {
    let root = tempfile::tempdir().unwrap();
    let plain = layer(&[("f", "a", &b"content"[..])]);
    let whole = [noise(1, 512), plain.clone()].concat();
    // A second member begins where the content of `big` has not ended yet.
    let big = layer(&[("f", "big", &noise(2, 20_000)[..])]);
    let members = [gzip(&big[..9000]), gzip(&big[9000..])].concat();
    let mut cut = gzip(&big);
    cut.truncate(cut.len() / 2);
    let cases = [
        (plain.clone(), "not packed by gzip"),
        (Vec::new(), "not packed by gzip"),
        (gzip(&whole), "sha256:"),
        (
            members,
            "\"big\": a piece of it reaches the end of a gzip member",
        ),
        (cut, "cut short"),
    ];
    for (number, (blob, word)) in cases.into_iter().enumerate() {
        let digest = Digest::of(&blob).to_string();
        let error = refer(&root.path().join(number.to_string()), &[blob], 4096)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(word) && error.contains(&digest),
            "{word}: {error}"
        );
    }
    let refused = |change: fn(&mut Options)| {
        let options = |options: &mut Options| {
            options.oci_ref = true;
            change(options);
        };
        convert_in(root.path(), &[gzip(&plain)], options)
            .err()
            .unwrap()
            .to_string()
    };
    let level = refused(|options| options.level = Some(3));
    assert!(level.contains("a level"), "{level}");
    let known = refused(|options| options.chunk_dict = Some(options.source.clone()));
    assert!(known.contains("dictionary"), "{known}");
    let other = refused(|options| options.format = Format::Index);
    assert!(other.contains("but nydus"), "{other}");
    let long = refused(|options| options.chunk_size = Some(8 << 20));
    assert!(long.contains("4194304"), "{long}");
}

#[test]
fn members_that_end_between_files_are_unpacked_each_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (text(1, 100_000), noise(2, 100_000));
    let archive = layer(&[("f", "one", &one[..]), ("f", "two", &two)]);
    // Behind the padding of `one`, before the header of `two`.
    let middle = 512 + one.len().next_multiple_of(512);
    let members = [gzip(&archive[..middle]), gzip(&archive[middle..])].concat();
    let converted = refer(root.path(), &[members], CHUNK_SIZE).unwrap();
    assert_eq!(converted.index.units(), 2);
    assert_eq!(
        converted.listing(),
        [file("one", &one, 1), file("two", &two, 1)]
    );
}
