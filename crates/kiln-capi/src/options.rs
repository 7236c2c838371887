//! How a pipeline is opened.

use std::ffi::c_char;

use kiln_runtime::{Bundle, Device, Libraries, Library, Pipeline, Pool, SealKey};

use crate::boundary::{Versioned, read, text};
use crate::error::kiln_error;
use crate::memory::{kiln_memory, memory_of};

/// How a bundle is opened. All zeros but the size are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_options {
    /// `sizeof(kiln_options)`.
    pub size: usize,
    /// `auto`, `cpu`, `cuda` or `cuda:N`; `NULL` for the device that the bundle's engines are for.
    pub device: *const c_char,
    /// Threads of each operator on the processor; 0 for one per core.
    pub threads: u32,
    /// 1 to look for native libraries nowhere but where these options say: neither in the `KILN_*` variables, nor beside the
    /// program, nor in the folder where `kiln` keeps what it fetched. Without ONNX Runtime the built-in backend runs.
    pub no_environment: u32,
    /// ONNX Runtime's library, or its folder; `NULL` to look for it.
    pub onnxruntime: *const c_char,
    /// The file of the key that seals what this user compiled, for engines that are code; `NULL` for none.
    pub seal_key: *const c_char,
    /// A folder for kernels that a library compiles for a device; `NULL` to keep none. It needs the key.
    pub kernel_cache: *const c_char,
    /// How memory is spent, as [`kiln_pipeline_set_memory`](crate::kiln_pipeline_set_memory) takes it; `NULL` for the
    /// defaults.
    pub memory: *const kiln_memory,
    /// Most bytes of weights that are loaded at a time; what was used longest ago leaves first. 0 for no limit. What engines
    /// compute with comes on top, as [`kiln_pipeline_plan`](crate::kiln_pipeline_plan) predicts.
    pub weights_budget: u64,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers and pointers.
unsafe impl Versioned for kiln_options {
    const NAME: &'static str = "kiln_options";
}

/// Opens a bundle.
///
/// # Safety
/// Pointers are `NULL`, or texts and structs as their fields say.
pub(crate) unsafe fn open(path: &str, options: *const kiln_options) -> Result<Pipeline, kiln_error> {
    let bundle = Bundle::open(path)?;
    // SAFETY: the caller's promise.
    let Some(options) = (unsafe { read(options)? }) else {
        let libraries = Libraries::new().from_environment();
        return Ok(Pipeline::builder(bundle).libraries(libraries).build()?);
    };
    // SAFETY: the caller's promise.
    let (device, onnxruntime, key, kernels, memory) = unsafe {
        (
            text(options.device, "device")?,
            text(options.onnxruntime, "onnxruntime")?,
            text(options.seal_key, "seal_key")?,
            text(options.kernel_cache, "kernel_cache")?,
            memory_of(options.memory)?,
        )
    };
    let mut libraries = Libraries::new();
    if options.no_environment == 0 {
        libraries = libraries.from_environment();
    }
    if let Some(path) = onnxruntime {
        libraries = libraries.with_path(Library::OnnxRuntimeCpu, path);
    }
    let threads = Some(options.threads as usize).filter(|threads| *threads > 0);
    let mut builder = Pipeline::builder(bundle).libraries(libraries).threads(threads);
    if let Some(device) = device {
        let wrong =
            |reason| kiln_error::request(format!("device: '{}' is none: {reason}", device.escape_debug()));
        builder = builder.device(device.parse::<Device>().map_err(wrong)?);
    }
    if let Some(memory) = memory {
        builder = builder.memory(memory);
    }
    if options.weights_budget > 0 {
        builder = builder.pool(&Pool::with_budget(options.weights_budget));
    }
    match (key, kernels) {
        (Some(key), kernels) => {
            builder = builder.seal_key(SealKey::open(key.as_ref())?);
            if let Some(folder) = kernels {
                builder = builder.kernel_cache(folder);
            }
        }
        (None, Some(_)) => {
            return Err(kiln_error::request("kernel_cache: a seal_key must vouch for what is kept"));
        }
        (None, None) => {}
    }
    Ok(builder.build()?)
}
