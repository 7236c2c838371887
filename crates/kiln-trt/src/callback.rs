//! C++ objects that are made here and whose methods TensorRT calls, from whichever of its threads.

use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::TrtError;
use crate::error::TrtErrorKind::Unsupported;
use crate::sys::Tables;

/// The virtual table of an interface as the Itanium ABI lays it out: offset to the top, type information, functions.
#[derive(Debug)]
pub(crate) struct VirtualTable(Box<[*const c_void]>);

// SAFETY: the entries are functions, and nothing changes them.
unsafe impl Send for VirtualTable {}
// SAFETY: as above.
unsafe impl Sync for VirtualTable {}

/// What lies before the first function.
const HEADER: usize = 2;

impl VirtualTable {
    /// Arranges `functions` as this release orders the interface's methods.
    ///
    /// Errors are of kind [`Unsupported`]: a method of the interface that is not among the functions.
    pub(crate) fn new(
        tables: &Tables,
        interface: &str,
        functions: &[(&str, *const c_void)],
    ) -> Result<VirtualTable, TrtError> {
        let shared = [
            ("getAPILanguage", api_language as *const c_void),
            ("~complete", keep as *const c_void),
            ("~deleting", keep as *const c_void),
        ];
        let find = |method: &String| {
            let found = functions.iter().chain(&shared).find(|(name, _)| name == method);
            found.map(|(_, function)| *function).ok_or_else(|| {
                let reason =
                    format!("{} calls {interface}::{method}, which is not implemented", tables.release);
                TrtError::new(Unsupported, reason)
            })
        };
        let mut entries = vec![std::ptr::null(); HEADER];
        for method in tables.order(interface)? {
            entries.push(find(method)?);
        }
        Ok(VirtualTable(entries.into()))
    }

    /// What an object of the interface starts with.
    pub(crate) fn address(&self) -> *const *const c_void {
        self.0[HEADER..].as_ptr()
    }
}

/// `InterfaceInfo` of `NvInferRuntimeBase.h`.
#[repr(C)]
pub(crate) struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

impl InterfaceInfo {
    /// The first version of an interface.
    pub(crate) fn first(kind: &'static CStr) -> InterfaceInfo {
        InterfaceInfo { kind: kind.as_ptr(), major: 1, minor: 0 }
    }
}

extern "C" fn api_language(_this: *const c_void) -> i32 {
    const CPP: i32 = 0;
    CPP
}

/// The destructor of objects that TensorRT uses and does not own.
extern "C" fn keep(_this: *mut c_void) {}

/// Runs what TensorRT calls; a panic ends here, with `refusal` as the answer and its message as an event.
pub(crate) fn guard<T>(what: &str, refusal: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let event = || tracing::error!(target: "tensorrt", "{what} panicked: {}", panic_message(&*panic));
        let reported = catch_unwind(AssertUnwindSafe(event));
        // Dropping what a panic carries may panic once more.
        std::mem::forget((panic, reported));
        refusal
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no reason that it tells")
}
