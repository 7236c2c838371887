//! What differs from one model family to another.
//!
//! A bundle's manifest names its [`Architecture`], which makes a [`Model`] of it: a [`Conditioner`] turns prompts into what
//! the denoiser attends to, a [`Denoiser`] says how the network of the loop is called, and a [`Sampling`] which steps are
//! taken. Everything else (the loop, guidance, the autoencoder, memory, plans) is the same for all and knows no component by
//! its name. A program adds a family of its own with [`PipelineBuilder::architecture`](crate::PipelineBuilder::architecture).

mod conditioner;
mod denoiser;
mod sampling;

use std::fmt;
use std::sync::Arc;

use kiln_bundle::Bundle;

use crate::Error;
pub use conditioner::{Conditioner, Conditioning, Engines, Outputs, Texts};
pub use denoiser::{Denoiser, Packing, PassInfo};
pub use sampling::{Defaults, PassSchedule, Sampling, SamplingRequest, Task};

/// A family of models.
pub trait Architecture: fmt::Debug + Send + Sync {
    /// Whether this is the architecture that manifests call by a name.
    fn is(&self, name: &str) -> bool;

    /// The model in a bundle.
    ///
    /// # Errors
    ///
    /// Where the manifest, the scheduler's configuration or a tokenizer cannot be used.
    fn open(&self, bundle: &Bundle) -> Result<Model, Error>;
}

/// A bundle's model, as far as its architecture decides.
#[derive(Debug)]
pub struct Model {
    /// How prompts are encoded.
    pub conditioner: Box<dyn Conditioner>,
    /// How the denoiser is called.
    pub denoiser: Box<dyn Denoiser>,
    /// Which steps are taken, and with which defaults.
    pub sampling: Box<dyn Sampling>,
}

/// Opens a bundle's model with the architecture that its manifest names; later ones of the list win.
pub(crate) fn open(bundle: &Bundle, known: &[Arc<dyn Architecture>]) -> Result<Model, Error> {
    let name = &bundle.pipeline()?.architecture;
    match known.iter().rev().find(|architecture| architecture.is(name)) {
        Some(architecture) => architecture.open(bundle),
        None => Err(Error::Architecture { path: bundle.root().into(), name: name.clone() }),
    }
}
