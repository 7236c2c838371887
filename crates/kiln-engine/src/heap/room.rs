//! Room for operators' intermediate results, which the next operator gets.
//!
//! It is apart from the pool of tensors: rooms come and go between tensors that stay, in sizes of their own, and would leave
//! gaps that no tensor fits into.

#![expect(unsafe_code, reason = "memory from the operating system")]

use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::extents::GRANULE;

/// Rooms that nobody uses now.
static IDLE: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// Bytes of all rooms now, and the most since somebody began to count.
static BYTES: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn idle() -> MutexGuard<'static, Vec<Memory>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room for intermediate results.
pub(crate) struct Room {
    memory: Option<Memory>,
    len: usize,
}

impl Room {
    /// Room for so many numbers, if there is memory.
    pub(crate) fn new(len: usize) -> Option<Room> {
        let bytes = len.checked_mul(size_of::<f32>())?;
        let last = idle().pop().filter(|memory| memory.bytes >= bytes);
        let memory = last.or_else(|| Memory::map(bytes))?;
        Some(Room { memory: Some(memory), len })
    }

    /// The numbers, of any value.
    pub(crate) fn numbers(&mut self) -> &mut [f32] {
        let start = self.memory.as_ref().map_or(NonNull::dangling(), |memory| memory.start.cast::<f32>());
        let len = self.memory.as_ref().map_or(0, |_| self.len);
        // SAFETY: as many numbers are mapped, which the operating system has initialized, and borrowed through `self` alone.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), len) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        idle().extend(self.memory.take());
    }
}

/// Gives rooms that nobody uses back to the operating system.
pub(super) fn trim() {
    idle().clear();
}

/// Most bytes that rooms took since [`reset_peak`].
pub(super) fn peak() -> u64 {
    PEAK.load(Relaxed)
}

pub(super) fn reset_peak() {
    PEAK.store(BYTES.load(Relaxed), Relaxed);
}

/// Pages of the process's own.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its pages as a `Vec` does its elements.
unsafe impl Send for Memory {}

impl Memory {
    fn map(bytes: usize) -> Option<Memory> {
        let bytes = bytes.max(1).checked_next_multiple_of(4096)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: the operating system chooses a place where nothing is.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) }.ok()?;
        if bytes >= 2 * GRANULE {
            // Without huge pages it works as well.
            // SAFETY: the range was just mapped.
            let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        }
        let start = NonNull::new(start.cast())?;
        PEAK.fetch_max(BYTES.fetch_add(bytes as u64, Relaxed) + bytes as u64, Relaxed);
        Some(Memory { start, bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped with this length, and nobody uses it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        BYTES.fetch_sub(self.bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_used_again_until_they_are_given_back() {
        let mut room = Room::new(3 << 20).expect("memory");
        room.numbers().fill(1.0);
        assert_eq!(Room::new(usize::MAX).map(|_| ()), None);
        drop(room);
        let mut again = Room::new(1000).expect("memory");
        assert_eq!(again.numbers().len(), 1000);
        drop(again);
        trim();
        assert_eq!(idle().len(), 0);
    }
}
