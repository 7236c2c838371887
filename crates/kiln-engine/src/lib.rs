//! Engines: what a compiled component runs on.
//!
//! A [`Backend`] loads model files into [`Engine`]s; an engine maps named tensors to named tensors. Two backends run the
//! same ONNX files on the CPU: `OnnxRuntime`, a native library opened at run time, and `Rten`, which is part of kiln. On a
//! GPU, `TensorRt` runs engines of TensorRT and TensorRT-RTX, and `OnnxRuntimeCuda` ONNX files; what they make stays there
//! as `DeviceTensor`s.
//!
//! Each backend is a feature: `onnxruntime`, `rten` and `tensorrt`, which implies `cuda`. ONNX Runtime's CUDA provider
//! needs `onnxruntime` and `cuda`. Without `cuda`, no code that knows of CUDA is compiled.
#![cfg_attr(
    not(any(feature = "onnxruntime", feature = "tensorrt")),
    allow(dead_code, reason = "what only those backends use")
)]

mod bind;
#[cfg(feature = "cuda")]
mod device;
mod error;
pub mod heap;
#[cfg(any(feature = "onnxruntime", feature = "rten"))]
mod host;
#[cfg(feature = "onnxruntime")]
mod onnxruntime;
mod overrides;
#[cfg(feature = "cuda")]
mod recording;
#[cfg(feature = "rten")]
mod rten;
mod tensor;
#[cfg(feature = "tensorrt")]
mod tensorrt;
#[cfg(any(feature = "onnxruntime", feature = "rten"))]
mod weights;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "cuda")]
pub use device::DeviceTensor;
pub use error::{EngineError, EngineErrorKind};
#[cfg(feature = "cuda")]
pub use kiln_cuda::Device;
pub use kiln_types::{ElementType, Placement};
#[cfg(all(feature = "onnxruntime", feature = "cuda"))]
pub use onnxruntime::OnnxRuntimeCuda;
#[cfg(feature = "onnxruntime")]
pub use onnxruntime::{HostOptions, Kernels, OnnxRuntime};
pub use overrides::{Elements, WeightOverride, WeightSource};
#[cfg(feature = "rten")]
pub use rten::Rten;
pub use tensor::{ForeignTensor, Port, Tensor, TensorView};
#[cfg(feature = "tensorrt")]
pub use tensorrt::TensorRt;

/// Something that can load engines.
pub trait Backend: Send + Sync {
    /// Short name, such as `onnxruntime`.
    fn name(&self) -> &'static str;

    /// Version of the library behind it.
    fn version(&self) -> &str;

    /// What backends have in common whose engines stand for each other; none where engines are one backend's alone.
    fn family(&self) -> Option<String> {
        None
    }

    /// What its engines are made of.
    fn format(&self) -> Format {
        Format::Onnx
    }

    /// Whether it runs models whose weights are in bf16.
    fn reads_bf16(&self) -> bool {
        true
    }

    /// Whether it holds the matrix of all scores of an attention even where the model has it as one operator.
    fn holds_scores(&self) -> bool {
        false
    }

    /// The device that it computes on, where that is not the host.
    #[cfg(feature = "cuda")]
    fn device(&self) -> Option<&Arc<Device>> {
        None
    }

    /// Whether its engines stay while their weights come and go ([`LoadOptions::swaps`]), beside what the device computes.
    fn swaps(&self) -> bool {
        false
    }

    /// How many parts of a batch its engines compute side by side in [`Engine::run_each`].
    fn lanes(&self) -> usize {
        1
    }

    /// Gives back memory of the device in which no engine computes now.
    fn trim(&self) {}

    /// Loads the engine in a model file.
    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError>;
}

/// What engines are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// ONNX models.
    Onnx,
    /// ONNX models for ONNX Runtime's CUDA provider.
    OnnxForCuda,
    /// Serialized engines of TensorRT-RTX.
    TensorRtRtx,
    /// Serialized engines of TensorRT.
    TensorRt,
}

impl Format {
    /// Whether such engines run on a device and not on the host.
    pub fn is_for_device(self) -> bool {
        match self {
            Format::Onnx => false,
            Format::OnnxForCuda | Format::TensorRtRtx | Format::TensorRt => true,
        }
    }
}

/// How an engine is loaded; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where the weights are while the engine is loaded, for backends that give the choice.
    pub placement: Placement,
    /// Weights that take the place of those in the model's weight file.
    pub overrides: Option<Arc<dyn WeightSource>>,
    /// Whether its weights shall come and go while it stays loaded, on a device: they are kept in memory of the host that
    /// the device copies from, and arrive with the first run or [`Engine::prefetch`].
    pub swaps: bool,
    /// Most bytes of weights on a device, where the rest can stream to it from the host's memory in each run; all of them
    /// without a number.
    pub streaming: Option<u64>,
    /// How ONNX Runtime's CUDA provider runs the model.
    pub tuning: CudaTuning,
    /// Where kernels are kept that an engine's library compiles on the device, which takes seconds.
    pub kernels: Option<Arc<dyn KernelStore>>,
}

/// How ONNX Runtime's CUDA provider runs a model; all of it by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaTuning {
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: bool,
    /// Whether all of cuDNN's algorithms are tried for each convolution when it first runs, which takes seconds; not of
    /// engines whose weights come and go.
    pub search: bool,
}

impl Default for CudaTuning {
    fn default() -> CudaTuning {
        CudaTuning { tf32: true, search: true }
    }
}

/// Keeps what a library compiled from one process to the next. Kernels are code: a store gives back only what it was given.
pub trait KernelStore: fmt::Debug + Send + Sync {
    /// What was stored last, if anything.
    fn load(&self) -> Option<Vec<u8>>;

    /// Stores in place of what was there; what cannot be stored is compiled again.
    fn store(&self, kernels: &[u8]);
}

/// A loaded component.
pub trait Engine: Send {
    /// What it reads.
    fn inputs(&self) -> &[Port];

    /// What it makes.
    fn outputs(&self) -> &[Port];

    /// Runs once; `inputs` in any order, the results in the order of [`Engine::outputs`].
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError>;

    /// Runs once for each part of a batch, as many side by side as the backend has [lanes](Backend::lanes).
    ///
    /// Each lane holds the weights once more, from the first time that it is needed.
    fn run_each(&mut self, parts: &[Vec<(&str, TensorView<'_>)>]) -> Result<Vec<Vec<Tensor>>, EngineError> {
        parts.iter().map(|inputs| self.run(inputs)).collect()
    }

    /// Frees the device's memory of its weights, which [`Engine::prefetch`] or the next run loads again; false for an
    /// engine that has to be dropped for that.
    fn unload(&mut self) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Starts to load weights while other engines compute.
    fn prefetch(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
