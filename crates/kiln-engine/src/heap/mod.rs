//! Memory that engines freed, which matters where engines come and go.
//!
//! On Linux the tensors of ONNX Runtime lie in a pool of kiln's own; everything else is the C library's, whose heap keeps
//! what was freed for each thread. Elsewhere these functions do nothing. Pool and heap belong to the process: what is given
//! back is memory that nobody uses, whichever engine freed it.

#[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
mod extents;
#[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
pub(crate) mod pool;

#[cfg(all(not(all(target_os = "linux", target_env = "gnu")), feature = "onnxruntime"))]
#[path = "room_elsewhere.rs"]
mod room;
#[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
mod room;

#[cfg(feature = "onnxruntime")]
pub(crate) use room::Room;

/// Gives all memory that was freed back to the operating system. Any thread may call it at any time; what other threads
/// free next is served more slowly.
pub fn trim() {
    trim_tensors(0);
    trim_scratch();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call into the C library")]
    // SAFETY: `malloc_trim` has no preconditions and may run on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back room for intermediate results of kiln's kernels that no operator uses now.
pub fn trim_scratch() {
    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
    room::trim();
}

/// Most bytes that intermediate results of kiln's kernels took at once since [`reset_scratch_peak`]. They are not among
/// tensors, and grow with the size only as far as the largest blocks that kernels work on.
pub fn scratch_peak() -> u64 {
    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
    return room::peak();
    #[cfg(not(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime")))]
    0
}

/// Starts to count anew for [`scratch_peak`].
pub fn reset_scratch_peak() {
    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
    room::reset_peak();
}

/// Gives memory of freed tensors back to the operating system, all but so many bytes.
pub fn trim_tensors(keep: u64) {
    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime"))]
    {
        pool::trim(usize::try_from(keep).unwrap_or(usize::MAX));
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu", feature = "onnxruntime")))]
    let _ = keep;
}
