//! Building engines.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use crate::error::TrtErrorKind::{self, Argument, Build};
use crate::object::Object;
use crate::sys::call;
use crate::{BuilderConfig, Library, Network, OptimizationProfile, TrtError};

/// TensorRT's builder.
#[derive(Debug)]
pub struct Builder(Arc<Object>);

impl Builder {
    /// Makes a builder; TensorRT needs a device for it, TensorRT-RTX does not.
    pub fn new(library: &Arc<Library>) -> Result<Builder, TrtError> {
        let builder = library.create("createInferBuilder_INTERNAL")?;
        Object::owned(library, builder, None, Build, "can not make a builder")
            .map(|object| Builder(Arc::new(object)))
    }

    /// Most threads that building takes.
    pub fn set_max_threads(&mut self, n: usize) -> Result<(), TrtError> {
        let count = i32::try_from(n).unwrap_or(i32::MAX);
        match call!(self.0, VBuilder.setMaxThreads(count => i32) -> bool) {
            true => Ok(()),
            false => Err(self.0.library().failure(Argument, &format!("can not build with {n} threads"))),
        }
    }

    /// Parses an ONNX model with its weights.
    ///
    /// Errors are of kind [`TrtErrorKind::Parse`] and name the node where TensorRT does.
    pub fn parse(&self, model: &Path) -> Result<Network, TrtError> {
        Network::parse(&self.0, model)
    }

    /// A configuration with TensorRT's defaults.
    pub fn config(&self) -> Result<BuilderConfig, TrtError> {
        BuilderConfig::new(&self.0)
    }

    /// A profile without sizes.
    pub fn profile(&self) -> Result<OptimizationProfile, TrtError> {
        OptimizationProfile::new(&self.0)
    }

    /// Builds an engine.
    pub fn build(&self, network: &Network, config: &BuilderConfig) -> Result<HostMemory, TrtError> {
        let memory = call!(
            self.0,
            VBuilder.buildSerializedNetwork(
                network.object.as_ptr() => *mut c_void,
                config.object.as_ptr() => *mut c_void
            ) -> *mut c_void
        );
        HostMemory::new(self.0.library(), memory, "can not build the engine")
    }
}

/// Bytes that TensorRT has made.
#[derive(Debug)]
pub struct HostMemory {
    object: Object,
    data: *const u8,
    size: usize,
}

// SAFETY: the bytes are read only and belong to the object, which may go from thread to thread.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(library: &Arc<Library>, memory: *mut c_void, what: &str) -> Result<HostMemory, TrtError> {
        let object = Object::owned(library, memory, None, TrtErrorKind::Build, what)?;
        let data = call!(object, VHostMemory.data() -> *mut c_void).cast_const().cast();
        let size = call!(object, VHostMemory.size() -> usize);
        Ok(HostMemory { object, data, size })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        if self.size == 0 || self.data.is_null() {
            return &[];
        }
        let _owner = &self.object;
        // SAFETY: the object owns `size` bytes at `data` and lives as long as the slice.
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }
}
