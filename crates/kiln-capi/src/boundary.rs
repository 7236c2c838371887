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
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(handle))) {
            std::mem::forget(panic);
        }
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

/// A text that must be given.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn required<'a>(given: *const c_char, name: &str) -> Result<&'a str, kiln_error> {
    // SAFETY: the caller's promise.
    unsafe { text(given, name)? }.ok_or_else(|| kiln_error::request(format!("{name} is NULL")))
}

/// Whether there is a place for what a call makes.
pub(crate) fn place<T>(to: *mut T, name: &str) -> Result<(), kiln_error> {
    match to.is_null() {
        true => Err(kiln_error::request(format!("the place for the {name} is NULL"))),
        false => Ok(()),
    }
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
    check_size::<T>(size)?;
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

/// The largest struct that a later version may have: a size above was never set.
const MAX_SIZE: usize = 4096;

fn check_size<T: Versioned>(size: usize) -> Result<(), kiln_error> {
    match (size_of::<usize>()..=MAX_SIZE).contains(&size) {
        true => Ok(()),
        false => {
            let name = T::NAME;
            Err(kiln_error::request(format!("{name}: size is {size}; set it to sizeof({name})")))
        }
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
        check_size::<T>(size)?;
        // What a newer header has besides.
        std::ptr::write_bytes(to.cast::<u8>(), 0, size);
        (&raw mut value).cast::<usize>().write_unaligned(size);
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>(),
            to.cast::<u8>(),
            size.min(size_of::<T>()),
        );
    }
    Ok(())
}

/// One line of text for C.
pub(crate) fn c_string(text: impl ToString) -> CString {
    let text: String = text.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let mut error = std::ptr::null_mut();
        // SAFETY: there is a place for the error, which is freed once.
        unsafe {
            assert_eq!(guard(&raw mut error, || panic!("at {}", 3)), KILN_UNEXPECTED);
            assert_eq!(CStr::from_ptr(crate::kiln_error_message(error)), c"a fault in kiln: at 3");
            crate::kiln_error_free(error);
            assert_eq!(guard(std::ptr::null_mut(), || panic!("unseen")), KILN_UNEXPECTED);
            assert_eq!(guard(&raw mut error, || Ok(())), KILN_OK);
        }
        assert!(error.is_null());
    }

    #[test]
    fn texts_for_c_are_one_line() {
        assert_eq!(c_string("a\nb\0c"), CString::from(c"a b c"));
    }
}
