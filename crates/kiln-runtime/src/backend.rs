use std::sync::Arc;

use kiln_bundle::{Bundle, Target};
use kiln_cuda::{Device, Driver};
use kiln_engine::{Backend, OnnxRuntime, OnnxRuntimeCuda, Rten, TensorRt};
use kiln_native::{Library, locate};

use crate::Error;

/// The backend for the CPU, and why it is not the preferred one.
pub struct CpuBackend {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Why the built-in backend had to take over, in one line.
    pub fallback: Option<String>,
}

/// ONNX Runtime where its library is found, else the built-in backend.
///
/// A library that was named explicitly and can not be used is an error; any other failure is a reason to fall back.
pub fn cpu_backend() -> Result<CpuBackend, Error> {
    let built_in = |reason: String| CpuBackend { backend: Arc::new(Rten::default()), fallback: Some(reason) };
    let Some(found) = locate(Library::OnnxRuntimeCpu)? else {
        return Ok(built_in("ONNX Runtime is not installed".into()));
    };
    match OnnxRuntime::open(&found.path, None) {
        Ok(backend) => Ok(CpuBackend { backend: Arc::new(backend), fallback: None }),
        Err(e) if found.is_explicit() => Err(e.into()),
        Err(e) => Ok(built_in(e.to_string())),
    }
}

/// What runs the engines of a bundle on the GPU of that number, from 0: TensorRT-RTX, TensorRT, or ONNX Runtime's CUDA
/// provider.
///
/// Fails where the machine has no such GPU, where its driver is too old, where the library is not found, and for bundles
/// whose engines do not run on a GPU.
pub fn gpu_backend(bundle: &Bundle, ordinal: usize) -> Result<Arc<dyn Backend>, Error> {
    let target = bundle.manifest().target;
    let library = match target {
        Target::TensorrtRtx => Library::TensorrtRtx,
        Target::Tensorrt => Library::Tensorrt,
        Target::Cuda => Library::OnnxRuntimeCuda,
        Target::Cpu | Target::Onnx => {
            let reason = "its engines do not run on a GPU".into();
            return Err(Error::Target { path: bundle.root().into(), target, reason });
        }
    };
    let driver = Driver::open()?;
    let found = locate(library)?.ok_or(Error::NotInstalled(library))?;
    let device = Device::open(&driver, ordinal)?;
    Ok(match library {
        Library::OnnxRuntimeCuda => Arc::new(OnnxRuntimeCuda::open(&found.path, &driver, device)?),
        _ => Arc::new(TensorRt::open(&found.path, &driver, device)?),
    })
}
