//! Loaded engines.

use std::ffi::{c_char, c_void};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::TrtErrorKind::{Argument, Engine as EngineKind};
use crate::object::{Object, c_string, text};
use crate::sys::{Dims, call};
use crate::{DataType, HostMemory, Port, TrtError};

/// A loaded engine, `ICudaEngine` of `NvInferRuntime.h`; threads may share it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) core: Arc<EngineCore>,
}

/// An engine and what keeps its methods apart: TensorRT lets contexts of an engine run side by side, while methods of
/// the engine itself, which may renew what its contexts hold, must run alone.
#[derive(Debug)]
pub(crate) struct EngineCore {
    object: Object,
    gate: RwLock<()>,
}

/// The engine while nothing else of it runs.
pub(crate) struct Alone<'a> {
    object: &'a Object,
    _gate: RwLockWriteGuard<'a, ()>,
}

impl EngineCore {
    /// Waits until nothing of the engine runs on the host.
    pub(crate) fn alone(&self) -> Alone<'_> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        Alone { object: &self.object, _gate: gate }
    }

    /// For methods of one of the engine's contexts.
    pub(crate) fn beside_others(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Alone<'_> {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.object
    }
}

/// An object that depends on an engine: a context or a refitter.
#[derive(Debug)]
pub(crate) struct Dependent {
    object: ManuallyDrop<Object>,
    pub(crate) engine: Arc<EngineCore>,
}

impl Dependent {
    pub(crate) fn new(object: Object, engine: &Arc<EngineCore>) -> Dependent {
        Dependent { object: ManuallyDrop::new(object), engine: engine.clone() }
    }
}

impl Deref for Dependent {
    type Target = Object;

    fn deref(&self) -> &Object {
        &self.object
    }
}

impl Drop for Dependent {
    fn drop(&mut self) {
        let _alone = self.engine.alone();
        // SAFETY: this happens once, and nothing uses the object after it.
        unsafe { ManuallyDrop::drop(&mut self.object) }
    }
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    /// Number of layers after fusion.
    pub n_layers: usize,
    /// Number of profiles.
    pub n_profiles: usize,
    /// Inputs and outputs.
    pub ports: Vec<Port>,
}

/// Whether a tensor goes in or out, `TensorIOMode` of `NvInferRuntimeBase.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorIoMode {
    /// An input.
    Input,
    /// An output.
    Output,
}

/// Sizes that a profile lets an input have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileShape {
    /// Least sizes.
    pub min: Vec<i64>,
    /// Sizes that the engine is optimised for.
    pub opt: Vec<i64>,
    /// Most sizes.
    pub max: Vec<i64>,
}

/// What a serialized engine holds, `SerializationFlag` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SerializationFlag {
    /// Leaves out the weights that can be refitted.
    ExcludeWeights,
    /// Leaves out the lean runtime.
    ExcludeLeanRuntime,
    /// Stays refittable, where the engine is.
    IncludeRefit,
}

impl SerializationFlag {
    fn name(self) -> &'static str {
        match self {
            SerializationFlag::ExcludeWeights => "kEXCLUDE_WEIGHTS",
            SerializationFlag::ExcludeLeanRuntime => "kEXCLUDE_LEAN_RUNTIME",
            SerializationFlag::IncludeRefit => "kINCLUDE_REFIT",
        }
    }
}

impl Engine {
    pub(crate) fn new(object: Object) -> Engine {
        Engine { core: Arc::new(EngineCore { object, gate: RwLock::new(()) }) }
    }

    /// What the engine says of itself.
    pub fn facts(&self) -> Result<EngineFacts, TrtError> {
        let engine = self.core.alone();
        let count = |n: i32| usize::try_from(n).unwrap_or(0);
        Ok(EngineFacts {
            n_layers: count(call!(engine, VCudaEngine.getNbLayers() -> i32)),
            n_profiles: count(n_profiles(&engine)?),
            ports: (0..n_tensors(&engine)?)
                .map(|index| port(&engine, index))
                .collect::<Result<_, TrtError>>()?,
        })
    }

    /// Whether a tensor goes in or out; an error of kind [`Argument`] where the engine lacks it.
    pub fn io_mode(&self, tensor: &str) -> Result<TensorIoMode, TrtError> {
        io_mode(&self.core.alone(), tensor)
    }

    /// Whether TensorRT reads or writes the tensor on the host to infer shapes; its address is then one of the host.
    pub fn is_shape_inference_io(&self, tensor: &str) -> Result<bool, TrtError> {
        let engine = self.core.alone();
        io_mode(&engine, tensor)?;
        let name = c_string(tensor)?;
        Ok(call!(engine, VCudaEngine.isShapeInferenceIO(name.as_ptr() => *const c_char) -> bool))
    }

    /// Sizes that a profile lets an input have.
    ///
    /// Errors are of kind [`Argument`]: a tensor that is not an input, or a profile that the engine lacks.
    pub fn profile_shape(&self, input: &str, profile: usize) -> Result<ProfileShape, TrtError> {
        let engine = self.core.alone();
        let index = profile_index(n_profiles(&engine)?, profile)?;
        let name = c_string(input)?;
        let shape = |select| {
            let select = engine.library().tables().number("OptProfileSelector", select)?;
            let dims = call!(
                engine,
                VCudaEngine.getProfileShape(name.as_ptr() => *const c_char, index => i32, select => i32) -> Dims
            );
            let refuse = || engine.library().failure(Argument, &format!("'{input}' is not an input"));
            dims.is_valid().then(|| dims.to_vec()).ok_or_else(refuse)
        };
        Ok(ProfileShape { min: shape("kMIN")?, opt: shape("kOPT")?, max: shape("kMAX")? })
    }

    /// Most bytes of device memory that a context needs at a profile, beside weights; it depends on the weight streaming
    /// budget.
    pub fn device_memory_size(&self, profile: usize) -> Result<usize, TrtError> {
        let engine = self.core.alone();
        let index = profile_index(n_profiles(&engine)?, profile)?;
        let size = call!(engine, VCudaEngine.getDeviceMemorySizeForProfileV2(index => i32) -> i64);
        bytes(&engine, size, "the device memory's size is not known")
    }

    /// Whether a [`Refitter`](crate::Refitter) can set its weights.
    pub fn is_refittable(&self) -> Result<bool, TrtError> {
        let engine = self.core.alone();
        Ok(call!(engine, VCudaEngine.isRefittable() -> bool))
    }

    /// The engine as bytes, with these flags set and no others.
    ///
    /// Errors are of kind [`EngineKind`].
    pub fn serialize(&self, flags: &[SerializationFlag]) -> Result<HostMemory, TrtError> {
        let engine = self.core.alone();
        let library = engine.library();
        let config = call!(engine, VCudaEngine.createSerializationConfig() -> *mut c_void);
        let config = Object::owned(library, config, None, EngineKind, "cannot say how to serialize")?;
        let mut bits = 0_u32;
        for flag in flags {
            bits |= 1 << library.tables().number("SerializationFlag", flag.name())?;
        }
        if !call!(config, VSerializationConfig.setFlags(bits => u32) -> bool) {
            return Err(library.failure(EngineKind, &format!("cannot serialize with {flags:?}")));
        }
        let memory =
            call!(engine, VCudaEngine.serializeWithConfig(config.as_ptr() => *mut c_void) -> *mut c_void);
        HostMemory::new(library, memory, EngineKind, "cannot serialize the engine")
    }

    /// The engine's layers as JSON, as far as it was built to tell them.
    pub fn layers_json(&self) -> Result<String, TrtError> {
        let engine = self.core.alone();
        let library = engine.library();
        let inspector = call!(engine, VCudaEngine.createEngineInspector() -> *mut c_void);
        let inspector = Object::owned(library, inspector, None, EngineKind, "cannot inspect the engine")?;
        let json = library.tables().number("LayerInformationFormat", "kJSON")?;
        Ok(text(call!(inspector, VEngineInspector.getEngineInformation(json => i32) -> *const c_char)))
    }
}

pub(crate) fn n_tensors(engine: &Object) -> Result<i32, TrtError> {
    Ok(call!(engine, VCudaEngine.getNbIOTensors() -> i32))
}

pub(crate) fn n_profiles(engine: &Object) -> Result<i32, TrtError> {
    Ok(call!(engine, VCudaEngine.getNbOptimizationProfiles() -> i32))
}

fn port(engine: &Object, index: i32) -> Result<Port, TrtError> {
    let name = text(call!(engine, VCudaEngine.getIOTensorName(index => i32) -> *const c_char));
    let key = c_string(&name)?;
    let number = call!(engine, VCudaEngine.getTensorDataType(key.as_ptr() => *const c_char) -> i32);
    let shape = call!(engine, VCudaEngine.getTensorShape(key.as_ptr() => *const c_char) -> Dims);
    Ok(Port { name, dtype: DataType::from_number(number), shape: shape.to_vec() })
}

fn io_mode(engine: &Object, tensor: &str) -> Result<TensorIoMode, TrtError> {
    let name = c_string(tensor)?;
    let mode = call!(engine, VCudaEngine.getTensorIOMode(name.as_ptr() => *const c_char) -> i32);
    match engine.library().tables().name("TensorIOMode", mode) {
        Some("kINPUT") => Ok(TensorIoMode::Input),
        Some("kOUTPUT") => Ok(TensorIoMode::Output),
        _ => Err(engine
            .library()
            .failure(Argument, &format!("'{tensor}' is neither input nor output of the engine"))),
    }
}

/// A profile's number as TensorRT takes it, of an engine with so many.
pub(crate) fn profile_index(n: i32, profile: usize) -> Result<i32, TrtError> {
    let index = i32::try_from(profile).ok().filter(|index| *index < n);
    index.ok_or_else(|| TrtError::new(Argument, format!("profile {profile} of an engine with {n}")))
}

/// Bytes that TensorRT answers with, where they are none that it could not tell.
pub(crate) fn bytes(engine: &Object, size: i64, what: &str) -> Result<usize, TrtError> {
    usize::try_from(size).map_err(|_| engine.library().failure(EngineKind, what))
}
