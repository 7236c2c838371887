//! Pointers that lanes share.

/// A cache line, and the widest vector.
pub(crate) const ALIGN: usize = 64;
/// Words of a cache line.
pub(crate) const LINE: usize = ALIGN / 4;

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

    /// The same, so many words further.
    pub(crate) fn shifted(self, words: usize) -> Self {
        Self(self.at(words))
    }

    pub(crate) fn at(self, words: usize) -> *mut f32 {
        self.0.wrapping_add(words)
    }
}
