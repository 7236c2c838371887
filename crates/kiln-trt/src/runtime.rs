//! Loading engines.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::TrtErrorKind::{Engine as EngineKind, Incompatible};
use crate::object::{Object, Unshared};
use crate::sys::call;
use crate::{Engine, Library, TrtError};

/// `EngineValidity::kINVALID` of `NvInferRuntime.h`.
const INVALID: i32 = 2;

/// The bits of `EngineInvalidityDiagnostics` of `NvInferRuntime.h`, from the lowest.
const DIAGNOSTICS: [&str; 7] = [
    "it was built by another release",
    "it was not built for this device's compute capability",
    "it was built for a newer driver",
    "it was built for a newer CUDA runtime",
    "the device's memory is too small for its weights",
    "it is malformed",
    "CUDA is not installed as it should be",
];

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
        let object = Object::owned(library, runtime, None, EngineKind, "cannot make a runtime")?;
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

    /// Refuses an engine that cannot be loaded here, as far as its header shows, with the reasons (TensorRT-RTX; other
    /// releases refuse nothing).
    ///
    /// Errors are of kind [`Incompatible`].
    pub fn check_validity(&self, engine: &[u8]) -> Result<(), TrtError> {
        let library = self.object.library();
        if library.tables().entry("VRuntime", "getEngineValidity").is_err() {
            return Ok(());
        }
        let mut reasons = 0_u64;
        let validity = call!(
            self.object,
            VRuntime.getEngineValidity(
                engine.as_ptr().cast() => *const c_void,
                engine.len() as i64 => i64,
                std::ptr::from_mut(&mut reasons) => *mut u64
            ) -> i32
        );
        if validity != INVALID {
            return Ok(());
        }
        let named = DIAGNOSTICS.iter().enumerate().filter(|(bit, _)| reasons >> bit & 1 == 1);
        let named: Vec<&str> = named.map(|(_, reason)| *reason).collect();
        let what = format!("{} cannot load the engine here", library.release());
        match named.is_empty() {
            true => Err(library.failure(Incompatible, &what)),
            false => Err(TrtError::new(Incompatible, format!("{what}: {}", named.join("; ")))),
        }
    }

    /// Loads an engine; its bytes are code, and the caller vouches for where they come from.
    pub fn deserialize(&self, engine: &[u8]) -> Result<Engine, TrtError> {
        let pointer = call!(
            self.object,
            VRuntime.deserializeCudaEngine(engine.as_ptr().cast() => *const c_void, engine.len() => usize) -> *mut c_void
        );
        let library = self.object.library();
        Object::owned(library, pointer, Some(&self.object), EngineKind, "cannot load the engine")
            .map(Engine::new)
    }
}
