//! Where in the store each file's content lies: known as soon as the file's size is.

use super::{ALIGN, MAX_DATA, MAX_OBJECTS, OBJECT_MIN};

/// Gives files their places: large ones a segment of their own, small ones one after the other in
/// segment 0.
#[derive(Debug)]
pub(super) struct Places {
    /// Length of each segment.
    segments: Vec<u64>,
    data_size: u64,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            segments: vec![0],
            data_size: 0,
        }
    }

    /// Segment and offset for a file of `size` bytes.
    pub(super) fn place(&mut self, size: u64) -> Result<(u32, u64), &'static str> {
        if size == 0 {
            return Ok((0, 0));
        }
        self.data_size = self
            .data_size
            .checked_add(size)
            .filter(|sum| *sum <= MAX_DATA)
            .ok_or("the layer's files exceed 16 TiB")?;
        if self.threshold().is_some_and(|threshold| size >= threshold) {
            self.segments.push(size);
            return Ok((self.segments.len() as u32 - 1, 0));
        }
        let base = self.segments[0];
        self.segments[0] += size.next_multiple_of(ALIGN);
        Ok((0, base))
    }

    /// Least size of a file that becomes an object now: [`OBJECT_MIN`] for the first half of them,
    /// twice that for half of the rest, and so on.
    fn threshold(&self) -> Option<u64> {
        let left = MAX_OBJECTS + 1 - self.segments.len();
        let used_up = MAX_OBJECTS
            .ilog2()
            .saturating_sub(left.checked_ilog2()? + 1);
        Some(OBJECT_MIN << used_up)
    }

    /// Bytes of all files together.
    pub(super) fn data_size(&self) -> u64 {
        self.data_size
    }

    /// The length of each segment.
    pub(super) fn into_segments(self) -> Vec<u64> {
        self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_objects_there_are_the_larger_a_file_must_be_to_become_one() {
        let mut places = Places::new();
        let mut objects = |size| {
            let is_object = |_: &usize| places.place(size).unwrap().0 > 0;
            (0..2 * MAX_OBJECTS).take_while(is_object).count()
        };
        // The file that is refused in each round is packed with the small ones.
        assert_eq!(objects(OBJECT_MIN - 1), 0);
        assert_eq!(objects(OBJECT_MIN), MAX_OBJECTS / 2 + 1);
        assert_eq!(objects(OBJECT_MIN), 0);
        assert_eq!(objects(2 * OBJECT_MIN), MAX_OBJECTS / 4);
        assert_eq!(objects(1 << 32), MAX_OBJECTS / 4 - 1);
        assert_eq!(objects(1 << 32), 0);
    }
}
