//! What the keys of LoRA files say (diffusers `loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py`).

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, TEXT_ENCODER_2, UNET};
use std::fmt;

use kiln_bundle::ComponentName;

/// Whose names a file's modules have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Naming {
    /// kohya's, over diffusers' module names: `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`.
    Kohya,
    /// kohya's, over those of the original code: `lora_unet_input_blocks_4_1_proj_in.lora_down.weight`.
    KohyaOriginal,
    /// peft's: `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`.
    Peft,
    /// diffusers': `unet.down_blocks.0.attentions.0.proj_in.lora.down.weight`.
    Diffusers,
    /// diffusers' first: `unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight`.
    DiffusersProcessors,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Naming::Kohya => "kohya",
            Naming::KohyaOriginal => "kohya, original layout",
            Naming::Peft => "peft",
            Naming::Diffusers => "diffusers",
            Naming::DiffusersProcessors => "diffusers attention processors",
        })
    }
}

/// A module's name, without its component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spelling {
    /// `.` and `_` are one.
    Underscored(String),
    /// The path of a module in the network.
    Dotted(String),
}

/// What a tensor of a LoRA is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Down,
    Up,
    Alpha,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) role: ComponentName,
    /// The module as the file spells it.
    pub(crate) module: String,
    pub(crate) spelling: Spelling,
    pub(crate) part: Part,
    /// `None` for an alpha, which has no style of its own.
    pub(crate) naming: Option<Naming>,
}

const PARTS: [(&str, Part, Option<Naming>); 11] = [
    (".lora_down.weight", Part::Down, Some(Naming::Kohya)),
    (".lora_up.weight", Part::Up, Some(Naming::Kohya)),
    (".lora_A.weight", Part::Down, Some(Naming::Peft)),
    (".lora_B.weight", Part::Up, Some(Naming::Peft)),
    (".lora.down.weight", Part::Down, Some(Naming::Diffusers)),
    (".lora.up.weight", Part::Up, Some(Naming::Diffusers)),
    (".lora_linear_layer.down.weight", Part::Down, Some(Naming::Diffusers)),
    (".lora_linear_layer.up.weight", Part::Up, Some(Naming::Diffusers)),
    ("_lora.down.weight", Part::Down, Some(Naming::DiffusersProcessors)),
    ("_lora.up.weight", Part::Up, Some(Naming::DiffusersProcessors)),
    (".alpha", Part::Alpha, None),
];

/// What in a key tells of another method, and its name.
const OTHER_METHODS: [(&str, &str); 18] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".lora_mid.", "LoCon with Tucker decomposition"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3"),
    (".diff_b", "a difference of biases"),
    (".diff", "a difference of weights"),
    (".w_norm", "a difference of norms"),
    (".b_norm", "a difference of norms"),
    (".lora_B.bias", "LoRA with biases"),
    (".lora_up.bias", "LoRA with biases"),
    (".lora.up.bias", "LoRA with biases"),
    ("vera_lambda_", "VeRA"),
    ("lora_embedding_", "LoRA of embeddings"),
    ("lora_controlnet", "Control-LoRA"),
];

const KOHYA: [(&str, ComponentName); 4] = [
    ("lora_unet_", UNET),
    ("lora_te_", TEXT_ENCODER),
    ("lora_te1_", TEXT_ENCODER),
    ("lora_te2_", TEXT_ENCODER_2),
];

const DIFFUSERS: [(&str, ComponentName); 3] =
    [("unet.", UNET), ("text_encoder.", TEXT_ENCODER), ("text_encoder_2.", TEXT_ENCODER_2)];

/// Where the names of a UNet's modules begin, for files that name no component.
const UNET_ROOTS: [&str; 7] =
    ["down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding."];

/// Module names of the original code, in kohya's spelling.
const ORIGINAL_ROOTS: [&str; 6] =
    ["input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_"];

impl Key {
    /// Reads a key; the error says why it belongs to no LoRA that can be added to Stable Diffusion.
    pub(crate) fn parse(key: &str) -> Result<Key, String> {
        if let Some((_, method)) = OTHER_METHODS.iter().find(|(mark, _)| key.contains(mark)) {
            return Err(format!("'{key}': {method} is not supported"));
        }
        let found =
            PARTS.iter().find_map(|(suffix, part, naming)| Some((key.strip_suffix(suffix)?, *part, *naming)));
        let Some((module, part, mut naming)) = found.filter(|(module, ..)| !module.is_empty()) else {
            return Err(format!("'{key}' is not part of a LoRA"));
        };
        let kohya = KOHYA.iter().find_map(|(prefix, role)| Some((*role, module.strip_prefix(prefix)?)));
        if let Some((role, stem)) = kohya {
            let is_original = role == UNET && ORIGINAL_ROOTS.iter().any(|root| stem.starts_with(root));
            if is_original && naming == Some(Naming::Kohya) {
                naming = Some(Naming::KohyaOriginal);
            }
            let (module, spelling) = (module.to_owned(), Spelling::Underscored(stem.replace('.', "_")));
            return Ok(Key { role, module, spelling, part, naming });
        }
        let dotted = DIFFUSERS.iter().find_map(|(prefix, role)| Some((*role, module.strip_prefix(prefix)?)));
        let bare = UNET_ROOTS.iter().any(|root| format!("{module}.").starts_with(root));
        let Some((role, path)) = dotted.or_else(|| bare.then_some((UNET, module))) else {
            let family = other_family(module).map(|family| format!("; the file is a LoRA for {family}"));
            let family = family.unwrap_or_default();
            return Err(format!("'{key}' is for no component of Stable Diffusion 1.x, 2.x or XL{family}"));
        };
        let path = module_path(role, path, naming == Some(Naming::DiffusersProcessors));
        Ok(Key { role, module: module.into(), spelling: Spelling::Dotted(path), part, naming })
    }
}

/// Today's path of a module that attention processors or older text encoders named otherwise.
fn module_path(role: ComponentName, path: &str, of_processor: bool) -> String {
    let path = path.replace(".processor.", ".");
    if role == UNET {
        return match of_processor && path.ends_with(".to_out") {
            true => format!("{path}.0"),
            false => path,
        };
    }
    let path = path.strip_prefix("text_model.").unwrap_or(&path);
    let projections =
        [(".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out", ".out_proj")];
    let renamed = projections.iter().find_map(|(old, new)| Some(format!("{}{new}", path.strip_suffix(old)?)));
    renamed.filter(|_| of_processor).unwrap_or_else(|| path.to_owned())
}

/// What a module that Stable Diffusion does not have belongs to.
fn other_family(module: &str) -> Option<&'static str> {
    const MARKS: [(&str, &str); 9] = [
        ("double_blocks", "FLUX"),
        ("single_blocks", "FLUX"),
        ("single_transformer_blocks", "FLUX"),
        ("joint_blocks", "Stable Diffusion 3"),
        ("lora_te3_", "Stable Diffusion 3"),
        ("text_encoder_3", "Stable Diffusion 3"),
        ("lora_prior", "Stable Cascade"),
        ("transformer", "a transformer such as FLUX or Stable Diffusion 3"),
        ("diffusion_model", "a transformer such as FLUX or Stable Diffusion 3"),
    ];
    MARKS.iter().find(|(mark, _)| module.contains(mark)).map(|(_, family)| *family)
}
