//! One session of the CUDA provider.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use kiln_cuda::Device;
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use ort::value::{DynTensorValueType, DynValue, TensorElementType};

use super::super::port;
use super::in_short;
use crate::bind::bind;
use crate::device::failure;
use crate::error::EngineErrorKind::{Load, Run};
use crate::recording::Recording;
use crate::{DeviceTensor, ElementType, Engine, EngineError, Port, Tensor, TensorView};

/// Sizes whose tensors and recordings are kept.
const MOST_SETUPS: usize = 8;

/// Runs of the same sizes before one is recorded. The first tells how large the outputs are, the second what memory a run
/// takes, and the third takes it: memory cannot be allocated while a run is recorded.
const WARM_UPS: usize = 3;

/// A session, and where it reads and writes.
pub(super) struct CudaEngine {
    model: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    setups: HashMap<Vec<Vec<usize>>, Setup>,
    options: RunOptions,
    allocator: Allocator,
    session: Session,
    device: Arc<Device>,
    records: bool,
}

/// What stays the same from run to run while sizes do.
struct Setup {
    inputs: Vec<DeviceTensor>,
    /// Known when it has run once.
    outputs: Vec<DeviceTensor>,
    binding: IoBinding,
    n_runs: usize,
    run: Recording,
}

impl CudaEngine {
    pub(super) fn new(
        model: &Path,
        session: Session,
        device: Arc<Device>,
        records: bool,
    ) -> Result<CudaEngine, EngineError> {
        let refuse = |reason: String| failure(Load, model, &device, in_short(&reason));
        let [inputs, outputs] = [session.inputs(), session.outputs()]
            .map(|outlets| outlets.iter().map(port).collect::<Result<Vec<Port>, _>>().map_err(refuse));
        let allocator = memory(&device).and_then(|memory| Allocator::new(&session, memory));
        Ok(CudaEngine {
            model: model.into(),
            inputs: inputs?,
            outputs: outputs?,
            setups: HashMap::new(),
            options: options().map_err(|e| refuse(e.to_string()))?,
            allocator: allocator.map_err(|e| refuse(e.to_string()))?,
            session,
            records,
            device,
        })
    }

    /// Makes room for inputs of these sizes.
    fn prepare(&mut self, shapes: &[Vec<usize>]) -> Result<Setup, EngineError> {
        if self.setups.len() == MOST_SETUPS {
            self.device.synchronize()?;
            self.setups.clear();
        }
        let refuse = |e: ort::Error| failure(Run, &self.model, &self.device, in_short(&e.to_string()));
        let mut binding = self.session.create_binding().map_err(refuse)?;
        let mut inputs = Vec::new();
        for (port, shape) in self.inputs.iter().zip(shapes) {
            let tensor = DeviceTensor::new(&self.device, port.element_type, shape)?;
            // SAFETY: the setup keeps the tensor as long as the binding.
            let value = unsafe { value(&tensor, &self.allocator) }.map_err(refuse)?;
            binding.bind_input(&port.name, &value).map_err(refuse)?;
            inputs.push(tensor);
        }
        Ok(Setup { inputs, outputs: Vec::new(), binding, n_runs: 0, run: Recording::First })
    }

    /// Runs where ONNX Runtime puts what it makes, which tells its sizes; from then on it goes where the setup says.
    fn run_first(&mut self, setup: &mut Setup) -> Result<(), EngineError> {
        let refuse = |e: ort::Error| failure(Run, &self.model, &self.device, in_short(&e.to_string()));
        let memory = memory(&self.device).map_err(refuse)?;
        for port in &self.outputs {
            setup.binding.bind_output_to_device(&port.name, &memory).map_err(refuse)?;
        }
        let session = &mut self.session;
        let mut run = || {
            let mut made = session.run_binding_with_options(&setup.binding, &self.options)?;
            Ok::<Vec<Option<DynValue>>, ort::Error>(
                self.outputs.iter().map(|port| made.remove(&port.name)).collect(),
            )
        };
        let made = self.device.aside(|| run().map_err(refuse))?;
        for (port, value) in self.outputs.iter().zip(made) {
            let Some(value) = value else {
                return Err(EngineError::new(Run, &self.model, format!("has no output '{}'", port.name)));
            };
            let (element_type, shape, address) = describe(&value).map_err(refuse)?;
            if element_type != port.element_type {
                let reason = format!("output {port} is made of {element_type}");
                return Err(EngineError::new(Run, &self.model, reason));
            }
            let tensor = DeviceTensor::new(&self.device, element_type, &shape)?;
            // SAFETY: ONNX Runtime reuses the memory in the order of its stream, which waits for this one.
            unsafe { self.device.copy_from(address, tensor.memory(), tensor.n_bytes()) }?;
            setup.outputs.push(tensor);
        }
        setup.binding.clear_outputs();
        for (port, tensor) in self.outputs.iter().zip(&setup.outputs) {
            // SAFETY: the setup keeps the tensor as long as the binding.
            let value = unsafe { value(tensor, &self.allocator) }.map_err(refuse)?;
            setup.binding.bind_output(&port.name, value).map_err(refuse)?;
        }
        Ok(())
    }

    fn enqueue(&mut self, binding: &IoBinding) -> Result<(), EngineError> {
        let run = self.session.run_binding_with_options(binding, &self.options);
        run.map(drop).map_err(|e| failure(Run, &self.model, &self.device, in_short(&e.to_string())))
    }

    fn run_again(&mut self, Setup { binding, n_runs, run, .. }: &mut Setup) -> Result<(), EngineError> {
        let device = self.device.clone();
        if *n_runs == WARM_UPS {
            *run = Recording::after_first(self.records);
        }
        run.record(&device, |_side_stream| self.enqueue(binding));
        match run {
            // SAFETY: the setup keeps inputs and outputs, and the session the memory between them.
            Recording::Recorded(graph) => Ok(unsafe { graph.launch() }?),
            Recording::First | Recording::Due | Recording::Refused => device.aside(|| self.enqueue(binding)),
        }
    }
}

impl Engine for CudaEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let bound = bind(&self.model, &self.inputs, inputs)?;
        self.device.bind()?;
        let shapes: Vec<Vec<usize>> = bound.iter().map(|view| view.shape().to_vec()).collect();
        let mut setup = match self.setups.remove(&shapes) {
            Some(setup) => setup,
            None => self.prepare(&shapes)?,
        };
        for (place, value) in setup.inputs.iter().zip(bound) {
            value.copy_to(place)?;
        }
        match setup.n_runs {
            0 => self.run_first(&mut setup)?,
            _ => self.run_again(&mut setup)?,
        }
        setup.n_runs += 1;
        let made = setup.outputs.iter().map(|made| Ok(Tensor::Device(made.duplicate()?))).collect();
        self.setups.insert(shapes, setup);
        made
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        // What fails now has failed before, and nothing is left to tell.
        let _ = self.device.bind().and_then(|()| self.device.synchronize());
        self.setups.clear();
    }
}

fn memory(device: &Device) -> ort::Result<MemoryInfo<'static>> {
    let ordinal = i32::try_from(device.info().ordinal).unwrap_or(i32::MAX);
    MemoryInfo::new(AllocationDevice::CUDA, ordinal, AllocatorType::Device, MemoryType::Default)
}

/// Options of runs that are not waited for, and that ONNX Runtime does not record itself: it would record the work of all
/// threads.
fn options() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.disable_device_sync()?;
    options.set("gpu_graph_id", "-1")?;
    Ok(options)
}

/// A tensor of the device as ONNX Runtime knows it, which does not keep it.
///
/// # Safety
///
/// The tensor lives as long as the value.
unsafe fn value(tensor: &DeviceTensor, allocator: &Allocator) -> ort::Result<DynValue> {
    let memory = memory(tensor.device())?;
    let shape: Vec<i64> = tensor.shape().iter().map(|&n| n as i64).collect();
    let element_type = match tensor.element_type() {
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::Bf16 => TensorElementType::Bfloat16,
        ElementType::I64 => TensorElementType::Int64,
    };
    let mut made = ptr::null_mut();
    // SAFETY: the memory has room for the tensor; the pointers are valid for the call.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            tensor.memory().address() as *mut _,
            tensor.n_bytes(),
            shape.as_ptr(),
            shape.len(),
            element_type.into(),
            &raw mut made,
        )
    };
    // SAFETY: the status is what the call returned, and is read once.
    unsafe { ort::Error::result_from_status(status) }?;
    let made = NonNull::new(made).ok_or_else(|| ort::Error::new("made no tensor"))?;
    // SAFETY: the tensor is new, and nobody else's.
    Ok(unsafe { DynValue::from_ptr(made, Some(allocator)) })
}

/// Type, shape and address of a tensor that ONNX Runtime made.
fn describe(value: &DynValue) -> ort::Result<(ElementType, Vec<usize>, u64)> {
    let element_type = match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => ElementType::F32,
        Some(TensorElementType::Float16) => ElementType::F16,
        Some(TensorElementType::Int64) => ElementType::I64,
        other => return Err(ort::Error::new(format!("an output has type {other:?}"))),
    };
    let shape = value.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    let shape = shape.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect();
    let tensor = value.view().downcast::<DynTensorValueType>()?;
    Ok((element_type, shape, tensor.data_ptr() as u64))
}
