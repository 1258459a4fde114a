//! The allocator's free memory.

/// Gives memory that is free in the allocator back to the system.
///
/// Cold reads need megabytes for moments, in many threads; glibc would keep them in each thread's
/// arena for as long as the daemon lives.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim only touches the allocator's own free lists, under its locks.
    unsafe { libc::malloc_trim(0) };
}
