//! Telling checkpoints apart by their keys, and from everything else that is kept in safetensors files.

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
        || keys.get("input_hint_block.0.weight").is_some();
    let unet = unet_prefix(keys);
    if encoders.is_empty() && is_control && unet != Some(UNET) {
        return Ok(Family::ControlNet);
    }
    let has_unet = unet.is_some() || given.has("unet");
    if !has_unet && encoders.is_empty() {
        return Err(foreign(keys, "is not a checkpoint", &format!("{UNET}input_blocks.0.0.weight")));
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

/// How a key betrays what a file is: by its start, or by what it contains.
enum Trait {
    Starts(&'static str),
    Contains(&'static str),
}

use Trait::{Contains, Starts};

/// What else people keep in safetensors files; the first that fits says what the file seems to be.
const FOREIGN: [(Trait, &str, Option<&str>); 29] = [
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
    (Starts("down_blocks."), "a UNet in diffusers' layout", Some(UNET_HINT)),
    (Starts("encoder.down_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(VAE_HINT)),
    (Starts("decoder.up_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(VAE_HINT)),
    (Starts("first_stage_model."), "an autoencoder (VAE) alone", Some(VAE_HINT)),
    (Starts("encoder.down."), "an autoencoder (VAE) alone", Some(VAE_HINT)),
    (Starts("decoder.up."), "an autoencoder (VAE) alone", Some(VAE_HINT)),
    (Starts("encoder.mid."), "an autoencoder (VAE) alone", Some(VAE_HINT)),
    (Starts("encoder.conv_in"), "an autoencoder (VAE) alone", Some(VAE_HINT)),
    (Starts("text_model."), "a text encoder alone", Some(TEXT_HINT)),
    (Starts("encoder.layers."), "a text encoder alone", Some(TEXT_HINT)),
    (Starts("transformer.resblocks."), "an OpenCLIP text encoder alone", Some(TEXT_HINT)),
    (Starts("adapter."), "a T2I-Adapter", None),
];

const LORA_HINT: &str = "--lora takes it, beside --model";
const UNET_HINT: &str = "--unet takes it, with config.json beside it";
const VAE_HINT: &str = "--vae takes it, beside --model";
const TEXT_HINT: &str = "--text-encoder and --text-encoder-2 take it, beside --model";

/// The refusal of a file that is not what it is given as, saying what it seems to be; `expected` is a key of one.
pub(super) fn foreign(keys: &Keys<'_>, refusal: &str, expected: &str) -> CompileError {
    let fits = |how: &Trait| match how {
        Starts(text) => keys.first_with(text).is_some(),
        Contains(text) => keys.iter().any(|key| key.contains(text)),
    };
    if let Some((_, what, hint)) = FOREIGN.iter().find(|(how, ..)| fits(how)) {
        let error = keys.error(format!("{refusal}: it seems to be {what}"));
        return match hint {
            Some(hint) => error.with_hint(*hint),
            None => error,
        };
    }
    match keys.iter().next() {
        None => keys.error("holds no tensors"),
        Some(key) => keys.error(format!("{refusal}: its first key is '{key}'")),
    }
    .with_hint(format!("expected keys such as {expected}"))
}
