//! The driver that the process has loaded.

use std::ffi::c_void;
use std::sync::OnceLock;

use libloading::Library;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the driver's initialisers have no preconditions.
    LIBRARY.get_or_init(|| unsafe { Library::new("libcuda.so.1") }.expect("a driver"))
}

/// Does all work that was put onto a stream; the driver's code for what went wrong, or 0.
pub(crate) fn finish(stream: usize) -> i32 {
    type Synchronize = unsafe extern "C" fn(usize) -> i32;
    // SAFETY: cuda.h declares it so.
    unsafe { library().get::<Synchronize>(b"cuStreamSynchronize").expect("a function")(stream) }
}

/// Lets a function run in the order of a stream; it may run several times, where the stream records.
pub(crate) fn on_stream(stream: usize, work: Box<dyn Fn()>) -> i32 {
    extern "C" fn call(work: *mut c_void) {
        // SAFETY: the work is never freed.
        let work = unsafe { &*work.cast::<Box<dyn Fn()>>() };
        work();
    }
    type Call = extern "C" fn(*mut c_void);
    type Launch = unsafe extern "C" fn(usize, Call, *mut c_void) -> i32;
    let work: *mut Box<dyn Fn()> = Box::leak(Box::new(work));
    // SAFETY: cuda.h declares it so.
    unsafe { library().get::<Launch>(b"cuLaunchHostFunc").expect("a function")(stream, call, work.cast()) }
}
