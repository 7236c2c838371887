//! Kernels that TensorRT-RTX compiles when an engine is first run with certain sizes on a device.

use std::sync::Arc;

use kiln_trt::{
    AllocationStrategy, Engine, ExecutionContext, Product, RuntimeCache, RuntimeConfig, SpecializationStrategy,
    TrtError,
};

use crate::KernelStore;

/// How contexts of an engine come to their kernels.
pub(super) enum Kernels {
    /// They are part of the engine.
    Built,
    /// They are compiled for the sizes of a run before it, and kept.
    Compiled {
        config: RuntimeConfig,
        cache: RuntimeCache,
        store: Option<Arc<dyn KernelStore>>,
        n_stored: usize,
    },
}

impl Kernels {
    pub(super) fn new(
        engine: &Engine,
        product: Product,
        store: Option<Arc<dyn KernelStore>>,
    ) -> Result<Kernels, TrtError> {
        if product == Product::Enterprise {
            return Ok(Kernels::Built);
        }
        let mut config = engine.runtime_config()?;
        config.set_allocation_strategy(AllocationStrategy::UserManaged)?;
        // A run is recorded once: what it finds then must be what runs from then on.
        config.set_specialization(SpecializationStrategy::Eager)?;
        let mut cache = config.create_cache()?;
        let mut n_stored = 0;
        if let Some(kernels) = store.as_ref().and_then(|store| store.load())
            && cache.deserialize(&kernels)?
        {
            n_stored = kernels.len();
        }
        Ok(Kernels::Compiled { config, cache, store, n_stored })
    }

    pub(super) fn context(&self, engine: &Engine) -> Result<ExecutionContext, TrtError> {
        match self {
            Kernels::Built => engine.create_context(AllocationStrategy::UserManaged),
            Kernels::Compiled { config, .. } => engine.create_context_with(config),
        }
    }

    /// Stores kernels, where more have been compiled since.
    pub(super) fn store(&mut self) -> Result<(), TrtError> {
        if let Kernels::Compiled { cache, store: Some(store), n_stored, .. } = self {
            let kernels = cache.serialize()?;
            if kernels.as_bytes().len() > *n_stored {
                store.store(kernels.as_bytes());
                *n_stored = kernels.as_bytes().len();
            }
        }
        Ok(())
    }
}
