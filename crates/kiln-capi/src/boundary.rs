//! Where Rust begins: panics stop here, and what callers hand over is read with care.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{KILN_OK, KILN_UNEXPECTED, kiln_error, kiln_status};

/// Runs what may fail or panic, and hands an error to whoever asks for one.
///
/// # Safety
/// `error` is `NULL` or a place for a pointer.
pub(crate) unsafe fn guard(
    error: *mut *mut kiln_error,
    run: impl FnOnce() -> Result<(), kiln_error>,
) -> kiln_status {
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        // What a panic carries may panic when it is dropped.
        std::mem::forget(panic);
        Err(kiln_error::new(KILN_UNEXPECTED, format!("a fault in kiln: {text}")))
    });
    let (status, failed) = match result {
        Ok(()) => (KILN_OK, std::ptr::null_mut()),
        Err(failed) => (failed.status(), Box::into_raw(Box::new(failed))),
    };
    match error.is_null() {
        // SAFETY: the caller's promise.
        false => unsafe { error.write(failed) },
        // SAFETY: it was made above, and nobody has seen it.
        true => unsafe { free(failed) },
    }
    status
}

/// Frees what `Box::into_raw` gave out.
///
/// # Safety
/// The handle is `NULL`, or was given out and is not used afterwards.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller's promise.
        let handle = unsafe { Box::from_raw(handle) };
        // A panic here could go nowhere.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(handle)));
    }
}

/// The value behind a handle.
///
/// # Safety
/// The handle is `NULL` or valid while the reference is used.
pub(crate) unsafe fn given<'a, T>(handle: *const T, name: &str) -> Result<&'a T, kiln_error> {
    // SAFETY: the caller's promise.
    unsafe { handle.as_ref() }.ok_or_else(|| kiln_error::request(format!("{name} is NULL")))
}

/// A text of the caller's; none for `NULL`.
///
/// # Safety
/// The text is `NULL` or ends with a zero byte.
pub(crate) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, kiln_error> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|_| kiln_error::request(format!("{name} is not UTF-8")))
}

/// So many values of the caller's; none for a count of 0.
///
/// # Safety
/// There are as many values, which stay while the slice is used.
pub(crate) unsafe fn slice<'a, T>(values: *const T, n: usize, name: &str) -> Result<&'a [T], kiln_error> {
    match (n, values.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(kiln_error::request(format!("{name} is NULL, but there are to be {n}"))),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { std::slice::from_raw_parts(values, n) }),
    }
}

/// A struct of the caller's whose first field is its size in bytes, and in which all zeros are a value.
///
/// # Safety
/// Implementors are `repr(C)`, begin with a `usize`, and may be all zeros.
pub(crate) unsafe trait Versioned: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// The struct as this version has it: what an older header lacks is zero, and what a newer one adds must be.
///
/// # Safety
/// `from` is `NULL` or a struct of as many bytes as its first field says.
pub(crate) unsafe fn read<T: Versioned>(from: *const T) -> Result<Option<T>, kiln_error> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise; implementors begin with their size.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    let known = size_of::<T>();
    if size < size_of::<usize>() {
        let name = T::NAME;
        return Err(kiln_error::request(format!("{name}: size is {size}; set it to sizeof({name})")));
    }
    // SAFETY: there are as many bytes; all zeros are a value of the type.
    unsafe {
        let rest = std::slice::from_raw_parts(from.cast::<u8>(), size).get(known..).unwrap_or_default();
        if rest.iter().any(|byte| *byte != 0) {
            let reason = format!("{}: a field is set that this version of kiln does not know", T::NAME);
            return Err(kiln_error::request(reason));
        }
        let mut value = std::mem::zeroed::<T>();
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size.min(known));
        Ok(Some(value))
    }
}

/// A struct that the caller receives: no more of it is written than the caller's header has.
///
/// # Safety
/// `to` is `NULL` or a struct of as many bytes as its first field says.
pub(crate) unsafe fn write<T: Versioned>(to: *mut T, mut value: T) -> Result<(), kiln_error> {
    if to.is_null() {
        return Err(kiln_error::request(format!("the place for {} is NULL", T::NAME)));
    }
    // SAFETY: the caller's promise; implementors begin with their size.
    unsafe {
        let size = to.cast::<usize>().read_unaligned();
        if size < size_of::<usize>() {
            let name = T::NAME;
            return Err(kiln_error::request(format!("{name}: size is {size}; set it to sizeof({name})")));
        }
        (&raw mut value).cast::<usize>().write_unaligned(size);
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>(),
            to.cast::<u8>(),
            size.min(size_of::<T>()),
        );
    }
    Ok(())
}

/// Text for C: zero bytes, which it cannot hold, are left out.
pub(crate) fn c_string(text: impl ToString) -> CString {
    let bytes = text.to_string().into_bytes().into_iter().filter(|byte| *byte != 0).collect();
    // SAFETY: there is no zero byte any more.
    unsafe { CString::from_vec_unchecked(bytes) }
}
