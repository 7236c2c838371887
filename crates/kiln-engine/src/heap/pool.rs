//! Memory for tensors, which engines share: what one frees the next one gets, without asking the operating system.

#![expect(unsafe_code, reason = "memory from the operating system, and raw pointers to it")]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed};

use super::extents::{Extents, GRANULE, Refill};

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
        return filled(extents, start);
    }
    let Some(least) = len.checked_next_multiple_of(GRANULE) else { return ptr::null_mut() };
    let regions = REGIONS.into_iter().filter(|region| *region > least).chain([least]);
    let Some((start, region)) = regions.into_iter().find_map(|region| Some((map(region)?, region))) else {
        return ptr::null_mut();
    };
    extents.add(start, region);
    extents.take(len).map_or(ptr::null_mut(), |start| filled(extents, start))
}

/// Whether pages can move: Linux 5.7 and later, unless something forbids it.
static PAGES_MOVE: AtomicBool = AtomicBool::new(true);

/// A block at `start`, to which memory that nobody uses has moved. Pages that were used before need no clearing, which takes
/// longer than much of what is computed in them. Null, and the block never used again, if its address space was lost.
fn filled(extents: &mut Extents, start: usize) -> *mut c_void {
    for Refill { from, to, may_move } in extents.refills(start) {
        if may_move && PAGES_MOVE.load(Relaxed) {
            match move_pages(from, to) {
                Moved::Yes => continue,
                Moved::No => PAGES_MOVE.store(false, Relaxed),
                Moved::Lost => {
                    PAGES_MOVE.store(false, Relaxed);
                    return ptr::null_mut();
                }
            }
        }
        give_back(from, GRANULE);
    }
    start as *mut c_void
}

enum Moved {
    Yes,
    /// Both granules are as they were, but for what the first held.
    No,
    /// The second is mapped no longer.
    Lost,
}

fn move_pages(from: usize, to: usize) -> Moved {
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    // SAFETY: both granules lie in regions of the pool; nobody uses the first, and the second holds nothing.
    if unsafe { mremap_fixed(from as *mut c_void, GRANULE, GRANULE, flags, to as *mut c_void) }.is_ok() {
        return Moved::Yes;
    }
    // Some failures come after the second was unmapped. What is mapped stays.
    let (access, map) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: nothing that is mapped is replaced.
    match unsafe { mmap_anonymous(to as *mut c_void, GRANULE, access, map | MapFlags::FIXED_NOREPLACE) } {
        Ok(start) if start as usize == to => Moved::No,
        Err(Errno::EXIST) => Moved::No,
        _ => Moved::Lost,
    }
}

fn give_back(start: usize, len: usize) {
    // Memory that cannot be given back is used again.
    // SAFETY: the range lies in a region of the pool and in no block, and the caller's lock keeps it so.
    let _ = unsafe { madvise(start as *mut c_void, len, Advice::LinuxDontNeed) };
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
        give_back(start, len);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two regions are apart, so that memory of the first has to move.
    #[test]
    fn pages_move_with_what_nobody_reads_any_more_and_leave_zeros() {
        let granules = map(4 * GRANULE).expect("address space");
        let (from, to) = (granules, granules + 2 * GRANULE);
        // SAFETY: the granules are mapped, and this test's alone.
        unsafe { (from as *mut u8).write(7) };
        if !matches!(move_pages(from, to), Moved::Yes) {
            return; // Linux before 5.7
        }
        // SAFETY: as above.
        assert_eq!(unsafe { [(from as *const u8).read(), (to as *const u8).read()] }, [0, 7]);
    }

    #[test]
    fn a_move_that_fails_leaves_both_granules_mapped() {
        let granules = map(2 * GRANULE).expect("address space");
        // An address that is no page's start is refused.
        assert!(matches!(move_pages(granules + 1, granules + GRANULE), Moved::No));
        // SAFETY: the granules are mapped, and this test's alone.
        unsafe { ((granules + GRANULE) as *mut u8).write(1) };
    }
}
