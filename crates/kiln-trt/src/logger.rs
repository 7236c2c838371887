//! TensorRT's messages: events of `tracing`, and the reasons of failures.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use crate::TrtError;
use crate::callback::{InterfaceInfo, VirtualTable, guard};
use crate::object::text;
use crate::sys::Tables;

/// An `ILogger` of TensorRT's, made here: its virtual table comes first, as in C++.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Logger {
    address: *const *const c_void,
    _table: VirtualTable,
    errors: Mutex<Vec<String>>,
}

// SAFETY: the table is constant, and the messages are behind a lock.
unsafe impl Send for Logger {}
// SAFETY: as above.
unsafe impl Sync for Logger {}

/// Most reasons that are kept for the next failure.
const MAX_ERRORS: usize = 16;

/// `ILogger::Severity` of `NvInferRuntime.h`, as far as errors go.
const ERROR: i32 = 1;

extern "C" fn interface_info(_this: *const Logger) -> InterfaceInfo {
    InterfaceInfo::first(c"ILogger")
}

extern "C" fn log(this: *const Logger, severity: i32, message: *const c_char) {
    // SAFETY: TensorRT calls with the logger that it was given, which is never freed.
    let logger = unsafe { &*this };
    guard("a subscriber", (), || logger.record(severity, text(message)));
}

impl Logger {
    /// TensorRT keeps the first logger that it is given as long as the process lives, and so it is never freed.
    pub(crate) fn leaked(tables: &Tables) -> Result<&'static Logger, TrtError> {
        let functions = [("getInterfaceInfo", interface_info as *const c_void), ("log", log as *const c_void)];
        let table = VirtualTable::new(tables, "ILogger", &functions)?;
        Ok(Box::leak(Box::new(Logger { address: table.address(), _table: table, errors: Mutex::default() })))
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// An error of an application's own callback.
    pub(crate) fn report(&self, message: String) {
        self.record(ERROR, message);
    }

    /// The errors since they were last taken.
    pub(crate) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record(&self, severity: i32, message: String) {
        emit(severity, &message);
        if severity <= ERROR {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            if errors.len() < MAX_ERRORS {
                errors.push(message);
            }
        }
    }
}

fn emit(severity: i32, message: &str) {
    match severity {
        ..=1 => tracing::error!(target: "tensorrt", "{message}"),
        2 => tracing::warn!(target: "tensorrt", "{message}"),
        3 => tracing::debug!(target: "tensorrt", "{message}"),
        _ => tracing::trace!(target: "tensorrt", "{message}"),
    }
}
