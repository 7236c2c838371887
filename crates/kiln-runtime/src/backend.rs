use std::sync::Arc;

use kiln_engine::Backend;

use crate::Error;

#[cfg(feature = "cuda")]
pub use on_gpu::gpu_backend;

/// The backend for the CPU, and why it is not the preferred one.
pub struct CpuBackend {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Why the built-in backend had to take over, in one line.
    pub fallback: Option<String>,
}

/// ONNX Runtime where its library is found, else the built-in backend.
///
/// A library that was named explicitly and cannot be used is an error, as is any other failure of one backend where the
/// other is not built in; else a failure of ONNX Runtime is a reason to fall back.
pub fn cpu_backend() -> Result<CpuBackend, Error> {
    match preferred()? {
        Ok(backend) => Ok(CpuBackend { backend, fallback: None }),
        Err(reason) => built_in(reason),
    }
}

/// ONNX Runtime, or why it does not run the engines.
#[cfg(feature = "onnxruntime")]
fn preferred() -> Result<Result<Arc<dyn Backend>, String>, Error> {
    use kiln_native::{Library, locate};
    let Some(found) = locate(Library::OnnxRuntimeCpu)? else {
        return Ok(Err("ONNX Runtime is not installed".into()));
    };
    match kiln_engine::OnnxRuntime::open(&found.path, None) {
        Ok(backend) => Ok(Ok(Arc::new(backend))),
        Err(e) if found.is_explicit() => Err(e.into()),
        Err(e) => Ok(Err(e.to_string())),
    }
}

#[cfg(not(feature = "onnxruntime"))]
fn preferred() -> Result<Result<Arc<dyn Backend>, String>, Error> {
    Ok(Err("this kiln was built without ONNX Runtime".into()))
}

#[cfg(feature = "rten")]
fn built_in(reason: String) -> Result<CpuBackend, Error> {
    Ok(CpuBackend { backend: Arc::new(kiln_engine::Rten::default()), fallback: Some(reason) })
}

#[cfg(not(feature = "rten"))]
fn built_in(reason: String) -> Result<CpuBackend, Error> {
    Err(Error::NoBackend { reason })
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use std::path::Path;
    use std::sync::Arc;

    use kiln_bundle::{Bundle, Target};
    use kiln_cuda::{Device, Driver};
    use kiln_engine::Backend;
    use kiln_native::{Library, locate};

    use crate::Error;

    /// What runs the engines of a bundle on the GPU of that number, from 0: TensorRT-RTX, TensorRT, or ONNX Runtime's CUDA
    /// provider.
    ///
    /// Fails where the machine has no such GPU, where its driver is too old, where the library is not found or its backend
    /// not built in, and for bundles whose engines do not run on a GPU.
    pub fn gpu_backend(bundle: &Bundle, ordinal: usize) -> Result<Arc<dyn Backend>, Error> {
        let target = bundle.manifest().target;
        let refuse = |reason: &str| Error::Target { path: bundle.root().into(), target, reason: reason.into() };
        let library = match target {
            Target::TensorrtRtx => Library::TensorrtRtx,
            Target::Tensorrt => Library::Tensorrt,
            Target::Cuda => Library::OnnxRuntimeCuda,
            Target::Cpu | Target::Onnx => return Err(refuse("its engines do not run on a GPU")),
        };
        let driver = Driver::open()?;
        let found = locate(library)?.ok_or(Error::NotInstalled(library))?;
        let device = Device::open(&driver, ordinal)?;
        open(library, &found.path, &driver, device)?
            .ok_or_else(|| refuse("this kiln was built without what runs them"))
    }

    #[cfg_attr(not(any(feature = "onnxruntime", feature = "tensorrt")), expect(unused_variables))]
    fn open(
        library: Library,
        path: &Path,
        driver: &Driver,
        device: Arc<Device>,
    ) -> Result<Option<Arc<dyn Backend>>, Error> {
        Ok(match library {
            #[cfg(feature = "onnxruntime")]
            Library::OnnxRuntimeCuda => {
                Some(Arc::new(kiln_engine::OnnxRuntimeCuda::open(path, driver, device)?))
            }
            #[cfg(feature = "tensorrt")]
            Library::TensorrtRtx | Library::Tensorrt => {
                Some(Arc::new(kiln_engine::TensorRt::open(path, driver, device)?))
            }
            _ => None,
        })
    }
}
