//! Memory for tensors, which engines share: what one frees the next one gets, without asking the operating system.

#![expect(unsafe_code, reason = "memory from the operating system, and raw pointers to it")]

use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed};

use super::extents::{Extents, GRANULE, Move};

/// Smaller blocks come from the C library's heap.
const LEAST: usize = 64 << 10;

/// Address space that is asked for at once: the first of these that is to be had. It takes no memory before it is used.
const REGIONS: [usize; 2] = [64 << 30, 1 << 30];

/// Alignment of every block: a cache line, and the widest vector registers.
const ALIGNMENT: usize = 64;

static EXTENTS: Mutex<Option<Extents>> = Mutex::new(None);

fn extents() -> MutexGuard<'static, Option<Extents>> {
    EXTENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of so many bytes, or null.
pub(crate) fn allocate(len: usize) -> *mut c_void {
    if len < LEAST {
        return from_c_library(len);
    }
    let mut extents = extents();
    let extents = extents.get_or_insert_default();
    if let Some(start) = extents.take(len) {
        fill(extents, start);
        return start as *mut c_void;
    }
    let Some(least) = len.checked_next_multiple_of(GRANULE) else { return ptr::null_mut() };
    let regions = REGIONS.into_iter().filter(|region| *region > least).chain([least]);
    let Some((start, region)) = regions.into_iter().find_map(|region| Some((map(region)?, region))) else {
        return ptr::null_mut();
    };
    extents.add(start, region);
    let Some(start) = extents.take(len) else { return ptr::null_mut() };
    fill(extents, start);
    start as *mut c_void
}

/// Moves memory that nobody uses to where a block has none. Pages that were used before need no clearing, which takes
/// longer than much of what is computed in them, and as many as were ever used at once are enough.
fn fill(extents: &mut Extents, start: usize) {
    for moved in extents.fill(start) {
        let Move { from, to } = moved;
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        // SAFETY: both granules lie in regions of the pool; nobody uses the first, and the second holds nothing.
        let result = unsafe { mremap_fixed(from as *mut c_void, GRANULE, GRANULE, flags, to as *mut c_void) };
        if result.is_err() {
            extents.stays(moved);
        }
    }
}

/// Gives a block back.
///
/// # Safety
/// `block` is null or came from [`allocate`], and nobody uses it any more.
pub(crate) unsafe fn free(block: *mut c_void) {
    if !extents().as_mut().is_some_and(|extents| extents.put(block as usize)) {
        // SAFETY: a block that is none of the pool's came from the C library's heap.
        unsafe { libc::free(block) };
    }
}

/// Gives memory of free blocks back to the operating system, all but so many bytes.
pub(super) fn trim(keep: usize) {
    let mut extents = extents();
    for (start, len) in extents.as_mut().map(|extents| extents.discard(keep)).unwrap_or_default() {
        // Memory that cannot be given back is used again.
        // SAFETY: the range lies in a region of the pool and in no block, and the lock keeps it so.
        let _ = unsafe { madvise(start as *mut c_void, len, Advice::LinuxDontNeed) };
    }
}

fn from_c_library(len: usize) -> *mut c_void {
    let mut block = ptr::null_mut();
    // SAFETY: the alignment is a power of two and a multiple of a pointer's size.
    match unsafe { libc::posix_memalign(&mut block, ALIGNMENT, len.max(1)) } {
        0 => block,
        _ => ptr::null_mut(),
    }
}

/// Address space whose ends lie on granules.
fn map(len: usize) -> Option<usize> {
    let padded = len.checked_add(GRANULE)?;
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: the operating system chooses a place where nothing is.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), padded, access, flags) }.ok()?;
    let aligned = (start as usize).next_multiple_of(GRANULE);
    // Without huge pages it works as well.
    // SAFETY: the range lies in the region that was just mapped.
    let _ = unsafe { madvise(aligned as *mut c_void, len, Advice::LinuxHugepage) };
    Some(aligned)
}
