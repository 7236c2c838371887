//! Serialized engines in memory.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use kiln_cuda::{CudaError, Device, PinnedMemory};
use kiln_trt::{CudaStream, SeekPosition, StreamReader};

use crate::EngineError;
use crate::error::EngineErrorKind::Load;

/// A serialized engine.
pub(super) enum Plan {
    /// To load once.
    Read(Vec<u8>),
    /// To load weights from again and again.
    Pinned(PinnedMemory),
}

impl Plan {
    /// Reads a file, into memory that is pinned where a device is given.
    pub(super) fn read(path: &Path, pinned_for: Option<&Arc<Device>>) -> Result<Plan, EngineError> {
        let refuse = |e: io::Error| EngineError::new(Load, path, e);
        let mut file = File::open(path).map_err(refuse)?;
        let n_bytes = usize::try_from(file.metadata().map_err(refuse)?.len()).unwrap_or(usize::MAX);
        match pinned_for {
            None => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(refuse)?;
                Ok(Plan::Read(bytes))
            }
            Some(device) => {
                let mut memory = device.pin(n_bytes)?;
                file.read_exact(memory.bytes_mut()?).map_err(refuse)?;
                Ok(Plan::Pinned(memory))
            }
        }
    }

    pub(super) fn bytes(&self) -> Result<&[u8], CudaError> {
        match self {
            Plan::Read(bytes) => Ok(bytes),
            Plan::Pinned(memory) => memory.bytes(),
        }
    }
}

/// Reads a plan from its beginning, in the order of a stream.
pub(super) struct PlanReader<'a> {
    plan: &'a Plan,
    position: usize,
}

impl<'a> PlanReader<'a> {
    pub(super) fn new(plan: &'a Plan) -> PlanReader<'a> {
        PlanReader { plan, position: 0 }
    }

    fn n_bytes(&self) -> usize {
        match self.plan {
            Plan::Read(bytes) => bytes.len(),
            Plan::Pinned(memory) => memory.n_bytes(),
        }
    }
}

// SAFETY: no more is written than was asked for, and a plan stays as it is; its engine waits before it drops it.
unsafe impl StreamReader for PlanReader<'_> {
    fn read(&mut self, destination: *mut c_void, n_bytes: usize, stream: CudaStream) -> Option<usize> {
        let end = self.position.saturating_add(n_bytes).min(self.n_bytes());
        let part = self.position..end;
        match self.plan {
            Plan::Pinned(memory) => {
                // SAFETY: TensorRT has room for what it asks for, and the plan stays.
                unsafe { memory.copy_to(part.clone(), destination, stream.as_raw()) }.ok()?;
            }
            Plan::Read(_) => return None,
        }
        self.position = end;
        Some(part.len())
    }

    fn seek(&mut self, position: SeekPosition) -> bool {
        let (base, offset) = match position {
            SeekPosition::Set(offset) => (0, offset),
            SeekPosition::Current(offset) => (self.position, offset),
            SeekPosition::End(offset) => (self.n_bytes(), offset),
        };
        let target = i64::try_from(base).ok().and_then(|base| base.checked_add(offset));
        let target = target.and_then(|target| usize::try_from(target).ok()).filter(|n| *n <= self.n_bytes());
        self.position = target.unwrap_or(self.position);
        target.is_some()
    }
}
