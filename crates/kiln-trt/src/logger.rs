//! TensorRT's messages: events of `tracing`, and the reasons of failures.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use crate::Product;
use crate::object::text;

/// An `ILogger` of TensorRT's, made here: its virtual table comes first, as in C++.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Logger {
    table: *const *const c_void,
    errors: Mutex<Vec<String>>,
}

// SAFETY: the table is constant, and the messages are behind a lock.
unsafe impl Send for Logger {}
// SAFETY: as above.
unsafe impl Sync for Logger {}

/// Most reasons that are kept for the next failure.
const MAX_ERRORS: usize = 16;

/// `InterfaceInfo` of `NvInferRuntimeBase.h`.
#[repr(C)]
struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

extern "C" fn api_language(_this: *const Logger) -> i32 {
    const CPP: i32 = 0;
    CPP
}

extern "C" fn interface_info(_this: *const Logger) -> InterfaceInfo {
    InterfaceInfo { kind: c"ILogger".as_ptr(), major: 1, minor: 0 }
}

extern "C" fn destroy(_this: *mut Logger) {}

extern "C" fn log(this: *const Logger, severity: i32, message: *const c_char) {
    let message = text(message);
    match severity {
        0 | 1 => tracing::error!(target: "tensorrt", "{message}"),
        2 => tracing::warn!(target: "tensorrt", "{message}"),
        3 => tracing::debug!(target: "tensorrt", "{message}"),
        _ => tracing::trace!(target: "tensorrt", "{message}"),
    }
    if severity <= 1 {
        // SAFETY: TensorRT calls with the logger that it was given, which is never freed.
        let mut errors = unsafe { &*this }.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < MAX_ERRORS {
            errors.push(message);
        }
    }
}

/// A virtual table, whose entries are functions.
struct Table<const N: usize>([*const c_void; N]);

// SAFETY: the entries are functions.
unsafe impl<const N: usize> Sync for Table<N> {}

/// Before TensorRT 11: the method comes before the destructors.
static OLD: Table<3> = Table([log as *const c_void, destroy as *const c_void, destroy as *const c_void]);

/// TensorRT 11 and TensorRT-RTX: a versioned interface.
static VERSIONED: Table<5> = Table([
    api_language as *const c_void,
    interface_info as *const c_void,
    destroy as *const c_void,
    destroy as *const c_void,
    log as *const c_void,
]);

impl Logger {
    /// TensorRT keeps the first logger that it is given as long as the process lives, and so it is never freed.
    pub(crate) fn leaked(product: Product, major: u32) -> &'static Logger {
        let table = match (product, major) {
            (Product::Enterprise, ..=10) => OLD.0.as_ptr(),
            _ => VERSIONED.0.as_ptr(),
        };
        Box::leak(Box::new(Logger { table, errors: Mutex::default() }))
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// The errors since they were last taken.
    pub(crate) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
