//! NVIDIA GPUs.

use std::sync::Arc;

use kiln_bundle::Target;
use kiln_cuda::{CudaError, CudaErrorKind, DeviceInfo, Driver};
use kiln_engine::Backend;

use super::target::{Needs, OF_GPUS};
use super::{Backends, Device, DeviceReport, Libraries, TargetReport};
use crate::Error;

pub use kiln_cuda::Check as DeviceCheck;

/// A GPU that is in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Gpu {
    driver: Driver,
    device: Arc<kiln_cuda::Device>,
}

impl Gpu {
    /// Opens the GPU of that number for engines of a target.
    pub(super) fn open(ordinal: usize, target: Target) -> Result<Gpu, Error> {
        let needs = Needs::of(target)?;
        let driver = Driver::open()?;
        check(&driver, ordinal, &needs)?;
        Ok(Gpu { driver, device: kiln_cuda::Device::open(&driver, ordinal)? })
    }

    /// Whether there is one, even if its driver does not let it be used.
    pub(super) fn is_present() -> bool {
        let absent = |error: CudaError| error.kind() == CudaErrorKind::NoDevice;
        Driver::is_installed() && !Driver::open().is_err_and(absent)
    }

    /// Whether it runs engines of a target, without opening it.
    pub(super) fn check(ordinal: usize, target: Target) -> Result<(), Error> {
        check(&Driver::open()?, ordinal, &Needs::of(target)?)
    }

    /// Its number, from 0.
    pub fn ordinal(&self) -> usize {
        self.device.info().ordinal
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.device.info().name
    }

    /// Major and minor compute capability.
    pub fn compute_capability(&self) -> [u32; 2] {
        let kiln_cuda::ComputeCapability(major, minor) = self.device.info().compute_capability;
        [major, minor]
    }

    /// Bytes of its memory that are taken, by whomever; `None` where the driver does not tell.
    pub fn taken_bytes(&self) -> Option<u64> {
        self.device.memory().ok().map(|memory| memory.total_bytes.saturating_sub(memory.free_bytes))
    }

    pub(super) fn open_backend(
        &self,
        target: Target,
        libraries: &Libraries,
        records: bool,
    ) -> Result<Arc<dyn Backend>, Error> {
        let library = libraries.find(Needs::of(target)?.library)?;
        Ok(match target {
            #[cfg(feature = "onnxruntime")]
            Target::Cuda => {
                let backend = kiln_engine::OnnxRuntimeCuda::open(&library, &self.driver, self.device.clone())?;
                Arc::new(backend.with_recording(records))
            }
            #[cfg(feature = "tensorrt")]
            Target::TensorrtRtx | Target::Tensorrt => {
                let backend = kiln_engine::TensorRt::open(&library, &self.driver, self.device.clone())?;
                Arc::new(backend.with_recording(records))
            }
            other => return Err(super::place::misplaced(other)),
        })
    }
}

/// Whether a device runs what needs it.
fn check(driver: &Driver, ordinal: usize, needs: &Needs) -> Result<(), Error> {
    driver.check_version(&needs.library.to_string(), needs.cuda)?;
    let (found, needed) = (driver.device(ordinal)?.compute_capability, needs.compute_capability);
    match found < needed {
        false => Ok(()),
        true => Err(CudaError::new(
            CudaErrorKind::NoDevice,
            format!("{} needs compute capability {needed}, and the device has {found}", needs.library),
        )
        .into()),
    }
}

impl Backends {
    /// Every GPU of the machine, and what runs on it.
    ///
    /// Fails where there is no driver, or one that does not work.
    pub fn gpus(&self) -> Result<Vec<DeviceReport>, Error> {
        let driver = Driver::open()?;
        Ok(driver.devices()?.iter().map(|info| self.gpu(&driver, info)).collect())
    }

    /// Copies and computes on the GPU of that number, and compares with the processor.
    pub fn check_gpu(&self, ordinal: usize) -> Result<DeviceCheck, Error> {
        let driver = Driver::open()?;
        Ok(kiln_cuda::Device::open(&driver, ordinal)?.check()?)
    }

    fn gpu(&self, driver: &Driver, info: &DeviceInfo) -> DeviceReport {
        let memory = kiln_cuda::Device::open(driver, info.ordinal).and_then(|device| device.memory());
        let unusable = memory.as_ref().err().map(CudaError::to_string);
        let report = |target| self.target_on_gpu(target, driver, info.ordinal, unusable.as_deref());
        DeviceReport {
            device: Device::Cuda(info.ordinal),
            name: info.name.clone(),
            total_bytes: Some(info.total_bytes),
            free_bytes: memory.as_ref().ok().map(|memory| memory.free_bytes),
            cuda_version: Some(driver.cuda_version()),
            compute_capability: Some([info.compute_capability.0, info.compute_capability.1]),
            targets: OF_GPUS.map(report).into(),
        }
    }

    fn target_on_gpu(
        &self,
        target: Target,
        driver: &Driver,
        ordinal: usize,
        unusable: Option<&str>,
    ) -> TargetReport {
        let misfit = Needs::of(target).and_then(|needs| check(driver, ordinal, &needs)).err();
        let problem = misfit.map(|error| error.to_string()).or_else(|| unusable.map(str::to_owned));
        self.report_target(target, problem)
    }
}
