//! What engines hold: memory of this process, or of a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use kiln_cuda::{CudaError, Device};
use kiln_engine::{Backend, heap};

use super::process;
use crate::Error;

/// How often a device is looked at.
const INTERVAL: Duration = Duration::from_micros(200);

/// Reads how much memory is held.
pub(crate) enum Meter {
    /// Resident memory of this process.
    Process,
    /// Memory of a device, of all processes; CUDA's own is among what was held before.
    Device(DeviceMeter),
}

/// A device does not remember how much was held: a thread looks, as long as this lives.
pub(crate) struct DeviceMeter {
    device: Arc<Device>,
    peak: Arc<AtomicU64>,
}

impl DeviceMeter {
    fn new(device: &Arc<Device>) -> DeviceMeter {
        let peak = Arc::new(AtomicU64::new(0));
        let (watched, device) = (Arc::downgrade(&peak), device.clone());
        let seen = device.clone();
        thread::spawn(move || {
            while let (Some(peak), Ok(held)) = (watched.upgrade(), held(&seen)) {
                peak.fetch_max(held, Relaxed);
                drop(peak);
                thread::sleep(INTERVAL);
            }
        });
        DeviceMeter { device, peak }
    }
}

fn held(device: &Device) -> Result<u64, CudaError> {
    let memory = device.memory()?;
    Ok(memory.total_bytes - memory.free_bytes)
}

impl Meter {
    /// The memory in which a backend's engines compute; none where nobody tells how much of it is held.
    pub(crate) fn of(backend: &dyn Backend) -> Option<Meter> {
        match backend.device() {
            Some(device) => Some(Meter::Device(DeviceMeter::new(device))),
            None => (process::resident().is_some() && process::reset_peak()).then_some(Meter::Process),
        }
    }

    /// Bytes that are taken before any engine is loaded, as far as they count against a budget.
    pub(crate) fn base(&self) -> u64 {
        match self {
            Meter::Process => process::resident().unwrap_or(0),
            Meter::Device(_) => 0,
        }
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> Result<u64, Error> {
        match self {
            Meter::Process => Ok(process::resident().unwrap_or(0)),
            Meter::Device(meter) => Ok(held(&meter.device)?),
        }
    }

    /// Starts to count the most that is held from now on.
    pub(crate) fn reset_peak(&self) {
        match self {
            Meter::Process => drop(process::reset_peak()),
            Meter::Device(meter) => meter.peak.store(0, Relaxed),
        }
    }

    /// Most bytes that were held.
    pub(crate) fn peak(&self) -> Result<u64, Error> {
        match self {
            Meter::Process => Ok(process::peak().unwrap_or(0)),
            Meter::Device(meter) => Ok(meter.peak.load(Relaxed).max(self.held()?)),
        }
    }

    /// Waits until work is done, and gives back what no engine needs to stay loaded.
    pub(crate) fn settle(&self, backend: &dyn Backend) -> Result<(), Error> {
        backend.trim();
        heap::trim();
        match self {
            Meter::Process => Ok(()),
            Meter::Device(meter) => Ok(meter.device.synchronize()?),
        }
    }
}
