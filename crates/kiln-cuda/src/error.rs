use std::fmt;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// Why CUDA did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CudaError {
    kind: CudaErrorKind,
    reason: String,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaErrorKind {
    /// The machine has no driver of NVIDIA's, or one that does not work.
    NoDriver,
    /// The driver is older than something needs.
    DriverTooOld,
    /// There is no device of that number.
    NoDevice,
    /// The device has not enough memory left.
    OutOfMemory,
    /// The device stopped working; nothing in this process can use it any more.
    Lost,
    /// Anything else.
    Other,
}

impl CudaError {
    /// An error; the reason is one line.
    pub fn new(kind: CudaErrorKind, reason: impl Into<String>) -> CudaError {
        CudaError { kind, reason: reason.into() }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> CudaErrorKind {
        self.kind
    }

    /// What failed, and what the driver says of it.
    pub(crate) fn of_driver(what: impl fmt::Display, error: DriverError) -> CudaError {
        let name = error.error_name().map_or_else(|_| format!("error {}", error.0 as u32), text);
        let reason = error.error_string().map_or_else(|_| "no description".into(), text);
        CudaError::new(kind(error.0), format!("{what}: {reason} ({name})"))
    }
}

fn text(text: &std::ffi::CStr) -> String {
    text.to_string_lossy().into_owned()
}

fn kind(result: CUresult) -> CudaErrorKind {
    use CUresult::*;
    match result {
        CUDA_ERROR_OUT_OF_MEMORY => CudaErrorKind::OutOfMemory,
        CUDA_ERROR_NO_DEVICE | CUDA_ERROR_INVALID_DEVICE => CudaErrorKind::NoDevice,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => CudaErrorKind::DriverTooOld,
        CUDA_ERROR_STUB_LIBRARY => CudaErrorKind::NoDriver,
        CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_LAUNCH_FAILED => CudaErrorKind::Lost,
        _ => CudaErrorKind::Other,
    }
}
