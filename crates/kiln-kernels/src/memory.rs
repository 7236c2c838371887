//! Aligned memory, and pointers that lanes share.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::Error;

/// A cache line, and the widest vector.
pub(crate) const ALIGN: usize = 64;
/// Words of a cache line.
pub(crate) const LINE: usize = ALIGN / 4;

/// Bytes on the heap, aligned to 64.
#[derive(Debug)]
pub struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
}

impl AlignedBytes {
    /// `len` bytes of zero.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let layout = Layout::from_size_align(len.max(1), ALIGN).map_err(|_| Error::TooLarge)?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Error::TooLarge)?;
        Ok(Self { start, layout, len })
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as many bytes are allocated and initialized.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes are allocated and initialized, and borrowed through `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: it owns its bytes as a `Vec<u8>` does.
unsafe impl Send for AlignedBytes {}
// SAFETY: a shared reference reads bytes alone.
unsafe impl Sync for AlignedBytes {}

/// A pointer that lanes share; who writes through it says why no other lane does so at the same place.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: it is a number; each use as a pointer has its own reason.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The first aligned word of a scratch that has a line more than it needs.
    pub(crate) fn aligned(slice: &mut [f32]) -> Self {
        let skip = slice.as_ptr().align_offset(ALIGN);
        Self(slice.as_mut_ptr().wrapping_add(skip))
    }

    pub(crate) fn at(self, words: usize) -> *mut f32 {
        self.0.wrapping_add(words)
    }
}
