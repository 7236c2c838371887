//! What the engines of each target run on: one place for all that differs.

use kiln_bundle::Target;
use kiln_native::Library;

/// The native library that runs the engines of a target, and builds them where they are not ONNX; none for those that are
/// built from.
pub fn library(target: Target) -> Option<Library> {
    match target {
        Target::Cpu => Some(Library::OnnxRuntimeCpu),
        Target::Cuda => Some(Library::OnnxRuntimeCuda),
        Target::TensorrtRtx => Some(Library::TensorrtRtx),
        Target::Tensorrt => Some(Library::Tensorrt),
        Target::Onnx => None,
    }
}

/// The targets whose engines run on GPUs, the preferred one first.
#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
pub(super) const OF_GPUS: [Target; 3] = [Target::TensorrtRtx, Target::Cuda, Target::Tensorrt];

/// What the engines of a target need of a GPU.
#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
pub(super) struct Needs {
    pub(super) library: Library,
    /// The version of CUDA that the driver has to support; zero where the library says it itself.
    pub(super) cuda: [u32; 2],
    /// The oldest device that runs them.
    pub(super) compute_capability: kiln_cuda::ComputeCapability,
}

#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
impl Needs {
    /// Fails for targets whose engines do not run on a GPU, or not in this program.
    pub(super) fn of(target: Target) -> Result<Needs, crate::Error> {
        match target {
            #[cfg(feature = "onnxruntime")]
            Target::Cuda => Ok(Needs {
                library: Library::OnnxRuntimeCuda,
                cuda: kiln_engine::OnnxRuntimeCuda::NEEDED_CUDA,
                compute_capability: kiln_engine::OnnxRuntimeCuda::NEEDED_COMPUTE_CAPABILITY,
            }),
            #[cfg(not(feature = "onnxruntime"))]
            Target::Cuda => Err(crate::Error::Feature { what: "ONNX Runtime", feature: "onnxruntime" }),
            #[cfg(feature = "tensorrt")]
            Target::TensorrtRtx => Ok(Needs {
                library: Library::TensorrtRtx,
                cuda: kiln_engine::TensorRt::NEEDED_CUDA,
                compute_capability: kiln_engine::TensorRt::NEEDED_COMPUTE_CAPABILITY,
            }),
            #[cfg(feature = "tensorrt")]
            Target::Tensorrt => Ok(Needs {
                library: Library::Tensorrt,
                cuda: [0, 0],
                compute_capability: kiln_engine::TensorRt::NEEDED_COMPUTE_CAPABILITY,
            }),
            #[cfg(not(feature = "tensorrt"))]
            Target::TensorrtRtx | Target::Tensorrt => {
                Err(crate::Error::Feature { what: "TensorRT", feature: "tensorrt" })
            }
            Target::Cpu | Target::Onnx => Err(super::place::misplaced(target)),
        }
    }
}
