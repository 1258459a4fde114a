//! Names by their hash.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// Hash of a name and its directory, by a key of the builder's own: a hostile layer cannot choose
/// names that collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameHash(u64);

impl NameHash {
    pub(super) fn of(hasher: &RandomState, parent: u32, name: &[u8]) -> Self {
        Self(hasher.hash_one((parent, name)))
    }
}

impl Hash for NameHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// Takes what is a hash already as it is.
#[derive(Debug, Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
