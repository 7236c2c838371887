//! `IRuntimeConfig` and `IRuntimeCache`: a kernel is the shapes of a run, in words.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::object::{Facade, die, facade, free, implementation, table};

/// The kernels that a cache has, and how many had to be compiled.
pub(crate) type Kernels = Arc<Mutex<BTreeSet<String>>>;

#[repr(C)]
struct Config {
    table: *const *const c_void,
    is_eager: bool,
    cache: Option<Kernels>,
}

#[repr(C)]
struct Cache {
    table: *const *const c_void,
    kernels: Kernels,
}

#[repr(C)]
struct HostMemory {
    table: *const *const c_void,
    bytes: Vec<u8>,
}

pub(crate) fn config() -> *mut c_void {
    let table = table(
        "VRuntimeConfig",
        &[
            ("setExecutionContextAllocationStrategy", set_number as *const c_void),
            ("setDynamicShapesKernelSpecializationStrategy", set_specialization as *const c_void),
            ("createRuntimeCache", create_cache as *const c_void),
            ("setRuntimeCache", set_cache as *const c_void),
        ],
    );
    facade(Box::new(Config { table, is_eager: false, cache: None }), delete::<Config>)
}

/// The cache of a configuration; the application must have chosen eager compilation.
pub(crate) fn kernels_of(config: *mut c_void) -> Kernels {
    // SAFETY: the application gives a configuration of ours.
    let config = unsafe { &*implementation::<Config>(config) };
    match &config.cache {
        Some(kernels) if config.is_eager => kernels.clone(),
        _ => die("kernels that are compiled in the background would be recorded before they are done"),
    }
}

extern "C" fn delete<T>(object: *mut Facade) {
    free::<T>(object);
}

extern "C" fn set_number(_this: &mut Config, _number: i32) {}

extern "C" fn set_specialization(this: &mut Config, strategy: i32) {
    this.is_eager = strategy == 1;
}

extern "C" fn create_cache(_this: &Config) -> *mut c_void {
    let table = table(
        "VRuntimeCache",
        &[("serialize", serialize as *const c_void), ("deserialize", deserialize as *const c_void)],
    );
    facade(Box::new(Cache { table, kernels: Kernels::default() }), delete::<Cache>)
}

extern "C" fn set_cache(this: &mut Config, cache: *mut c_void) -> bool {
    // SAFETY: the application gives a cache of ours.
    this.cache = Some(unsafe { &*implementation::<Cache>(cache) }.kernels.clone());
    true
}

extern "C" fn serialize(this: &Cache) -> *mut c_void {
    let table = table("VHostMemory", &[("data", data as *const c_void), ("size", size as *const c_void)]);
    let bytes = serde_json::to_vec(&*this.kernels.lock().expect("no panic")).unwrap_or_default();
    facade(Box::new(HostMemory { table, bytes }), delete::<HostMemory>)
}

extern "C" fn deserialize(this: &Cache, blob: *const u8, n_bytes: usize) -> bool {
    // SAFETY: the application gives bytes.
    let bytes = unsafe { std::slice::from_raw_parts(blob, n_bytes) };
    match serde_json::from_slice(bytes) {
        Ok(kernels) => {
            *this.kernels.lock().expect("no panic") = kernels;
            true
        }
        Err(_) => false,
    }
}

extern "C" fn data(this: &HostMemory) -> *const u8 {
    this.bytes.as_ptr()
}

extern "C" fn size(this: &HostMemory) -> usize {
    this.bytes.len()
}
