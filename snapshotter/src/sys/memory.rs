//! The allocator's free memory.

/// Gives memory that is free in the allocator back to the system.
///
/// Cold reads need megabytes for moments, in many threads; glibc would keep them in each thread's
/// arena for as long as the daemon lives.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim only touches the allocator's own free lists, under its locks.
    unsafe { libc::malloc_trim(0) };
}

/// How much more than it kept after the last look the allocator may keep.
const KEEPS: usize = 512 << 10;

/// Looks now and then after what the allocator keeps, and gives it back once that is worth the call:
/// a burst of reads is over long before anything else calls for [`give_back`].
#[derive(Debug, Default)]
pub(crate) struct FreeMemory {
    kept: usize,
}

impl FreeMemory {
    /// Gives free memory back if there is more of it than there was; whether it did.
    pub(crate) fn look(&mut self) -> bool {
        let grown = free() > self.kept.saturating_add(KEEPS);
        if grown {
            give_back();
        }
        // Pages that have been given back are free, too: only what comes on top of them counts.
        self.kept = if grown { free() } else { self.kept.min(free()) };
        grown
    }
}

/// Bytes that are free in the allocator, given back or not.
fn free() -> usize {
    // SAFETY: mallinfo2 only reads the allocator's state, under its locks.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Makes the allocator take each large piece from the system, and give it back when it is freed,
/// and share what it keeps of small ones among threads.
///
/// By default the first large piece that is freed makes it keep the next ones, up to 32 MiB, in an
/// arena for each thread. What is fetched and unpacked are such pieces, in dozens of threads that
/// each need them for moments: with ten images read by FUSE that was ten times what is in use.
/// fuser reads requests into 16 MiB in each of its threads, of which it uses one page: where the
/// system gives huge pages unasked, that would be 2 MiB for each thread of each mounted image.
///
/// To be called before any thread is started.
pub(crate) fn keep_no_large_pieces() {
    const LARGE: libc::c_int = 256 << 10;
    const ARENAS: libc::c_int = 4;
    // SAFETY: takes integers only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay as the system gives them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_leaves_is_given_back_once() {
        let mut memory = FreeMemory::default();
        memory.look();
        let burst: Vec<_> = (0..4000).map(|_| vec![1_u8; 1000]).collect();
        // A piece after it, so that the heap cannot just become shorter.
        let last = vec![1_u8; 1000];
        drop(burst);
        assert!(memory.look());
        assert!(!memory.look());
        drop(last);
    }
}
