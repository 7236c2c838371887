use std::path::PathBuf;
use std::sync::Arc;

use kiln_bundle::{Bundle, Component, SealKey, Target};
use kiln_engine::{Backend, Format};

use super::Pipeline;
use super::facts::Facts;
use crate::architecture::{self, Architecture};
use crate::backends::{Backends, Device, Libraries};
use crate::residency::{KernelCache, Pool, Residency};
use crate::stable_diffusion::StableDiffusion;
use crate::{Error, MemoryOptions};

/// What a [`Pipeline`] is made with.
#[derive(Debug)]
#[must_use]
pub struct PipelineBuilder {
    bundle: Bundle,
    backends: Backends,
    backend: Option<Backing>,
    memory: MemoryOptions,
    pool: Pool,
    seal_key: Option<SealKey>,
    kernels: Option<PathBuf>,
    architectures: Vec<Arc<dyn Architecture>>,
}

struct Backing(Arc<dyn Backend>);

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

impl PipelineBuilder {
    pub(super) fn new(bundle: Bundle) -> PipelineBuilder {
        PipelineBuilder {
            bundle,
            backends: Backends::new(Libraries::new()),
            backend: None,
            memory: MemoryOptions::default(),
            pool: Pool::new(),
            seal_key: None,
            kernels: None,
            architectures: vec![Arc::new(StableDiffusion)],
        }
    }

    /// Sets where native libraries come from; without it, from nowhere, and the built-in backend runs what it can.
    pub fn libraries(self, libraries: Libraries) -> PipelineBuilder {
        PipelineBuilder { backends: self.backends.with_libraries(libraries), ..self }
    }

    /// Sets the device; by default the one that the bundle's engines are for.
    pub fn device(self, device: Device) -> PipelineBuilder {
        PipelineBuilder { backends: self.backends.device(device), ..self }
    }

    /// Sets the threads per operator on the processor; one per core by default.
    pub fn threads(self, threads: impl Into<Option<usize>>) -> PipelineBuilder {
        PipelineBuilder { backends: self.backends.threads(threads.into()), ..self }
    }

    /// Runs the engines with a backend that is open already, as where several pipelines share one; then libraries, device
    /// and threads say nothing.
    pub fn backend(self, backend: Arc<dyn Backend>) -> PipelineBuilder {
        PipelineBuilder { backend: Some(Backing(backend)), ..self }
    }

    /// Sets how memory is spent; everything stays loaded by default.
    pub fn memory(self, memory: MemoryOptions) -> PipelineBuilder {
        PipelineBuilder { memory, ..self }
    }

    /// Shares engines with the other pipelines of a pool; by default it has one of its own, without a budget.
    pub fn pool(self, pool: &Pool) -> PipelineBuilder {
        PipelineBuilder { pool: pool.clone(), ..self }
    }

    /// Sets the key that seals what this user compiled, without which engines that are code are refused.
    pub fn seal_key(self, key: SealKey) -> PipelineBuilder {
        PipelineBuilder { seal_key: Some(key), ..self }
    }

    /// Keeps kernels that a library compiles for a device in a folder, sealed with the key; by default each process compiles
    /// them again.
    pub fn kernel_cache(self, folder: impl Into<PathBuf>) -> PipelineBuilder {
        PipelineBuilder { kernels: Some(folder.into()), ..self }
    }

    /// Adds an architecture, which wins over those that were there for the names that it knows.
    pub fn architecture(mut self, architecture: impl Architecture + 'static) -> PipelineBuilder {
        self.architectures.push(Arc::new(architecture));
        self
    }

    /// Reads the bundle's tokenizers and scheduler; engines are loaded when they are first needed.
    ///
    /// # Errors
    ///
    /// Where the bundle is of an unknown architecture, where its engines do not run with the backend, where they are code
    /// that the key does not vouch for, and where one of its small files cannot be used.
    pub fn build(self) -> Result<Pipeline, Error> {
        self.memory.validate()?;
        let (backend, notices) = match self.backend {
            Some(Backing(backend)) => (backend, Vec::new()),
            None => {
                let opened = self.backends.open_for(&self.bundle)?;
                (opened.backend, opened.notices)
            }
        };
        check_target(&self.bundle, &*backend, self.seal_key.as_ref())?;
        let model = architecture::open(&self.bundle, &self.architectures)?;
        let facts = Facts::read(&self.bundle, &*model.denoiser)?;
        let controlnets = self.bundle.pipeline()?.controlnets.clone();
        let bundle = Arc::new(self.bundle);
        let (folder, seal_key) = (self.kernels, self.seal_key);
        let kernels = folder.zip(seal_key.clone()).map(|(folder, key)| KernelCache { folder, key });
        let engines = Residency::new(bundle.clone(), backend, self.pool, kernels, self.memory);
        let mut pipeline = Pipeline {
            bundle,
            facts,
            model,
            engines,
            controlnets: Vec::new(),
            seal_key,
            notices,
            vocabulary: 0,
        };
        for folder in controlnets {
            let nested = Bundle::open(pipeline.bundle.path(&folder))?;
            pipeline.add_controlnet(nested)?;
        }
        Ok(pipeline)
    }
}

/// Refuses engines that a backend does not run, and code that nobody vouches for.
pub(super) fn check_target(bundle: &Bundle, backend: &dyn Backend, key: Option<&SealKey>) -> Result<(), Error> {
    let target = bundle.manifest().target;
    let refuse = |reason: String| Err(Error::Target { path: bundle.root().into(), target, reason });
    let has_bf16 = || bundle.manifest().components.values().any(Component::stores_bf16);
    match (target, backend.format()) {
        (Target::Cpu, Format::Onnx) if !backend.reads_bf16() && has_bf16() => {
            refuse(format!("{} reads no weights in bf16", backend.name()))
        }
        (Target::Cpu, Format::Onnx) | (Target::Cuda, Format::OnnxForCuda) => Ok(()),
        (Target::TensorrtRtx, Format::TensorRtRtx) | (Target::Tensorrt, Format::TensorRt) => match key {
            Some(key) => Ok(bundle.check_seal(key)?),
            None => refuse("they are code, and no key says whose".into()),
        },
        (Target::Onnx, _) => refuse("engines are built from it".into()),
        _ => refuse(format!("{} does not run them", backend.name())),
    }
}
