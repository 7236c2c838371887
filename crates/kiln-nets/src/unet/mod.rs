//! The denoiser (diffusers `models/unets/unet_2d_condition.py`).

mod blocks;
mod config;
mod controlnet;
mod depths;
mod down;
mod embedding;
mod transformer;

use kiln_graph::{Graph, Tensor, Weights};

use crate::Sizes;
use crate::layers::{Conv2d, GroupNorm, Result, each};
use blocks::UpBlock;
pub use config::{ControlNetConfig, UNet2DConditionConfig};
pub use controlnet::ControlNetModel;
use down::{DownPath, Inputs};

/// The UNet of Stable Diffusion.
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    down: DownPath,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// What a traced UNet or ControlNet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnetPorts {
    /// Batch, height and width of the latents.
    pub sizes: Sizes,
    /// Number of text positions; open unless it is given.
    pub tokens: Option<u64>,
    /// Width of the pooled text, for networks that read it.
    pub pooled: Option<u64>,
    /// Whether the UNet adds the residuals of a ControlNet.
    pub controlled: bool,
    /// Whether each row has a timestep of its own; else one serves all, as in diffusers.
    pub timestep_rows: bool,
}

impl UNet2DConditionModel {
    /// Looks up the weights.
    pub fn new(w: Weights<'_>, config: &UNet2DConditionConfig) -> Result<UNet2DConditionModel> {
        let down = &config.down;
        let first = down.block_out_channels[0];
        Ok(UNet2DConditionModel {
            down: DownPath::new(w.clone(), down)?,
            up_blocks: each(down.n_levels(), |i| {
                UpBlock::new(w.child("up_blocks").child(i), &config.up_block(i))
            })?,
            conv_norm_out: GroupNorm::new(w.child("conv_norm_out"), first, down.norm())?,
            conv_out: Conv2d::new(w.child("conv_out"), [first, config.out_channels], config.conv_out_kernel)?,
            config: config.clone(),
        })
    }

    /// `sample` `[B, in, H, W]`, `timestep` `[1]` or `[B]` and `encoder_hidden_states` `[B, tokens, cross]` to `out_sample`
    /// `[B, out, H, W]`.
    ///
    /// Where the network has them, it also reads `timestep_cond` `[B, n]`, `text_embeds` `[B, pooled]` and `time_ids`
    /// `[B, n]`; and, if it is to be controlled, `down_block_residual.<i>` and `mid_block_residual`.
    pub fn trace(&self, ports: &UnetPorts) -> Graph {
        let inputs = Inputs::new(&self.config.down, ports);
        let mut ports_read = inputs.list();
        let sample = match self.config.center_input_sample {
            true => inputs.sample.affine(2.0, -1.0),
            false => inputs.sample.clone(),
        };
        let temb = self.down.embedding.forward(&inputs.conditions).silu();
        let (mut x, mut skips) = self.down.forward(&self.down.conv_in.forward(&sample), &temb, &inputs.states);
        if ports.controlled {
            let mut residual = |name: &str, like: &Tensor| {
                let input = Tensor::input(name, like.shape().iter().cloned());
                ports_read.push(input.clone());
                like.add(&input)
            };
            for (i, skip) in skips.iter_mut().enumerate() {
                *skip = residual(&format!("down_block_residual.{i}"), skip);
            }
            x = residual("mid_block_residual", &x);
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.forward(&x, &temb, &inputs.states, &mut skips).cut(&format!("up_blocks.{i}"));
        }
        let out = self.conv_out.forward(&self.conv_norm_out.forward(&x).silu());
        let name = if ports.controlled { "unet_controlled" } else { "unet" };
        Graph { name: name.into(), inputs: ports_read, outputs: vec![("out_sample".into(), out)] }
    }
}
