//! Kernels that TensorRT-RTX compiles on the device, when an engine is first run there.

use std::ffi::c_void;
use std::marker::PhantomData;

use crate::engine::Dependent;
use crate::error::TrtErrorKind::Execution;
use crate::execution::AllocationStrategy;
use crate::object::{Object, Unshared};
use crate::sys::call;
use crate::{Engine, ExecutionContext, HostMemory, TrtError};

/// How contexts of an engine are made, `IRuntimeConfig` of `NvInferRuntime.h` (TensorRT-RTX).
#[derive(Debug)]
pub struct RuntimeConfig {
    object: Dependent,
    _unshared: Unshared,
}

/// Compiled kernels, `IRuntimeCache` of `NvInferRuntime.h` (TensorRT-RTX). They are code.
#[derive(Debug)]
pub struct RuntimeCache {
    object: Dependent,
    _unshared: Unshared,
}

/// When kernels are compiled for the sizes of a run, `DynamicShapesKernelSpecializationStrategy` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecializationStrategy {
    /// In the background; until they are done, slower kernels for all sizes run.
    Lazy = 0,
    /// Before the run.
    Eager = 1,
    /// Never.
    None = 2,
}

impl Engine {
    /// Says how contexts are made.
    pub fn runtime_config(&self) -> Result<RuntimeConfig, TrtError> {
        let engine = self.core.alone();
        let config = call!(engine, VCudaEngine.createRuntimeConfig() -> *mut c_void);
        let object =
            Object::owned(engine.library(), config, None, Execution, "cannot say how to make a context")?;
        Ok(RuntimeConfig { object: Dependent::new(object, &self.core), _unshared: PhantomData })
    }

    /// Makes a context as a configuration of this engine's says. Errors are of kind [`Execution`].
    pub fn create_context_with(&self, config: &RuntimeConfig) -> Result<ExecutionContext, TrtError> {
        let engine = self.core.alone();
        let context = call!(
            engine,
            VCudaEngine.createExecutionContextWithRuntimeConfig(config.object.as_ptr() => *mut c_void) -> *mut c_void
        );
        self.context(&engine, context)
    }
}

impl RuntimeConfig {
    /// Says where contexts have their device memory from.
    pub fn set_allocation_strategy(&mut self, strategy: AllocationStrategy) -> Result<(), TrtError> {
        let tables = self.object.library().tables();
        let number = tables.number("ExecutionContextAllocationStrategy", strategy.name())?;
        call!(self.object, VRuntimeConfig.setExecutionContextAllocationStrategy(number => i32) -> ());
        Ok(())
    }

    /// Says when kernels are compiled for the sizes of a run.
    pub fn set_specialization(&mut self, strategy: SpecializationStrategy) -> Result<(), TrtError> {
        let number = strategy as i32;
        call!(self.object, VRuntimeConfig.setDynamicShapesKernelSpecializationStrategy(number => i32) -> ());
        Ok(())
    }

    /// Makes a cache that contexts take kernels from and put them into.
    pub fn create_cache(&mut self) -> Result<RuntimeCache, TrtError> {
        let library = self.object.library();
        let cache = call!(self.object, VRuntimeConfig.createRuntimeCache() -> *mut c_void);
        let object = Object::owned(library, cache, None, Execution, "cannot make a cache of kernels")?;
        let object = Dependent::new(object, &self.object.engine);
        match call!(self.object, VRuntimeConfig.setRuntimeCache(object.as_ptr() => *const c_void) -> bool) {
            true => Ok(RuntimeCache { object, _unshared: PhantomData }),
            false => Err(library.failure(Execution, "cannot use a cache of kernels")),
        }
    }
}

impl RuntimeCache {
    /// Takes kernels from what [`RuntimeCache::serialize`] made; false where they are of another release, driver or
    /// device, and the cache stays as it is. The caller vouches for where they come from.
    pub fn deserialize(&mut self, kernels: &[u8]) -> Result<bool, TrtError> {
        Ok(call!(
            self.object,
            VRuntimeCache.deserialize(kernels.as_ptr().cast() => *const c_void, kernels.len() => usize) -> bool
        ))
    }

    /// All kernels as bytes.
    pub fn serialize(&self) -> Result<HostMemory, TrtError> {
        let memory = call!(self.object, VRuntimeCache.serialize() -> *mut c_void);
        HostMemory::new(self.object.library(), memory, Execution, "cannot serialize the cache of kernels")
    }
}
