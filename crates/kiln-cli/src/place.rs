//! Where engines run.

use std::path::Path;
use std::sync::Arc;

use kiln_bundle::{Bundle, Target};
use kiln_compile::ComputeCapability;
use kiln_cuda::{Device, Driver};
use kiln_engine::{Backend, EngineError, TensorRt};
use kiln_native::{Library, locate};

use crate::args::{BackendChoice, DeviceChoice, ExecutionArgs};
use crate::failure::Failure;
use crate::{execution, runtime};

/// Where engines run.
pub(crate) enum Place {
    /// On the processor.
    Host,
    /// On a GPU.
    Gpu(Gpu),
}

/// A GPU that is in use.
pub(crate) struct Gpu {
    driver: Driver,
    device: Arc<Device>,
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
            (Target::TensorrtRtx, DeviceChoice::Cpu) => Err(refuse("a GPU")),
            (Target::TensorrtRtx, device) => Ok(Place::Gpu(Gpu::open(device.ordinal(), args)?)),
            (Target::Cpu, DeviceChoice::Cuda(_)) => {
                Err(refuse("the processor")
                    .with_hint("kiln compile --target tensorrt-rtx makes engines for GPUs"))
            }
            (Target::Cpu | Target::Onnx, _) => Ok(Place::Host),
        }
    }

    /// Where the engines of a model run, which may be a checkpoint: then the device that was asked for decides, or else
    /// whether there is a GPU that TensorRT-RTX can use. What needs the processor's engines runs there.
    pub(crate) fn for_model(model: &Path, args: ExecutionArgs, needs_host: bool) -> Result<Place, Failure> {
        if Bundle::is_bundle(model) {
            return Place::of(&Bundle::open(model)?, args);
        }
        match args.device {
            DeviceChoice::Cuda(ordinal) => Ok(Place::Gpu(Gpu::open(ordinal, args)?)),
            DeviceChoice::Auto if !needs_host && args.backend == BackendChoice::Auto => {
                Ok(Gpu::open(0, args).map_or(Place::Host, Place::Gpu))
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
            Place::Gpu(_) => Target::TensorrtRtx,
        }
    }

    /// The devices that engines are built for to run here.
    pub(crate) fn compute_capabilities(&self) -> Vec<ComputeCapability> {
        match self {
            Place::Host => Vec::new(),
            Place::Gpu(gpu) => {
                let kiln_cuda::ComputeCapability(major, minor) = gpu.device.info().compute_capability;
                vec![ComputeCapability([major, minor])]
            }
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
                let found = match locate(Library::TensorrtRtx)? {
                    Some(found) => found,
                    None => runtime::fetch(Library::TensorrtRtx)?,
                };
                let backend = TensorRt::open(&found.path, &gpu.driver, gpu.device.clone())?;
                Ok(Arc::new(backend.with_recording(records)))
            }
        }
    }
}

impl Gpu {
    fn open(ordinal: usize, args: ExecutionArgs) -> Result<Gpu, Failure> {
        if args.backend != BackendChoice::Auto {
            return Err(Failure::usage("--backend chooses among those of the processor, and a GPU has one")
                .with_hint("--device cpu runs a checkpoint on the processor"));
        }
        let driver = Driver::open().map_err(EngineError::from)?;
        let library = Library::TensorrtRtx;
        driver.check_version(&library.to_string(), TensorRt::NEEDED_CUDA).map_err(EngineError::from)?;
        let device = Device::open(&driver, ordinal).map_err(EngineError::from)?;
        Ok(Gpu { driver, device })
    }
}
