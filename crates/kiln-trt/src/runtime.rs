//! Loading engines.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::error::TrtErrorKind::Engine as EngineKind;
use crate::network::DataType;
use crate::object::{Object, c_string, text};
use crate::sys::{Dims, call};
use crate::{Library, Port, TrtError};

/// TensorRT's runtime; it needs a device and its driver.
#[derive(Debug)]
pub struct Runtime(Arc<Object>);

impl Runtime {
    /// Makes a runtime.
    pub fn new(library: &Arc<Library>) -> Result<Runtime, TrtError> {
        let runtime = library.create("createInferRuntime_INTERNAL")?;
        Object::owned(library, runtime, None, EngineKind, "can not make a runtime")
            .map(|object| Runtime(Arc::new(object)))
    }

    /// Loads an engine; its bytes are code, and the caller vouches for where they come from.
    pub fn deserialize(&self, engine: &[u8]) -> Result<Engine, TrtError> {
        let pointer = call!(
            self.0,
            VRuntime.deserializeCudaEngine(engine.as_ptr().cast() => *const c_void, engine.len() => usize) -> *mut c_void
        );
        Object::owned(self.0.library(), pointer, Some(&self.0), EngineKind, "can not load the engine")
            .map(Engine)
    }
}

/// A loaded engine.
#[derive(Debug)]
pub struct Engine(Object);

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

impl Engine {
    /// What the engine says of itself.
    pub fn facts(&self) -> Result<EngineFacts, TrtError> {
        let count = |n: i32| usize::try_from(n).unwrap_or(0);
        let n_ports = call!(self.0, VCudaEngine.getNbIOTensors() -> i32);
        let ports = (0..n_ports).map(|i| {
            let name = text(call!(self.0, VCudaEngine.getIOTensorName(i => i32) -> *const c_char));
            let key = c_string(&name)?;
            Ok(Port {
                dtype: DataType::from_number(
                    call!(self.0, VCudaEngine.getTensorDataType(key.as_ptr() => *const c_char) -> i32),
                ),
                shape: call!(self.0, VCudaEngine.getTensorShape(key.as_ptr() => *const c_char) -> Dims)
                    .to_vec(),
                name,
            })
        });
        Ok(EngineFacts {
            n_layers: count(call!(self.0, VCudaEngine.getNbLayers() -> i32)),
            n_profiles: count(call!(self.0, VCudaEngine.getNbOptimizationProfiles() -> i32)),
            ports: ports.collect::<Result<_, TrtError>>()?,
        })
    }

    /// The engine's layers as JSON, as far as it was built to tell them.
    pub fn layers_json(&self) -> Result<String, TrtError> {
        let library = self.0.library();
        let inspector = call!(self.0, VCudaEngine.createEngineInspector() -> *mut c_void);
        let inspector = Object::owned(library, inspector, None, EngineKind, "can not inspect the engine")?;
        let json = library.tables().number("LayerInformationFormat", "kJSON")?;
        Ok(text(call!(inspector, VEngineInspector.getEngineInformation(json => i32) -> *const c_char)))
    }
}
