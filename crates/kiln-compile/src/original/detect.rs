//! Telling checkpoints apart by their keys, and from everything else that is kept in safetensors files.

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
            || keys.get("input_hint_block.0.weight").is_some();
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

/// How a key betrays what a file is: by its start, or by what it contains.
enum Trait {
    Starts(&'static str),
    Contains(&'static str),
}

use Trait::{Contains, Starts};

/// What else people keep in safetensors files; the first that fits says what the file seems to be.
const FOREIGN: [(Trait, &str, Option<&str>); 30] = [
    (Starts("lora_"), "a LoRA", Some(LORA_HINT)),
    (Contains(".lora_down."), "a LoRA", Some(LORA_HINT)),
    (Contains(".lora_A."), "a LoRA", Some(LORA_HINT)),
    (Contains(".lora.down."), "a LoRA", Some(LORA_HINT)),
    (Contains("_lora."), "a LoRA", Some(LORA_HINT)),
    (Contains(".hada_w1_a"), "a LyCORIS adapter", None),
    (Contains(".lokr_w1"), "a LyCORIS adapter", None),
    (Contains("motion_modules."), "an AnimateDiff motion module", None),
    (Contains("double_blocks."), "a Flux model", None),
    (Contains("joint_blocks."), "a Stable Diffusion 3 model", None),
    (Starts("emb_params"), "a textual inversion embedding", None),
    (Starts("string_to_param"), "a textual inversion embedding", None),
    (Starts("<"), "a textual inversion embedding", None),
    (Starts("clip_g"), "a textual inversion embedding for Stable Diffusion XL", None),
    (Starts("ip_adapter."), "an IP-Adapter", None),
    (Starts("image_proj."), "an IP-Adapter", None),
    (Starts("controlnet_cond_embedding."), "a ControlNet in diffusers' layout", None),
    (Starts("down_blocks."), "a UNet in diffusers' layout", Some(FOLDER_HINT)),
    (Starts("encoder.down_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(FOLDER_HINT)),
    (Starts("decoder.up_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(FOLDER_HINT)),
    (Starts("first_stage_model."), "an autoencoder (VAE) alone", None),
    (Starts("encoder.down."), "an autoencoder (VAE) alone", None),
    (Starts("decoder.up."), "an autoencoder (VAE) alone", None),
    (Starts("encoder.mid."), "an autoencoder (VAE) alone", None),
    (Starts("encoder.conv_in"), "an autoencoder (VAE) alone", None),
    (Starts("input_blocks."), "a UNet alone", None),
    (Starts("text_model."), "a text encoder alone", Some(FOLDER_HINT)),
    (Starts("encoder.layers."), "a text encoder alone", Some(FOLDER_HINT)),
    (Starts("transformer.resblocks."), "an OpenCLIP text encoder alone", None),
    (Starts("adapter."), "a T2I-Adapter", None),
];

const LORA_HINT: &str = "--lora takes it, beside --model";
const FOLDER_HINT: &str = "give the folder that holds model_index.json";

/// The refusal of a file that is not a checkpoint, saying what it seems to be.
fn foreign(keys: &Keys<'_>) -> CompileError {
    let fits = |how: &Trait| match how {
        Starts(text) => keys.first_with(text).is_some(),
        Contains(text) => keys.iter().any(|key| key.contains(text)),
    };
    if let Some((_, what, hint)) = FOREIGN.iter().find(|(how, ..)| fits(how)) {
        let error = keys.error(format!("is not a checkpoint: it seems to be {what}"));
        return match hint {
            Some(hint) => error.with_hint(*hint),
            None => error,
        };
    }
    match keys.iter().next() {
        None => keys.error("holds no tensors"),
        Some(key) => keys.error(format!("is no Stable Diffusion checkpoint: its first key is '{key}'")),
    }
    .with_hint(format!("expected keys such as {UNET}input_blocks.0.0.weight"))
}
