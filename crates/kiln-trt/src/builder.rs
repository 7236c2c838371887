//! Building engines.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use crate::error::TrtErrorKind::{self, Argument, Build, Cancelled};
use crate::object::{Object, Unshared};
use crate::sys::call;
use crate::{BuilderConfig, Library, Network, OptimizationProfile, TrtError};

/// TensorRT's builder.
#[derive(Debug)]
pub struct Builder {
    object: Arc<Object>,
    _unshared: Unshared,
}

impl Builder {
    /// Makes a builder; TensorRT needs a device for it, TensorRT-RTX does not.
    pub fn new(library: &Arc<Library>) -> Result<Builder, TrtError> {
        let builder = library.create("createInferBuilder_INTERNAL")?;
        let object = Object::owned(library, builder, None, Build, "cannot make a builder")?;
        Ok(Builder { object: Arc::new(object), _unshared: PhantomData })
    }

    /// Most threads that building takes.
    pub fn set_max_threads(&mut self, n: usize) -> Result<(), TrtError> {
        let count = i32::try_from(n).unwrap_or(i32::MAX);
        match call!(self.object, VBuilder.setMaxThreads(count => i32) -> bool) {
            true => Ok(()),
            false => Err(self.object.library().failure(Argument, &format!("cannot build with {n} threads"))),
        }
    }

    /// Parses an ONNX model with its weights.
    ///
    /// Errors are of kind [`TrtErrorKind::Parse`] and name the node where TensorRT does.
    pub fn parse(&self, model: &Path) -> Result<Network, TrtError> {
        Network::parse(&self.object, model)
    }

    /// A configuration with TensorRT's defaults.
    pub fn config(&self) -> Result<BuilderConfig, TrtError> {
        BuilderConfig::new(&self.object)
    }

    /// A profile without sizes.
    pub fn profile(&self) -> Result<OptimizationProfile, TrtError> {
        OptimizationProfile::new(&self.object)
    }

    /// Builds an engine.
    ///
    /// Errors are of kind [`TrtErrorKind::Build`], or [`TrtErrorKind::Cancelled`] where the configuration's progress
    /// monitor has stopped the build.
    pub fn build(&self, network: &Network, config: &BuilderConfig) -> Result<HostMemory, TrtError> {
        let memory = call!(
            self.object,
            VBuilder.buildSerializedNetwork(
                network.object.as_ptr() => *mut c_void,
                config.object.as_ptr() => *mut c_void
            ) -> *mut c_void
        );
        let is_cancelled = config.monitor.as_ref().is_some_and(|monitor| monitor.take_cancelled());
        let (kind, what) = match is_cancelled {
            true => (Cancelled, "the build was stopped"),
            false => (Build, "cannot build the engine"),
        };
        HostMemory::new(self.object.library(), memory, kind, what)
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
    pub(crate) fn new(
        library: &Arc<Library>,
        memory: *mut c_void,
        kind: TrtErrorKind,
        what: &str,
    ) -> Result<HostMemory, TrtError> {
        let object = Object::owned(library, memory, None, kind, what)?;
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
