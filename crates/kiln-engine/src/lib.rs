//! Engines: what a compiled component runs on.
//!
//! A [`Backend`] loads model files into [`Engine`]s; an engine maps named tensors to named tensors. Two backends run the
//! same ONNX files on the CPU: [`OnnxRuntime`], a native library opened at run time, and [`Rten`], which is always there.

mod error;
pub mod heap;
mod onnxruntime;
mod overrides;
mod rten;
mod tensor;

use std::path::Path;
use std::sync::Arc;

pub use error::{EngineError, EngineErrorKind};
pub use onnxruntime::OnnxRuntime;
pub use overrides::{Elements, WeightOverride, WeightSource};
pub use rten::Rten;
pub use tensor::{ElementType, ForeignTensor, HostTensor, Port, TensorView};

/// Something that can load engines.
pub trait Backend: Send + Sync {
    /// Short name, such as `onnxruntime`.
    fn name(&self) -> &'static str;

    /// Version of the library behind it.
    fn version(&self) -> &str;

    /// Whether it holds the matrix of all scores of an attention even where the model has it as one operator.
    fn holds_scores(&self) -> bool {
        false
    }

    /// Loads the engine in a model file.
    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError>;
}

/// How an engine is loaded; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where the weights are while the engine is loaded, for backends that give the choice.
    pub placement: Placement,
    /// Weights that take the place of those in the model's weight file.
    pub overrides: Option<Arc<dyn WeightSource>>,
}

/// Where the weights of an engine are while it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Placement {
    /// In the page cache, mapped from their file: loading takes milliseconds, and dropping the engine frees them.
    #[default]
    Mapped,
    /// In memory, rearranged for the processor's kernels: loading takes seconds per gigabyte, small products run faster.
    Packed,
}

/// A loaded component.
pub trait Engine: Send {
    /// What it reads.
    fn inputs(&self) -> &[Port];

    /// What it makes.
    fn outputs(&self) -> &[Port];

    /// Runs once; `inputs` in any order, the results in the order of [`Engine::outputs`].
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<HostTensor>, EngineError>;
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
