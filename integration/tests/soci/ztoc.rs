//! What SOCI's tools write: the *ztoc* of a gzip layer, a FlatBuffer (`ztoc/fbs/ztoc.fbs` of SOCI's
//! repository) with the layer's files and the places where inflating may begin again.
//!
//! It is made by means that the snapshotter does not have: another inflater, another reader of
//! archives, the FlatBuffers library.

use std::fmt::Write as _;
use std::io::Read;

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use sha2::{Digest as _, Sha256};

/// Length of a gzip header without optional parts.
const HEADER: usize = 10;
/// Length of a window.
const WINDOW: usize = 32 << 10;
/// The algorithm's number in a ztoc.
const GZIP: i8 = 1;

/// A table, vector or string of a FlatBuffer.
type Built = WIPOffset<()>;

/// A field of a table.
enum Field {
    Byte(i8),
    Int(u32),
    Long(u64),
    Built(Built),
}

/// A place where inflating may begin.
struct Checkpoint {
    /// First byte of the blob of which nothing was consumed.
    at: usize,
    /// Bytes of the archive before it.
    out: usize,
    /// Bits of the byte before `at` that were not consumed.
    bits: u8,
}

/// The `sha256:` digest of some bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// The ztoc of the gzip layer `blob` with checkpoints at least `span` bytes of its archive apart,
/// and how many spans it has.
pub(super) fn of(blob: &[u8], span: usize) -> (Vec<u8>, usize) {
    let (archive, checkpoints) = inflate(blob, span);
    let mut builder = FlatBufferBuilder::new();
    let entries = entries(&mut builder, &archive);
    let entries = Field::Built(erased(builder.create_vector(&entries)));
    let toc = table(&mut builder, &[entries]);
    let info = compression(&mut builder, blob, &archive, &checkpoints, span);
    let fields = [
        text(&mut builder, b"0.9"),
        text(&mut builder, b"tests of xebec"),
        Field::Long(blob.len() as u64),
        Field::Long(archive.len() as u64),
        Field::Built(toc),
        Field::Built(info),
    ];
    let root = table(&mut builder, &fields);
    builder.finish_minimal(root);
    (builder.finished_data().to_vec(), checkpoints.len())
}

/// The archive in a blob of one gzip member, and where inflating may begin.
fn inflate(blob: &[u8], span: usize) -> (Vec<u8>, Vec<Checkpoint>) {
    assert_eq!(blob[..4], [0x1f, 0x8b, 8, 0], "a plain gzip header");
    let len = *blob.last_chunk().expect("a length at the end");
    let mut archive = vec![0; u32::from_le_bytes(len) as usize];
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
    let mut inflater = DecompressorOxide::new();
    let mut checkpoints: Vec<Checkpoint> = Vec::new();
    let (mut at, mut out) = (HEADER, 0);
    loop {
        let (status, read, written) =
            decompress(&mut inflater, &blob[at..], &mut archive, out, flags);
        (at, out) = (at + read, out + written);
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::BlockBoundary => {}
            other => panic!("byte {at} of a layer: {other:?}"),
        }
        let state = inflater.block_boundary_state().expect("a boundary");
        if checkpoints.last().is_none_or(|last| out - last.out >= span) {
            let bits = state.num_bits;
            checkpoints.push(Checkpoint { at, out, bits });
        }
    }
    assert_eq!((at + 8, out), (blob.len(), archive.len()), "one member");
    // The first block begins where the header ends, not where it was stopped at first.
    let start = Checkpoint {
        at: HEADER,
        out: 0,
        bits: 0,
    };
    checkpoints.retain(|checkpoint| checkpoint.out > 0);
    checkpoints.insert(0, start);
    (archive, checkpoints)
}

fn compression(
    builder: &mut FlatBufferBuilder<'_>,
    blob: &[u8],
    archive: &[u8],
    checkpoints: &[Checkpoint],
    span: usize,
) -> Built {
    let mut zinfo = (checkpoints.len() as u32).to_le_bytes().to_vec();
    zinfo.extend((span as u64).to_le_bytes());
    let mut digests = Vec::new();
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let Checkpoint { at, out, bits } = *checkpoint;
        zinfo.extend((at as u64).to_le_bytes());
        zinfo.extend((out as u64).to_le_bytes());
        zinfo.push(bits);
        let window = &archive[out.saturating_sub(WINDOW)..out];
        zinfo.resize(zinfo.len() + WINDOW - window.len(), 0);
        zinfo.extend(window);
        let end = checkpoints.get(number + 1).map_or(blob.len(), |it| it.at);
        let packed = &blob[at - usize::from(bits > 0)..end];
        digests.push(erased(builder.create_string(&digest(packed))));
    }
    let fields = [
        Field::Byte(GZIP),
        Field::Int(checkpoints.len() as u32 - 1),
        Field::Built(erased(builder.create_vector(&digests))),
        Field::Built(erased(builder.create_vector(&zinfo))),
    ];
    table(builder, &fields)
}

/// A table for each entry of the archive.
fn entries(builder: &mut FlatBufferBuilder<'_>, archive: &[u8]) -> Vec<Built> {
    let mut archive = tar::Archive::new(archive);
    let mut tables = Vec::new();
    for entry in archive.entries().expect("an archive") {
        tables.push(describe(builder, &entry.expect("an entry")));
    }
    tables
}

fn describe<R: Read>(builder: &mut FlatBufferBuilder<'_>, entry: &tar::Entry<'_, R>) -> Built {
    let header = entry.header();
    let kind: &[u8] = match header.entry_type() {
        tar::EntryType::Regular => b"reg",
        tar::EntryType::Directory => b"dir",
        tar::EntryType::Symlink => b"symlink",
        tar::EntryType::Link => b"hardlink",
        other => panic!("{other:?} in an image of the corpus"),
    };
    let link = entry.link_name_bytes().unwrap_or_default();
    let user = header.username_bytes().unwrap_or_default();
    let group = header.groupname_bytes().unwrap_or_default();
    let fields = [
        text(builder, &entry.path_bytes()),
        text(builder, kind),
        Field::Long(entry.raw_file_position()),
        Field::Long(entry.size()),
        text(builder, &link),
        Field::Long(header.mode().expect("a mode").into()),
        Field::Int(header.uid().expect("an owner") as u32),
        Field::Int(header.gid().expect("a group") as u32),
        text(builder, user),
        text(builder, group),
        text(builder, time(header.mtime().expect("a time")).as_bytes()),
    ];
    table(builder, &fields)
}

/// Seconds since 1970 as RFC 3339 has them.
fn time(seconds: u64) -> String {
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let is_leap = |year: u64| year.is_multiple_of(4) && year < 2100;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let day = day + 1;
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn text(builder: &mut FlatBufferBuilder<'_>, bytes: &[u8]) -> Field {
    Field::Built(erased(builder.create_vector(bytes)))
}

fn table(builder: &mut FlatBufferBuilder<'_>, fields: &[Field]) -> Built {
    let table = builder.start_table();
    for (number, field) in fields.iter().enumerate() {
        let slot = 4 + 2 * number as u16;
        match *field {
            Field::Byte(value) => builder.push_slot_always(slot, value),
            Field::Int(value) => builder.push_slot_always(slot, value),
            Field::Long(value) => builder.push_slot_always(slot, value as i64),
            Field::Built(value) => builder.push_slot_always(slot, value),
        }
    }
    erased(builder.end_table(table))
}

fn erased<T>(built: WIPOffset<T>) -> Built {
    WIPOffset::new(built.value())
}

#[test]
fn times_are_told_as_they_are() {
    for (seconds, told) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
    ] {
        assert_eq!(time(seconds), told);
    }
}
