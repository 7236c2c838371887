//! Loading engines.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::TrtErrorKind::Engine as EngineKind;
use crate::object::{Object, Unshared};
use crate::sys::call;
use crate::{Engine, Library, TrtError};

/// TensorRT's runtime, `IRuntime` of `NvInferRuntime.h`; it needs a device and its driver.
#[derive(Debug)]
pub struct Runtime {
    object: Arc<Object>,
    _unshared: Unshared,
}

impl Runtime {
    /// Makes a runtime.
    pub fn new(library: &Arc<Library>) -> Result<Runtime, TrtError> {
        let runtime = library.create("createInferRuntime_INTERNAL")?;
        let object = Object::owned(library, runtime, None, EngineKind, "can not make a runtime")?;
        Ok(Runtime { object: Arc::new(object), _unshared: PhantomData })
    }

    /// Whether engines are loaded without their weights, for [`Engine::load_weights`] to load and
    /// [`Engine::unload_weights`] to unload (TensorRT-RTX 1.7).
    pub fn set_deferred_weights_loading(&mut self, defer: bool) -> Result<(), TrtError> {
        call!(self.object, VRuntime.setDeferredWeightsLoading(defer => bool) -> ());
        Ok(())
    }

    /// Whether engines are loaded without their weights.
    pub fn deferred_weights_loading(&self) -> Result<bool, TrtError> {
        Ok(call!(self.object, VRuntime.getDeferredWeightsLoading() -> bool))
    }

    /// Loads an engine; its bytes are code, and the caller vouches for where they come from.
    pub fn deserialize(&self, engine: &[u8]) -> Result<Engine, TrtError> {
        let pointer = call!(
            self.object,
            VRuntime.deserializeCudaEngine(engine.as_ptr().cast() => *const c_void, engine.len() => usize) -> *mut c_void
        );
        let library = self.object.library();
        Object::owned(library, pointer, Some(&self.object), EngineKind, "can not load the engine")
            .map(Engine::new)
    }
}
