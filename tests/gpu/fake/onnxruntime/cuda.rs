//! The driver that the process has loaded.

use std::sync::OnceLock;

use libloading::Library;

/// Does all work that was put onto a stream; the driver's code for what went wrong, or 0.
pub(crate) fn finish(stream: usize) -> i32 {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the driver's initialisers have no preconditions.
    let library = LIBRARY.get_or_init(|| unsafe { Library::new("libcuda.so.1") }.expect("a driver"));
    // SAFETY: cuda.h declares it so.
    unsafe {
        library.get::<unsafe extern "C" fn(usize) -> i32>(b"cuStreamSynchronize").expect("a function")(stream)
    }
}
