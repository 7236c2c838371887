//! The variational autoencoder (diffusers `models/autoencoders/autoencoder_kl.py` and `vae.py`).

use kiln_graph::{Attention, Dim, Graph, Tensor, Weights};
use serde_json::Value;

use crate::Sizes;
use crate::config::ConfigReader;
use crate::layers::{Conv2d, GroupNorm, Linear, Norm, ResnetBlock, Result, each, from_sequence, to_sequence};

/// `vae/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderKlConfig {
    in_channels: u64,
    out_channels: u64,
    block_out_channels: Vec<u64>,
    layers_per_block: usize,
    latent_channels: u64,
    norm_num_groups: u64,
    mid_block_add_attention: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    scaling_factor: f64,
    force_upcast: bool,
}

impl AutoencoderKlConfig {
    /// Reads and checks a parsed `config.json`; `origin` names the file in errors.
    pub fn from_json(origin: &str, value: &Value) -> Result<AutoencoderKlConfig> {
        let mut r = ConfigReader::new(origin, value, "AutoencoderKL")?;
        let config = AutoencoderKlConfig {
            in_channels: r.size("in_channels", Some(3))?,
            out_channels: r.size("out_channels", Some(3))?,
            block_out_channels: r.sizes("block_out_channels")?,
            layers_per_block: r.size("layers_per_block", Some(1))? as usize,
            latent_channels: r.size("latent_channels", Some(4))?,
            norm_num_groups: r.size("norm_num_groups", Some(32))?,
            mid_block_add_attention: r.bool("mid_block_add_attention", true)?,
            use_quant_conv: r.bool("use_quant_conv", true)?,
            use_post_quant_conv: r.bool("use_post_quant_conv", true)?,
            scaling_factor: r.number("scaling_factor", 0.18215)?,
            force_upcast: r.bool("force_upcast", true)?,
        };
        for (key, class) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = r.names(key)?;
            if let Some(found) = types.iter().find(|name| **name != class) {
                return Err(r.error(key, format!("'{found}' is not supported; supported: {class}")));
            }
            if types.len() != config.block_out_channels.len() {
                let n = config.block_out_channels.len();
                return Err(r.error(key, format!("has {} entries for {n} block_out_channels", types.len())));
            }
        }
        r.only("act_fn", "silu")?;
        r.only("shift_factor", 0)?;
        r.only("latents_mean", Value::Null)?;
        r.only("latents_std", Value::Null)?;
        r.ignore(&["sample_size"]);
        if config.layers_per_block > 64 {
            return Err(r.error("layers_per_block", format!("{} is over 64", config.layers_per_block)));
        }
        if let Some(c) = config.block_out_channels.iter().find(|c| !c.is_multiple_of(config.norm_num_groups)) {
            let reason = format!("{c} is not a multiple of norm_num_groups {}", config.norm_num_groups);
            return Err(r.error("block_out_channels", reason));
        }
        if config.scaling_factor == 0.0 {
            return Err(r.error("scaling_factor", "is 0"));
        }
        r.finish()?;
        Ok(config)
    }

    /// Pixels per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> u64 {
        self.latent_channels
    }

    /// Factor from the encoder's latents to the UNet's.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// Whether a pipeline in half precision is to run it in f32.
    pub fn force_upcast(&self) -> bool {
        self.force_upcast
    }

    /// Channels of the pictures that it makes.
    pub fn out_channels(&self) -> u64 {
        self.out_channels
    }

    fn norm(&self) -> Norm {
        Norm { groups: self.norm_num_groups, epsilon: 1e-6 }
    }
}

/// Encoder and decoder between pictures and latents.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// Looks up the weights; attention projections are named `to_q`, `to_k`, `to_v`, `to_out.0`.
    pub fn new(w: Weights<'_>, config: &AutoencoderKlConfig) -> Result<AutoencoderKl> {
        let latent = config.latent_channels;
        let conv = |name, on, channels| match on {
            true => Conv2d::new(w.child(name), [channels; 2], 1).map(Some),
            false => Ok(None),
        };
        Ok(AutoencoderKl {
            encoder: Encoder::new(w.child("encoder"), config)?,
            quant_conv: conv("quant_conv", config.use_quant_conv, 2 * latent)?,
            post_quant_conv: conv("post_quant_conv", config.use_post_quant_conv, latent)?,
            decoder: Decoder::new(w.child("decoder"), config)?,
            config: config.clone(),
        })
    }

    /// `sample` `[B, 3, H, W]` in `[-1, 1]` to the posterior's `mean` and `logvar`, `[B, latent, H / f, W / f]` each.
    ///
    /// `logvar` is not yet clamped to `[-30, 20]`.
    pub fn trace_encoder(&self, sizes: Sizes) -> Graph {
        let [b, h, w] = sizes.axes();
        let factor = Dim::from(self.config.scale_factor());
        let sample =
            Tensor::input("sample", [b, self.config.in_channels.into(), h.times(&factor), w.times(&factor)]);
        let mut moments = self.encoder.forward(&sample);
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments);
        }
        let latent = self.config.latent_channels;
        Graph {
            name: "vae_encoder".into(),
            inputs: vec![sample],
            outputs: vec![
                ("mean".into(), moments.slice(1, 0, latent)),
                ("logvar".into(), moments.slice(1, latent, 2 * latent)),
            ],
        }
    }

    /// `latents` `[B, latent, H / f, W / f]`, unscaled, to `sample` `[B, 3, H, W]` in about `[-1, 1]`.
    pub fn trace_decoder(&self, sizes: Sizes) -> Graph {
        let [b, h, w] = sizes.axes();
        let latents = Tensor::input("latents", [b, self.config.latent_channels.into(), h, w]);
        let x = match &self.post_quant_conv {
            Some(conv) => conv.forward(&latents),
            None => latents.clone(),
        };
        let sample = self.decoder.forward(&x);
        Graph { name: "vae_decoder".into(), inputs: vec![latents], outputs: vec![("sample".into(), sample)] }
    }
}

struct Encoder {
    conv_in: Conv2d,
    blocks: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    mid: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(w: Weights<'_>, config: &AutoencoderKlConfig) -> Result<Encoder> {
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        Ok(Encoder {
            conv_in: Conv2d::new(w.child("conv_in"), [config.in_channels, channels[0]], 3)?,
            blocks: each(channels.len(), |i| {
                let (w, out) = (w.child("down_blocks").child(i), channels[i]);
                let input = channels[i.saturating_sub(1)];
                let resnets = each(config.layers_per_block, |j| {
                    let input = if j == 0 { input } else { out };
                    ResnetBlock::new(w.child("resnets").child(j), [input, out], None, config.norm())
                })?;
                let downsampler = match i == last {
                    true => None,
                    false => {
                        let conv = Conv2d::new(w.child("downsamplers.0.conv"), [out; 2], 3)?;
                        Some(conv.strided([0, 0, 1, 1]))
                    }
                };
                Ok((resnets, downsampler))
            })?,
            mid: MidBlock::new(w.child("mid_block"), channels[last], config)?,
            conv_norm_out: GroupNorm::new(w.child("conv_norm_out"), channels[last], config.norm())?,
            conv_out: Conv2d::new(w.child("conv_out"), [channels[last], 2 * config.latent_channels], 3)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(x);
        for (i, (resnets, downsampler)) in self.blocks.iter().enumerate() {
            for resnet in resnets {
                x = resnet.forward(&x, None);
            }
            if let Some(conv) = downsampler {
                x = conv.forward(&x);
            }
            x = x.cut(&format!("encoder.down_blocks.{i}"));
        }
        let x = self.mid.forward(&x).cut("encoder.mid_block");
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    blocks: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(w: Weights<'_>, config: &AutoencoderKlConfig) -> Result<Decoder> {
        let channels: Vec<u64> = config.block_out_channels.iter().rev().copied().collect();
        let last = channels.len() - 1;
        Ok(Decoder {
            conv_in: Conv2d::new(w.child("conv_in"), [config.latent_channels, channels[0]], 3)?,
            mid: MidBlock::new(w.child("mid_block"), channels[0], config)?,
            blocks: each(channels.len(), |i| {
                let (w, out) = (w.child("up_blocks").child(i), channels[i]);
                let input = channels[i.saturating_sub(1)];
                let resnets = each(config.layers_per_block + 1, |j| {
                    let input = if j == 0 { input } else { out };
                    ResnetBlock::new(w.child("resnets").child(j), [input, out], None, config.norm())
                })?;
                let upsampler = match i == last {
                    true => None,
                    false => Some(Conv2d::new(w.child("upsamplers.0.conv"), [out; 2], 3)?),
                };
                Ok((resnets, upsampler))
            })?,
            conv_norm_out: GroupNorm::new(w.child("conv_norm_out"), channels[last], config.norm())?,
            conv_out: Conv2d::new(w.child("conv_out"), [channels[last], config.out_channels], 3)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.mid.forward(&self.conv_in.forward(x)).cut("decoder.mid_block");
        for (i, (resnets, upsampler)) in self.blocks.iter().enumerate() {
            for resnet in resnets {
                x = resnet.forward(&x, None);
            }
            if let Some(conv) = upsampler {
                let [_, _, h, w] = x.dims();
                x = conv.forward(&x.resize_nearest(&h.times(&2.into()), &w.times(&2.into())));
            }
            x = x.cut(&format!("decoder.up_blocks.{i}"));
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<SpatialAttention>,
}

impl MidBlock {
    fn new(w: Weights<'_>, channels: u64, config: &AutoencoderKlConfig) -> Result<MidBlock> {
        let resnet =
            |i: usize| ResnetBlock::new(w.child("resnets").child(i), [channels; 2], None, config.norm());
        Ok(MidBlock {
            resnets: [resnet(0)?, resnet(1)?],
            attention: match config.mid_block_add_attention {
                true => Some(SpatialAttention::new(w.child("attentions.0"), channels, config.norm())?),
                false => None,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.resnets[0].forward(x, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.resnets[1].forward(&x, None)
    }
}

/// Self-attention over all positions with a single head.
struct SpatialAttention {
    scope: String,
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    options: Attention,
}

impl SpatialAttention {
    fn new(w: Weights<'_>, channels: u64, norm: Norm) -> Result<SpatialAttention> {
        let linear = |name| Linear::new(w.child(name), [channels; 2]);
        let scale = (channels as f32).powf(-0.5);
        Ok(SpatialAttention {
            scope: w.scope().into(),
            group_norm: GroupNorm::new(w.child("group_norm"), channels, norm)?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
            options: Attention { heads: 1, scale, causal: false, upcast: false },
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let sequence = to_sequence(&self.group_norm.forward(x));
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|proj| proj.forward(&sequence));
        let attended = Tensor::attention(&q, &k, &v, self.options);
        x.add(&from_sequence(&self.to_out.forward(&attended), x)).cut(&self.scope)
    }
}
