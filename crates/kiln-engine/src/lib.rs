//! Engines: what a compiled component runs on.
//!
//! A [`Backend`] loads model files into [`Engine`]s; an engine maps named tensors to named tensors. Two backends run the
//! same ONNX files on the CPU: [`OnnxRuntime`], a native library opened at run time, and [`Rten`], which is always there.
//! On a GPU, [`TensorRt`] runs engines of TensorRT and TensorRT-RTX, and [`OnnxRuntimeCuda`] ONNX files; what they make
//! stays there as [`DeviceTensor`]s.

mod device;
mod error;
pub mod heap;
mod onnxruntime;
mod overrides;
mod recording;
mod rten;
mod tensor;
mod tensorrt;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use kiln_cuda::Device;
use tensor::HostView;

pub use device::DeviceTensor;
pub use error::{EngineError, EngineErrorKind};
pub use kiln_types::{ElementType, Placement};
pub use onnxruntime::{CudaTuning, OnnxRuntime, OnnxRuntimeCuda};
pub use overrides::{Elements, WeightOverride, WeightSource};
pub use rten::Rten;
pub use tensor::{ForeignTensor, Port, Tensor, TensorView};
pub use tensorrt::TensorRt;

/// Something that can load engines.
pub trait Backend: Send + Sync {
    /// Short name, such as `onnxruntime`.
    fn name(&self) -> &'static str;

    /// Version of the library behind it.
    fn version(&self) -> &str;

    /// What its engines are made of.
    fn format(&self) -> Format {
        Format::Onnx
    }

    /// Whether it holds the matrix of all scores of an attention even where the model has it as one operator.
    fn holds_scores(&self) -> bool {
        false
    }

    /// The device that it computes on, where that is not the host.
    fn device(&self) -> Option<&Arc<Device>> {
        None
    }

    /// Whether its engines stay while their weights come and go ([`LoadOptions::swaps`]), beside what the device computes.
    fn swaps(&self) -> bool {
        false
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

/// Keeps what a library compiled from one process to the next. Kernels are code: a store gives back only what it was given.
pub trait KernelStore: fmt::Debug + Send + Sync {
    /// What was stored last, if anything.
    fn load(&self) -> Option<Vec<u8>>;

    /// Stores in place of what was there; what can not be stored is compiled again.
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

/// The inputs in the order of the ports, after names, types and shapes were checked.
fn bind<'a, 'v>(
    model: &Path,
    ports: &[Port],
    inputs: &'a [(&str, TensorView<'v>)],
) -> Result<Vec<&'a TensorView<'v>>, EngineError> {
    let refuse = |reason| EngineError::new(EngineErrorKind::Input, model, reason);
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !ports.iter().any(|port| port.name == *name)) {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        return Err(refuse(format!("has no input '{name}'; it has {}", names.join(", "))));
    }
    ports
        .iter()
        .map(|port| match inputs.iter().find(|(name, _)| *name == port.name) {
            Some((_, value)) if port.accepts(value) => Ok(value),
            Some((_, value)) => {
                Err(refuse(format!("input {port} got {} {:?}", value.element_type(), value.shape())))
            }
            None => Err(refuse(format!("input {port} is missing"))),
        })
        .collect()
}

/// The same for an engine that computes on the host.
fn bind_on_host<'a>(
    model: &Path,
    ports: &[Port],
    inputs: &'a [(&str, TensorView<'_>)],
) -> Result<Vec<HostView<'a>>, EngineError> {
    let bound = bind(model, ports, inputs)?.into_iter();
    let on_host: Option<_> = bound.map(TensorView::on_host).collect();
    on_host.ok_or_else(|| EngineError::new(EngineErrorKind::Input, model, "an input is on a device"))
}
