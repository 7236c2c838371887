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

    /// Bytes of the peak that do not grow with the size as the rest does: [`heap::scratch_peak`].
    fn scratch(&self) -> u64 {
        0
    }

    /// Waits until work is done.
    fn synchronize(&self) -> Result<(), Error>;

    /// Waits until work is done, and gives back what no engine needs to stay loaded.
    fn settle(&self, backend: &dyn Backend) -> Result<(), Error> {
        backend.trim();
        heap::trim();
        self.synchronize()
    }
}

/// Resident memory of this process.
pub(super) struct ProcessMeter;

impl Meter for ProcessMeter {
    fn base(&self) -> u64 {
        process::resident().unwrap_or(0)
    }

    fn held(&self) -> Result<u64, Error> {
        Ok(process::resident().unwrap_or(0))
    }

    fn reset_peak(&self) {
        heap::reset_scratch_peak();
        process::reset_peak();
    }

    fn peak(&self) -> Result<u64, Error> {
        Ok(process::peak().unwrap_or(0))
    }

    fn scratch(&self) -> u64 {
        heap::scratch_peak()
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }
}
