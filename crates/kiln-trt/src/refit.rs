//! Setting weights of loaded engines anew.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;

use crate::engine::Dependent;
use crate::error::TrtErrorKind::{Argument, Engine as EngineKind};
use crate::object::{Object, Unshared, c_string, text};
use crate::sys::call;
use crate::{CudaStream, DataType, Engine, TrtError};

/// Sets weights of an engine, `IRefitter` of `NvInferRuntime.h`; the weights that it is given live as long as it.
#[derive(Debug)]
pub struct Refitter<'w> {
    object: Dependent,
    _weights: PhantomData<&'w [u8]>,
    _unshared: Unshared,
}

/// Weights in the host's memory.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'w> {
    /// Element type.
    pub dtype: DataType,
    /// The elements, in the order of the model and aligned as their type.
    pub bytes: &'w [u8],
}

/// What weights have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsPrototype {
    /// Element type.
    pub dtype: DataType,
    /// Number of elements.
    pub count: usize,
}

/// `Weights` of `NvInferRuntime.h`.
#[repr(C)]
struct RawWeights {
    dtype: i32,
    values: *const c_void,
    count: i64,
}

/// `IRefitter::getMissingWeights` and `IRefitter::getAllWeights`.
type NameList = unsafe extern "C" fn(*mut c_void, i32, *mut *const c_char) -> i32;

impl Engine {
    /// Makes a refitter of an engine that is refittable. Errors are of kind [`EngineKind`].
    pub fn refitter<'w>(&self) -> Result<Refitter<'w>, TrtError> {
        let engine = self.core.alone();
        let library = engine.library();
        let refitter = library.create_for("createInferRefitter_INTERNAL", engine.as_ptr())?;
        let object = Object::owned(library, refitter, None, EngineKind, "cannot refit the engine")?;
        let object = Dependent::new(object, &self.core);
        Ok(Refitter { object, _weights: PhantomData, _unshared: PhantomData })
    }
}

impl<'w> Refitter<'w> {
    /// Names of all weights that can be set.
    pub fn all_weights(&self) -> Result<Vec<String>, TrtError> {
        self.names("getAllWeights")
    }

    /// Names of weights that are still to be set before [`Refitter::refit`].
    pub fn missing_weights(&self) -> Result<Vec<String>, TrtError> {
        self.names("getMissingWeights")
    }

    fn names(&self, method: &str) -> Result<Vec<String>, TrtError> {
        let _alone = self.object.engine.alone();
        let (this, entry) = self.object.method("VRefitter", method)?;
        // SAFETY: both methods that this is called for have this type.
        let method = unsafe { std::mem::transmute::<*const c_void, NameList>(entry) };
        // SAFETY: a size of 0 lets TensorRT write nothing.
        let n = unsafe { method(this, 0, std::ptr::null_mut()) };
        let mut names = vec![std::ptr::null(); usize::try_from(n).unwrap_or(0)];
        // SAFETY: there is room for `n` names.
        unsafe { method(this, n.max(0), names.as_mut_ptr()) };
        Ok(names.into_iter().map(text).collect())
    }

    /// What the weights of that name have to be; none where there are none that can be set.
    pub fn prototype(&self, name: &str) -> Result<Option<WeightsPrototype>, TrtError> {
        let _alone = self.object.engine.alone();
        let key = c_string(name)?;
        let raw =
            call!(self.object, VRefitter.getWeightsPrototype(key.as_ptr() => *const c_char) -> RawWeights);
        let dtype = DataType::from_number(raw.dtype);
        Ok(usize::try_from(raw.count).ok().map(|count| WeightsPrototype { dtype, count }))
    }

    /// Sets weights, which [`Refitter::refit`] then takes.
    ///
    /// Errors are of kind [`Argument`]: bytes that are not elements of the type, or what TensorRT refuses.
    pub fn set_weights(&mut self, name: &str, weights: Weights<'w>) -> Result<(), TrtError> {
        let _alone = self.object.engine.alone();
        let key = c_string(name)?;
        let refuse = |what: &str| TrtError::new(Argument, format!("weights '{name}': {what}"));
        let size = weights
            .dtype
            .size()
            .ok_or_else(|| refuse(&format!("elements of {:?} cannot be set", weights.dtype)))?;
        if !weights.bytes.len().is_multiple_of(size) || !weights.bytes.as_ptr().addr().is_multiple_of(size) {
            return Err(refuse(&format!("length or address does not fit elements of {size} bytes")));
        }
        let raw = RawWeights {
            dtype: weights.dtype.to_number(),
            values: weights.bytes.as_ptr().cast(),
            count: (weights.bytes.len() / size) as i64,
        };
        let is_set = call!(
            self.object,
            VRefitter.setNamedWeights(key.as_ptr() => *const c_char, raw => RawWeights) -> bool
        );
        match is_set {
            true => Ok(()),
            false => {
                Err(self.object.library().failure(Argument, &format!("weights '{name}' cannot be set so")))
            }
        }
    }

    /// Forgets weights that were set.
    pub fn unset_weights(&mut self, name: &str) -> Result<(), TrtError> {
        let _alone = self.object.engine.alone();
        let key = c_string(name)?;
        match call!(self.object, VRefitter.unsetNamedWeights(key.as_ptr() => *const c_char) -> bool) {
            true => Ok(()),
            false => Err(self.object.library().failure(Argument, &format!("weights '{name}' cannot be unset"))),
        }
    }

    /// Puts the weights that were set into the engine; contexts stay.
    ///
    /// Errors are of kind [`EngineKind`]; some weights may then have been put in.
    pub fn refit(&mut self) -> Result<(), TrtError> {
        let _alone = self.object.engine.alone();
        let is_refitted = call!(self.object, VRefitter.refitCudaEngine() -> bool);
        self.refitted(is_refitted)
    }

    /// The same on a stream, without waiting for it.
    ///
    /// # Safety
    ///
    /// Until the stream has done the work, the weights and this refitter live, no refitter of the engine is used, and
    /// the engine runs on no other stream.
    pub unsafe fn refit_async(&mut self, stream: CudaStream) -> Result<(), TrtError> {
        let _alone = self.object.engine.alone();
        let is_refitted =
            call!(self.object, VRefitter.refitCudaEngineAsync(stream.as_raw() => *mut c_void) -> bool);
        self.refitted(is_refitted)
    }

    fn refitted(&self, is_refitted: bool) -> Result<(), TrtError> {
        match is_refitted {
            true => Ok(()),
            false => Err(self.object.library().failure(EngineKind, "cannot refit the engine")),
        }
    }
}
