//! What was drawn.

use std::ffi::c_char;

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Error, Output, Timings};

use crate::boundary::{Versioned, free, given, guard, place, required, write};
use crate::error::{kiln_error, kiln_status};
use crate::request::kiln_picture;

/// The pictures of a request. They are the caller's, and need no pipeline any more.
pub struct kiln_output {
    images: Vec<RgbImage>,
    timings: Timings,
}

/// Where the time of a request went, in seconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_seconds {
    /// `sizeof(kiln_seconds)`.
    pub size: usize,
    /// Until the first step: loading, and encoding the prompts.
    pub start: f64,
    /// All steps.
    pub steps: f64,
    /// Decoding.
    pub decode: f64,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers.
unsafe impl Versioned for kiln_seconds {
    const NAME: &'static str = "kiln_seconds";
}

impl From<Output> for kiln_output {
    fn from(output: Output) -> kiln_output {
        kiln_output { images: output.images, timings: output.timings }
    }
}

/// A picture's bytes where they lie.
pub(crate) fn borrowed(image: &RgbImage) -> kiln_picture {
    kiln_picture { width: image.width(), height: image.height(), rgb: image.data().as_ptr() }
}

fn picture(output: &kiln_output, index: usize) -> Result<&RgbImage, kiln_error> {
    let n = output.images.len();
    output.images.get(index).ok_or_else(|| kiln_error::request(format!("index: {index} of {n} pictures")))
}

/// How many pictures there are, one per prompt; 0 for `NULL`.
///
/// # Safety
/// `output` is `NULL` or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_output_n_pictures(output: *const kiln_output) -> usize {
    // SAFETY: the caller's promise.
    unsafe { output.as_ref() }.map_or(0, |output| output.images.len())
}

/// A picture, whose bytes are valid until the output is freed.
///
/// # Safety
/// As [`kiln_output_n_pictures`]; `to` is a place for a picture, `error` `NULL` or a place for an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_output_picture(
    output: *const kiln_output,
    index: usize,
    to: *mut kiln_picture,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let picture = borrowed(picture(given(output, "output")?, index)?);
            place(to, "picture")?;
            to.write(picture);
            Ok(())
        })
    }
}

/// Writes a picture as a PNG file, as a whole or not at all.
///
/// # Safety
/// As [`kiln_output_picture`]; `path` is `NULL` or text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_output_save_png(
    output: *const kiln_output,
    index: usize,
    path: *const c_char,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let image = picture(given(output, "output")?, index)?;
            let path = required(path, "path")?;
            Ok(image.save_png(path, &[]).map_err(Error::from)?)
        })
    }
}

/// Where the time went.
///
/// # Safety
/// As [`kiln_output_picture`]; `to` is a struct as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_output_seconds(
    output: *const kiln_output,
    to: *mut kiln_seconds,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let timings = given(output, "output")?.timings;
            let [start, steps, decode] =
                [timings.start, timings.steps, timings.decode].map(|time| time.as_secs_f64());
            write(to, kiln_seconds { size: size_of::<kiln_seconds>(), start, steps, decode })
        })
    }
}

/// Frees an output and its pictures; `NULL` is nothing to free.
///
/// # Safety
/// As [`kiln_output_n_pictures`]; it and its pictures are not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_output_free(output: *mut kiln_output) {
    // SAFETY: the caller's promise.
    unsafe { free(output) }
}
