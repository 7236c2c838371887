//! ONNX Runtime's tensors in kiln's pool.

#![expect(unsafe_code, reason = "callbacks from ONNX Runtime, and a call that `ort` does not have")]

use std::ffi::c_void;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtAllocator, OrtMemoryInfo};

use crate::heap::pool;

/// ONNX Runtime's description of an allocator, and what the callbacks need.
#[repr(C)]
struct PoolAllocator {
    base: OrtAllocator,
    info: MemoryInfo<'static>,
}

// SAFETY: the callbacks only read it, and the pool has a lock of its own.
unsafe impl Sync for PoolAllocator {}

/// Lets the environment's sessions, where they ask for its allocators, take memory from the pool.
pub(super) fn register(environment: &Environment) -> ort::Result<()> {
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    // SAFETY: an allocator without callbacks is a valid value; they are set below.
    let mut base = unsafe { OrtAllocator::default() };
    base.Alloc = Some(allocate);
    base.Free = Some(free);
    base.Info = Some(describe);
    base.Reserve = Some(reserve);
    // The environment keeps the allocator, and ort the environment, until the process ends.
    let allocator: &'static mut PoolAllocator = Box::leak(Box::new(PoolAllocator { base, info }));
    // SAFETY: both pointers are valid, the allocator for ever; its first field is what ONNX Runtime expects.
    let status =
        unsafe { (ort::api().RegisterAllocator)(environment.ptr().cast_mut(), (&raw mut *allocator).cast()) };
    // SAFETY: the status is what the call returned, and is read once.
    unsafe { ort::Error::result_from_status(status) }
}

unsafe extern "system" fn allocate(_: *mut OrtAllocator, len: usize) -> *mut c_void {
    pool::allocate(len)
}

unsafe extern "system" fn reserve(_: *const OrtAllocator, len: usize) -> *mut c_void {
    pool::allocate(len)
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    // SAFETY: ONNX Runtime frees only what it was given, once.
    unsafe { pool::free(block) }
}

unsafe extern "system" fn describe(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: `this` is the first field of the allocator that was registered.
    unsafe { (*this.cast::<PoolAllocator>()).info.ptr() }
}
