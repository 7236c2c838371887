//! Runs that are recorded once and repeated.

use std::ffi::c_void;
use std::sync::Arc;

use kiln_cuda::{Device, Graph};

use crate::EngineError;

/// How runs of the same sizes get onto the stream.
pub(crate) enum Recording {
    /// At first by themselves: a library may still be choosing its kernels.
    First,
    /// The next one is recorded.
    Due,
    /// As what was recorded.
    Recorded(Graph),
    /// They cannot be recorded.
    Refused,
}

impl Recording {
    /// What comes after the first runs.
    pub(crate) fn after_first(can_record: bool) -> Recording {
        if can_record { Recording::Due } else { Recording::Refused }
    }

    /// Records a run if that is due: `work` puts it onto the stream that it is given, `cudaStream_t`.
    pub(crate) fn record(
        &mut self,
        device: &Arc<Device>,
        work: impl FnOnce(*mut c_void) -> Result<(), EngineError>,
    ) {
        if matches!(self, Recording::Due) {
            *self = device.record(work).map_or(Recording::Refused, Recording::Recorded);
        }
    }
}
