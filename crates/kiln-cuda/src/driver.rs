//! What the machine has.

use std::fmt;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute};

use crate::CudaErrorKind::{DriverTooOld, NoDevice, NoDriver};
use crate::{CudaError, MemoryInfo};

/// NVIDIA's driver, opened.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    version: [u32; 2],
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// What its processors can do.
    pub compute_capability: ComputeCapability,
}

/// Generation of a device, as in 8.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability(pub u32, pub u32);

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Driver {
    /// Whether the driver's library is on this machine, whatever it says of its devices.
    pub fn is_installed() -> bool {
        // SAFETY: loading NVIDIA's driver has no preconditions.
        unsafe { sys::is_culib_present() }
    }

    /// Opens the driver's library, `libcuda.so.1` or `nvcuda.dll`.
    ///
    /// Errors are of kind [`NoDriver`], where there is none or it finds no working device.
    pub fn open() -> Result<Driver, CudaError> {
        if !Driver::is_installed() {
            return Err(CudaError::new(NoDriver, "this machine has no NVIDIA driver"));
        }
        result::init().map_err(|e| {
            let error = CudaError::of_driver("the NVIDIA driver does not start", e);
            match error.kind() {
                NoDevice => CudaError::new(NoDevice, "this machine has no NVIDIA GPU"),
                DriverTooOld => error,
                _ => CudaError::new(NoDriver, error.to_string()),
            }
        })?;
        let mut version = 0;
        // SAFETY: the call writes one number.
        let found = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
        found.map_err(|e| CudaError::of_driver("the NVIDIA driver does not tell its version", e))?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok(Driver { version: [version / 1000, version % 1000 / 10] })
    }

    /// The newest version of CUDA that it supports.
    pub fn cuda_version(&self) -> [u32; 2] {
        self.version
    }

    /// An error of kind [`DriverTooOld`] where it does not support a version of CUDA, which `what` needs.
    pub fn check_version(&self, what: &str, needed: [u32; 2]) -> Result<(), CudaError> {
        let [major, minor] = self.version;
        let [needed_major, needed_minor] = needed;
        match self.version >= needed {
            true => Ok(()),
            false => Err(CudaError::new(
                DriverTooOld,
                format!(
                    "the NVIDIA driver supports CUDA up to {major}.{minor}, and {what} needs {needed_major}.{needed_minor}"
                ),
            )),
        }
    }

    /// All devices, in the order of their numbers.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, CudaError> {
        let count = result::device::get_count()
            .map_err(|e| CudaError::of_driver("the NVIDIA driver does not count its devices", e))?;
        (0..usize::try_from(count).unwrap_or(0)).map(|ordinal| self.device(ordinal)).collect()
    }

    /// One device; an error of kind [`NoDevice`] where there is none of that number.
    pub fn device(&self, ordinal: usize) -> Result<DeviceInfo, CudaError> {
        let refuse = |e| CudaError::of_driver(format!("cuda:{ordinal}"), e);
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).map_err(refuse)?;
        let name = result::device::get_name(device).map_err(refuse)?;
        // SAFETY: the driver gave the device.
        let total = unsafe { result::device::total_mem(device) }.map_err(refuse)?;
        let number = |attribute| {
            // SAFETY: as above.
            let value = unsafe { result::device::get_attribute(device, attribute) }.map_err(refuse)?;
            Ok::<u32, CudaError>(u32::try_from(value).unwrap_or(0))
        };
        let compute_capability = ComputeCapability(
            number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(DeviceInfo { ordinal, name, total_bytes: total as u64, compute_capability })
    }
}

impl fmt::Display for MemoryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(f, "{} MiB of {} MiB free", mib(self.free_bytes), mib(self.total_bytes))
    }
}
