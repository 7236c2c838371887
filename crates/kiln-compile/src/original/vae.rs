//! The autoencoder: `first_stage_model.*` (diffusers `convert_ldm_vae_checkpoint`).

use serde_json::json;

use super::keys::{Component, Keys, Piece};
use crate::CompileError;

/// The autoencoder under `prefix`; its configuration says nothing of the latents' scale.
pub(super) fn read(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    let mut c = Component::new(keys, prefix);
    let [_, in_channels, _, _] = c.shape("encoder.conv_in.weight")?;
    let [_, latent_channels, _, _] = c.shape("decoder.conv_in.weight")?;
    let [out_channels, ..] = c.shape::<4>("decoder.conv_out.weight")?;
    let n_levels = c.count(|level| format!("encoder.down.{level}.block.0.conv1.weight"));
    let n_layers = c.count(|layer| format!("encoder.down.0.block.{layer}.conv1.weight"));
    if n_layers == 0 {
        return Err(c.error("encoder.down.0.block.0.conv1.weight", "is missing"));
    }
    let channels = (0..n_levels)
        .map(|level| Ok(c.shape::<4>(&format!("encoder.down.{level}.block.0.conv1.weight"))?[0]))
        .collect::<Result<Vec<u64>, CompileError>>()?;

    for half in ["encoder", "decoder"] {
        c.pair(&format!("{half}.conv_in"), &format!("{half}.conv_in"))?;
        mid_block(&mut c, half)?;
        c.pair(&format!("{half}.norm_out"), &format!("{half}.conv_norm_out"))?;
        c.pair(&format!("{half}.conv_out"), &format!("{half}.conv_out"))?;
    }
    for level in 0..n_levels {
        let (down, up) = (format!("encoder.down.{level}"), format!("decoder.up.{level}"));
        let down_name = format!("encoder.down_blocks.{level}");
        let up_name = format!("decoder.up_blocks.{}", n_levels - 1 - level);
        for layer in 0..n_layers {
            resnet(&mut c, &format!("{down}.block.{layer}"), &format!("{down_name}.resnets.{layer}"))?;
        }
        for layer in 0..=n_layers {
            resnet(&mut c, &format!("{up}.block.{layer}"), &format!("{up_name}.resnets.{layer}"))?;
        }
        if level + 1 < n_levels {
            c.pair(&format!("{down}.downsample.conv"), &format!("{down_name}.downsamplers.0.conv"))?;
        }
        if level > 0 {
            c.pair(&format!("{up}.upsample.conv"), &format!("{up_name}.upsamplers.0.conv"))?;
        }
    }
    let quant = ["quant_conv", "post_quant_conv"].map(|conv| c.has_under(&format!("{conv}.")));
    for (conv, _) in ["quant_conv", "post_quant_conv"].into_iter().zip(quant).filter(|(_, on)| *on) {
        c.pair(conv, conv)?;
    }
    let mut config = json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; n_levels],
        "force_upcast": true,
        "in_channels": in_channels,
        "latent_channels": latent_channels,
        "layers_per_block": n_layers,
        "norm_num_groups": 32,
        "out_channels": out_channels,
        "up_block_types": vec!["UpDecoderBlock2D"; n_levels],
    });
    for (key, on) in ["use_quant_conv", "use_post_quant_conv"].into_iter().zip(quant) {
        if !on {
            config[key] = false.into();
        }
    }
    Ok(c.finish(config))
}

fn mid_block(c: &mut Component<'_, '_>, half: &str) -> Result<(), CompileError> {
    for i in 0..2 {
        resnet(c, &format!("{half}.mid.block_{}", i + 1), &format!("{half}.mid_block.resnets.{i}"))?;
    }
    let (key, name) = (format!("{half}.mid.attn_1"), format!("{half}.mid_block.attentions.0"));
    // Trainers that make one file of a folder leave diffusers' names.
    let found = |c: &Component<'_, '_>, old: &str, new: &str| {
        let new = format!("{key}.{new}");
        if c.has(&format!("{new}.weight")) { new } else { format!("{key}.{old}") }
    };
    let norm = found(c, "norm", "group_norm");
    c.pair(&norm, &format!("{name}.group_norm"))?;
    for (old, new) in [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")] {
        let key = found(c, old, new);
        c.pair_as_linear(&key, &format!("{name}.{new}"))?;
    }
    Ok(())
}

fn resnet(c: &mut Component<'_, '_>, key: &str, name: &str) -> Result<(), CompileError> {
    for part in ["norm1", "conv1", "norm2", "conv2"] {
        c.pair(&format!("{key}.{part}"), &format!("{name}.{part}"))?;
    }
    match c.has(&format!("{key}.nin_shortcut.weight")) {
        true => c.pair(&format!("{key}.nin_shortcut"), &format!("{name}.conv_shortcut")),
        false => Ok(()),
    }
}
