//! What engines hold: memory of this process, or of a device.

use kiln_engine::{Backend, heap};

use super::process;
use crate::Error;

/// Reads how much memory is held.
pub(crate) trait Meter {
    /// Bytes that are taken before any engine is loaded, as far as they count against a budget.
    fn base(&self) -> u64;

    /// Bytes that are held now.
    fn held(&self) -> Result<u64, Error>;

    /// Starts to count the most that is held from now on.
    fn reset_peak(&self);

    /// Most bytes that were held.
    fn peak(&self) -> Result<u64, Error>;

    /// Waits until work is done.
    fn synchronize(&self) -> Result<(), Error>;

    /// Waits until work is done, and gives back what no engine needs to stay loaded.
    fn settle(&self, backend: &dyn Backend) -> Result<(), Error> {
        backend.trim();
        heap::trim();
        self.synchronize()
    }
}

impl dyn Meter {
    /// Reads the memory in which a backend's engines compute; none where nobody tells how much of it is held.
    pub(crate) fn of(backend: &dyn Backend) -> Option<Box<dyn Meter>> {
        #[cfg(feature = "cuda")]
        if let Some(device) = backend.device() {
            return Some(Box::new(super::device::DeviceMeter::new(device)));
        }
        let is_known =
            !backend.format().is_for_device() && process::resident().is_some() && process::reset_peak();
        is_known.then(|| Box::new(ProcessMeter) as _)
    }
}

/// Resident memory of this process.
struct ProcessMeter;

impl Meter for ProcessMeter {
    fn base(&self) -> u64 {
        process::resident().unwrap_or(0)
    }

    fn held(&self) -> Result<u64, Error> {
        Ok(process::resident().unwrap_or(0))
    }

    fn reset_peak(&self) {
        process::reset_peak();
    }

    fn peak(&self) -> Result<u64, Error> {
        Ok(process::peak().unwrap_or(0))
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }
}
