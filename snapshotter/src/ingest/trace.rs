//! Which place of a blob what it unpacks to comes from, for formats whose chunks lie anywhere.

/// Bytes of the blob between two places that are noted, at least: what many tiny blocks take of
/// memory stays below the blob's own length.
const GRAIN: u64 = 4096;

/// A place in what a blob unpacks to, and one in the blob that it needs nothing behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    out: u64,
    at: u64,
}

/// The way through a blob of gzip members.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// In their order; the first and the last byte are between two of them.
    marks: Vec<Mark>,
    /// Where what each member unpacks to ends.
    ends: Vec<u64>,
    /// Of each span the byte before it, some bits of which may belong to the span.
    lasts: Vec<u8>,
}

impl Trace {
    /// Notes that a span begins behind the byte `last`.
    pub(super) fn begin(&mut self, last: u8) {
        self.lasts.push(last);
    }

    /// The byte before the span number `span`.
    pub(crate) fn before(&self, span: usize) -> u8 {
        self.lasts.get(span).copied().unwrap_or_default()
    }

    /// Notes that `at` bytes of the blob have given `out` bytes.
    pub(super) fn note(&mut self, at: u64, out: u64) {
        let last = self.marks.last().copied().unwrap_or_default();
        if at - last.at >= GRAIN {
            self.marks.push(Mark { out, at });
        }
    }

    /// Notes that a member ends there.
    pub(super) fn end(&mut self, at: u64, out: u64) {
        self.marks.push(Mark { out, at });
        self.ends.push(out);
    }

    /// How many bytes of the blob give `out` bytes, or a few more than that.
    pub(crate) fn needed(&self, out: u64) -> u64 {
        let next = self.marks.partition_point(|mark| mark.out < out);
        self.marks
            .get(next)
            .or(self.marks.last())
            .map_or(0, |mark| mark.at)
    }

    /// About where in the blob the byte `out` comes from. Rises with `out`.
    pub(crate) fn about(&self, out: u64) -> u64 {
        let next = self.marks.partition_point(|mark| mark.out <= out);
        let before = next
            .checked_sub(1)
            .map_or(Mark::default(), |i| self.marks[i]);
        let Some(after) = self.marks.get(next) else {
            return before.at;
        };
        let share = u128::from(out - before.out) * u128::from(after.at - before.at);
        before.at + (share / u128::from(after.out - before.out)) as u64
    }

    /// Whether a member ends between these bytes or right behind them.
    pub(crate) fn ends_within(&self, begin: u64, end: u64) -> bool {
        let next = self.ends.partition_point(|member| *member <= begin);
        self.ends.get(next).is_some_and(|member| *member <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_rise_and_what_is_needed_is_never_too_little() {
        let mut trace = Trace::default();
        for (at, out) in [(10, 0), (5000, 20_000), (5100, 21_000), (9500, 30_000)] {
            trace.note(at, out);
        }
        trace.end(10_000, 32_000);
        trace.end(10_020, 32_000);
        let needed = [0, 20_000, 20_001, 32_000, 40_000].map(|out| trace.needed(out));
        assert_eq!(needed, [5000, 5000, 9500, 10_000, 10_020]);
        let about: Vec<u64> = (0..40_000)
            .step_by(100)
            .map(|out| trace.about(out))
            .collect();
        assert!(about.is_sorted());
        assert_eq!((trace.about(0), trace.about(10_000)), (0, 2500));
        assert_eq!((trace.about(20_000), trace.about(33_000)), (5000, 10_020));
    }

    #[test]
    fn the_end_of_a_member_belongs_to_what_reaches_it() {
        let mut trace = Trace::default();
        trace.end(100, 1000);
        trace.end(200, 3000);
        let reaching = [(0, 999), (0, 1000), (999, 1001), (1000, 2999), (2000, 3000)];
        let reaching = reaching.map(|(begin, end)| trace.ends_within(begin, end));
        assert_eq!(reaching, [false, true, true, false, true]);
    }
}
