//! Where engines run.

use std::path::Path;
use std::sync::Arc;

use kiln_bundle::{Bundle, Target};
use kiln_compile::ComputeCapability;
use kiln_cuda::{Device, Driver};
use kiln_engine::{Backend, EngineError, OnnxRuntimeCuda, TensorRt};
use kiln_native::Library;

use crate::args::{BackendChoice, DeviceChoice, ExecutionArgs};
use crate::failure::Failure;
use crate::{execution, runtime};

/// Where engines run.
#[derive(Clone)]
pub(crate) enum Place {
    /// On the processor.
    Host,
    /// On a GPU.
    Gpu(Gpu),
}

/// A GPU that is in use.
#[derive(Clone)]
pub(crate) struct Gpu {
    driver: Driver,
    device: Arc<Device>,
    /// What engines are built for, where nothing else says so.
    target: Target,
}

impl Place {
    /// Where a bundle's engines run.
    pub(crate) fn of(bundle: &Bundle, args: ExecutionArgs) -> Result<Place, Failure> {
        let target = bundle.manifest().target;
        let refuse = |needed: &str| {
            let given = args.device;
            let path = bundle.root().display();
            Failure::usage(format!(
                "--device {given}: {path}: its engines are for {target}, which runs on {needed}"
            ))
        };
        match (target, args.device) {
            (_, DeviceChoice::Cpu) if target.is_for_gpus() => Err(refuse("a GPU")),
            (_, device) if target.is_for_gpus() => Ok(Place::Gpu(Gpu::open(device.ordinal(), target, args)?)),
            (Target::Cpu, DeviceChoice::Cuda(_)) => Err(refuse("the processor")
                .with_hint("kiln compile --target tensorrt-rtx, or cuda, makes engines for GPUs")),
            _ => Ok(Place::Host),
        }
    }

    /// Where the engines of a model run, which may be a checkpoint: then the device that was asked for decides, or else
    /// whether there is a GPU that TensorRT-RTX can use. What needs the processor's engines runs there.
    pub(crate) fn for_model(model: &Path, args: ExecutionArgs, needs_host: bool) -> Result<Place, Failure> {
        if Bundle::is_bundle(model) {
            return Place::of(&Bundle::open(model)?, args);
        }
        match args.device {
            DeviceChoice::Cuda(ordinal) => {
                let target = match args.backend {
                    BackendChoice::Onnxruntime => Target::Cuda,
                    BackendChoice::Auto | BackendChoice::Rten => Target::TensorrtRtx,
                };
                Ok(Place::Gpu(Gpu::open(ordinal, target, args)?))
            }
            DeviceChoice::Auto if !needs_host && args.backend == BackendChoice::Auto => {
                Ok(Gpu::open(0, Target::TensorrtRtx, args).map_or(Place::Host, Place::Gpu))
            }
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Place::Host),
        }
    }

    /// The GPU, where it is one.
    pub(crate) fn device(&self) -> Option<Arc<Device>> {
        match self {
            Place::Host => None,
            Place::Gpu(gpu) => Some(gpu.device.clone()),
        }
    }

    /// What engines are built for to run here.
    pub(crate) fn target(&self) -> Target {
        match self {
            Place::Host => Target::Cpu,
            Place::Gpu(gpu) => gpu.target,
        }
    }

    /// The devices that engines are built for to run here.
    pub(crate) fn compute_capabilities(&self) -> Vec<ComputeCapability> {
        match self {
            Place::Gpu(gpu) if gpu.target == Target::TensorrtRtx => {
                let kiln_cuda::ComputeCapability(major, minor) = gpu.device.info().compute_capability;
                vec![ComputeCapability([major, minor])]
            }
            Place::Host | Place::Gpu(_) => Vec::new(),
        }
    }

    /// What runs engines here; libraries are fetched if need be.
    pub(crate) fn backend(&self, args: ExecutionArgs) -> Result<Arc<dyn Backend>, Failure> {
        self.backend_that(args, true)
    }

    /// The same, which records runs on a GPU as CUDA graphs or not.
    pub(crate) fn backend_that(&self, args: ExecutionArgs, records: bool) -> Result<Arc<dyn Backend>, Failure> {
        match self {
            Place::Host => execution::backend(args),
            Place::Gpu(gpu) => {
                let library = library(gpu.target);
                let found = runtime::find(library)?;
                let (driver, device) = (&gpu.driver, gpu.device.clone());
                Ok(match gpu.target {
                    Target::Cuda => {
                        let backend = OnnxRuntimeCuda::open(&found.path, driver, device)?;
                        Arc::new(backend.with_recording(records))
                    }
                    _ => Arc::new(TensorRt::open(&found.path, driver, device)?.with_recording(records)),
                })
            }
        }
    }

    /// The same place for engines of another target.
    pub(crate) fn with_target(&self, target: Target) -> Place {
        match self {
            Place::Host => Place::Host,
            Place::Gpu(gpu) => Place::Gpu(Gpu { target, ..gpu.clone() }),
        }
    }
}

impl Gpu {
    fn open(ordinal: usize, target: Target, args: ExecutionArgs) -> Result<Gpu, Failure> {
        match (args.backend, target) {
            (BackendChoice::Auto, _) | (BackendChoice::Onnxruntime, Target::Cuda) => {}
            (BackendChoice::Onnxruntime, _) => {
                return Err(Failure::usage(format!("--backend onnxruntime does not run engines for {target}")));
            }
            (BackendChoice::Rten, _) => {
                return Err(Failure::usage("--backend rten runs on the processor alone")
                    .with_hint("--device cpu runs a checkpoint on the processor"));
            }
        }
        let driver = Driver::open().map_err(EngineError::from)?;
        let library = library(target).to_string();
        driver.check_version(&library, needed_cuda(target)).map_err(EngineError::from)?;
        let device = Device::open(&driver, ordinal).map_err(EngineError::from)?;
        Ok(Gpu { driver, device, target })
    }
}

/// What runs engines of a target on a GPU.
pub(crate) fn library(target: Target) -> Library {
    match target {
        Target::Cuda => Library::OnnxRuntimeCuda,
        Target::Tensorrt => Library::Tensorrt,
        _ => Library::TensorrtRtx,
    }
}

/// The version of CUDA that it needs the driver to support; TensorRT says itself what it needs.
pub(crate) fn needed_cuda(target: Target) -> [u32; 2] {
    match target {
        Target::Cuda => OnnxRuntimeCuda::NEEDED_CUDA,
        Target::Tensorrt => [0, 0],
        _ => TensorRt::NEEDED_CUDA,
    }
}
