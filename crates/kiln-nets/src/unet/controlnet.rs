//! ControlNet (diffusers `models/controlnets/controlnet.py`).

use kiln_graph::{Dim, Graph, Tensor, Weights};

use super::UnetPorts;
use super::config::ControlNetConfig;
use super::down::{DownPath, Inputs};
use crate::layers::{Conv2d, Result, each};

/// A copy of the UNet's way down that reads a picture and steers a UNet by residuals.
pub struct ControlNetModel {
    config: ControlNetConfig,
    down: DownPath,
    cond_embedding: CondEmbedding,
    down_convs: Vec<Conv2d>,
    mid_conv: Conv2d,
}

impl ControlNetModel {
    /// Looks up the weights.
    pub fn new(w: Weights<'_>, config: &ControlNetConfig) -> Result<ControlNetModel> {
        let down = &config.down;
        let residuals = residual_channels(config);
        let last = down.block_out_channels[down.n_levels() - 1];
        Ok(ControlNetModel {
            down: DownPath::new(w.clone(), down)?,
            cond_embedding: CondEmbedding::new(w.child("controlnet_cond_embedding"), config)?,
            down_convs: each(residuals.len(), |i| {
                Conv2d::new(w.child("controlnet_down_blocks").child(i), [residuals[i]; 2], 1)
            })?,
            mid_conv: Conv2d::new(w.child("controlnet_mid_block"), [last; 2], 1)?,
            config: config.clone(),
        })
    }

    /// What a UNet reads, `controlnet_cond` `[B, 3, H, W]` in `[0, 1]` and in pixels, and `conditioning_scale` `[1]`, to
    /// `down_block_residual.<i>` and `mid_block_residual`.
    pub fn trace(&self, ports: &UnetPorts) -> Graph {
        let inputs = Inputs::new(&self.config.down, ports);
        let [b, h, w] = ports.sizes.axes();
        let factor = Dim::from(self.config.scale_factor());
        let cond = [b, self.config.conditioning_channels.into(), h.times(&factor), w.times(&factor)];
        let cond = Tensor::input("controlnet_cond", cond);
        let scale = Tensor::input("conditioning_scale", [1]);

        let temb = self.down.embedding.forward(&inputs.conditions).silu();
        let picture = match self.config.reads_bgr {
            true => Tensor::concat(&[2, 1, 0].map(|c| cond.slice(1, c, c + 1)), 1),
            false => cond.clone(),
        };
        let x = self.down.conv_in.forward(&inputs.sample).add(&self.cond_embedding.forward(&picture));
        let (x, skips) = self.down.forward(&x, &temb, &inputs.states);
        let residuals = self
            .down_convs
            .iter()
            .zip(&skips)
            .enumerate()
            .map(|(i, (conv, skip))| (format!("down_block_residual.{i}"), conv.forward(skip).mul(&scale)));
        let mut outputs: Vec<(String, Tensor)> = residuals.collect();
        outputs.push(("mid_block_residual".into(), self.mid_conv.forward(&x).mul(&scale)));
        let mut ports_read = inputs.list();
        ports_read.extend([cond, scale]);
        Graph { name: "controlnet".into(), inputs: ports_read, outputs }
    }
}

/// Channels of each skip connection.
fn residual_channels(config: &ControlNetConfig) -> Vec<u64> {
    let down = &config.down;
    let mut channels = vec![down.block_out_channels[0]];
    for level in 0..down.n_levels() {
        let block = down.block(level);
        let n = block.layers + usize::from(block.resamples);
        channels.extend(std::iter::repeat_n(block.outputs, n));
    }
    channels
}

/// `ControlNetConditioningEmbedding`: from pixels to the size of the latents.
struct CondEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl CondEmbedding {
    fn new(w: Weights<'_>, config: &ControlNetConfig) -> Result<CondEmbedding> {
        let channels = &config.conditioning_embedding;
        let last = channels[channels.len() - 1];
        Ok(CondEmbedding {
            conv_in: Conv2d::new(w.child("conv_in"), [config.conditioning_channels, channels[0]], 3)?,
            blocks: each(2 * (channels.len() - 1), |i| {
                let (input, strides) = (channels[i / 2], i % 2 == 1);
                let output = if strides { channels[i / 2 + 1] } else { input };
                let conv = Conv2d::new(w.child("blocks").child(i), [input, output], 3)?;
                Ok(if strides { conv.strided([1; 4]) } else { conv })
            })?,
            conv_out: Conv2d::new(w.child("conv_out"), [last, config.down.block_out_channels[0]], 3)?,
        })
    }

    fn forward(&self, picture: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(picture).silu();
        for conv in &self.blocks {
            x = conv.forward(&x).silu();
        }
        self.conv_out.forward(&x)
    }
}
