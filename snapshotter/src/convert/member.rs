//! gzip members (RFC 1952) and zstd frames (RFC 8878), compressed on a pool of threads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Magic, deflate, no flags, no time, no hints, unknown system: the same on every machine.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Room that deflate may need beyond its input, at the least.
const MARGIN: usize = 1 << 10;

/// A piece of what a member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes of the spool file.
    Spooled {
        /// Where they start.
        at: u64,
        /// How many they are.
        length: u64,
    },
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Spooled { length, .. } => *length,
        }
    }
}

/// How members are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// A gzip member each, of this level (0 to 9).
    Gzip(u32),
    /// A zstd frame each, of this level (1 to 22).
    Zstd(i32),
}

/// Levels at which what a start reads is packed, whatever that costs.
const HARD_ZSTD: i32 = 19;

/// A compressor; its state is used again and again.
enum Packer {
    Gzip(Compress),
    HardGzip(Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    fn new(packing: Packing) -> Result<Self> {
        match packing {
            Packing::Gzip(level) => Ok(Self::Gzip(Compress::new(Compression::new(level), false))),
            Packing::Zstd(level) => zstd::bulk::Compressor::new(level)
                .map(Self::Zstd)
                .map_err(|error| Error::Internal(format!("zstd: {error}"))),
        }
    }

    /// The one for what a start reads.
    fn hard(packing: Packing) -> Result<Self> {
        match packing {
            Packing::Gzip(_) => Ok(Self::HardGzip(Compressor::new(CompressionLvl::best()))),
            Packing::Zstd(level) => Self::new(Packing::Zstd(level.max(HARD_ZSTD))),
        }
    }

    fn pack(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Gzip(deflate) => compress(plain, deflate),
            Self::HardGzip(deflate) => compress_hard(plain, deflate),
            Self::Zstd(zstd) => zstd
                .compress(plain)
                .map_err(|error| Error::Internal(format!("zstd: {error}"))),
        }
    }
}

/// A thread's compressors, made when they are first needed.
struct Packers {
    packing: Packing,
    ordinary: Option<Packer>,
    hard: Option<Packer>,
}

impl Packers {
    fn get(&mut self, is_hot: bool) -> Result<&mut Packer> {
        let (place, new): (_, fn(Packing) -> Result<Packer>) = if is_hot {
            (&mut self.hard, Packer::hard)
        } else {
            (&mut self.ordinary, Packer::new)
        };
        let packer = match place.take() {
            Some(packer) => packer,
            None => new(self.packing)?,
        };
        Ok(place.insert(packer))
    }
}

/// A member to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What it holds.
    pub(super) pieces: Vec<Piece>,
    /// The first so many bytes are a chunk, whose digest is wanted.
    pub(super) chunk: u64,
    /// A start reads it: it is to be as small as can be.
    pub(super) is_hot: bool,
}

/// A member that is made.
pub(super) struct Member {
    /// What it decompresses to.
    pub(super) plain: Vec<u8>,
    /// The member or frame.
    pub(super) compressed: Vec<u8>,
    /// Digest of the chunk at its start.
    pub(super) chunk_digest: Digest,
}

struct Job {
    plan: Plan,
    spool: Arc<File>,
    reply: SyncSender<Result<Member>>,
}

/// Threads that make members for all layers of a conversion.
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads that compress.
    pub(super) fn new(threads: usize, packing: Packing) -> Self {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|_| {
                let receiver = Arc::clone(&receiver);
                std::thread::spawn(move || work(&receiver, packing))
            })
            .collect();
        Self {
            jobs: Some(sender),
            threads,
        }
    }

    /// Members that should be under way at once to keep all threads busy.
    pub(super) fn window(&self) -> usize {
        self.threads.len() * 2
    }

    /// Orders a member; it comes out of the receiver.
    pub(super) fn submit(&self, plan: Plan, spool: &Arc<File>) -> Receiver<Result<Member>> {
        let (reply, receiver) = sync_channel(1);
        let job = Job {
            plan,
            spool: Arc::clone(spool),
            reply,
        };
        if let Some(jobs) = &self.jobs {
            // Without threads the job and its reply channel are dropped, which the caller sees.
            let _ = jobs.send(job);
        }
        receiver
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so.
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, packing: Packing) {
    let mut packers = Packers {
        packing,
        ordinary: None,
        hard: None,
    };
    loop {
        let next = jobs.lock().expect("no panic while a job is taken").recv();
        let Ok(job) = next else {
            return;
        };
        let packer = packers.get(job.plan.is_hot);
        let member = packer.and_then(|packer| make(&job.plan, &job.spool, packer));
        // The layer this was for may have failed meanwhile.
        let _ = job.reply.send(member);
    }
}

fn make(plan: &Plan, spool: &File, packer: &mut Packer) -> Result<Member> {
    let plain = gather(plan, spool)?;
    let chunk_digest = Digest::of(&plain[..plan.chunk as usize]);
    let compressed = packer.pack(&plain)?;
    Ok(Member {
        plain,
        compressed,
        chunk_digest,
    })
}

fn gather(plan: &Plan, spool: &File) -> Result<Vec<u8>> {
    let length: u64 = plan.pieces.iter().map(Piece::length).sum();
    let mut plain = Vec::with_capacity(length as usize);
    for piece in &plan.pieces {
        match piece {
            Piece::Bytes(bytes) => plain.extend_from_slice(bytes),
            Piece::Spooled { at, length } => {
                let start = plain.len();
                plain.resize(start + *length as usize, 0);
                spool
                    .read_exact_at(&mut plain[start..], *at)
                    .map_err(Error::io("read temporary file of", Path::new("layer")))?;
            }
        }
    }
    Ok(plain)
}

/// One gzip member. The state of `deflate` is used again: setting it up costs more than
/// compressing a small file.
pub(super) fn compress(plain: &[u8], deflate: &mut Compress) -> Result<Vec<u8>> {
    deflate.reset();
    let mut member = Vec::with_capacity(plain.len() / 2 + MARGIN);
    member.extend_from_slice(&HEADER);
    loop {
        let consumed = deflate.total_in() as usize;
        let status = deflate
            .compress_vec(&plain[consumed..], &mut member, FlushCompress::Finish)
            .map_err(|error| Error::Internal(format!("deflate: {error}")))?;
        if status == Status::StreamEnd {
            break;
        }
        member.reserve(plain.len() / 4 + MARGIN);
    }
    end(&mut member, plain);
    Ok(member)
}

/// One gzip member, as small as can be.
fn compress_hard(plain: &[u8], deflate: &mut Compressor) -> Result<Vec<u8>> {
    let mut member = HEADER.to_vec();
    member.resize(
        HEADER.len() + deflate.deflate_compress_bound(plain.len()),
        0,
    );
    let length = deflate
        .deflate_compress(plain, &mut member[HEADER.len()..])
        .map_err(|error| Error::Internal(format!("deflate: {error}")))?;
    member.truncate(HEADER.len() + length);
    end(&mut member, plain);
    Ok(member)
}

/// Appends a member's trailer.
fn end(member: &mut Vec<u8>, plain: &[u8]) {
    let mut crc = Crc::new();
    crc.update(plain);
    member.extend_from_slice(&crc.sum().to_le_bytes());
    member.extend_from_slice(&(plain.len() as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn unzip(member: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(member)
            .read_to_end(&mut plain)
            .unwrap();
        plain
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_u32;
        let step = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(step).take(length).collect()
    }

    #[test]
    fn members_of_any_content_decompress_to_it_and_do_not_depend_on_what_came_before() {
        for level in [0, 1, 6, 9] {
            let mut deflate = Compress::new(Compression::new(level), false);
            for plain in [vec![], b"a".to_vec(), vec![0; 1 << 20], noise(300_000)] {
                let member = compress(&plain, &mut deflate).unwrap();
                assert_eq!(unzip(&member), plain);
                let mut fresh = Compress::new(Compression::new(level), false);
                assert_eq!(compress(&plain, &mut fresh).unwrap(), member);
            }
        }
    }

    #[test]
    fn what_a_start_reads_is_packed_smaller() {
        let text = include_bytes!("member.rs").to_vec();
        let member = |packing, is_hot| {
            let plan = Plan {
                pieces: vec![Piece::Bytes(text.clone())],
                chunk: 0,
                is_hot,
            };
            let file = Arc::new(tempfile::tempfile().unwrap());
            let made = Pool::new(1, packing).submit(plan, &file).recv().unwrap();
            made.unwrap().compressed
        };
        for packing in [Packing::Gzip(9), Packing::Zstd(3)] {
            let (ordinary, hot) = (member(packing, false), member(packing, true));
            assert!(hot.len() < ordinary.len(), "{packing:?}");
        }
        assert_eq!(unzip(&member(Packing::Gzip(9), true)), text);
        let harder = member(Packing::Zstd(22), true);
        assert!(
            harder == member(Packing::Zstd(22), false),
            "never less than was asked for"
        );
    }

    #[test]
    fn the_pool_gathers_pieces_and_hashes_the_chunk_at_their_start() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pool = Pool::new(2, Packing::Gzip(6));
        let pieces = vec![
            Piece::Spooled { at: 2, length: 3 },
            Piece::Bytes(b"xyz".to_vec()),
        ];
        let plan = Plan {
            pieces,
            chunk: 3,
            is_hot: false,
        };
        let receiver = pool.submit(plan, &Arc::new(file));
        let member = receiver.recv().unwrap().unwrap();
        assert_eq!(member.plain, b"234xyz");
        assert_eq!(unzip(&member.compressed), b"234xyz");
        assert_eq!(member.chunk_digest, Digest::of(b"234"));
    }

    #[test]
    fn a_spool_file_that_is_too_short_is_an_error() {
        let pool = Pool::new(1, Packing::Gzip(6));
        let pieces = vec![Piece::Spooled { at: 0, length: 1 }];
        let plan = Plan {
            pieces,
            ..Plan::default()
        };
        let receiver = pool.submit(plan, &Arc::new(tempfile::tempfile().unwrap()));
        assert!(receiver.recv().unwrap().is_err());
    }
}
