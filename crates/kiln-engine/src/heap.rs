//! What the C library's heap keeps of memory that was freed, which matters where engines come and go.
//!
//! Native libraries allocate by the C library's `malloc`; GNU's keeps freed memory for each thread. Elsewhere these
//! functions do nothing.

/// Gives memory that was freed back to the operating system.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call into the C library")]
    // SAFETY: `malloc_trim` has no preconditions and may run on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets all threads allocate from one heap, so that memory which one of them freed serves the others too.
///
/// For programs that run engines and little else; it holds for the whole process and can not be undone.
pub fn share_between_threads() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call into the C library")]
    // SAFETY: `mallopt` has no preconditions; it takes the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
