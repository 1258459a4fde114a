//! The cold read: from an absent range of a file to verified bytes on disk.
//!
//! [`Filler::read`] is the whole story: find the chunks, claim their units so that each is fetched
//! once however many wait for it, fetch neighbours in one range request, and as each unit's bytes
//! arrive unpack, verify, write, set the bits, wake those who wait. [`ahead`] decides what else is worth fetching while the line
//! is in use, [`plan`] and [`prefetch`] what to fetch before anyone asks, [`pool`] who goes first. Threads
//! block; there is no async here, because each of these threads waits for one answer at a time.
//!
//! A failure is told to everyone who waits for the unit, is logged with the layer's digest (not more
//! often than anyone can read), and leaves nothing behind: the next read tries again.

mod ahead;
pub mod counters;
mod flight;
mod inflate;
mod open;
mod plan;
pub mod pool;
mod prefetch;
mod quiet;
mod request;
mod timed;
mod touch;
pub(crate) mod unpack;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

pub use open::{LayerQuery, Opened, names_index, needs_image, open_external, open_layer, vouched};

use self::ahead::Ahead;
use self::counters::{Counters, Counts};
use self::flight::{Claim, Flights, Landing};
pub use self::plan::Plan;
use self::pool::{Class, Pool};
use self::quiet::Quiet;
use self::request::{MAX_RANGES, Request};
use self::timed::Timed;
use self::touch::Watchers;
use self::unpack::Unpacker;
use crate::digest::Digest;
use crate::error::Error;
use crate::fetch::{BlobSource, by_other_hosts, is_spoilt};
use crate::index::{Codec, Inode, LayerIndex, Span};
use crate::profile::Recording;
use crate::store::Blob;
use crate::timeline::{Timeline, What};

/// Result of what several threads may wait for together.
pub type Shared<T> = Result<T, Arc<Error>>;

/// One layer: its store, its registry, and who fetches what.
pub struct Filler {
    blob: Arc<Blob>,
    /// One for each blob of the index.
    sources: Vec<Arc<dyn BlobSource>>,
    pool: Arc<Pool>,
    flights: Arc<Flights>,
    ahead: Ahead,
    counters: Counters,
    failures: Quiet,
    watchers: Watchers,
    timed: Timed,
    /// All units before this one are local.
    filled: AtomicU32,
}

impl Filler {
    /// Ties the stored layer `blob` to the `source` of its bytes.
    pub fn new(blob: Arc<Blob>, source: Arc<dyn BlobSource>, pool: Arc<Pool>) -> Arc<Self> {
        Self::with_sources(blob, vec![source], pool)
    }

    /// The same for a layer whose bytes lie in several blobs: one source for each blob of the
    /// index, in its order. A blob without a source cannot be read.
    pub fn with_sources(
        blob: Arc<Blob>,
        sources: Vec<Arc<dyn BlobSource>>,
        pool: Arc<Pool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ahead: Ahead::new(blob.index().blob_size()),
            blob,
            sources,
            pool,
            flights: Arc::default(),
            counters: Counters::default(),
            failures: Quiet::default(),
            watchers: Watchers::default(),
            timed: Timed::default(),
            filled: AtomicU32::new(0),
        })
    }

    /// The stored layer.
    pub fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    /// Packed bytes fetched since this daemon started.
    pub fn fetched(&self) -> u64 {
        self.counts().fetched.iter().sum()
    }

    /// What happened to this layer since it was opened.
    pub fn counts(&self) -> Counts {
        self.counters.show()
    }

    /// Counts a read that a back end has seen: was all of it local?
    pub fn count_read(&self, is_local: bool) {
        self.counters.read(is_local);
    }

    /// From now on tells `recording` of what is read; this is layer number `layer` of its chain.
    pub fn record(&self, recording: Arc<Recording>, layer: usize) {
        self.watchers.add(recording, layer, self.index().units());
    }

    /// From now on tells `timeline` of what is fetched and waited for, until it is over.
    pub fn time(&self, timeline: Arc<Timeline>) {
        self.timed.add(timeline);
    }

    /// Notes that a container has read `len` bytes at `offset` of a regular file, local or not.
    /// Every back end calls it for every read that it sees, before it serves it.
    pub fn touch(&self, file: &Inode, offset: u64, len: u64) {
        self.watchers.touch(self.index(), file, offset, len);
    }

    /// The same for a range of a segment.
    pub fn touch_range(&self, segment: u32, offset: u64, len: u64) {
        if self.watchers.are_none() {
            return;
        }
        let map = self.blob.file_map();
        for piece in map.pieces(self.index(), segment, offset, len) {
            self.touch(&piece.file, piece.offset, piece.len);
        }
    }

    /// Whether a first profile is being recorded, from which no read may be hidden.
    pub fn wants_every_read(&self) -> bool {
        self.watchers.want_every_read()
    }

    /// From now on little is fetched along with what readers miss: a profile knows better.
    fn follow_profile(&self) {
        self.ahead.calm();
    }

    /// Whether all `len` bytes at `offset` of a file are local.
    pub fn is_local(&self, file: &Inode, offset: u64, len: u64) -> bool {
        let mut chunks = self.index().chunks_at(file, offset, len);
        chunks.all(|chunk| self.blob.has(chunk))
    }

    /// Whether everything in a range of a segment is local.
    pub fn is_range_local(&self, segment: u32, offset: u64, len: u64) -> bool {
        let mut pieces = self
            .blob
            .file_map()
            .pieces(self.index(), segment, offset, len);
        pieces.all(|piece| self.is_local(&piece.file, piece.offset, piece.len))
    }

    /// Makes everything in a range of a segment local, as [`Filler::read`] does it.
    pub fn fill_range(self: &Arc<Self>, segment: u32, offset: u64, len: u64) -> Shared<()> {
        let pieces = self
            .blob
            .file_map()
            .pieces(self.index(), segment, offset, len);
        let units = pieces.map(|piece| self.absent_units(&piece.file, piece.offset, piece.len));
        let mut units: Vec<u32> = units.flatten().collect();
        units.sort_unstable();
        units.dedup();
        self.ensure(&units, (segment, offset), len)
    }

    /// Reads `len` bytes at `offset` of a regular file, fetching what is absent; fewer only at its
    /// end. Blocks for as long as the registry may take.
    pub fn read(self: &Arc<Self>, file: &Inode, offset: u64, len: u64) -> Shared<Vec<u8>> {
        let len = len.min(file.size.saturating_sub(offset));
        let place = (file.segment, file.base + offset);
        self.ensure(&self.absent_units(file, offset, len), place, len)?;
        let mut buffer = vec![0; len as usize];
        self.read_local(file, offset, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads bytes that are local into all of `buffer`.
    pub fn read_local(&self, file: &Inode, offset: u64, buffer: &mut [u8]) -> Shared<()> {
        self.blob.read(file, offset, buffer).map_err(|error| {
            tracing::error!(layer = %self.layer(), %error, "reading local bytes failed");
            Arc::new(error)
        })
    }

    /// The units that hold absent chunks of a range, in the blob's order.
    fn absent_units(&self, file: &Inode, offset: u64, len: u64) -> Vec<u32> {
        let chunks = self.index().chunks_at(file, offset, len);
        let absent = chunks.filter(|&chunk| !self.blob.has(chunk));
        let mut units: Vec<u32> = absent.map(|chunk| self.index().chunk(chunk).unit).collect();
        units.sort_unstable();
        units.dedup();
        units
    }

    /// Returns when all `units` are local, whoever fetches them: those of `len` bytes at a place
    /// of a segment.
    fn ensure(self: &Arc<Self>, units: &[u32], place: (u32, u64), len: u64) -> Shared<()> {
        let begun = Instant::now();
        let (mine, mut flights) = self.claim(units.iter().copied());
        if !mine.is_empty() {
            flights.extend(mine.iter().map(Claim::landing));
            self.start(mine);
        }
        let outcome = flights.iter().try_for_each(|flight| flight.wait());
        if !flights.is_empty() {
            self.timed.note(begun, || What::Wait {
                layer: self.layer(),
                file: String::new(),
                bytes: len,
                place,
            });
        }
        outcome
    }

    /// Claims those units that are neither local nor claimed; the others' flights can be awaited.
    fn claim(&self, units: impl Iterator<Item = u32>) -> (Vec<Claim>, Vec<Arc<Landing>>) {
        self.flights.claim(units, |unit| self.is_unit_local(unit))
    }

    /// Fetches what a reader waits for, and in the same request what will probably be asked for
    /// next: units land one by one as their bytes arrive, so the reader does not wait for the
    /// rest, and whoever comes for the rest finds it under way. When the line is busy enough, the
    /// reader's thread fetches what is needed and nothing else.
    fn start(self: &Arc<Self>, mut mine: Vec<Claim>) {
        let last = mine[mine.len() - 1].unit();
        let place = self.index().place_among_blobs(&self.index().unit(last));
        let window = self.ahead.window(place);
        let absent = |unit| !self.is_unit_local(unit) && !self.flights.is_claimed(unit);
        let along = ahead::neighbours(self.index(), last, window, absent);
        let Some(slot) = self.pool.slot(Class::Ahead) else {
            return self.fetch(mine, Class::Read);
        };
        mine.extend(self.claim(along.into_iter()).0);
        let filler = Arc::clone(self);
        slot.run(move || filler.fetch(mine, Class::Read));
    }

    fn is_unit_local(&self, unit: u32) -> bool {
        let unit = self.index().unit(unit);
        let mut chunks = self.index().unit_chunks(&unit);
        chunks.all(|chunk| self.blob.has(chunk))
    }

    /// Fetches claimed units, neighbours together. The outcome reaches whoever waits for a unit.
    fn fetch(&self, claims: Vec<Claim>, class: Class) {
        self.fetch_by(claims, class, |blob| self.takes_several(blob));
    }

    /// The same, with several ranges in one request of a blob if `takes_several` says so.
    fn fetch_by(&self, mut claims: Vec<Claim>, class: Class, takes_several: impl Fn(u16) -> bool) {
        // Readers' units come first in the list, and the run that holds the first one comes first.
        while let Some(first) = claims.first().map(Claim::unit) {
            claims.sort_unstable_by_key(|claim| (claim.unit() < first, claim.unit()));
            let units = || {
                let units = claims.iter().map(|claim| self.index().unit(claim.unit()));
                units.map(|unit| (unit.blob, unit.offset..unit.end()))
            };
            let blob = self.index().unit(first).blob;
            let mut request = Request::of(units(), MAX_RANGES);
            if request.ranges.len() > 1 && !takes_several(blob) {
                request = Request::of(units(), 1);
            }
            let rest = claims.split_off(request.places.len());
            let source = self.sources.get(usize::from(blob)).map(|source| &**source);
            self.fetch_request(claims, &request, source, class);
            claims = rest;
        }
    }

    /// Whether the next request can ask for several ranges of a blob; whoever asks this does it then.
    fn takes_several(&self, blob: u16) -> bool {
        let source = self.sources.get(usize::from(blob));
        source.is_some_and(|source| source.takes_several())
    }

    /// One request; each unit lands as soon as its bytes are there.
    fn fetch_request(
        &self,
        claims: Vec<Claim>,
        request: &Request,
        source: Option<&dyn BlobSource>,
        class: Class,
    ) {
        let (start, len) = (request.ranges[0].start, request.len());
        let begun = Instant::now();
        let disturbance = (class != Class::Background).then(|| self.pool.disturb());
        let mut packed = Vec::with_capacity(len);
        let mut unpacker = Unpacker::default();
        let mut spoilt = Vec::new();
        let mut due = claims
            .into_iter()
            .zip(request.places.iter().cloned())
            .peekable();
        let mut take = |part: &[u8]| {
            packed.extend_from_slice(part);
            let has_arrived = |due: &(Claim, Range<usize>)| due.1.end <= packed.len();
            while let Some((claim, place)) = due.next_if(has_arrived) {
                spoilt.extend(self.arrive(claim, &packed[place], &mut unpacker));
            }
        };
        let read = match source {
            Some(source) => source.read_ranges(&request.ranges, &mut take),
            None => Err(Error::Internal("a blob has no source".to_owned())),
        };
        drop(disturbance);
        counters::times(class).add(begun.elapsed());
        self.counters.fetched(class, packed.len() as u64);
        for (offset, bytes) in request.arrived(packed.len()) {
            self.timed.note(begun, || What::Fetch {
                layer: self.layer(),
                cause: class.name().to_owned(),
                offset,
                bytes,
            });
        }
        if let Err(error) = read {
            self.counters.failed();
            if let Some(unlogged) = self.failures.speak() {
                tracing::error!(
                    layer = %self.layer(), offset = start, len, %error, unlogged,
                    "fetching failed; reads of these bytes get EIO"
                );
            }
            let error = Arc::new(error);
            for (claim, _) in due {
                claim.land(Err(Arc::clone(&error)));
            }
        }
        for (claim, error) in spoilt {
            self.fetch_again(claim, error, source);
        }
    }

    /// Fetches a unit whose bytes were wrong from other hosts, if there are any.
    fn fetch_again(&self, claim: Claim, error: Error, source: Option<&dyn BlobSource>) {
        let unit = self.index().unit(claim.unit());
        let (offset, len) = (unit.offset, u64::from(unit.len));
        let mut first = Some(error);
        let outcome = match source {
            Some(source) => by_other_hosts(source, (offset, len), || {
                first.take().map_or(Ok(()), Err)?;
                let packed = source.read_range(offset, len)?;
                self.store(claim.unit(), &packed, &mut Unpacker::default())
            }),
            None => first.take().map_or(Ok(()), Err),
        };
        claim.land(outcome.map_err(|error| {
            tracing::error!(
                layer = %self.layer(), offset, %error,
                "fetched bytes are not usable; reads of them get EIO"
            );
            Arc::new(error)
        }));
    }

    /// Makes a unit local whose bytes are `packed`. Gives the claim back if they are wrong, as
    /// others may have the right ones.
    fn arrive(
        &self,
        claim: Claim,
        packed: &[u8],
        unpacker: &mut Unpacker,
    ) -> Option<(Claim, Error)> {
        match self.store(claim.unit(), packed, unpacker) {
            Ok(()) => claim.land(Ok(())),
            Err(error) if is_spoilt(&error) => {
                self.counters.spoilt();
                return Some((claim, error));
            }
            Err(error) => {
                tracing::error!(
                    layer = %self.layer(), unit = claim.unit(), %error,
                    "fetched bytes cannot be kept; reads of them get EIO"
                );
                claim.land(Err(Arc::new(error)));
            }
        }
        None
    }

    /// Unpacks a unit, and writes each chunk in it that is absent. Either the unit is verified
    /// before it is unpacked, or each of its chunks afterwards.
    fn store(&self, id: u32, packed: &[u8], unpacker: &mut Unpacker) -> Result<(), Error> {
        let unit = &self.index().unit(id);
        let span = self.index().span(id);
        let digest = span.as_ref().and_then(Span::digest);
        if let Some(digest) = &digest {
            let what = format!("layer {}, unit at {}", self.layer(), unit.offset);
            digest.verify(packed, &what)?;
        }
        let end = |id| {
            let chunk = self.index().chunk(id);
            chunk.inner as usize + chunk.len as usize
        };
        let needed = self.index().unit_chunks(unit).map(end).max().unwrap_or(0);
        let unpacked = match (unit.codec(), &span) {
            (Codec::Deflate, Some(span)) => {
                inflate::inflate(span.bits, self.index().window(span), packed, needed)
                    .map(Cow::Owned)
            }
            (codec, _) => unpacker.unpack(codec, packed, needed),
        }
        .map_err(|reason| Error::Malformed {
            what: format!("layer {} at {}", self.layer(), unit.offset),
            reason,
        })?;
        let mut stored = Ok(());
        for id in self.index().unit_chunks(unit) {
            if self.blob.has(id) {
                continue;
            }
            let chunk = self.index().chunk(id);
            let bytes = &unpacked[chunk.inner as usize..][..chunk.len as usize];
            let verified = if digest.is_some() {
                Ok(())
            } else {
                let what = format!("layer {}, chunk {id} at {}", self.layer(), unit.offset);
                self.index().algorithm().verify(bytes, &chunk.digest, &what)
            };
            stored = stored.and(verified.and_then(|()| self.blob.write_chunk(id, bytes)));
        }
        stored
    }

    fn index(&self) -> &LayerIndex {
        self.blob.index()
    }

    fn layer(&self) -> Digest {
        self.index().layer()
    }
}

#[cfg(test)]
mod tests;
