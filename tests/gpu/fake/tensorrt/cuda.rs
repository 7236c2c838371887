//! The driver that the process has loaded.

use std::ffi::c_void;
use std::sync::OnceLock;

use libloading::Library;

type Result = i32;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the driver's initialisers have no preconditions.
    LIBRARY.get_or_init(|| unsafe { Library::new("libcuda.so.1") }.expect("a driver"))
}

macro_rules! driver {
    ($name:literal, $($value:expr => $type:ty),*) => {{
        // SAFETY: cuda.h declares it so.
        unsafe { library().get::<unsafe extern "C" fn($($type),*) -> Result>($name).expect("a function")($($value),*) }
    }};
}

/// Memory of the device; none where it has not enough.
pub(crate) struct Memory(u64);

impl Memory {
    pub(crate) fn new(n_bytes: usize) -> Option<Memory> {
        let mut address = 0_u64;
        let result = driver!(b"cuMemAlloc_v2", &mut address => *mut u64, n_bytes => usize);
        (result == 0).then(|| Memory(address))
    }

    pub(crate) fn address(&self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        driver!(b"cuMemFree_v2", self.0 => u64);
    }
}

/// Lets a function run in the order of a stream; it may run several times, where the stream records.
pub(crate) fn on_stream(stream: *mut c_void, work: Box<dyn Fn()>) -> bool {
    extern "C" fn call(work: *mut c_void) {
        // SAFETY: the work is never freed.
        let work = unsafe { &*work.cast::<Box<dyn Fn()>>() };
        work();
    }
    let work: *mut Box<dyn Fn()> = Box::leak(Box::new(work));
    type Call = extern "C" fn(*mut c_void);
    driver!(b"cuLaunchHostFunc", stream => *mut c_void, call => Call, work.cast() => *mut c_void) == 0
}

/// Bytes of the device, which are bytes of the host in the fake.
pub(crate) fn bytes<'a>(address: *mut c_void, n_bytes: usize) -> &'a mut [u8] {
    // SAFETY: addresses come from the fake driver, and its work is done one after the other.
    unsafe { std::slice::from_raw_parts_mut(address.cast(), n_bytes) }
}

/// Counts a kernel that had to be compiled, in the driver's report.
pub(crate) fn count_compiled() {
    driver!(b"fakeCountCompiled",);
}

/// The device's generation, as 89.
pub(crate) fn capability() -> u32 {
    let number = |attribute: i32| {
        let mut value = 0;
        driver!(b"cuDeviceGetAttribute", &mut value => *mut i32, attribute => i32, 0 => i32);
        value as u32
    };
    10 * number(75) + number(76)
}
