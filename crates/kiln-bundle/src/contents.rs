//! What a safetensors file seems to be, by the names of its tensors.

use std::collections::BTreeMap;

/// What people keep in safetensors files besides checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// What it is, with an article.
    pub what: &'static str,
    /// What it is used for, where that is known.
    pub role: Option<Role>,
}

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It changes a model's weights.
    Lora,
    /// It is learned words.
    Embedding,
    /// It is read beside a model, from the folder that it lies in.
    ControlNet,
    /// It is a UNet whose configuration lies beside it.
    Unet,
    /// It is an autoencoder.
    Autoencoder,
    /// It is a text encoder.
    TextEncoder,
}

impl Role {
    /// What may help somebody who uses it for something else.
    pub fn hint(self) -> &'static str {
        match self {
            Role::Lora => "--lora takes it, beside --model",
            Role::Embedding => "--embedding takes it, beside --model",
            Role::ControlNet => "--controlnet takes the folder that it lies in, beside --model",
            Role::Unet => "--unet takes it, with config.json beside it",
            Role::Autoencoder => "--vae takes it, beside --model",
            Role::TextEncoder => "--text-encoder and --text-encoder-2 take it, beside --model",
        }
    }
}

/// How a name betrays what a file is: by its start, or by what it contains.
#[derive(Clone, Copy)]
enum Trait {
    Starts(&'static str),
    Contains(&'static str),
}

use Role::{Autoencoder, ControlNet, Embedding, Lora, TextEncoder, Unet};
use Trait::{Contains, Starts};

/// The first that fits says what a file seems to be.
const CONTENTS: [(Trait, &str, Option<Role>); 52] = [
    (Starts("lora_controlnet"), "a Control-LoRA", None),
    (Starts("lora_"), "a LoRA", Some(Lora)),
    (Contains(".lora_down."), "a LoRA", Some(Lora)),
    (Contains(".lora_A."), "a LoRA", Some(Lora)),
    (Contains(".lora.down."), "a LoRA", Some(Lora)),
    (Contains("_lora."), "a LoRA", Some(Lora)),
    (Contains(".hada_w1_a"), "a LyCORIS adapter", Some(Lora)),
    (Contains(".lokr_w1"), "a LyCORIS adapter", Some(Lora)),
    (Contains(".oft_"), "an OFT adapter", Some(Lora)),
    (Contains(".boft_"), "a BOFT adapter", Some(Lora)),
    (Contains(".ia3_l"), "an (IA)^3 adapter", Some(Lora)),
    (Contains(".hra_u"), "an HRA adapter", Some(Lora)),
    (Contains(".vera_lambda_"), "a VeRA adapter", Some(Lora)),
    (Starts("lycoris_"), "a LyCORIS adapter", Some(Lora)),
    (Contains("motion_modules."), "an AnimateDiff motion module", None),
    (Contains("single_transformer_blocks."), "a Flux model", None),
    (Contains("double_blocks."), "a Flux model", None),
    (Contains("joint_blocks."), "a Stable Diffusion 3 model", None),
    (Contains("adaln_single."), "a transformer such as PixArt", None),
    (Starts("transformer_blocks."), "a transformer such as Stable Diffusion 3", None),
    (Contains(".cross_attn."), "a video model such as Wan", None),
    (Starts("emb_params"), "a textual inversion embedding", Some(Embedding)),
    (Starts("string_to_param"), "a textual inversion embedding", Some(Embedding)),
    (Starts("<"), "a textual inversion embedding", Some(Embedding)),
    (Starts("clip_g"), "a textual inversion embedding for Stable Diffusion XL", Some(Embedding)),
    (Contains("ip_adapter."), "an IP-Adapter", None),
    (Starts("image_proj."), "an IP-Adapter", None),
    (Starts("controlnet_cond_embedding."), "a ControlNet in diffusers' layout", Some(ControlNet)),
    (Starts("control_model."), "part of a ControlNet", None),
    (Starts("down_blocks."), "a UNet in diffusers' layout", Some(Unet)),
    (Starts("encoder.down_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(Autoencoder)),
    (Starts("decoder.up_blocks."), "an autoencoder (VAE) in diffusers' layout", Some(Autoencoder)),
    (Starts("first_stage_model."), "an autoencoder (VAE) alone", Some(Autoencoder)),
    (Starts("encoder.down."), "an autoencoder (VAE) alone", Some(Autoencoder)),
    (Starts("decoder.up."), "an autoencoder (VAE) alone", Some(Autoencoder)),
    (Starts("encoder.mid."), "an autoencoder (VAE) alone", Some(Autoencoder)),
    (Starts("encoder.conv_in"), "an autoencoder (VAE) alone", Some(Autoencoder)),
    (Starts("decoder.layers."), "a tiny autoencoder (TAESD) alone", None),
    (Starts("input_blocks."), "a UNet alone", None),
    (Starts("text_model."), "a text encoder alone", Some(TextEncoder)),
    (Starts("encoder.layers."), "a text encoder alone", Some(TextEncoder)),
    (Starts("transformer.resblocks."), "an OpenCLIP text encoder alone", Some(TextEncoder)),
    (Starts("encoder.block.0."), "a T5 text encoder alone", None),
    (Starts("vision_model."), "an image encoder", None),
    (Starts("adapter."), "a T2I-Adapter", None),
    (Starts("body."), "a T2I-Adapter", None),
    (Starts("conv_first."), "an upscaler such as ESRGAN", None),
    (Starts("params_ema."), "an upscaler such as ESRGAN", None),
    (Starts("model.1.sub."), "an upscaler such as ESRGAN", None),
    (Starts("model.diffusion_model."), "a checkpoint, or part of one", None),
    (Starts("cond_stage_model."), "a checkpoint, or part of one", None),
    (Starts("conditioner.embedders."), "a checkpoint, or part of one", None),
];

impl Contents {
    /// What a file with tensors of these names seems to be.
    pub fn of<V>(tensors: &BTreeMap<String, V>) -> Option<Contents> {
        let fits = |how: Trait| match how {
            Starts(text) => {
                tensors.range(text.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(text))
            }
            Contains(text) => tensors.keys().any(|name| name.contains(text)),
        };
        let (_, what, role) = CONTENTS.into_iter().find(|(how, ..)| fits(*how))?;
        Some(Contents { what, role })
    }

    /// The same of a file that is no `wanted`: why it is refused, and what may help.
    pub fn instead_of<V>(
        wanted: &str,
        tensors: &BTreeMap<String, V>,
    ) -> Option<(String, Option<&'static str>)> {
        let Contents { what, role } = Contents::of(tensors)?;
        Some((format!("is not {wanted}: it seems to be {what}"), role.map(Role::hint)))
    }
}
