//! Chunks, units and where file contents lie in the store.

use super::builder::ChunkSpec;
use super::layout::{Chunk, Codec, Head, Inode, Kind, Record, Unit};
use super::place::Places;
use super::{MAX_CHUNK, MAX_UNIT};

/// A chunk with the inode that it belongs to and the blob that it lies in.
pub(super) struct Placed {
    pub(super) inode: u32,
    pub(super) blob: u16,
    pub(super) spec: ChunkSpec,
}

/// Bytes of a file that are zeros; no chunk holds them and nothing is stored for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hole {
    pub(super) inode: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The holes of all files in their order, and how far they were passed.
struct Holes<'a>(&'a [Hole]);

impl Holes<'_> {
    /// Where the file goes on behind the holes that begin at `covered`.
    fn pass(&mut self, inode: u32, mut covered: u64) -> u64 {
        while let Some((hole, rest)) = self.0.split_first()
            && (hole.inode, hole.offset) == (inode, covered)
        {
            covered = covered.saturating_add(hole.len);
            self.0 = rest;
        }
        covered
    }

    /// A hole of `inode` that lies where something else is.
    fn misplaced(&self, inode: u32) -> Option<u64> {
        let next = self.0.first().filter(|hole| hole.inode == inode);
        next.map(|hole| hole.offset)
    }
}

/// An inode and what is wrong with its content.
type Refusal = (u32, String);

/// Checks what one chunk alone can show.
pub(super) fn check_chunk(spec: &ChunkSpec, blob_size: u64) -> Result<(), String> {
    if spec.len == 0 || spec.len > MAX_CHUNK {
        return Err(format!("a chunk of {} bytes", spec.len));
    }
    if spec.inner > MAX_UNIT - spec.len {
        return Err(format!(
            "a chunk {} bytes into what is unpacked",
            spec.inner
        ));
    }
    let inside = spec
        .unit_offset
        .checked_add(spec.unit_len)
        .is_some_and(|end| end <= blob_size);
    if !inside || spec.unit_len == 0 {
        return Err(format!(
            "a chunk in {} bytes at {} of a blob of {blob_size} bytes",
            spec.unit_len, spec.unit_offset
        ));
    }
    if spec.unit_len > MAX_UNIT {
        return Err(format!("a chunk packed in {} bytes", spec.unit_len));
    }
    Ok(())
}

/// The data sections of an index.
pub(super) struct Content {
    chunks: Vec<Chunk>,
    pub(super) units: Vec<Unit>,
    unit_chunks: Vec<u32>,
    segments: Vec<u64>,
    data_size: u64,
}

impl Content {
    /// Orders and checks the chunks, and gives each file its place in the store.
    pub(super) fn lay_out(
        inodes: &mut [Inode],
        mut specs: Vec<Placed>,
        mut holes: Vec<Hole>,
        places: Places,
    ) -> Result<Self, Refusal> {
        // Formats mostly deliver in this order already; the sort is then one pass.
        specs.sort_by_key(|placed| (placed.inode, placed.spec.file_offset));
        holes.sort_unstable();
        let (units, unit_of) = units(&specs)?;
        let mut content = Self {
            chunks: Vec::with_capacity(specs.len()),
            unit_chunks: Vec::with_capacity(specs.len()),
            units,
            data_size: places.data_size(),
            segments: places.into_segments(),
        };
        content.place_chunks(inodes, &specs, Holes(&holes), &unit_of)?;
        content.group_by_unit();
        Ok(content)
    }

    /// Makes the chunk records; each file's chunks and holes must cover it without gap or overlap.
    fn place_chunks(
        &mut self,
        inodes: &mut [Inode],
        specs: &[Placed],
        mut holes: Holes<'_>,
        unit_of: &[u32],
    ) -> Result<(), Refusal> {
        let mut rest = specs;
        for (id, inode) in inodes.iter_mut().enumerate() {
            let id = id as u32;
            if inode.kind() != Kind::File {
                continue;
            }
            let first = self.chunks.len();
            let mut covered = holes.pass(id, 0);
            while let Some((
                Placed {
                    inode: owner, spec, ..
                },
                more,
            )) = rest.split_first()
                && *owner == id
            {
                if spec.file_offset != covered {
                    let reason = format!(
                        "a chunk at {} where the file is covered up to {covered}",
                        spec.file_offset
                    );
                    return Err((id, reason));
                }
                covered = holes.pass(id, covered + spec.len);
                self.chunks.push(Chunk {
                    file_offset: spec.file_offset,
                    len: spec.len as u32,
                    unit: unit_of[self.chunks.len()],
                    inner: spec.inner as u32,
                    inode: id,
                    digest: *spec.digest.as_bytes(),
                });
                rest = more;
            }
            if let Some(offset) = holes.misplaced(id) {
                return Err((
                    id,
                    format!("a hole at {offset} does not fit between its chunks"),
                ));
            }
            if covered != inode.size {
                let reason = format!("{covered} bytes in chunks, {} in the file", inode.size);
                return Err((id, reason));
            }
            inode.data_first = first as u32;
            inode.data_count = (self.chunks.len() - first) as u32;
        }
        Ok(())
    }

    /// Lists each unit's chunks one after the other.
    fn group_by_unit(&mut self) {
        for chunk in &self.chunks {
            self.units[chunk.unit as usize].count += 1;
        }
        let mut first = 0;
        for unit in &mut self.units {
            unit.first = first;
            first += unit.count;
            unit.count = 0;
        }
        self.unit_chunks = vec![0; self.chunks.len()];
        for (id, chunk) in self.chunks.iter().enumerate() {
            let unit = &mut self.units[chunk.unit as usize];
            self.unit_chunks[(unit.first + unit.count) as usize] = id as u32;
            unit.count += 1;
        }
    }

    /// The units of `files`, each once, in the order in which they are needed.
    pub(super) fn units_of<'a>(&self, files: impl Iterator<Item = &'a Inode>) -> Vec<u32> {
        let mut listed = vec![false; self.units.len()];
        let chunks = files.flat_map(|file| file.data_first..file.data_first + file.data_count);
        chunks
            .map(|chunk| self.chunks[chunk as usize].unit)
            .filter(|unit| !std::mem::replace(&mut listed[*unit as usize], true))
            .collect()
    }

    /// The units that begin at `offsets` of the only blob, each once.
    pub(super) fn units_at(&self, offsets: &[u64]) -> Vec<u32> {
        let mut listed = vec![false; self.units.len()];
        let unit = |offset: &u64| self.units.binary_search_by_key(offset, |unit| unit.offset);
        let units = offsets.iter().filter_map(|offset| unit(offset).ok());
        units
            .filter(|unit| !std::mem::replace(&mut listed[*unit], true))
            .map(|unit| unit as u32)
            .collect()
    }

    /// Enters the counts into the head.
    pub(super) fn describe(&self, head: &mut Head) {
        head.chunks = self.chunks.len() as u32;
        head.units = self.units.len() as u32;
        head.unit_chunks = self.unit_chunks.len() as u32;
        head.segments = self.segments.len() as u32;
        head.data_size = self.data_size;
    }

    /// Appends the sections in the image's order.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.chunks.iter().for_each(|chunk| chunk.put(out));
        self.units.iter().for_each(|unit| unit.put(out));
        self.unit_chunks
            .iter()
            .for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        self.segments
            .iter()
            .for_each(|len| out.extend_from_slice(&len.to_le_bytes()));
    }
}

/// Longer than what any packer makes a deflate block of.
const MAX_SHARED: u64 = 4 << 20;

/// The distinct units in the blobs' order, and each chunk's unit.
fn units(specs: &[Placed]) -> Result<(Vec<Unit>, Vec<u32>), Refusal> {
    let mut order: Vec<u32> = (0..specs.len() as u32).collect();
    let place = |i: u32| (specs[i as usize].blob, specs[i as usize].spec.unit_offset);
    order.sort_by_key(|&i| place(i));
    let mut units: Vec<Unit> = Vec::new();
    let mut unit_of = vec![0; specs.len()];
    for i in order {
        let placed = &specs[i as usize];
        let spec = &placed.spec;
        let same = |unit: &Unit| {
            (unit.blob, unit.offset) == place(i)
                && u64::from(unit.len) == spec.unit_len
                && unit.codec() == spec.codec
        };
        match units.last() {
            Some(unit) if same(unit) => {}
            Some(unit)
                if unit.blob == placed.blob
                    && unit.end() > spec.unit_offset + shared(unit.codec(), spec.codec) =>
            {
                let reason = format!(
                    "its packed bytes at {} overlap others that end at {}",
                    spec.unit_offset,
                    unit.end()
                );
                return Err((placed.inode, reason));
            }
            _ => units.push(new_unit(placed)),
        }
        unit_of[i as usize] = units.len() as u32 - 1;
    }
    Ok((units, unit_of))
}

/// Most bytes that two neighbours may have in common: deflate spans may meet within a byte, or one
/// begin at the block in which the other's last chunk ends.
fn shared(left: Codec, right: Codec) -> u64 {
    match (left, right) {
        (Codec::Deflate, Codec::Deflate) => MAX_SHARED,
        _ => 0,
    }
}

fn new_unit(Placed { blob, spec, .. }: &Placed) -> Unit {
    Unit {
        blob: *blob,
        offset: spec.unit_offset,
        len: spec.unit_len as u32,
        codec: spec.codec.to_byte(),
        first: 0,
        count: 0,
    }
}
