//! The UNet and ControlNet: `model.diffusion_model.*` and `control_model.*` (diffusers `convert_ldm_unet_checkpoint`
//! and `convert_controlnet_checkpoint`).
//!
//! The original layout numbers all blocks of a half in one row; a level ends at its resampling convolution.

use serde_json::{Value, json};

use super::keys::{Component, Keys, Piece};
use crate::CompileError;

/// Channels of a UNet that reads latents alone.
const TEXT_TO_IMAGE: u64 = 4;
/// Channels of a UNet that reads a mask and masked latents too.
pub(super) const INPAINTING: u64 = 9;

/// One level of one half.
#[derive(Default)]
struct Level {
    channels: u64,
    /// Number of transformer layers in each block; 0 where a block does not attend.
    depths: Vec<usize>,
}

/// What both halves and the middle have told so far.
#[derive(Default)]
struct Found {
    context: Option<u64>,
    is_linear: bool,
}

const RESNET: [(&str, &str); 5] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
];

/// The UNet under `prefix`.
pub(super) fn unet(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    let mut c = Component::new(keys, prefix);
    let mut found = Found::default();
    let [_, in_channels, kernel, _] = c.shape("input_blocks.0.0.weight")?;
    if !matches!(in_channels, TEXT_TO_IMAGE | INPAINTING) {
        let reason = format!("reads {in_channels} channels; supported: {TEXT_TO_IMAGE}, {INPAINTING}");
        return Err(c.error("input_blocks.0.0.weight", &reason));
    }
    let [out_channels, _, out_kernel, _] = c.shape("out.2.weight")?;
    let mut config = head(&mut c)?;
    let down = down_levels(&mut c, &mut found)?;
    let mid = mid_block(&mut c, &mut found)?;
    let up = up_levels(&mut c, &mut found, &down)?;
    c.pair("out.0", "conv_norm_out")?;
    c.pair("out.2", "conv_out")?;
    let depths = describe(&c, &mut config, &down, mid, &found)?;
    let up_types: Vec<&str> =
        up.iter().map(|level| block_type(level, ["UpBlock2D", "CrossAttnUpBlock2D"])).collect();
    config["_class_name"] = "UNet2DConditionModel".into();
    config["in_channels"] = in_channels.into();
    config["out_channels"] = out_channels.into();
    config["center_input_sample"] = false.into();
    config["up_block_types"] = json!(up_types);
    for (key, kernel) in [("conv_in_kernel", kernel), ("conv_out_kernel", out_kernel)] {
        if kernel != 3 {
            config[key] = kernel.into();
        }
    }
    let mut mirrored = up.iter().zip(depths.iter().rev());
    // diffusers asks for the way up where a level going down has a list.
    if depths.iter().any(Value::is_array)
        || !mirrored.all(|(level, depth)| level.depths[0] == 0 || depth_of(&level.depths) == *depth)
    {
        let depths: Vec<Value> = up.iter().map(|level| depth_of(&level.depths)).collect();
        config["reverse_transformer_layers_per_block"] = depths.into();
    }
    Ok(c.finish(config))
}

/// The ControlNet under `prefix`.
pub(super) fn controlnet(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    let mut c = Component::new(keys, prefix);
    let mut found = Found::default();
    let [_, in_channels, ..] = c.shape::<4>("input_blocks.0.0.weight")?;
    let mut config = head(&mut c)?;
    let down = down_levels(&mut c, &mut found)?;
    let mid = mid_block(&mut c, &mut found)?;
    describe(&c, &mut config, &down, mid, &found)?;

    let [_, conditioning_channels, ..] = c.shape::<4>("input_hint_block.0.weight")?;
    let n_hints = c.count(|i| format!("input_hint_block.{}.weight", 2 * i));
    let mut hint_channels = vec![c.shape::<4>("input_hint_block.0.weight")?[0]];
    for i in 0..n_hints {
        let key = format!("input_hint_block.{}", 2 * i);
        let name = match i {
            0 => "conv_in".into(),
            i if i + 1 == n_hints => "conv_out".into(),
            i => format!("blocks.{}", i - 1),
        };
        if i > 0 && i + 1 < n_hints && i % 2 == 0 {
            hint_channels.push(c.shape::<4>(&format!("{key}.weight"))?[0]);
        }
        c.pair(&key, &format!("controlnet_cond_embedding.{name}"))?;
    }
    let n_skips = down.iter().map(|level| level.depths.len() + 1).sum::<usize>();
    for i in 0..n_skips {
        c.pair(&format!("zero_convs.{i}.0"), &format!("controlnet_down_blocks.{i}"))?;
    }
    c.pair("middle_block_out.0", "controlnet_mid_block")?;
    config["_class_name"] = "ControlNetModel".into();
    config["in_channels"] = in_channels.into();
    config["conditioning_channels"] = conditioning_channels.into();
    config["conditioning_embedding_out_channels"] = hint_channels.into();
    config["controlnet_conditioning_channel_order"] = "rgb".into();
    Ok(c.finish(config))
}

/// The embeddings and the first convolution, and what all denoisers of the layout have in common.
fn head(c: &mut Component<'_, '_>) -> Result<Value, CompileError> {
    let mut config = json!({
        "act_fn": "silu",
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
    });
    let [time, width] = c.shape("time_embed.0.weight")?;
    if Some(time) != width.checked_mul(4) {
        config["time_embedding_dim"] = time.into();
    }
    c.pair("time_embed.0", "time_embedding.linear_1")?;
    c.pair("time_embed.2", "time_embedding.linear_2")?;
    if c.has("time_embed.cond_proj.weight") {
        let [_, guidance] = c.shape("time_embed.cond_proj.weight")?;
        config["time_cond_proj_dim"] = guidance.into();
        c.take("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight")?;
    }
    if c.has_under("label_emb.") {
        let [_, added] = c.shape("label_emb.0.0.weight")?;
        config["addition_embed_type"] = "text_time".into();
        config["projection_class_embeddings_input_dim"] = added.into();
        c.pair("label_emb.0.0", "add_embedding.linear_1")?;
        c.pair("label_emb.0.2", "add_embedding.linear_2")?;
    }
    c.pair("input_blocks.0.0", "conv_in")?;
    Ok(config)
}

fn down_levels(c: &mut Component<'_, '_>, found: &mut Found) -> Result<Vec<Level>, CompileError> {
    let mut levels = vec![Level::default()];
    for i in 1.. {
        let (key, block) = (format!("input_blocks.{i}"), levels.len() - 1);
        let level = &mut levels[block];
        if c.has(&format!("{key}.0.op.weight")) {
            c.pair(&format!("{key}.0.op"), &format!("down_blocks.{block}.downsamplers.0.conv"))?;
            levels.push(Level::default());
        } else if c.has_under(&format!("{key}.")) {
            read_block(c, found, level, &key, &format!("down_blocks.{block}"))?;
        } else {
            break;
        }
    }
    match levels.iter().all(|level| !level.depths.is_empty()) {
        true => Ok(levels),
        false => Err(c.error("input_blocks", "end in the middle of a level")),
    }
}

fn up_levels(c: &mut Component<'_, '_>, found: &mut Found, down: &[Level]) -> Result<Vec<Level>, CompileError> {
    let mut levels = vec![Level::default()];
    for i in 0.. {
        let (key, block) = (format!("output_blocks.{i}"), levels.len() - 1);
        if !c.has_under(&format!("{key}.")) {
            break;
        }
        read_block(c, found, &mut levels[block], &key, &format!("up_blocks.{block}"))?;
        let upsamplers = [1, 2].map(|place| format!("{key}.{place}.conv"));
        if let Some(upsampler) = upsamplers.into_iter().find(|key| c.has(&format!("{key}.weight"))) {
            c.pair(&upsampler, &format!("up_blocks.{block}.upsamplers.0.conv"))?;
            levels.push(Level::default());
        }
    }
    let expected = down.iter().rev().map(|level| level.depths.len() + 1);
    if !levels.iter().map(|level| level.depths.len()).eq(expected) {
        let count = |levels: &[Level]| levels.iter().map(|level| level.depths.len()).collect::<Vec<_>>();
        let reason = format!(
            "have levels of {:?} blocks, which do not mirror input_blocks of {:?}",
            count(&levels),
            count(down)
        );
        return Err(c.error("output_blocks", &reason));
    }
    Ok(levels)
}

/// A residual block and, where there is one, the transformer behind it.
fn read_block(
    c: &mut Component<'_, '_>,
    found: &mut Found,
    level: &mut Level,
    key: &str,
    name: &str,
) -> Result<(), CompileError> {
    let layer = level.depths.len();
    let [channels, ..] = c.shape::<4>(&format!("{key}.0.in_layers.2.weight"))?;
    if layer > 0 && channels != level.channels {
        return Err(c.error(
            &format!("{key}.0.in_layers.2.weight"),
            &format!("makes {channels} channels in a level of {}", level.channels),
        ));
    }
    level.channels = channels;
    resnet(c, &format!("{key}.0"), &format!("{name}.resnets.{layer}"))?;
    let depth = match c.has(&format!("{key}.1.norm.weight")) {
        true => transformer(c, found, &format!("{key}.1"), &format!("{name}.attentions.{layer}"))?,
        false => 0,
    };
    if level.depths.first().is_some_and(|first| (*first == 0) != (depth == 0)) {
        return Err(c.error(key, "attends unlike the other blocks of its level"));
    }
    level.depths.push(depth);
    Ok(())
}

/// Depth of the transformer in the middle, 0 where a residual block is all of it; `None` where there is no middle.
fn mid_block(c: &mut Component<'_, '_>, found: &mut Found) -> Result<Option<usize>, CompileError> {
    if !c.has_under("middle_block.") {
        return Ok(None);
    }
    resnet(c, "middle_block.0", "mid_block.resnets.0")?;
    if !c.has_under("middle_block.1.") {
        return Ok(Some(0));
    }
    let depth = transformer(c, found, "middle_block.1", "mid_block.attentions.0")?;
    resnet(c, "middle_block.2", "mid_block.resnets.1")?;
    Ok(Some(depth))
}

fn resnet(c: &mut Component<'_, '_>, key: &str, name: &str) -> Result<(), CompileError> {
    for (old, new) in RESNET {
        c.pair(&format!("{key}.{old}"), &format!("{name}.{new}"))?;
    }
    match c.has(&format!("{key}.skip_connection.weight")) {
        true => c.pair(&format!("{key}.skip_connection"), &format!("{name}.conv_shortcut")),
        false => Ok(()),
    }
}

/// Takes a transformer, whose inner names are the same in both layouts; the number of its layers.
fn transformer(
    c: &mut Component<'_, '_>,
    found: &mut Found,
    key: &str,
    name: &str,
) -> Result<usize, CompileError> {
    found.is_linear = c.rank(&format!("{key}.proj_in.weight"))? == 2;
    for part in ["norm", "proj_in", "proj_out"] {
        c.pair(&format!("{key}.{part}"), &format!("{name}.{part}"))?;
    }
    let depth = c.count(|i| format!("{key}.transformer_blocks.{i}.norm1.weight"));
    if depth == 0 {
        return Err(c.error(&format!("{key}.transformer_blocks.0.norm1.weight"), "is missing"));
    }
    for i in 0..depth {
        let inner = format!("transformer_blocks.{i}");
        let [_, context] = c.shape(&format!("{key}.{inner}.attn2.to_k.weight"))?;
        if *found.context.get_or_insert(context) != context {
            let reason = format!("reads text {context} wide, others {}", found.context.unwrap_or(0));
            return Err(c.error(&format!("{key}.{inner}.attn2.to_k.weight"), &reason));
        }
        for attention in ["attn1", "attn2"] {
            for part in ["to_q", "to_k", "to_v"] {
                let part = format!("{inner}.{attention}.{part}.weight");
                c.take(&format!("{key}.{part}"), &format!("{name}.{part}"))?;
            }
            let part = format!("{inner}.{attention}.to_out.0");
            c.pair(&format!("{key}.{part}"), &format!("{name}.{part}"))?;
        }
        for part in ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"] {
            let part = format!("{inner}.{part}");
            c.pair(&format!("{key}.{part}"), &format!("{name}.{part}"))?;
        }
    }
    Ok(depth)
}

/// What the levels say, in diffusers' words; the depth of each level's transformers.
fn describe(
    c: &Component<'_, '_>,
    config: &mut Value,
    down: &[Level],
    mid: Option<usize>,
    found: &Found,
) -> Result<Vec<Value>, CompileError> {
    let channels: Vec<u64> = down.iter().map(|level| level.channels).collect();
    let layers: Vec<Value> = down.iter().map(|level| level.depths.len().into()).collect();
    let types: Vec<&str> =
        down.iter().map(|level| block_type(level, ["DownBlock2D", "CrossAttnDownBlock2D"])).collect();
    let mut depths: Vec<Value> = down.iter().map(|level| depth_of(&level.depths)).collect();
    if let (Some(last), Some(mid)) = (down.last(), mid.filter(|depth| *depth > 0)) {
        // diffusers reads the middle's depth where it reads that of the last level's first transformer.
        match last.depths[0] {
            0 => depths[down.len() - 1] = mid.into(),
            depth if depth != mid => {
                let reason = format!("is {mid} layers deep, the last level {}", depths[down.len() - 1]);
                return Err(c.error("middle_block.1", &reason));
            }
            _ => {}
        }
    }
    // Levels without transformers follow where all others agree.
    let mut attending =
        down.iter().zip(&depths).filter(|(level, _)| level.depths[0] > 0).map(|(_, depth)| depth);
    if let Some(depth) = attending.next().cloned()
        && attending.all(|other| *other == depth)
        && mid.is_none_or(|mid| mid == 0 || depth == mid)
    {
        depths.fill(depth);
    }
    config["down_block_types"] = json!(types);
    config["mid_block_type"] = match mid {
        None => Value::Null,
        Some(0) => "UNetMidBlock2D".into(),
        Some(_) => "UNetMidBlock2DCrossAttn".into(),
    };
    config["layers_per_block"] = scalar_or_list(layers);
    config["transformer_layers_per_block"] = scalar_or_list(depths.clone());
    config["cross_attention_dim"] = found.context.into();
    config["use_linear_projection"] = found.is_linear.into();
    config["attention_head_dim"] = match found.is_linear {
        // "attention_head_dim" is the number of heads (https://github.com/huggingface/diffusers/issues/2011).
        false => 8.into(),
        true => {
            let heads = channels.iter().map(|&channels| {
                let reason = format!("of {channels} channels cannot attend with heads of 64");
                super::heads_of_64(channels).ok_or_else(|| c.error("input_blocks", &reason))
            });
            heads.collect::<Result<Vec<u64>, CompileError>>()?.into()
        }
    };
    config["block_out_channels"] = channels.into();
    Ok(depths)
}

fn block_type<'s>(level: &Level, [plain, attending]: [&'s str; 2]) -> &'s str {
    if level.depths.iter().any(|depth| *depth > 0) { attending } else { plain }
}

/// Layers of the transformers of a level, one number where they are equal; 1 where there are none.
fn depth_of(depths: &[usize]) -> Value {
    scalar_or_list(depths.iter().map(|&depth| depth.max(1).into()).collect())
}

fn scalar_or_list(values: Vec<Value>) -> Value {
    match values.split_first() {
        Some((first, rest)) if rest.iter().all(|value| value == first) => first.clone(),
        _ => Value::Array(values),
    }
}
