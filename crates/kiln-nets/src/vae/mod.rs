//! Autoencoders between pictures and latents.

mod kl;
mod tiny;

use kiln_graph::{Graph, Weights};
use serde_json::Value;

use crate::Sizes;
use crate::layers::Result;
pub use kl::{AutoencoderKl, AutoencoderKlConfig};
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

/// `vae/config.json`, of whichever class it names.
#[derive(Clone, Debug, PartialEq)]
pub enum AutoencoderConfig {
    /// `AutoencoderKL`.
    Kl(AutoencoderKlConfig),
    /// `AutoencoderTiny`.
    Tiny(AutoencoderTinyConfig),
}

/// An autoencoder of either class.
pub enum Autoencoder {
    /// `AutoencoderKL`.
    Kl(Box<AutoencoderKl>),
    /// `AutoencoderTiny`.
    Tiny(AutoencoderTiny),
}

impl AutoencoderConfig {
    /// Reads and checks a parsed `config.json`; `origin` names the file in errors.
    pub fn from_json(origin: &str, value: &Value) -> Result<AutoencoderConfig> {
        match value.get("_class_name").and_then(Value::as_str) {
            Some("AutoencoderTiny") => {
                AutoencoderTinyConfig::from_json(origin, value).map(AutoencoderConfig::Tiny)
            }
            _ => AutoencoderKlConfig::from_json(origin, value).map(AutoencoderConfig::Kl),
        }
    }

    /// diffusers' class.
    pub fn class(&self) -> &'static str {
        match self {
            AutoencoderConfig::Kl(_) => "AutoencoderKL",
            AutoencoderConfig::Tiny(_) => "AutoencoderTiny",
        }
    }

    /// Pixels per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        match self {
            AutoencoderConfig::Kl(config) => config.scale_factor(),
            AutoencoderConfig::Tiny(config) => config.scale_factor(),
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> u64 {
        match self {
            AutoencoderConfig::Kl(config) => config.latent_channels(),
            AutoencoderConfig::Tiny(config) => config.latent_channels,
        }
    }

    /// Factor from the encoder's latents to the UNet's.
    pub fn scaling_factor(&self) -> f64 {
        match self {
            AutoencoderConfig::Kl(config) => config.scaling_factor(),
            AutoencoderConfig::Tiny(config) => config.scaling_factor,
        }
    }

    /// Channels of the pictures that it makes.
    pub fn out_channels(&self) -> u64 {
        match self {
            AutoencoderConfig::Kl(config) => config.out_channels(),
            AutoencoderConfig::Tiny(config) => config.out_channels,
        }
    }
}

impl Autoencoder {
    /// Looks up the weights; attention projections are named `to_q`, `to_k`, `to_v`, `to_out.0`.
    pub fn new(w: Weights<'_>, config: &AutoencoderConfig) -> Result<Autoencoder> {
        match config {
            AutoencoderConfig::Kl(config) => {
                AutoencoderKl::new(w, config).map(|vae| Autoencoder::Kl(Box::new(vae)))
            }
            AutoencoderConfig::Tiny(config) => AutoencoderTiny::new(w, config).map(Autoencoder::Tiny),
        }
    }

    /// `sample` `[B, 3, H, W]` in `[-1, 1]` to latents `mean` `[B, latent, H / f, W / f]`, unscaled.
    ///
    /// An `AutoencoderKL` also makes their `logvar`, not yet clamped to `[-30, 20]`.
    pub fn trace_encoder(&self, sizes: Sizes) -> Graph {
        match self {
            Autoencoder::Kl(vae) => vae.trace_encoder(sizes),
            Autoencoder::Tiny(vae) => vae.trace_encoder(sizes),
        }
    }

    /// `latents` `[B, latent, H / f, W / f]`, unscaled, to `sample` `[B, 3, H, W]` in about `[-1, 1]`.
    pub fn trace_decoder(&self, sizes: Sizes) -> Graph {
        match self {
            Autoencoder::Kl(vae) => vae.trace_decoder(sizes),
            Autoencoder::Tiny(vae) => vae.trace_decoder(sizes),
        }
    }
}
