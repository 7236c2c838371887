//! Telling checkpoints apart by their keys, and from everything else that is kept in safetensors files.

use kiln_bundle::Contents;

use super::given::Given;
use super::keys::Keys;
use crate::{CompileError, Family};

pub(super) const UNET: &str = "model.diffusion_model.";
pub(super) const VAE: &str = "first_stage_model.";
pub(super) const CONTROL: &str = "control_model.";
pub(super) const CLIP: &str = "cond_stage_model.transformer.";
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";
pub(super) const XL_CLIP: &str = "conditioner.embedders.0.transformer.";
pub(super) const XL_OPEN_CLIP: &str = "conditioner.embedders.1.model.";
pub(super) const REFINER_OPEN_CLIP: &str = "conditioner.embedders.0.model.";

/// The prefix of the UNet's keys, which a file that holds nothing else may leave out.
pub(super) fn unet_prefix(keys: &Keys<'_>) -> Option<&'static str> {
    [UNET, ""].into_iter().find(|prefix| keys.first_with(&format!("{prefix}input_blocks.")).is_some())
}

/// The family that the file's keys belong to, if they belong to one, with components from elsewhere.
pub(super) fn family(keys: &Keys<'_>, given: &Given) -> Result<Family, CompileError> {
    let encoders: Vec<&str> = [CLIP, OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP, REFINER_OPEN_CLIP]
        .into_iter()
        .filter(|prefix| keys.first_with(prefix).is_some())
        .collect();
    let is_control = keys.first_with(&format!("{CONTROL}input_blocks.")).is_some()
        || keys.get("input_hint_block.0.weight").is_some() && keys.first_with("lora_").is_none();
    let unet = unet_prefix(keys);
    if encoders.is_empty() && is_control && unet != Some(UNET) {
        return Ok(Family::ControlNet);
    }
    let has_unet = unet.is_some() || given.has("unet");
    if !has_unet && encoders.is_empty() {
        return Err(foreign(keys, "a checkpoint", &format!("{UNET}input_blocks.0.0.weight")));
    }
    if !has_unet {
        return Err(keys
            .error(format!("has a text encoder ({}*) but no UNet ({UNET}*)", encoders[0]))
            .with_hint("--unet takes one from elsewhere"));
    }
    match encoders.as_slice() {
        [] => of_given(keys, given, unet),
        [CLIP] => Ok(Family::Sd1),
        [OPEN_CLIP] => Ok(Family::Sd2),
        [XL_CLIP, XL_OPEN_CLIP] => Ok(Family::SdxlBase),
        [REFINER_OPEN_CLIP] => Ok(Family::SdxlRefiner),
        [XL_CLIP | XL_OPEN_CLIP] if given.has("text_encoder") || given.has("text_encoder_2") => {
            Ok(Family::SdxlBase)
        }
        [one] => {
            let (other, option) = match *one {
                XL_CLIP => (XL_OPEN_CLIP, "--text-encoder-2"),
                _ => (XL_CLIP, "--text-encoder"),
            };
            Err(keys
                .error(format!("has the text encoder {one}* but not {other}*"))
                .with_hint(format!("{option} takes one from elsewhere")))
        }
        [first, second, ..] => Err(keys.error(format!(
            "mixes text encoders of different families: '{}' and '{}'",
            keys.first_with(first).unwrap_or(first),
            keys.first_with(second).unwrap_or(second),
        ))),
    }
}

/// The family of a file without text encoders, by those from elsewhere.
fn of_given(keys: &Keys<'_>, given: &Given, unet: Option<&str>) -> Result<Family, CompileError> {
    let prefix = unet.unwrap_or(UNET);
    let reads_sizes = match given.get("unet") {
        Some(part) => part.piece.config["addition_embed_type"] == "text_time",
        None => keys.get(&format!("{prefix}label_emb.0.0.weight")).is_some(),
    };
    match (given.is_open_clip("text_encoder")?, given.has("text_encoder_2"), reads_sizes) {
        (Some(_), true, _) => Ok(Family::SdxlBase),
        (None, true, _) => Ok(Family::SdxlRefiner),
        (Some(false), false, false) => Ok(Family::Sd1),
        (Some(true), false, false) => Ok(Family::Sd2),
        (Some(_), false, true) => Err(keys
            .error("has a UNet of Stable Diffusion XL but no second text encoder")
            .with_hint("--text-encoder-2 takes one from elsewhere")),
        (None, false, _) => Err(keys
            .error(format!("has a UNet ({prefix}*) but no text encoder (cond_stage_model.*, conditioner.*)"))
            .with_hint(match reads_sizes {
                true => "--text-encoder, --text-encoder-2 and --vae take them from elsewhere",
                false => "--text-encoder and --vae take them from elsewhere",
            })),
    }
}

/// The refusal of a file that is not what it is given as, saying what it seems to be; `expected` is a key of one.
pub(super) fn foreign(keys: &Keys<'_>, wanted: &str, expected: &str) -> CompileError {
    if let Some((reason, hint)) = Contents::instead_of(wanted, keys.tensors()) {
        let error = keys.error(reason);
        return match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        };
    }
    match keys.iter().next() {
        None => keys.error("holds no tensors"),
        Some(key) => keys.error(format!("is not {wanted}: its first key is '{key}'")),
    }
    .with_hint(format!("expected keys such as {expected}"))
}
