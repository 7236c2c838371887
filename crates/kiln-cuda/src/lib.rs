//! CUDA devices: memory, streams, graphs, and the kernels of the denoising loop.
//!
//! NVIDIA's driver is opened when it is first asked for; nothing is linked, and a machine without it gets an error of kind
//! [`CudaErrorKind::NoDriver`]. Kernels come as PTX that was compiled from `kernels.cu` beforehand (`kernels.py`), so that
//! the driver is all that a machine needs.
//!
//! All work of a [`Device`] happens in the order in which it was asked for, on one stream, except for copies between
//! [`Device::copying`], which run beside it until [`Device::wait_for`]. Work is asynchronous until something is read.
//!
//! ```no_run
//! use kiln_cuda::{Device, Driver};
//!
//! let driver = Driver::open()?;
//! let device = Device::open(&driver, 0)?;
//! let memory = device.upload(&[1, 2, 3, 4])?;
//! let mut bytes = [0; 4];
//! device.read(&memory, &mut bytes)?;
//! # Ok::<(), kiln_cuda::CudaError>(())
//! ```
#![expect(unsafe_code, reason = "the CUDA driver is a C library")]

mod check;
mod device;
mod driver;
mod error;
mod graph;
mod kernels;
mod memory;

pub use check::Check;
pub use device::{Device, Mark, MemoryInfo};
pub use driver::{ComputeCapability, DeviceInfo, Driver};
pub use error::{CudaError, CudaErrorKind};
pub use graph::Graph;
pub use kernels::Term;
pub use memory::{DeviceMemory, PinnedMemory};
