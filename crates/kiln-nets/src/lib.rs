//! The networks of Stable Diffusion, written once over the symbolic [`Tensor`](kiln_graph::Tensor).
//!
//! Each network has a configuration read from its `config.json`, a `new(weights, config)` that looks up and checks every
//! weight by the checkpoint's own name, and a `trace` that runs `forward` and returns the graph. Nothing else can fail,
//! and nothing here knows of files, ONNX or how attention is computed.

mod clip;
mod config;
mod known;
mod layers;
mod unet;
mod vae;

pub use clip::{ClipTextConfig, ClipTextModel, TextPorts, TextStates};
pub use config::unknown_keys;
pub use unet::{ControlNetConfig, ControlNetModel, UNet2DConditionConfig, UNet2DConditionModel, UnetPorts};
pub use vae::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig,
};

/// Which axes of a network are fixed when it is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sizes {
    /// Batch, height and width are decided at run time.
    Dynamic,
    /// Batch in samples, height and width in latents.
    Static {
        /// Samples per call; twice the number of pictures where guidance is on.
        batch: u64,
        /// Height of the latents.
        height: u64,
        /// Width of the latents.
        width: u64,
    },
}

impl Sizes {
    fn axes(self) -> [kiln_graph::Dim; 3] {
        use kiln_graph::Symbol;
        match self {
            Sizes::Dynamic => [Symbol::BATCH.into(), Symbol::HEIGHT.into(), Symbol::WIDTH.into()],
            Sizes::Static { batch, height, width } => [batch.into(), height.into(), width.into()],
        }
    }
}
