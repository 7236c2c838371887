//! The denoiser (diffusers `models/unets/unet_2d_condition.py`).

mod blocks;
mod config;
mod transformer;

use kiln_graph::{Graph, Tensor, Weights};

use crate::Sizes;
use crate::layers::{Conv2d, GroupNorm, Linear, Result, each};
use blocks::{DownBlock, MidBlock, UpBlock};
pub use config::UNet2DConditionConfig;

/// The UNet of Stable Diffusion.
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    conv_in: Conv2d,
    time_embedding: [Linear; 2],
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Looks up the weights.
    pub fn new(w: Weights<'_>, config: &UNet2DConditionConfig) -> Result<UNet2DConditionModel> {
        let first = config.block_out_channels[0];
        let temb = config.time_embed_dim;
        let time = w.child("time_embedding");
        Ok(UNet2DConditionModel {
            conv_in: Conv2d::new(w.child("conv_in"), [config.in_channels, first], config.conv_in_kernel)?,
            time_embedding: [
                Linear::new(time.child("linear_1"), [first, temb])?,
                Linear::new(time.child("linear_2"), [temb, temb])?,
            ],
            down_blocks: each(config.n_levels(), |i| {
                DownBlock::new(w.child("down_blocks").child(i), &config.down_block(i))
            })?,
            mid_block: match config.has_mid_block {
                true => Some(MidBlock::new(w.child("mid_block"), &config.mid_block())?),
                false => None,
            },
            up_blocks: each(config.n_levels(), |i| {
                UpBlock::new(w.child("up_blocks").child(i), &config.up_block(i))
            })?,
            conv_norm_out: GroupNorm::new(w.child("conv_norm_out"), first, config.norm())?,
            conv_out: Conv2d::new(w.child("conv_out"), [first, config.out_channels], config.conv_out_kernel)?,
            config: config.clone(),
        })
    }

    /// `sample` `[B, in, H, W]`, `timestep` `[1]` and `encoder_hidden_states` `[B, 77, cross]` to `out_sample`
    /// `[B, out, H, W]`. `positions` is the number of text positions.
    pub fn trace(&self, sizes: Sizes, positions: u64) -> Graph {
        let [b, h, w] = sizes.axes();
        let sample = Tensor::input("sample", [b.clone(), self.config.in_channels.into(), h, w]);
        let timestep = Tensor::input("timestep", [1]);
        let states = Tensor::input(
            "encoder_hidden_states",
            [b, positions.into(), self.config.cross_attention_dim.into()],
        );
        let out = self.forward(&sample, &timestep, &states);
        Graph {
            name: "unet".into(),
            inputs: vec![sample, timestep, states],
            outputs: vec![("out_sample".into(), out)],
        }
    }

    fn forward(&self, sample: &Tensor, timestep: &Tensor, states: &Tensor) -> Tensor {
        let temb = self.embed_time(timestep).silu();
        let sample = match self.config.center_input_sample {
            true => sample.affine(2.0, -1.0),
            false => sample.clone(),
        };
        let mut x = self.conv_in.forward(&sample);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.forward(&x, &temb, states, &mut skips).cut(&format!("down_blocks.{i}"));
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, &temb, states).cut("mid_block");
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.forward(&x, &temb, states, &mut skips).cut(&format!("up_blocks.{i}"));
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }

    /// Sinusoidal embedding (diffusers `models/embeddings.py`, `get_timestep_embedding`), then two linear layers.
    fn embed_time(&self, timestep: &Tensor) -> Tensor {
        let config = &self.config;
        let width = config.block_out_channels[0];
        let half = width / 2;
        let span = half as f32 - config.freq_shift as f32;
        let frequencies = (0..half).map(|i| ((-(10000f64.ln()) as f32 * i as f32) / span).exp()).collect();
        let angles = timestep.reshape(vec![1.into(), 1.into()]).mul(&Tensor::constant(frequencies, &[1, half]));
        let mut parts = match config.flip_sin_to_cos {
            true => vec![angles.cos(), angles.sin()],
            false => vec![angles.sin(), angles.cos()],
        };
        if !width.is_multiple_of(2) {
            parts.push(Tensor::constant(vec![0.0], &[1, 1]));
        }
        let [linear_1, linear_2] = &self.time_embedding;
        linear_2.forward(&linear_1.forward(&Tensor::concat(&parts, 1)).silu())
    }
}
