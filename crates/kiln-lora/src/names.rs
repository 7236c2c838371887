//! The weights of a model under every name by which LoRA files call their modules.

use kiln_bundle::stable_diffusion::UNET;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_bundle::ComponentName;

use crate::keys::Spelling;

/// The weights that a model has, by component.
#[derive(Clone, Debug, Default)]
pub struct ModelWeights {
    components: BTreeMap<ComponentName, Component>,
}

#[derive(Clone, Debug, Default)]
struct Component {
    /// Shape of each weight; `None` for one that no engine reads.
    weights: BTreeMap<String, Option<Vec<usize>>>,
    /// Modules by their name with underscores; `None` where two have the same.
    underscored: HashMap<String, Option<String>>,
}

/// Which of a module's weights an adapter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Weight,
    Bias,
}

/// A weight that a module changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    pub(crate) weight: &'a str,
    /// `None` where no engine reads it.
    pub(crate) shape: Option<&'a [usize]>,
}

impl ModelWeights {
    /// A model without components.
    pub fn new() -> ModelWeights {
        ModelWeights::default()
    }

    /// Adds a component: names and shapes of its weights, and names of those that a LoRA may change without effect
    /// because nothing that the model computes depends on them.
    pub fn insert(
        &mut self,
        role: ComponentName,
        weights: impl IntoIterator<Item = (String, Vec<usize>)>,
        unread: impl IntoIterator<Item = String>,
    ) {
        let mut component = Component::default();
        let read = weights.into_iter().map(|(name, shape)| (name, Some(shape)));
        component.weights = read.chain(unread.into_iter().map(|name| (name, None))).collect();
        let modules: Vec<&str> =
            component.weights.keys().filter_map(|name| name.strip_suffix(".weight")).collect();
        let layers = layers_per_block(&modules);
        let attended = blocks_with_attention(&modules);
        for module in modules {
            let mut add = |spelling: String| {
                let entry = component.underscored.entry(spelling);
                entry.and_modify(|known| *known = None).or_insert_with(|| Some(module.to_owned()));
            };
            add(module.replace('.', "_"));
            match role {
                UNET => original(module, layers, &attended).into_iter().for_each(add),
                _ => add(format!("text_model_{}", module.replace('.', "_"))),
            }
        }
        self.components.insert(role, component);
    }

    pub(crate) fn has(&self, role: ComponentName) -> bool {
        self.components.contains_key(&role)
    }

    pub(crate) fn find(&self, role: ComponentName, spelling: &Spelling, target: Target) -> Option<Found<'_>> {
        let component = self.components.get(&role)?;
        let module = match spelling {
            Spelling::Underscored(stem) => component.underscored.get(stem)?.as_deref()?,
            Spelling::Dotted(path) => path,
        };
        let name = match target {
            Target::Weight => format!("{module}.weight"),
            Target::Bias => format!("{module}.bias"),
        };
        let (weight, shape) = component.weights.get_key_value(&name)?;
        Some(Found { weight, shape: shape.as_deref() })
    }
}

fn layers_per_block(modules: &[&str]) -> usize {
    let layers: BTreeSet<&str> = modules
        .iter()
        .filter_map(|module| module.strip_prefix("down_blocks.0.resnets.")?.split('.').next())
        .collect();
    layers.len()
}

/// The first two parts of the names of blocks that attend.
fn blocks_with_attention<'a>(modules: &[&'a str]) -> BTreeSet<&'a str> {
    modules.iter().filter_map(|module| module.split_once(".attentions.")).map(|(block, _)| block).collect()
}

/// A UNet module's name in the original code, with underscores (diffusers `_maybe_map_sgm_blocks_to_diffusers` and
/// `_convert_unet_lora_key`, the other way round).
fn original(module: &str, layers: usize, attended: &BTreeSet<&str>) -> Option<String> {
    let parts: Vec<&str> = module.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < 1 << 16);
    match parts.as_slice() {
        ["conv_in"] => Some("input_blocks_0_0".into()),
        ["conv_norm_out"] => Some("out_0".into()),
        ["conv_out"] => Some("out_2".into()),
        ["time_embedding", "linear_1"] => Some("time_embed_0".into()),
        ["time_embedding", "linear_2"] => Some("time_embed_2".into()),
        ["add_embedding", "linear_1"] => Some("label_emb_0_0".into()),
        ["add_embedding", "linear_2"] => Some("label_emb_0_2".into()),
        ["down_blocks", block, "downsamplers", "0", "conv"] => {
            Some(format!("input_blocks_{}_0_op", 1 + number(block)? * (layers + 1) + layers))
        }
        ["up_blocks", block, "upsamplers", "0", "conv"] => {
            let place = if attended.contains(format!("up_blocks.{block}").as_str()) { 2 } else { 1 };
            Some(format!("output_blocks_{}_{place}_conv", number(block)? * (layers + 1) + layers))
        }
        ["down_blocks", block, kind, layer, rest @ ..] => {
            let index = 1 + number(block)? * (layers + 1) + number(layer)?;
            Some(format!("input_blocks_{index}_{}", inner(kind, rest)?))
        }
        ["up_blocks", block, kind, layer, rest @ ..] => {
            let index = number(block)? * (layers + 1) + number(layer)?;
            Some(format!("output_blocks_{index}_{}", inner(kind, rest)?))
        }
        ["mid_block", kind, layer, rest @ ..] => {
            let name = inner(kind, rest)?;
            let (_, name) = name.split_once('_')?;
            match (*kind, *layer) {
                ("resnets", "0") => Some(format!("middle_block_0_{name}")),
                ("attentions", "0") => Some(format!("middle_block_1_{name}")),
                ("resnets", "1") => Some(format!("middle_block_2_{name}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Place in the block and name of a module of a residual block or transformer.
fn inner(kind: &str, rest: &[&str]) -> Option<String> {
    match (kind, rest) {
        ("attentions", rest) => Some(format!("1_{}", rest.join("_"))),
        ("resnets", ["norm1"]) => Some("0_in_layers_0".into()),
        ("resnets", ["norm2"]) => Some("0_out_layers_0".into()),
        ("resnets", ["conv1"]) => Some("0_in_layers_2".into()),
        ("resnets", ["conv2"]) => Some("0_out_layers_3".into()),
        ("resnets", ["time_emb_proj"]) => Some("0_emb_layers_1".into()),
        ("resnets", ["conv_shortcut"]) => Some("0_skip_connection".into()),
        _ => None,
    }
}
