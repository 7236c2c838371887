//! What shapes do not tell and the published models of a family have in common.

use serde_json::Value;

use crate::Family;

/// What the published models of a family have in common.
pub(crate) struct Published {
    /// Side of the pictures that the models were trained on, in pixels.
    pixels: u64,
    scaling_factor: f64,
    upcasts_attention: bool,
}

impl Published {
    pub(crate) fn of(family: Family, predicts_velocity: bool, is_inpainting: bool) -> Published {
        let is_xl = matches!(family, Family::SdxlBase | Family::SdxlRefiner);
        Published {
            pixels: match family {
                _ if is_xl => 1024,
                Family::Sd2 if predicts_velocity => 768,
                _ => 512,
            },
            scaling_factor: if is_xl { 0.13025 } else { 0.18215 },
            upcasts_attention: family == Family::Sd2 && !is_inpainting,
        }
    }

    pub(crate) fn complete_vae(&self, config: &mut Value) {
        config["sample_size"] = self.pixels.into();
        config["scaling_factor"] = self.scaling_factor.into();
    }

    /// `scale_factor` is pixels per latent.
    pub(crate) fn complete_unet(&self, config: &mut Value, scale_factor: u64) {
        config["sample_size"] = (self.pixels / scale_factor.max(1)).max(1).into();
        if self.upcasts_attention {
            config["upcast_attention"] = true.into();
        }
        if config["addition_embed_type"] == "text_time" && config["addition_time_embed_dim"].is_null() {
            config["addition_time_embed_dim"] = 256.into();
        }
    }
}
