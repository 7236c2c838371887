use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use kiln_cuda::{CudaError, Device};

use super::meter::Meter;
use crate::Error;

/// How often a device is looked at.
const INTERVAL: Duration = Duration::from_micros(200);

/// Memory of a device, of all processes; CUDA's own is among what was held before.
///
/// A device does not remember how much was held: a thread looks, as long as this lives.
pub(super) struct DeviceMeter {
    device: Arc<Device>,
    peak: Arc<AtomicU64>,
}

impl DeviceMeter {
    pub(super) fn new(device: &Arc<Device>) -> DeviceMeter {
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

impl Meter for DeviceMeter {
    fn base(&self) -> u64 {
        0
    }

    fn held(&self) -> Result<u64, Error> {
        Ok(held(&self.device)?)
    }

    fn reset_peak(&self) {
        self.peak.store(0, Relaxed);
    }

    fn peak(&self) -> Result<u64, Error> {
        Ok(self.peak.load(Relaxed).max(self.held()?))
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(self.device.synchronize()?)
    }
}

fn held(device: &Device) -> Result<u64, CudaError> {
    let memory = device.memory()?;
    Ok(memory.total_bytes - memory.free_bytes)
}
