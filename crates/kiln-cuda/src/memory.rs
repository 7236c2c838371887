//! Memory of the device, and memory of the host that it copies from without a detour.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr, PinnedHostSlice};

use crate::{CudaError, Device};

/// Bytes on a device, freed when they are dropped and all work that was asked for before is done.
pub struct DeviceMemory {
    slice: CudaSlice<u8>,
    device: Arc<Device>,
}

impl DeviceMemory {
    pub(crate) fn new(slice: CudaSlice<u8>, device: Arc<Device>) -> DeviceMemory {
        DeviceMemory { slice, device }
    }

    /// Number of bytes.
    pub fn n_bytes(&self) -> usize {
        self.slice.len()
    }

    /// Where it begins, aligned to 256 bytes; it means something to the driver alone.
    pub fn address(&self) -> u64 {
        let (address, _sync) = self.slice.device_ptr(self.device.stream());
        address
    }

    /// The device that it is on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on cuda:{}", self.n_bytes(), self.device.info().ordinal)
    }
}

/// Bytes of the host that are locked in its memory, which a device copies from while both go on with other work.
pub struct PinnedMemory {
    slice: PinnedHostSlice<u8>,
}

impl PinnedMemory {
    pub(crate) fn new(slice: PinnedHostSlice<u8>) -> PinnedMemory {
        PinnedMemory { slice }
    }

    /// The bytes, after waiting for copies from them.
    pub fn bytes(&self) -> Result<&[u8], CudaError> {
        self.slice.as_slice().map_err(|e| CudaError::of_driver("pinned memory", e))
    }

    /// The bytes to write, after waiting for copies from them.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], CudaError> {
        self.slice.as_mut_slice().map_err(|e| CudaError::of_driver("pinned memory", e))
    }

    /// Number of bytes.
    pub fn n_bytes(&self) -> usize {
        self.slice.len()
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned bytes", self.n_bytes())
    }
}
