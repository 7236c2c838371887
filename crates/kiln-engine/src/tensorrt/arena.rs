//! The memory in which engines compute, of which one at a time does.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_cuda::{CudaError, Device, DeviceMemory};

/// One memory for all engines, as large as the largest needs.
pub(super) struct Arena {
    device: Arc<Device>,
    memory: Option<DeviceMemory>,
    /// Counts the times that it moved.
    moves: u64,
}

/// Where the arena is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: *mut c_void,
    pub(super) n_bytes: usize,
    moves: u64,
}

// SAFETY: the address means something to the device alone.
unsafe impl Send for Place {}

impl Arena {
    pub(super) fn new(device: &Arc<Device>) -> Arena {
        Arena { device: device.clone(), memory: None, moves: 0 }
    }

    /// Makes it at least so large, and tells where it is.
    pub(super) fn with(&mut self, n_bytes: usize) -> Result<Place, CudaError> {
        if self.memory.as_ref().is_none_or(|memory| memory.n_bytes() < n_bytes) {
            self.free();
            self.memory = Some(self.device.allocate(n_bytes)?);
            self.moves += 1;
        }
        let (address, n_bytes) =
            self.memory.as_ref().map_or((0, 0), |memory| (memory.address(), memory.n_bytes()));
        Ok(Place { address: address as *mut c_void, n_bytes, moves: self.moves })
    }

    pub(super) fn free(&mut self) {
        self.memory = None;
    }
}

pub(super) fn lock(arena: &Mutex<Arena>) -> MutexGuard<'_, Arena> {
    arena.lock().unwrap_or_else(PoisonError::into_inner)
}
