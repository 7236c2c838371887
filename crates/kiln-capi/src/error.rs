//! What went wrong.

use std::ffi::{CString, c_char};

use kiln_runtime::{BundleError, Error, ErrorKind};

use crate::boundary::c_string;

/// What a call came to: [`KILN_OK`], or what kind of failure it is. The numbers are the exit codes of the `kiln` command.
pub type kiln_status = i32;

/// All went well.
pub const KILN_OK: kiln_status = 0;
/// An engine failed, or something that should not happen did.
pub const KILN_UNEXPECTED: kiln_status = 1;
/// A parameter is wrong, alone or for this model.
pub const KILN_REQUEST: kiln_status = 2;
/// A bundle, LoRA or picture is missing, malformed or not supported.
pub const KILN_INPUT: kiln_status = 3;
/// A native library, driver or device cannot be found or used.
pub const KILN_DEVICE: kiln_status = 4;
/// A file cannot be read or written.
pub const KILN_FILES: kiln_status = 5;
/// What was asked for does not fit into the memory budget or a device.
pub const KILN_MEMORY: kiln_status = 7;
/// The event function or a [`kiln_cancel`](crate::kiln_cancel) stopped it.
pub const KILN_CANCELLED: kiln_status = 8;

/// Why a call failed.
#[derive(Debug)]
pub struct kiln_error {
    status: kiln_status,
    message: CString,
    hint: Option<CString>,
}

impl kiln_error {
    pub(crate) fn new(status: kiln_status, message: impl ToString) -> kiln_error {
        kiln_error { status, message: c_string(message), hint: None }
    }

    /// A parameter that is wrong.
    pub(crate) fn request(message: impl ToString) -> kiln_error {
        kiln_error::new(KILN_REQUEST, message)
    }

    pub(crate) fn with_hint(self, hint: &str) -> kiln_error {
        kiln_error { hint: Some(c_string(hint)), ..self }
    }

    pub(crate) fn status(&self) -> kiln_status {
        self.status
    }
}

impl From<Error> for kiln_error {
    fn from(error: Error) -> kiln_error {
        let status = match error.kind() {
            ErrorKind::Request => KILN_REQUEST,
            ErrorKind::Input => KILN_INPUT,
            ErrorKind::Device => KILN_DEVICE,
            ErrorKind::Files => KILN_FILES,
            ErrorKind::Memory => KILN_MEMORY,
            ErrorKind::Cancelled => KILN_CANCELLED,
            _ => KILN_UNEXPECTED,
        };
        let hint = error.hint().map(c_string);
        kiln_error { status, message: c_string(&error), hint }
    }
}

impl From<BundleError> for kiln_error {
    fn from(error: BundleError) -> kiln_error {
        Error::from(error).into()
    }
}

/// What kind of failure it is; [`KILN_OK`] for `NULL`.
///
/// # Safety
/// `error` is `NULL` or an error that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_error_status(error: *const kiln_error) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(KILN_OK, kiln_error::status)
}

/// What went wrong: one line of UTF-8, valid until the error is freed; empty for `NULL`.
///
/// # Safety
/// As [`kiln_error_status`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_error_message(error: *const kiln_error) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// What may help, where that is known: one line of UTF-8, valid until the error is freed; else `NULL`.
///
/// # Safety
/// As [`kiln_error_status`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_error_hint(error: *const kiln_error) -> *const c_char {
    // SAFETY: the caller's promise.
    let hint = unsafe { error.as_ref() }.and_then(|error| error.hint.as_ref());
    hint.map_or(std::ptr::null(), |hint| hint.as_ptr())
}

/// Frees an error; `NULL` is nothing to free.
///
/// # Safety
/// As [`kiln_error_status`]; it is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_error_free(error: *mut kiln_error) {
    // SAFETY: the caller's promise.
    unsafe { crate::boundary::free(error) }
}
