//! The allocator's free memory.

/// Gives memory that is free in the allocator back to the system.
///
/// Cold reads need megabytes for moments, in many threads; glibc would keep them in each thread's
/// arena for as long as the daemon lives.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim only touches the allocator's own free lists, under its locks.
    unsafe { libc::malloc_trim(0) };
}

/// Makes the allocator take each piece of more than a few megabytes from the system, and give it
/// back when it is freed.
///
/// By default the first such piece that is freed makes it keep the next ones, which then have to be
/// cleared each time: fuser reads requests into 16 MiB in each of its threads, of which it uses one
/// page.
pub(crate) fn keep_no_large_pieces() {
    const LARGE: libc::c_int = 8 << 20;
    // SAFETY: takes integers only.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}
