//! `ICudaEngine`.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard};

use kiln_engine::{Backend, ElementType, LoadOptions, Port, Rten};

use crate::context::Context;
use crate::cuda::Memory;
use crate::object::{Dims, Facade, Logger, facade, free, is_rtx, table, text};
use crate::{Plan, cuda, jit};

#[repr(C)]
pub(crate) struct Engine {
    table: *const *const c_void,
    names: Vec<CString>,
    shared: Arc<Shared>,
}

/// What contexts and work on streams know of an engine.
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) logger: Logger,
    model: Mutex<Box<dyn kiln_engine::Engine>>,
    weights: Mutex<Weights>,
}

// SAFETY: the logger may be called from every thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

struct Weights {
    defers: bool,
    memory: Option<Memory>,
    bytes: Vec<u8>,
    /// Whether some of them stream from the host's memory.
    streams: bool,
}

impl Weights {
    /// Puts as many bytes onto the device; false where it has not enough memory.
    fn place(&mut self, n_bytes: usize) -> bool {
        self.memory = None;
        self.streams = n_bytes < self.bytes.len();
        let memory = Memory::new(n_bytes.max(1));
        if let Some(memory) = &memory {
            cuda::bytes(memory.address(), n_bytes).copy_from_slice(&self.bytes[..n_bytes]);
        }
        self.memory = memory;
        self.memory.is_some()
    }
}

impl Shared {
    pub(crate) fn model(&self) -> MutexGuard<'_, Box<dyn kiln_engine::Engine>> {
        self.model.lock().expect("no panic")
    }

    /// Whether all bytes of the plan have arrived on the device.
    pub(crate) fn has_weights(&self) -> bool {
        let weights = self.weights.lock().expect("no panic");
        weights.streams
            || weights.memory.as_ref().is_some_and(|memory| {
                cuda::bytes(memory.address(), weights.bytes.len()) == weights.bytes.as_slice()
            })
    }
}

impl Engine {
    pub(crate) fn load(bytes: &[u8], logger: Logger, defers: bool) -> Result<*mut c_void, String> {
        let plan = Plan::from_bytes(bytes).ok_or("IRuntime::deserializeCudaEngine: Error Code 1: malformed")?;
        let model = Rten::new(Some(1)).load(&plan.model, &LoadOptions::default()).map_err(|e| e.to_string())?;
        let (inputs, outputs) = (model.inputs().to_vec(), model.outputs().to_vec());
        let mut weights = Weights { defers, memory: None, bytes: bytes.to_vec(), streams: false };
        // TensorRT waits for a budget.
        if !defers && is_rtx() && !weights.place(bytes.len()) {
            return Err("[defaultAllocator.cpp] Error Code 2: OutOfMemory".into());
        }
        let names = inputs.iter().chain(&outputs);
        let names = names.map(|port| CString::new(port.name.as_str()).unwrap_or_default()).collect();
        let table = table(
            "VCudaEngine",
            &[
                ("getNbLayers", n_layers as *const c_void),
                ("getNbOptimizationProfiles", n_profiles as *const c_void),
                ("getNbIOTensors", n_tensors as *const c_void),
                ("getIOTensorName", name as *const c_void),
                ("getTensorDataType", data_type as *const c_void),
                ("getTensorShape", shape as *const c_void),
                ("getTensorIOMode", io_mode as *const c_void),
                ("isShapeInferenceIO", is_shape as *const c_void),
                ("getProfileShape", profile_shape as *const c_void),
                ("createRuntimeConfig", create_config as *const c_void),
                ("createExecutionContextWithRuntimeConfig", create_context as *const c_void),
                ("createExecutionContext", create_plain_context as *const c_void),
                ("getStreamableWeightsSize", streamable as *const c_void),
                ("setWeightStreamingBudgetV2", set_budget as *const c_void),
                ("loadWeightsAsync", load_weights as *const c_void),
                ("unloadWeights", unload_weights as *const c_void),
            ],
        );
        let (model, weights) = (Mutex::new(model), Mutex::new(weights));
        let shared = Arc::new(Shared { plan, inputs, outputs, logger, model, weights });
        Ok(facade(Box::new(Engine { table, names, shared }), delete))
    }

    fn port(&self, name: *const c_char) -> Option<&Port> {
        let ports = self.shared.inputs.iter().chain(&self.shared.outputs);
        ports.into_iter().find(|port| port.name == text(name))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Work that streams recorded may outlive the engine.
        self.shared.weights.lock().expect("no panic").memory = None;
    }
}

extern "C" fn delete(engine: *mut Facade) {
    free::<Engine>(engine);
}

extern "C" fn n_layers(_this: &Engine) -> i32 {
    1
}

extern "C" fn n_profiles(_this: &Engine) -> i32 {
    1
}

extern "C" fn n_tensors(this: &Engine) -> i32 {
    this.names.len() as i32
}

extern "C" fn name(this: &Engine, index: i32) -> *const c_char {
    this.names[index as usize].as_ptr()
}

extern "C" fn data_type(this: &Engine, name: *const c_char) -> i32 {
    match this.port(name).map(|port| port.element_type) {
        Some(ElementType::I64) => 8,
        _ => 0,
    }
}

fn sizes(port: &Port, open: i64) -> Dims {
    Dims::new(&port.shape.iter().map(|n| n.map_or(open, |n| n as i64)).collect::<Vec<_>>())
}

extern "C" fn shape(this: &Engine, name: *const c_char) -> Dims {
    this.port(name).map_or(Dims::NONE, |port| sizes(port, -1))
}

extern "C" fn io_mode(this: &Engine, name: *const c_char) -> i32 {
    let is_among = |ports: &[Port]| ports.iter().any(|port| port.name == text(name));
    match (is_among(&this.shared.inputs), is_among(&this.shared.outputs)) {
        (true, _) => 1,
        (_, true) => 2,
        _ => 0,
    }
}

extern "C" fn is_shape(_this: &Engine, _name: *const c_char) -> bool {
    false
}

extern "C" fn profile_shape(this: &Engine, name: *const c_char, _profile: i32, select: i32) -> Dims {
    let open = if select == 0 { 1 } else { this.shared.plan.most };
    this.port(name).map_or(Dims::NONE, |port| sizes(port, open))
}

extern "C" fn create_config(_this: &Engine) -> *mut c_void {
    jit::config()
}

extern "C" fn create_context(this: &Engine, config: *mut c_void) -> *mut c_void {
    Context::facade(this.shared.clone(), jit::kernels_of(config))
}

extern "C" fn create_plain_context(this: &Engine, _strategy: i32) -> *mut c_void {
    Context::facade(this.shared.clone(), jit::Kernels::default())
}

extern "C" fn streamable(this: &Engine) -> i64 {
    this.shared.weights.lock().expect("no panic").bytes.len() as i64
}

extern "C" fn set_budget(this: &Engine, n_bytes: i64) -> bool {
    let is_placed = this.shared.weights.lock().expect("no panic").place(n_bytes as usize);
    if !is_placed {
        this.shared.logger.error("ICudaEngine::setWeightStreamingBudgetV2: Error Code 2: OutOfMemory");
    }
    is_placed
}

/// Reads the whole plan to the device, in pieces and in the order of the stream.
extern "C" fn load_weights(this: &Engine, reader: *mut c_void, stream: *mut c_void) -> bool {
    const PIECE: usize = 1 << 20;
    type Read = extern "C" fn(*mut c_void, *mut c_void, i64, *mut c_void) -> i64;
    // SAFETY: the application's reader has the table of `IStreamReaderV2`, in which reading is the fifth.
    let read =
        unsafe { std::mem::transmute::<*const c_void, Read>(*(*reader.cast::<*const *const c_void>()).add(4)) };
    let mut weights = this.shared.weights.lock().expect("no panic");
    if !weights.defers || weights.memory.is_some() {
        this.shared.logger.error("ICudaEngine::loadWeightsAsync: Error Code 3: API Usage Error");
        return false;
    }
    let n_bytes = weights.bytes.len();
    let Some(memory) = Memory::new(n_bytes) else {
        this.shared.logger.error("ICudaEngine::loadWeightsAsync: Error Code 2: OutOfMemory");
        return false;
    };
    let mut done = 0;
    while done < n_bytes {
        let piece = PIECE.min(n_bytes - done);
        let to = memory.address().wrapping_byte_add(done);
        let n_read = read(reader, to, piece as i64, stream);
        if n_read <= 0 {
            this.shared.logger.error("ICudaEngine::loadWeightsAsync: Error Code 1: the plan ends too early");
            return false;
        }
        done += n_read as usize;
    }
    weights.memory = Some(memory);
    true
}

extern "C" fn unload_weights(this: &Engine) -> bool {
    this.shared.weights.lock().expect("no panic").memory.take().is_some()
}
