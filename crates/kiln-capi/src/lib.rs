//! kiln for C, and for every language that calls C: `include/kiln.h`.
//!
//! - Handles are opaque. Each has a function that frees it, takes `NULL`, and may be called in any order: what a handle needs
//!   of another stays until both are gone.
//! - Structs that a caller fills begin with their size, and zero means the default in every field. So a program that was
//!   built with an older header runs with a newer library.
//! - A function that can fail returns a [`kiln_status`] and, where it is asked to, a [`kiln_error`] with a text and perhaps
//!   a hint. There is no last error.
//! - Nothing is printed but by the hook that tells of panics, no signal is handled, and a panic becomes
//!   [`KILN_UNEXPECTED`].
//! - A process has one ONNX Runtime, that of the first pipeline that needs it.
//! - A pipeline may be used from several threads: calls wait for each other. Several pipelines run at once.

mod boundary;
mod error;
mod memory;
mod options;
mod output;
mod pipeline;
mod request;
mod watch;

pub use error::*;
pub use memory::*;
pub use options::*;
pub use output::*;
pub use pipeline::*;
pub use request::*;
pub use watch::*;

#[cfg(panic = "abort")]
compile_error!("panics must unwind, so that they can become errors");

use std::ffi::c_char;

/// Version of this interface: it grows with every change that an older program would notice, and only then.
pub const KILN_ABI_VERSION: u32 = 1;

/// The [`KILN_ABI_VERSION`] that the library was built with.
#[unsafe(no_mangle)]
pub extern "C" fn kiln_abi_version() -> u32 {
    KILN_ABI_VERSION
}

/// The library's version, such as `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn kiln_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
