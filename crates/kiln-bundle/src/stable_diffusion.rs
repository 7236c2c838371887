//! What bundles of the Stable Diffusion families say of their models: names of components, and settings.

use serde::{Deserialize, Serialize};

use crate::{ComponentName, PipelineInfo};

/// Stable Diffusion 1.x and 2.x (Rombach et al. 2022).
pub const STABLE_DIFFUSION: &str = "stable-diffusion";

/// SDXL and its refiner (Podell et al. 2023).
pub const STABLE_DIFFUSION_XL: &str = "stable-diffusion-xl";

/// Latent consistency models (Luo et al. 2023).
pub const LATENT_CONSISTENCY: &str = "latent-consistency";

/// Token ids to hidden states.
pub const TEXT_ENCODER: ComponentName = ComponentName::literal("text_encoder");

/// SDXL's second text encoder, which also makes pooled text.
pub const TEXT_ENCODER_2: ComponentName = ComponentName::literal("text_encoder_2");

/// Noisy latents to predictions.
pub const UNET: ComponentName = ComponentName::literal("unet");

/// The same UNet, adding the residuals of ControlNets.
pub const UNET_CONTROLLED: ComponentName = ComponentName::literal("unet_controlled");

/// A control picture and noisy latents to residuals.
pub const CONTROLNET: ComponentName = ComponentName::literal("controlnet");

/// Pictures to latents.
pub const VAE_ENCODER: ComponentName = ComponentName::literal("vae_encoder");

/// Latents to pictures.
pub const VAE_DECODER: ComponentName = ComponentName::literal("vae_decoder");

/// [`PipelineInfo::settings`] of these architectures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Whether the UNet reads a mask and a masked picture beside the latents.
    #[serde(default)]
    pub inpainting: bool,
    /// Number of time ids that the UNet reads beside pooled text (SDXL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ids: Option<u32>,
    /// Whether a missing negative prompt means zeros instead of an empty prompt's states (SDXL).
    #[serde(default)]
    pub force_zeros_for_empty_prompt: bool,
    /// Width of the embedding of the guidance scale that the UNet reads (LCM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_embedding: Option<u32>,
}

impl Settings {
    /// The settings of a bundle's manifest.
    ///
    /// # Errors
    ///
    /// Where a setting is unknown, of another type or out of range.
    pub fn of(info: &PipelineInfo) -> Result<Settings, String> {
        let map = info.settings.clone().into_iter().collect();
        let settings: Settings =
            serde_json::from_value(serde_json::Value::Object(map)).map_err(|e| format!("settings: {e}"))?;
        for (key, value, max) in [
            ("time_ids", settings.time_ids, 1 << 6),
            ("guidance_embedding", settings.guidance_embedding, 1 << 16),
        ] {
            if value.is_some_and(|value| value == 0 || value > max) {
                return Err(format!("settings.{key}: is not a number from 1 to {max}"));
            }
        }
        Ok(settings)
    }

    /// As a manifest holds them.
    pub fn to_map(self) -> std::collections::BTreeMap<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
            _ => Default::default(),
        }
    }
}
