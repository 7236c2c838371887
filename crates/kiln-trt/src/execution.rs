//! Running engines.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;

use crate::engine::{Dependent, n_profiles, n_tensors, profile_index};
use crate::error::TrtErrorKind::{Argument, Execution};
use crate::object::{Object, Unshared, c_string, text};
use crate::sys::{Dims, call};
use crate::{Engine, TrtError};

/// A stream of CUDA's, `cudaStream_t` of `cuda_runtime_api.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct CudaStream(*mut c_void);

// SAFETY: CUDA's streams may be used from every thread.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// CUDA's default stream, on which TensorRT synchronises more than on others.
    pub const DEFAULT: CudaStream = CudaStream(std::ptr::null_mut());

    /// Names a stream.
    ///
    /// # Safety
    ///
    /// `stream` is a `cudaStream_t` of the device that the engines are on, and lives as long as this value or a copy of
    /// it is used.
    pub unsafe fn from_raw(stream: *mut c_void) -> CudaStream {
        CudaStream(stream)
    }

    /// The `cudaStream_t`.
    pub fn as_raw(self) -> *mut c_void {
        self.0
    }
}

/// Where a context's device memory comes from, `ExecutionContextAllocationStrategy` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationStrategy {
    /// Allocated once, for the profile that needs most.
    Static,
    /// Allocated anew for each profile that is selected.
    OnProfileChange,
    /// Given by [`ExecutionContext::set_device_memory`].
    UserManaged,
}

impl AllocationStrategy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            AllocationStrategy::Static => "kSTATIC",
            AllocationStrategy::OnProfileChange => "kON_PROFILE_CHANGE",
            AllocationStrategy::UserManaged => "kUSER_MANAGED",
        }
    }
}

/// A run of an engine at a time, `IExecutionContext` of `NvInferRuntime.h`; contexts of one engine run side by side.
#[derive(Debug)]
pub struct ExecutionContext {
    object: Dependent,
    n_tensors: i32,
    n_profiles: i32,
    _unshared: Unshared,
}

impl Engine {
    /// Makes a context; it starts at profile 0. Errors are of kind [`Execution`].
    pub fn create_context(&self, strategy: AllocationStrategy) -> Result<ExecutionContext, TrtError> {
        let engine = self.core.alone();
        let tables = engine.library().tables();
        let number = tables.number("ExecutionContextAllocationStrategy", strategy.name())?;
        let context = call!(engine, VCudaEngine.createExecutionContext(number => i32) -> *mut c_void);
        self.context(&engine, context)
    }

    /// Takes over a context that the engine made.
    pub(crate) fn context(&self, engine: &Object, context: *mut c_void) -> Result<ExecutionContext, TrtError> {
        let object = Object::owned(engine.library(), context, None, Execution, "cannot make a context")?;
        let (n_tensors, n_profiles) = (n_tensors(engine)?, n_profiles(engine)?);
        let object = Dependent::new(object, &self.core);
        Ok(ExecutionContext { object, n_tensors, n_profiles, _unshared: PhantomData })
    }
}

impl ExecutionContext {
    /// Selects a profile; sizes of inputs are set after it. TensorRT may copy on `stream`: a run on another stream has to
    /// wait for it.
    ///
    /// Errors are of kind [`Argument`] for a profile that the engine lacks, else of kind [`Execution`].
    pub fn set_profile(&mut self, profile: usize, stream: CudaStream) -> Result<(), TrtError> {
        let index = profile_index(self.n_profiles, profile)?;
        let _gate = self.object.engine.beside_others();
        let is_set = call!(
            self.object,
            VExecutionContext.setOptimizationProfileAsync(index => i32, stream.0 => *mut c_void) -> bool
        );
        self.check(is_set, || format!("cannot select profile {profile}"))
    }

    /// The profile that is selected; none while TensorRT has not taken one.
    pub fn profile(&self) -> Result<Option<usize>, TrtError> {
        let _gate = self.object.engine.beside_others();
        Ok(usize::try_from(call!(self.object, VExecutionContext.getOptimizationProfile() -> i32)).ok())
    }

    /// Sets the sizes of an input, all of them.
    pub fn set_input_shape(&mut self, input: &str, sizes: &[i64]) -> Result<(), TrtError> {
        let _gate = self.object.engine.beside_others();
        let name = c_string(input)?;
        let dims = Dims::new(sizes)
            .ok_or_else(|| TrtError::new(Argument, format!("input '{input}': {sizes:?} are too many sizes")))?;
        let is_set = call!(
            self.object,
            VExecutionContext.setInputShape(
                name.as_ptr() => *const c_char,
                std::ptr::from_ref(&dims) => *const Dims
            ) -> bool
        );
        self.check(is_set, || format!("input '{input}' cannot have sizes {sizes:?}"))
    }

    /// Sizes of an input or output; -1 where one is open until inputs are set, or until the run where it depends on data.
    pub fn shape(&self, tensor: &str) -> Result<Vec<i64>, TrtError> {
        let _gate = self.object.engine.beside_others();
        let name = c_string(tensor)?;
        let dims = call!(self.object, VExecutionContext.getTensorShape(name.as_ptr() => *const c_char) -> Dims);
        self.check(dims.is_valid(), || format!("the shape of '{tensor}' is not known"))?;
        Ok(dims.to_vec())
    }

    /// Infers the sizes of outputs from those of inputs, reads host inputs that sizes depend on, and writes host outputs.
    ///
    /// Errors are of kind [`Argument`] and name inputs that lack sizes or addresses, else of kind [`Execution`].
    pub fn infer_shapes(&mut self) -> Result<(), TrtError> {
        let _gate = self.object.engine.beside_others();
        let mut names = vec![std::ptr::null::<c_char>(); usize::try_from(self.n_tensors).unwrap_or(0)];
        let missing = call!(
            self.object,
            VExecutionContext.inferShapes(self.n_tensors => i32, names.as_mut_ptr() => *mut *const c_char) -> i32
        );
        let Ok(missing) = usize::try_from(missing) else {
            return Err(self.failure("cannot infer shapes"));
        };
        let names: Vec<_> = names.iter().take(missing).map(|name| text(*name)).collect();
        match names.is_empty() {
            true => Ok(()),
            false => {
                let what = format!("inputs without sizes or addresses: {}", names.join(", "));
                Err(self.object.library().failure(Argument, &what))
            }
        }
    }

    /// Bytes of device memory that the next run needs at the sizes that are set, of a context with
    /// [`AllocationStrategy::UserManaged`]; all inputs have theirs.
    pub fn update_device_memory_size(&mut self) -> Result<usize, TrtError> {
        let _gate = self.object.engine.beside_others();
        self.object.library().logger().take_errors();
        let size = call!(self.object, VExecutionContext.updateDeviceMemorySizeForShapes() -> usize);
        let failure =
            || self.object.library().logged_failure(Execution, "the device memory's size is not known");
        match (size == 0).then(failure).flatten() {
            None => Ok(size),
            Some(error) => Err(error),
        }
    }

    /// Gives a context with [`AllocationStrategy::UserManaged`] its device memory; null is right for a size of 0.
    ///
    /// # Safety
    ///
    /// `memory` is `size` bytes on the engine's device, aligned as the device's allocations are, and at least what
    /// [`Engine::device_memory_size`] or [`ExecutionContext::update_device_memory_size`] says. From each
    /// [`ExecutionContext::enqueue`] until its work is done nothing else uses it, another context included, and it lives
    /// until then or until other memory is set.
    pub unsafe fn set_device_memory(&mut self, memory: *mut c_void, size: usize) -> Result<(), TrtError> {
        let _gate = self.object.engine.beside_others();
        let size = i64::try_from(size)
            .map_err(|_| TrtError::new(Argument, format!("{size} bytes of device memory")))?;
        self.object.library().logger().take_errors();
        call!(self.object, VExecutionContext.setDeviceMemoryV2(memory => *mut c_void, size => i64) -> ());
        match self.object.library().logged_failure(Execution, "cannot use the device memory") {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Sets where an input is read or an output is written.
    ///
    /// # Safety
    ///
    /// `address` is memory for all elements of the tensor at the sizes of each run, aligned to 256 bytes: of the engine's
    /// device, or of the host where [`Engine::is_shape_inference_io`] is true. It lives until another address is set or
    /// the context is dropped, and is not read or written by others while a run or [`ExecutionContext::infer_shapes`]
    /// uses it.
    pub unsafe fn set_tensor_address(&mut self, tensor: &str, address: *mut c_void) -> Result<(), TrtError> {
        let _gate = self.object.engine.beside_others();
        let name = c_string(tensor)?;
        let is_set = call!(
            self.object,
            VExecutionContext.setTensorAddress(name.as_ptr() => *const c_char, address => *mut c_void) -> bool
        );
        self.check(is_set, || format!("cannot set the address of '{tensor}'"))
    }

    /// Whether [`ExecutionContext::enqueue`] can be captured into a CUDA graph on that stream (TensorRT-RTX).
    pub fn is_stream_capturable(&self, stream: CudaStream) -> Result<bool, TrtError> {
        let _gate = self.object.engine.beside_others();
        Ok(call!(self.object, VExecutionContext.isStreamCapturable(stream.0 => *mut c_void) -> bool))
    }

    /// Puts a run onto the stream and returns; it is done when the stream is.
    ///
    /// # Safety
    ///
    /// What [`ExecutionContext::set_tensor_address`] and [`ExecutionContext::set_device_memory`] ask for holds until the
    /// work is done. Until then the context and the engine are not dropped, no weights of the engine are refitted,
    /// loaded or unloaded but on the same stream, and the context is not changed or run on another stream. What
    /// [`ExecutionContext::set_profile`] has put onto another stream is done.
    pub unsafe fn enqueue(&mut self, stream: CudaStream) -> Result<(), TrtError> {
        let _gate = self.object.engine.beside_others();
        let is_enqueued = call!(self.object, VExecutionContext.enqueueV3(stream.0 => *mut c_void) -> bool);
        self.check(is_enqueued, || "cannot run the engine".into())
    }

    fn check(&self, succeeded: bool, what: impl FnOnce() -> String) -> Result<(), TrtError> {
        match succeeded {
            true => Ok(()),
            false => Err(self.failure(&what())),
        }
    }

    fn failure(&self, what: &str) -> TrtError {
        self.object.library().failure(Execution, what)
    }
}
