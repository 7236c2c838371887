//! Telling checkpoints apart by their keys, and from everything else that is kept in safetensors files.

use kiln_bundle::Contents;

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

/// The family that the file's keys belong to, if they belong to one.
pub(super) fn family(keys: &Keys<'_>) -> Result<Family, CompileError> {
    let encoders: Vec<&str> = [CLIP, OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP, REFINER_OPEN_CLIP]
        .into_iter()
        .filter(|prefix| keys.first_with(prefix).is_some())
        .collect();
    let has_unet = keys.first_with(&format!("{UNET}input_blocks.")).is_some();
    if !has_unet && encoders.is_empty() {
        let is_control = keys.first_with(&format!("{CONTROL}input_blocks.")).is_some()
            || keys.get("input_hint_block.0.weight").is_some() && keys.first_with("lora_").is_none();
        return match is_control {
            true => Ok(Family::ControlNet),
            false => Err(foreign(keys)),
        };
    }
    if !has_unet {
        return Err(keys.error(format!("has a text encoder ({}*) but no UNet ({UNET}*)", encoders[0])));
    }
    match encoders.as_slice() {
        [CLIP] => Ok(Family::Sd1),
        [OPEN_CLIP] => Ok(Family::Sd2),
        [XL_CLIP, XL_OPEN_CLIP] => Ok(Family::SdxlBase),
        [REFINER_OPEN_CLIP] => Ok(Family::SdxlRefiner),
        [] => Err(keys
            .error(format!("has a UNet ({UNET}*) but no text encoder (cond_stage_model.*, conditioner.*)"))
            .with_hint("kiln needs a checkpoint with UNet, text encoder and autoencoder in one file")),
        [one] => {
            let other = if *one == XL_CLIP { XL_OPEN_CLIP } else { XL_CLIP };
            Err(keys.error(format!("has the text encoder {one}* but not {other}*")))
        }
        [first, second, ..] => Err(keys.error(format!(
            "mixes text encoders of different families: '{}' and '{}'",
            keys.first_with(first).unwrap_or(first),
            keys.first_with(second).unwrap_or(second),
        ))),
    }
}

/// The refusal of a file that is not a checkpoint, saying what it seems to be.
fn foreign(keys: &Keys<'_>) -> CompileError {
    if let Some((reason, hint)) = Contents::instead_of("a checkpoint", keys.tensors()) {
        let error = keys.error(reason);
        return match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        };
    }
    match keys.iter().next() {
        None => keys.error("holds no tensors"),
        Some(key) => keys.error(format!("is no Stable Diffusion checkpoint: its first key is '{key}'")),
    }
    .with_hint(format!("expected keys such as {UNET}input_blocks.0.0.weight"))
}
