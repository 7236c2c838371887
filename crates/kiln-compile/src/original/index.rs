//! `model_index.json` of what a file holds.

use serde_json::{Value, json};

use crate::Family;

/// The pipeline's `model_index.json`, as diffusers publishes it for the family.
pub(super) fn model_index(family: Family, is_inpainting: bool, has_control: bool) -> Value {
    let is_xl = matches!(family, Family::SdxlBase | Family::SdxlRefiner);
    let xl = if is_xl { "XL" } else { "" };
    let task = match (family, is_inpainting, has_control) {
        (_, true, true) => "ControlNetInpaint",
        (_, true, false) => "Inpaint",
        (_, false, true) => "ControlNet",
        (Family::SdxlRefiner, ..) => "Img2Img",
        _ => "",
    };
    let none = || json!([null, null]);
    let given = |on: bool, library: &str, class: &str| if on { json!([library, class]) } else { none() };
    let has_first = family != Family::SdxlRefiner;
    let mut index = json!({
        "_class_name": format!("StableDiffusion{xl}{task}Pipeline"),
        "feature_extractor": none(),
        "image_encoder": none(),
        "text_encoder": given(has_first, "transformers", "CLIPTextModel"),
        "tokenizer": given(has_first, "transformers", "CLIPTokenizer"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    if is_xl {
        index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
        index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        index["force_zeros_for_empty_prompt"] = has_first.into();
    } else {
        index["requires_safety_checker"] = false.into();
        index["safety_checker"] = none();
    }
    if family == Family::SdxlRefiner {
        index["requires_aesthetics_score"] = true.into();
    }
    if has_control {
        index["controlnet"] = json!(["diffusers", "ControlNetModel"]);
    }
    index
}
