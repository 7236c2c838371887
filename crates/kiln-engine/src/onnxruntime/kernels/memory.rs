//! Room for intermediate results, which operators use one after the other.

use std::sync::{Mutex, PoisonError};

/// Rooms that no operator uses now.
#[derive(Debug, Default)]
pub(in crate::onnxruntime) struct Scratch(Mutex<Vec<Vec<f32>>>);

impl Scratch {
    /// Lends `work` so many words, of any value.
    pub(super) fn lend<T>(&self, len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut room = self.rooms().pop().unwrap_or_default();
        if room.len() < len {
            // The old room goes before the new one comes.
            room = Vec::new();
            room.resize(len, 0.0);
        }
        let made = work(&mut room[..len]);
        self.rooms().push(room);
        made
    }

    fn rooms(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
