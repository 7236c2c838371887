//! Text encoders: CLIP in transformers' layout and in OpenCLIP's (diffusers `convert_open_clip_checkpoint`).

use serde_json::{Value, json};

use super::keys::{Component, Keys, Piece};
use crate::CompileError;

/// Layers that diffusers keeps of Stable Diffusion 2.x's OpenCLIP: it is conditioned on the last but one.
const SD2_LAYERS: usize = 23;

/// What Stable Diffusion 2.x's published configuration says of the projection that it does not have.
const SD2_PROJECTION: u64 = 512;

/// Whether an encoder ends in a projection of its pooled state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Projection {
    Kept,
    Dropped,
}

struct Shape {
    vocabulary: u64,
    positions: u64,
    width: u64,
    inner: u64,
    n_layers: usize,
}

/// CLIP under transformers' keys, with or without `text_model.`; only OpenCLIP's encoders keep their projection.
pub(super) fn clip(keys: &mut Keys<'_>, prefix: &str, projection: Projection) -> Result<Piece, CompileError> {
    let inner = if keys.first_with(&format!("{prefix}text_model.")).is_some() { "text_model." } else { "" };
    let mut c = Component::new(keys, prefix);
    let (tokens, positions) = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight");
    let [vocabulary, width] = c.shape(&format!("{inner}{tokens}"))?;
    let [n_positions, _] = c.shape(&format!("{inner}{positions}"))?;
    let [inner_width, _] = c.shape(&format!("{inner}encoder.layers.0.mlp.fc1.weight"))?;
    let n_layers = c.count(|i| format!("{inner}encoder.layers.{i}.mlp.fc1.weight"));
    for name in [tokens, positions] {
        c.take(&format!("{inner}{name}"), name)?;
    }
    for layer in 0..n_layers {
        for part in ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"] {
            let name = format!("encoder.layers.{layer}.{part}");
            c.pair(&format!("{inner}{name}"), &name)?;
        }
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            let name = format!("encoder.layers.{layer}.self_attn.{part}");
            c.pair(&format!("{inner}{name}"), &name)?;
        }
    }
    c.pair(&format!("{inner}final_layer_norm"), "final_layer_norm")?;
    let (class, activation, projected) = match projection {
        Projection::Kept => {
            let [projected, _] = c.shape("text_projection.weight")?;
            c.take("text_projection.weight", "text_projection.weight")?;
            ("CLIPTextModelWithProjection", "gelu", projected)
        }
        Projection::Dropped => ("CLIPTextModel", "quick_gelu", width),
    };
    let shape = Shape { vocabulary, positions: n_positions, width, inner: inner_width, n_layers };
    let config = config(&c, &format!("{inner}{tokens}"), &shape, class, activation, projected)?;
    Ok(c.finish(config))
}

/// OpenAI's CLIP.
pub(super) fn first_clip(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    clip(keys, prefix, Projection::Dropped)
}

/// Stable Diffusion 2.x's OpenCLIP.
pub(super) fn first_open_clip(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    open_clip(keys, prefix, Projection::Dropped)
}

/// Stable Diffusion XL's OpenCLIP.
pub(super) fn second_open_clip(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    open_clip(keys, prefix, Projection::Kept)
}

/// OpenCLIP; without its projection it is Stable Diffusion 2.x's and loses the layers that nothing reads.
pub(super) fn open_clip(
    keys: &mut Keys<'_>,
    prefix: &str,
    projection: Projection,
) -> Result<Piece, CompileError> {
    let mut c = Component::new(keys, prefix);
    let [vocabulary, width] = c.shape("token_embedding.weight")?;
    let [positions, _] = c.shape("positional_embedding")?;
    let [inner, _] = c.shape("transformer.resblocks.0.mlp.c_fc.weight")?;
    let n_found = c.count(|i| format!("transformer.resblocks.{i}.mlp.c_fc.weight"));
    let n_layers = match projection {
        Projection::Kept => n_found,
        Projection::Dropped => n_found.min(SD2_LAYERS),
    };
    c.take("token_embedding.weight", "embeddings.token_embedding.weight")?;
    c.take("positional_embedding", "embeddings.position_embedding.weight")?;
    for layer in 0..n_layers {
        let (key, name) = (format!("transformer.resblocks.{layer}"), format!("encoder.layers.{layer}"));
        for (old, new) in [
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
            ("attn.out_proj", "self_attn.out_proj"),
        ] {
            c.pair(&format!("{key}.{old}"), &format!("{name}.{new}"))?;
        }
        for kind in ["weight", "bias"] {
            let names = ["q", "k", "v"].map(|part| format!("{name}.self_attn.{part}_proj.{kind}"));
            c.split_rows(&format!("{key}.attn.in_proj_{kind}"), &names)?;
        }
    }
    c.pair("ln_final", "final_layer_norm")?;
    let shape = Shape { vocabulary, positions, width, inner, n_layers };
    let (class, projected) = match projection {
        Projection::Kept => {
            let [_, projected] = c.shape("text_projection")?;
            c.take_transposed("text_projection", "text_projection.weight")?;
            ("CLIPTextModelWithProjection", projected)
        }
        Projection::Dropped => ("CLIPTextModel", SD2_PROJECTION),
    };
    let config = config(&c, "token_embedding.weight", &shape, class, "gelu", projected)?;
    let piece = c.finish(config);
    for layer in n_layers..n_found {
        keys.discard(&format!("{prefix}transformer.resblocks.{layer}."));
    }
    Ok(piece)
}

/// `config.json` as transformers has it; heads are 64 wide in all of CLIP's text encoders.
fn config(
    c: &Component<'_, '_>,
    key: &str,
    shape: &Shape,
    class: &str,
    activation: &str,
    projection: u64,
) -> Result<Value, CompileError> {
    let Shape { vocabulary, positions, width, inner, n_layers } = shape;
    let heads = super::heads_of_64(*width)
        .ok_or_else(|| c.error(key, &format!("is {width} wide, which heads of 64 do not divide")))?;
    Ok(json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": n_layers,
        "pad_token_id": 1,
        "projection_dim": projection,
        "vocab_size": vocabulary,
    }))
}
