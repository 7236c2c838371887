//! What the library exports, and `IRuntime`.

use std::ffi::c_void;

use crate::engine::Engine;
use crate::object::{Facade, Logger, facade, free, is_rtx, table};
use crate::{Plan, RELEASE, cuda};

#[unsafe(no_mangle)]
extern "C" fn getInferLibMajorVersion() -> i32 {
    if is_rtx() { 1 } else { 11 }
}

#[unsafe(no_mangle)]
extern "C" fn getInferLibMinorVersion() -> i32 {
    if is_rtx() { 7 } else { 4 }
}

#[unsafe(no_mangle)]
extern "C" fn getInferLibPatchVersion() -> i32 {
    if is_rtx() { 1 } else { 0 }
}

#[repr(C)]
struct Runtime {
    table: *const *const c_void,
    logger: Logger,
    defers: bool,
}

#[unsafe(no_mangle)]
extern "C" fn createInferRuntime_INTERNAL(logger: *mut c_void, _version: i32) -> *mut c_void {
    let table = table(
        "VRuntime",
        &[
            ("deserializeCudaEngine", deserialize as *const c_void),
            ("getEngineValidity", validity as *const c_void),
            ("setDeferredWeightsLoading", set_deferred as *const c_void),
        ],
    );
    facade(Box::new(Runtime { table, logger: Logger(logger), defers: false }), delete)
}

extern "C" fn delete(runtime: *mut Facade) {
    free::<Runtime>(runtime);
}

extern "C" fn set_deferred(this: &mut Runtime, defers: bool) {
    this.defers = defers;
}

extern "C" fn validity(_this: &mut Runtime, blob: *const u8, n_bytes: i64, reasons: &mut u64) -> i32 {
    const INVALID: i32 = 2;
    // SAFETY: the application gives a plan.
    let bytes = unsafe { std::slice::from_raw_parts(blob, n_bytes as usize) };
    *reasons = match Plan::from_bytes(bytes) {
        None => 1 << 5,
        Some(plan) => {
            u64::from(plan.release != RELEASE) | u64::from(plan.capability != cuda::capability()) << 1
        }
    };
    if *reasons == 0 { 0 } else { INVALID }
}

extern "C" fn deserialize(this: &mut Runtime, blob: *const u8, n_bytes: usize) -> *mut c_void {
    // SAFETY: the application gives a plan.
    let bytes = unsafe { std::slice::from_raw_parts(blob, n_bytes) };
    match Engine::load(bytes, this.logger, this.defers) {
        Ok(engine) => engine,
        Err(reason) => {
            this.logger.error(&reason);
            std::ptr::null_mut()
        }
    }
}
