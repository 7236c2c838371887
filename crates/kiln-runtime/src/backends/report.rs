use std::path::PathBuf;

use kiln_bundle::Target;

use super::{Backends, Device, library};
use crate::memory::process::available;

/// A device, and what runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Which one.
    pub device: Device,
    /// What it is called.
    pub name: String,
    /// Bytes of its memory.
    pub total_bytes: Option<u64>,
    /// Bytes of it that are free.
    pub free_bytes: Option<u64>,
    /// The newest version of CUDA that its driver supports.
    pub cuda_version: Option<[u32; 2]>,
    /// Its generation.
    pub compute_capability: Option<[u32; 2]>,
    /// Whether it runs engines of each target.
    pub targets: Vec<TargetReport>,
}

/// Whether a device runs the engines of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetReport {
    /// The target.
    pub target: Target,
    /// Why it does not run them.
    pub problem: Option<String>,
    /// The library that runs them, where it is on this machine.
    pub library: Option<PathBuf>,
}

impl Backends {
    /// The processor, and what runs on it.
    pub fn host(&self) -> DeviceReport {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        DeviceReport {
            device: Device::Cpu,
            name: format!("{n_cores} cores"),
            total_bytes: None,
            free_bytes: available(),
            cuda_version: None,
            compute_capability: None,
            targets: vec![self.report_target(Target::Cpu, None)],
        }
    }

    /// A problem of the library comes after one of the device.
    pub(super) fn report_target(&self, target: Target, problem: Option<String>) -> TargetReport {
        let Some(library) = library(target) else { return TargetReport { target, problem, library: None } };
        let (path, missing) = match self.libraries.path(library) {
            Ok(Some(path)) => (Some(path), None),
            Ok(None) if self.libraries.fetches(library) => (None, None),
            Ok(None) => (None, Some(format!("{library} is not found; {} names it", library.variable()))),
            Err(error) => (None, Some(error.to_string())),
        };
        TargetReport { target, problem: problem.or(missing), library: path }
    }
}
