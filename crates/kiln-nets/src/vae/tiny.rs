//! The distilled autoencoder TAESD (diffusers `models/autoencoders/autoencoder_tiny.py` and `vae.py`).

use kiln_graph::{Dim, Graph, Tensor, Weights};
use serde_json::Value;

use crate::Sizes;
use crate::config::ConfigReader;
use crate::layers::{Conv2d, Result, each};

/// `vae/config.json` of an `AutoencoderTiny`.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderTinyConfig {
    in_channels: u64,
    pub(super) out_channels: u64,
    pub(super) latent_channels: u64,
    pub(super) scaling_factor: f64,
    encoder: Vec<Stage>,
    decoder: Vec<Stage>,
    activation: Activation,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Stage {
    channels: u64,
    blocks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Relu,
    Silu,
    Gelu,
}

impl Activation {
    fn of(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu(),
        }
    }
}

impl AutoencoderTinyConfig {
    pub(super) fn from_json(origin: &str, value: &Value) -> Result<AutoencoderTinyConfig> {
        let mut r = ConfigReader::new(origin, value, "AutoencoderTiny")?;
        let config = AutoencoderTinyConfig {
            in_channels: r.size("in_channels", Some(3))?,
            out_channels: r.size("out_channels", Some(3))?,
            latent_channels: r.size("latent_channels", Some(4))?,
            scaling_factor: r.number("scaling_factor", 1.0)?,
            encoder: stages(&mut r, "encoder_block_out_channels", "num_encoder_blocks", [1, 3, 3, 3])?,
            decoder: stages(&mut r, "decoder_block_out_channels", "num_decoder_blocks", [3, 3, 3, 1])?,
            activation: r.choice(
                "act_fn",
                "relu",
                &[
                    ("relu", Activation::Relu),
                    ("silu", Activation::Silu),
                    ("swish", Activation::Silu),
                    ("gelu", Activation::Gelu),
                ],
            )?,
        };
        r.only("upsample_fn", "nearest")?;
        r.only("upsampling_scaling_factor", 2)?;
        r.only("shift_factor", 0)?;
        r.ignore(&["latent_magnitude", "latent_shift", "force_upcast", "block_out_channels"]);
        for (key, stages) in
            [("encoder_block_out_channels", &config.encoder), ("decoder_block_out_channels", &config.decoder)]
        {
            if stages.iter().any(|stage| stage.channels != stages[0].channels) {
                return Err(r.error(key, "has different numbers of channels, which its layers cannot join"));
            }
        }
        if config.encoder.len() != config.decoder.len() {
            let reason = format!("has {} entries, the encoder {}", config.decoder.len(), config.encoder.len());
            return Err(r.error("decoder_block_out_channels", reason));
        }
        if config.scaling_factor == 0.0 {
            return Err(r.error("scaling_factor", "is 0"));
        }
        r.finish()?;
        Ok(config)
    }

    pub(super) fn scale_factor(&self) -> u64 {
        1 << (self.decoder.len() - 1)
    }
}

fn stages(
    r: &mut ConfigReader<'_>,
    channels: &'static str,
    blocks: &'static str,
    default: [u64; 4],
) -> Result<Vec<Stage>> {
    let channels = if r.has(channels) { r.sizes(channels)? } else { vec![64; 4] };
    let counts = if r.has(blocks) { r.counts(blocks)? } else { default.to_vec() };
    if counts.len() != channels.len() {
        return Err(r.error(blocks, format!("has {} entries for {} stages", counts.len(), channels.len())));
    }
    match counts.iter().find(|n| **n > 64) {
        Some(n) => Err(r.error(blocks, format!("{n} is over 64"))),
        None => {
            let stage = |(channels, blocks)| Stage { channels, blocks: blocks as usize };
            Ok(channels.into_iter().zip(counts).map(stage).collect())
        }
    }
}

/// Encoder and decoder between pictures and latents, without a posterior.
pub struct AutoencoderTiny {
    config: AutoencoderTinyConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
}

enum Layer {
    Conv(Conv2d),
    Activation,
    Block(Block),
    Upsample,
}

impl AutoencoderTiny {
    /// Looks up the weights.
    pub fn new(w: Weights<'_>, config: &AutoencoderTinyConfig) -> Result<AutoencoderTiny> {
        Ok(AutoencoderTiny {
            encoder: encoder(w.child("encoder.layers"), config)?,
            decoder: decoder(w.child("decoder.layers"), config)?,
            config: config.clone(),
        })
    }

    pub(super) fn trace_encoder(&self, sizes: Sizes) -> Graph {
        let [b, h, w] = sizes.axes();
        let factor = Dim::from(self.config.scale_factor());
        let sample =
            Tensor::input("sample", [b, self.config.in_channels.into(), h.times(&factor), w.times(&factor)]);
        let latents = self.forward(&self.encoder, &sample.affine(1.0, 1.0).divided_by(2.0));
        Graph { name: "vae_encoder".into(), inputs: vec![sample], outputs: vec![("mean".into(), latents)] }
    }

    pub(super) fn trace_decoder(&self, sizes: Sizes) -> Graph {
        let [b, h, w] = sizes.axes();
        let latents = Tensor::input("latents", [b, self.config.latent_channels.into(), h, w]);
        let clamped = latents.divided_by(3.0).tanh().affine(3.0, 0.0);
        let sample = self.forward(&self.decoder, &clamped).affine(2.0, -1.0);
        Graph { name: "vae_decoder".into(), inputs: vec![latents], outputs: vec![("sample".into(), sample)] }
    }

    fn forward(&self, layers: &[Layer], x: &Tensor) -> Tensor {
        layers.iter().fold(x.clone(), |x, layer| match layer {
            Layer::Conv(conv) => conv.forward(&x),
            Layer::Activation => self.config.activation.of(&x),
            Layer::Block(block) => block.forward(&x, self.config.activation),
            Layer::Upsample => {
                let [_, _, h, w] = x.dims();
                x.resize_nearest(&h.times(&2.into()), &w.times(&2.into()))
            }
        })
    }
}

fn encoder(w: Weights<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let channels = config.encoder[0].channels;
    let mut layers = Vec::new();
    for (i, stage) in config.encoder.iter().enumerate() {
        let conv = w.child(layers.len());
        layers.push(Layer::Conv(match i {
            0 => Conv2d::new(conv, [config.in_channels, channels], 3)?,
            _ => Conv2d::without_bias(conv, [channels; 2], 3)?.strided([1; 4]),
        }));
        for _ in 0..stage.blocks {
            layers.push(Layer::Block(Block::new(w.child(layers.len()), channels)?));
        }
    }
    layers.push(Layer::Conv(Conv2d::new(w.child(layers.len()), [channels, config.latent_channels], 3)?));
    Ok(layers)
}

fn decoder(w: Weights<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let channels = config.decoder[0].channels;
    let first = Conv2d::new(w.child(0), [config.latent_channels, channels], 3)?;
    let mut layers = vec![Layer::Conv(first), Layer::Activation];
    for (i, stage) in config.decoder.iter().enumerate() {
        for _ in 0..stage.blocks {
            layers.push(Layer::Block(Block::new(w.child(layers.len()), channels)?));
        }
        if i + 1 == config.decoder.len() {
            layers.push(Layer::Conv(Conv2d::new(w.child(layers.len()), [channels, config.out_channels], 3)?));
        } else {
            layers.push(Layer::Upsample);
            layers.push(Layer::Conv(Conv2d::without_bias(w.child(layers.len()), [channels; 2], 3)?));
        }
    }
    Ok(layers)
}

/// `AutoencoderTinyBlock`.
struct Block {
    convs: Vec<Conv2d>,
}

impl Block {
    fn new(w: Weights<'_>, channels: u64) -> Result<Block> {
        Ok(Block { convs: each(3, |i| Conv2d::new(w.child("conv").child(2 * i), [channels; 2], 3))? })
    }

    fn forward(&self, x: &Tensor, activation: Activation) -> Tensor {
        let h = activation.of(&self.convs[0].forward(x));
        let h = activation.of(&self.convs[1].forward(&h));
        self.convs[2].forward(&h).add(x).relu()
    }
}
