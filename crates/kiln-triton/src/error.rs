//! Errors in both directions.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use kiln_server::inference::{CallError, CallErrorKind};

use crate::sys::{self, Status};

/// Why a call failed: one of the server's codes and a line of text.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u32, message: impl ToString) -> Failure {
        Failure { code, message: message.to_string() }
    }

    /// The server's form of it, which the server deletes.
    pub(crate) fn into_status(self) -> Status {
        let message = c_string(&self.message);
        // SAFETY: the text ends with a zero byte, and is copied.
        unsafe { sys::TRITONSERVER_ErrorNew(self.code, message.as_ptr()) }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        let code = match error.kind {
            CallErrorKind::Invalid => sys::ERROR_INVALID,
            CallErrorKind::Unavailable => sys::ERROR_UNAVAILABLE,
            CallErrorKind::Cancelled => sys::ERROR_CANCELLED,
            CallErrorKind::Internal => sys::ERROR_INTERNAL,
        };
        Failure::new(code, error.message)
    }
}

/// Runs what the server has called; nothing unwinds into it.
pub(crate) fn guard(run: impl FnOnce() -> Result<(), Failure>) -> Status {
    caught(run).map_or_else(Failure::into_status, |()| null_mut())
}

/// Runs what may panic.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let fault = || Failure::new(sys::ERROR_INTERNAL, "a fault in kiln; the standard error says where");
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(fault()))
}

/// Takes over what a function of the server has said.
pub(crate) fn check(status: Status) -> Result<(), Failure> {
    if status.is_null() {
        return Ok(());
    }
    // SAFETY: it is an error that the server handed over, and its text lives as long.
    let message = unsafe { text(sys::TRITONSERVER_ErrorMessage(status)) };
    // SAFETY: it is not used any more.
    unsafe { sys::TRITONSERVER_ErrorDelete(status) };
    Err(Failure::new(sys::ERROR_INTERNAL, message))
}

/// A text of the server's.
///
/// # Safety
/// It is `NULL` or ends with a zero byte.
pub(crate) unsafe fn text(text: *const c_char) -> String {
    match text.is_null() {
        true => String::new(),
        // SAFETY: the caller's promise.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    }
}

pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}
