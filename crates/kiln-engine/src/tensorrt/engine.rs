//! One engine of TensorRT.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_cuda::{Device, Mark};
use kiln_trt::{CudaStream, DataType, ExecutionContext, TensorIoMode};

use super::arena::{self, Arena, Place};
use super::failure;
use super::kernels::Kernels;
use super::plan::{Plan, PlanReader};
use super::profiles::Profiles;
use crate::bind::bind;
use crate::error::EngineErrorKind::{Load, Run};
use crate::recording::Recording;
use crate::{DeviceTensor, ElementType, Engine, EngineError, Port, Tensor, TensorView};

/// An engine, and where it reads and writes.
pub(super) struct TrtEngine {
    model: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    profiles: Profiles,
    setup: Option<Setup>,
    context: ExecutionContext,
    kernels: Kernels,
    engine: kiln_trt::Engine,
    weights: Weights,
    device: Arc<Device>,
    arena: Arc<Mutex<Arena>>,
    records: bool,
}

/// Where the weights are.
pub(super) enum Weights {
    /// On the device, for as long as the engine is loaded.
    Fixed,
    /// In the host's memory, but for those that stay on the device.
    Streamed,
    /// Where `state` says; they come from the plan.
    Swapped { plan: Plan, state: SwapState },
}

impl Weights {
    pub(super) fn new(swapped: Option<Plan>, streams: bool) -> Weights {
        match (swapped, streams) {
            (Some(plan), _) => Weights::Swapped { plan, state: SwapState::Absent },
            (None, true) => Weights::Streamed,
            (None, false) => Weights::Fixed,
        }
    }
}

pub(super) enum SwapState {
    Absent,
    Arriving(Mark),
    Present,
}

/// What stays the same from run to run while sizes do.
struct Setup {
    shapes: Vec<Vec<i64>>,
    inputs: Vec<DeviceTensor>,
    outputs: Vec<DeviceTensor>,
    n_arena_bytes: usize,
    /// Where the arena was when the context was told.
    arena: Option<Place>,
    run: Recording,
}

impl TrtEngine {
    pub(super) fn new(
        model: &Path,
        engine: kiln_trt::Engine,
        kernels: Kernels,
        weights: Weights,
        device: Arc<Device>,
        arena: Arc<Mutex<Arena>>,
    ) -> Result<TrtEngine, EngineError> {
        let refuse = |e| failure(model, &device, &e);
        let facts = engine.facts().map_err(refuse)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for port in &facts.ports {
            if engine.is_shape_inference_io(&port.name).map_err(refuse)? {
                let reason = format!("'{}' is a tensor of sizes, which is not supported", port.name);
                return Err(EngineError::new(Load, model, reason));
            }
            let known = self::port(port).map_err(|reason| EngineError::new(Load, model, reason))?;
            match engine.io_mode(&port.name).map_err(refuse)? {
                TensorIoMode::Input => inputs.push(known),
                TensorIoMode::Output => outputs.push(known),
            }
        }
        let profiles = Profiles::new(&engine, facts.n_profiles, &inputs).map_err(refuse)?;
        let context = kernels.context(&engine).map_err(refuse)?;
        let model = model.into();
        Ok(TrtEngine {
            model,
            inputs,
            outputs,
            profiles,
            setup: None,
            context,
            kernels,
            engine,
            weights,
            device,
            arena,
            records: true,
        })
    }

    pub(super) fn with_recording(mut self, records: bool) -> TrtEngine {
        self.records = records;
        self
    }

    fn stream(&self) -> CudaStream {
        // SAFETY: the stream is the device's, which the engine keeps.
        unsafe { CudaStream::from_raw(self.device.compute_stream()) }
    }

    /// Starts to load weights on a stream of their own.
    fn start_loading(&mut self) -> Result<(), EngineError> {
        let Weights::Swapped { plan, state } = &mut self.weights else { return Ok(()) };
        if !matches!(state, SwapState::Absent) {
            return Ok(());
        }
        let engine = &self.engine;
        let load = |stream: *mut c_void| {
            // SAFETY: runs wait for the copies, and the plan stays until the engine is gone.
            unsafe { engine.load_weights_async(&mut PlanReader::new(plan), CudaStream::from_raw(stream)) }
        };
        let (loaded, copied) = self.device.copying(load)?;
        loaded.map_err(|e| failure(&self.model, &self.device, &e))?;
        *state = SwapState::Arriving(copied);
        Ok(())
    }

    fn await_weights(&mut self) -> Result<(), EngineError> {
        self.start_loading()?;
        if let Weights::Swapped { state, .. } = &mut self.weights
            && let SwapState::Arriving(copied) = state
        {
            self.device.wait_for(copied)?;
            *state = SwapState::Present;
        }
        Ok(())
    }

    /// Prepares for inputs of these sizes.
    fn set_shapes(&mut self, shapes: Vec<Vec<i64>>) -> Result<(), EngineError> {
        if self.setup.as_ref().is_some_and(|setup| setup.shapes == shapes) {
            return Ok(());
        }
        self.setup = None;
        let refuse = |e| failure(&self.model, &self.device, &e);
        let stream = self.stream();
        let profile = self.profiles.choose(&self.model, &shapes)?;
        if self.context.profile().map_err(refuse)? != Some(profile) {
            self.context.set_profile(profile, stream).map_err(refuse)?;
        }
        let mut inputs = Vec::new();
        for (port, shape) in self.inputs.iter().zip(&shapes) {
            self.context.set_input_shape(&port.name, shape).map_err(refuse)?;
            inputs.push(self.room(port, shape)?);
        }
        self.context.infer_shapes().map_err(refuse)?;
        let mut outputs = Vec::new();
        for port in &self.outputs {
            outputs.push(self.room(port, &self.context.shape(&port.name).map_err(refuse)?)?);
        }
        let ports = self.inputs.iter().zip(&inputs).chain(self.outputs.iter().zip(&outputs));
        for (port, tensor) in ports {
            let address = tensor.memory().address() as *mut c_void;
            // SAFETY: the memory has room for the tensor and stays as long as these sizes are set.
            unsafe { self.context.set_tensor_address(&port.name, address) }.map_err(refuse)?;
        }
        let n_arena_bytes = self.context.update_device_memory_size().map_err(refuse)?;
        let setup = Setup { shapes, inputs, outputs, n_arena_bytes, arena: None, run: Recording::First };
        self.setup = Some(setup);
        Ok(())
    }

    fn room(&self, port: &Port, shape: &[i64]) -> Result<DeviceTensor, EngineError> {
        let sizes: Result<Vec<usize>, _> = shape.iter().map(|&n| usize::try_from(n)).collect();
        let sizes = sizes.map_err(|_| {
            EngineError::new(Run, &self.model, format!("'{}' has no certain sizes: {shape:?}", port.name))
        })?;
        Ok(DeviceTensor::new(&self.device, port.element_type, &sizes)?)
    }

    /// Puts a run onto the stream.
    fn enqueue(&mut self) -> Result<(), EngineError> {
        let stream = self.stream();
        let refuse = |e| failure(&self.model, &self.device, &e);
        let Some(setup) = &mut self.setup else { return Ok(()) };
        // Held until the run is on the stream: what another engine frees then is freed after it.
        let mut arena = arena::lock(&self.arena);
        let place = arena.with(setup.n_arena_bytes)?;
        if setup.arena != Some(place) {
            // SAFETY: the arena is as large as the context needs; engines run one after the other on one stream.
            unsafe { self.context.set_device_memory(place.address, place.n_bytes) }.map_err(refuse)?;
            setup.arena = Some(place);
            // A context that was changed has to run by itself before it can be recorded.
            if matches!(setup.run, Recording::Recorded(_) | Recording::Due) {
                setup.run = Recording::First;
            }
        }
        let context = &mut self.context;
        setup.run.record(&self.device, |stream| {
            // SAFETY: addresses were set for these sizes, and what they name stays as long as the sizes.
            unsafe { context.enqueue(CudaStream::from_raw(stream)) }.map_err(refuse)
        });
        match &mut setup.run {
            // SAFETY: inputs, outputs and weights are where they were, or the recording would be gone.
            Recording::Recorded(graph) => unsafe { graph.launch() }?,
            Recording::First | Recording::Due | Recording::Refused => {
                // SAFETY: as above.
                unsafe { self.context.enqueue(stream) }.map_err(refuse)?;
            }
        }
        if matches!(setup.run, Recording::First) {
            self.kernels.store().map_err(refuse)?;
            // A release that does not tell is tried.
            let can_record = self.records && self.context.is_stream_capturable(stream).unwrap_or(true);
            setup.run = Recording::after_first(can_record);
        }
        Ok(())
    }
}

impl Engine for TrtEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let bound = bind(&self.model, &self.inputs, inputs)?;
        self.device.bind()?;
        self.await_weights()?;
        self.set_shapes(bound.iter().map(|view| view.shape().iter().map(|&n| n as i64).collect()).collect())?;
        for (i, value) in bound.into_iter().enumerate() {
            if let Some(setup) = &self.setup {
                value.copy_to(&setup.inputs[i])?;
            }
        }
        self.enqueue()?;
        let made = self.setup.iter().flat_map(|setup| &setup.outputs);
        made.map(|made| Ok(Tensor::Device(made.duplicate()?))).collect()
    }

    fn unload(&mut self) -> Result<bool, EngineError> {
        let state = match &mut self.weights {
            Weights::Fixed => return Ok(false),
            Weights::Streamed => return Ok(true),
            Weights::Swapped { state, .. } => state,
        };
        self.setup = None;
        if let SwapState::Arriving(copied) = state {
            self.device.wait_for(copied)?;
        }
        if !matches!(std::mem::replace(state, SwapState::Absent), SwapState::Absent) {
            self.device.synchronize()?;
            self.engine.unload_weights().map_err(|e| failure(&self.model, &self.device, &e))?;
        }
        Ok(true)
    }

    fn prefetch(&mut self) -> Result<(), EngineError> {
        self.device.bind()?;
        self.start_loading()
    }
}

impl Drop for TrtEngine {
    fn drop(&mut self) {
        if let Weights::Swapped { state: SwapState::Arriving(copied), .. } = &self.weights {
            let _ = self.device.wait_for(copied);
        }
        // What fails now has failed before, and nothing is left to tell.
        let _ = self.device.bind().and_then(|()| self.device.synchronize());
        self.setup = None;
    }
}

fn port(port: &kiln_trt::Port) -> Result<Port, String> {
    let element_type = match port.dtype {
        DataType::F32 => ElementType::F32,
        DataType::F16 => ElementType::F16,
        DataType::I64 => ElementType::I64,
        other => return Err(format!("port '{}' has type {other:?}; supported: f32, f16, i64", port.name)),
    };
    let shape = port.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    Ok(Port { name: port.name.clone(), element_type, shape })
}
