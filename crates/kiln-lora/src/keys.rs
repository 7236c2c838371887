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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) role: ComponentName,
    /// The module as the file spells it.
    pub(crate) module: String,
    pub(crate) spelling: Spelling,
    /// What the tensor is to its module.
    pub(crate) part: &'static str,
    /// `None` where the part's name is everyone's.
    pub(crate) naming: Option<Naming>,
}

/// Why a key belongs to no module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It is a part of no adapter that is known.
    Part(String),
    /// It is for a network that Stable Diffusion does not have.
    Component(String),
}

/// How a key ends, what it is then to its module, and whose name that is.
const PARTS: [(&str, &str, Option<Naming>); 56] = [
    (".lora_down.weight", "down", Some(Naming::Kohya)),
    (".lora_up.weight", "up", Some(Naming::Kohya)),
    (".lora_mid.weight", "mid", Some(Naming::Kohya)),
    (".lora_up.bias", "up_bias", Some(Naming::Kohya)),
    (".lora_A.weight", "down", Some(Naming::Peft)),
    (".lora_B.weight", "up", Some(Naming::Peft)),
    (".lora_B.bias", "up_bias", Some(Naming::Peft)),
    (".lora.down.weight", "down", Some(Naming::Diffusers)),
    (".lora.up.weight", "up", Some(Naming::Diffusers)),
    (".lora.up.bias", "up_bias", Some(Naming::Diffusers)),
    (".lora_linear_layer.down.weight", "down", Some(Naming::Diffusers)),
    (".lora_linear_layer.up.weight", "up", Some(Naming::Diffusers)),
    (".lora_linear_layer.up.bias", "up_bias", Some(Naming::Diffusers)),
    ("_lora.down.weight", "down", Some(Naming::DiffusersProcessors)),
    ("_lora.up.weight", "up", Some(Naming::DiffusersProcessors)),
    ("_lora.up.bias", "up_bias", Some(Naming::DiffusersProcessors)),
    (".alpha", "alpha", None),
    (".dora_scale", "dora_scale", None),
    (".lora_magnitude_vector", "lora_magnitude_vector", None),
    (".lora_magnitude_vector.weight", "lora_magnitude_vector", None),
    (".hada_w1_a", "hada_w1_a", None),
    (".hada_w1_b", "hada_w1_b", None),
    (".hada_w2_a", "hada_w2_a", None),
    (".hada_w2_b", "hada_w2_b", None),
    (".hada_t1", "hada_t1", None),
    (".hada_t2", "hada_t2", None),
    (".lokr_w1", "lokr_w1", None),
    (".lokr_w1_a", "lokr_w1_a", None),
    (".lokr_w1_b", "lokr_w1_b", None),
    (".lokr_w2", "lokr_w2", None),
    (".lokr_w2_a", "lokr_w2_a", None),
    (".lokr_w2_b", "lokr_w2_b", None),
    (".lokr_t1", "lokr_t1", None),
    (".lokr_t2", "lokr_t2", None),
    (".diff", "diff", None),
    (".diff_b", "diff_b", None),
    (".w_norm", "w_norm", None),
    (".b_norm", "b_norm", None),
    (".oft_blocks", "oft_blocks", None),
    (".oft_R.weight", "oft_R", None),
    (".boft_R", "boft_R", None),
    (".boft_s", "boft_s", None),
    (".hra_u", "hra_u", None),
    (".rescale", "rescale", None),
    (".on_input", "on_input", None),
    (".ia3_l", "ia3_l", None),
    (".a1.weight", "a1", None),
    (".a2.weight", "a2", None),
    (".b1.weight", "b1", None),
    (".b2.weight", "b2", None),
    (".bm.weight", "bm", None),
    (".modules_to_save.weight", "saved_weight", None),
    (".modules_to_save.bias", "saved_bias", None),
    (".base_layer.bias", "saved_bias", None),
    (".weight", "weight", None),
    (".bias", "saved_bias", None),
];

/// What in a key tells of a method that is not supported, and its name.
const OTHER_METHODS: [(&str, &str); 10] = [
    (".oft_r", "OFT of peft before 0.15"),
    (".oft_diag", "kohya's first OFT"),
    ("vera_lambda_", "VeRA"),
    (".lambda_layer", "T-LoRA"),
    (".q_layer.", "T-LoRA"),
    (".p_layer.", "T-LoRA"),
    ("lora_embedding_", "LoRA of embeddings"),
    ("trainable_tokens_", "training of tokens"),
    ("lora_controlnet", "Control-LoRA"),
    (".lora_down.bias", "LoRA with biases between its matrices"),
];

const KOHYA: [(&str, ComponentName); 4] = [
    ("lora_unet_", UNET),
    ("lora_te_", TEXT_ENCODER),
    ("lora_te1_", TEXT_ENCODER),
    ("lora_te2_", TEXT_ENCODER_2),
];

/// lycoris' own prefix, which names no component.
const LYCORIS: &str = "lycoris_";

/// What peft puts before the paths of a model that it wraps.
const PEFT: &str = "base_model.model.";

const DIFFUSERS: [(&str, ComponentName); 5] = [
    ("unet.", UNET),
    ("text_encoder.", TEXT_ENCODER),
    ("text_encoder_2.", TEXT_ENCODER_2),
    ("text_encoders.clip_l.transformer.", TEXT_ENCODER),
    ("text_encoders.clip_g.transformer.", TEXT_ENCODER_2),
];

/// Where the names of a UNet's modules begin, for files that name no component.
const UNET_ROOTS: [&str; 8] = [
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "conv_in.",
    "conv_norm_out.",
    "conv_out.",
    "time_embedding.",
    "add_embedding.",
];

/// Where those of a text encoder's begin.
const TEXT_ROOTS: [&str; 5] =
    ["text_model.", "encoder.layers.", "embeddings.", "final_layer_norm.", "text_projection."];

/// Module names of the original code, in kohya's spelling.
const ORIGINAL_ROOTS: [&str; 6] =
    ["input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_"];

impl Key {
    /// Reads a key; the error says why it belongs to no adapter that can be added to Stable Diffusion.
    ///
    /// `encoder` is the text encoder of paths that name no component.
    pub(crate) fn parse(key: &str, encoder: ComponentName) -> Result<Key, Unknown> {
        let shown = shown(key);
        if let Some((_, method)) = OTHER_METHODS.iter().find(|(mark, _)| key.contains(mark)) {
            return Err(Unknown::Part(format!("'{shown}': {method} is not supported")));
        }
        let plain = without_adapter_name(key);
        let ends = PARTS.iter().filter_map(|(suffix, part, naming)| {
            Some((plain.strip_suffix(suffix)?, *part, *naming)).filter(|(module, ..)| !module.is_empty())
        });
        let Some((module, part, naming)) = ends.min_by_key(|(module, ..)| module.len()) else {
            return Err(Unknown::Part(format!("'{shown}' is not part of a LoRA")));
        };
        let is_pefts = module.starts_with(PEFT);
        let part = if part == "weight" && is_pefts { "saved_weight" } else { part };
        if part == "saved_bias" && !is_pefts {
            return Err(Unknown::Part(format!("'{shown}' is not part of a LoRA")));
        }
        let of_module = |(role, spelling, naming)| Key { role, module: module.into(), spelling, part, naming };
        underscored(module, naming).or_else(|| dotted(module, naming, encoder)).map(of_module).ok_or_else(
            || {
                let family = other_family(module).map(|family| format!("; the file is a LoRA for {family}"));
                let family = family.unwrap_or_default();
                Unknown::Component(format!(
                    "'{shown}' is for no component of Stable Diffusion 1.x, 2.x or XL{family}"
                ))
            },
        )
    }
}

type Place = (ComponentName, Spelling, Option<Naming>);

/// A module in kohya's or lycoris' names, or in those of the original code.
fn underscored(module: &str, naming: Option<Naming>) -> Option<Place> {
    let roots = |roots: &[&str], stem: &str| roots.iter().any(|root| stem.starts_with(&root.replace('.', "_")));
    let kohya = KOHYA.iter().find_map(|(prefix, role)| Some((*role, module.strip_prefix(prefix)?)));
    let lycoris = module.strip_prefix(LYCORIS).and_then(|stem| match stem {
        stem if roots(&UNET_ROOTS, &format!("{stem}_")) => Some((UNET, stem)),
        stem if roots(&TEXT_ROOTS, &format!("{stem}_")) => Some((TEXT_ENCODER, stem)),
        _ => None,
    });
    let path = module.strip_prefix("diffusion_model.").map(|path| (UNET, path));
    let original = path.filter(|(_, path)| roots(&ORIGINAL_ROOTS, &format!("{path}_").replace('.', "_")));
    let (role, stem) = kohya.or(lycoris).or(original)?;
    let stem = stem.replace('.', "_");
    let is_original = role == UNET && roots(&ORIGINAL_ROOTS, &stem);
    let naming = match naming {
        None | Some(Naming::Kohya) if is_original => Some(Naming::KohyaOriginal),
        None => Some(Naming::Kohya),
        naming => naming,
    };
    Some((role, Spelling::Underscored(stem), naming))
}

/// A module by its path, behind its component's name or peft's prefix.
fn dotted(module: &str, naming: Option<Naming>, encoder: ComponentName) -> Option<Place> {
    let module = module.strip_prefix(PEFT).unwrap_or(module);
    let named = DIFFUSERS.iter().find_map(|(prefix, role)| Some((*role, module.strip_prefix(prefix)?)));
    let begins = |roots: &[&str]| roots.iter().any(|root| format!("{module}.").starts_with(root));
    let (role, path) = named
        .or_else(|| begins(&UNET_ROOTS).then_some((UNET, module)))
        .or_else(|| begins(&TEXT_ROOTS).then_some((encoder, module)))?;
    let path = module_path(role, path, naming == Some(Naming::DiffusersProcessors));
    Some((role, Spelling::Dotted(path), naming.or(Some(Naming::Peft))))
}

/// peft's keys without the name of the adapter, which `save_pretrained` leaves out: `lora_A.default.weight`.
fn without_adapter_name(key: &str) -> String {
    const MARKS: [&str; 11] = [
        "lora_A",
        "lora_B",
        "lora_magnitude_vector",
        "ia3_l",
        "modules_to_save",
        "hada_",
        "lokr_",
        "oft_R",
        "boft_R",
        "boft_s",
        "hra_u",
    ];
    let parts: Vec<&str> = key.split('.').collect();
    let is_mark =
        |part: &&str| MARKS.iter().any(|mark| part == mark || mark.ends_with('_') && part.starts_with(mark));
    let is_end = |part: &str| part == "weight" || part == "bias";
    match parts.iter().rposition(is_mark).map(|at| (at, &parts[at + 1..])) {
        Some((at, [name] | [name, "weight" | "bias"])) if !is_end(name) => {
            let kept = parts.iter().enumerate().filter(|(i, _)| *i != at + 1);
            kept.map(|(_, part)| *part).collect::<Vec<_>>().join(".")
        }
        _ => key.to_owned(),
    }
}

/// A key as messages show it: its beginning, without control characters.
pub(crate) fn shown(key: &str) -> String {
    let text: String = key.chars().take(160).flat_map(char::escape_debug).collect();
    if key.chars().nth(160).is_some() { format!("{text}...") } else { text }
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
pub(crate) fn other_family(module: &str) -> Option<&'static str> {
    const MARKS: [(&str, &str); 7] = [
        ("double_blocks", "FLUX"),
        ("single_blocks", "FLUX"),
        ("single_transformer_blocks", "FLUX"),
        ("joint_blocks", "Stable Diffusion 3"),
        ("lora_te3_", "Stable Diffusion 3"),
        ("text_encoder_3", "Stable Diffusion 3"),
        ("lora_prior", "Stable Cascade"),
    ];
    // `transformer_blocks` by itself tells nothing: a UNet has them too, in its attentions.
    const ROOTS: [&str; 4] = ["transformer.", "transformer_blocks.", "lora_transformer_", "diffusion_model."];
    let marked = MARKS.iter().find(|(mark, _)| module.contains(mark)).map(|(_, family)| *family);
    let path = module.strip_prefix(PEFT).unwrap_or(module);
    let is_transformer = ROOTS.iter().any(|root| path.starts_with(root));
    marked.or(is_transformer.then_some("a transformer such as FLUX or Stable Diffusion 3"))
}
