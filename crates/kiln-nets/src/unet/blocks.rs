//! Levels of the UNet (diffusers `models/unets/unet_2d_blocks.py`).

use kiln_graph::{Tensor, Weights};

use super::config::BlockConfig;
use super::transformer::Transformer2D;
use crate::layers::{Conv2d, ResnetBlock, Result, each};

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    pub(super) fn new(w: Weights<'_>, config: &BlockConfig) -> Result<DownBlock> {
        let channels = |i| [if i == 0 { config.inputs } else { config.outputs }, config.outputs];
        Ok(DownBlock {
            layers: each(config.layers, |i| Layer::new(&w, i, channels(i), config))?,
            downsampler: match config.resamples {
                true => {
                    let conv = Conv2d::new(w.child("downsamplers.0.conv"), [config.outputs; 2], 3)?;
                    Some(conv.strided([1; 4]))
                }
                false => None,
            },
        })
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        temb: &Tensor,
        states: &Tensor,
        skips: &mut Vec<Tensor>,
    ) -> Tensor {
        let mut x = x.clone();
        for layer in &self.layers {
            x = layer.forward(&x, temb, states);
            skips.push(x.clone());
        }
        if let Some(conv) = &self.downsampler {
            x = conv.forward(&x);
            skips.push(x.clone());
        }
        x
    }
}

/// `UNetMidBlock2DCrossAttn` and, without attention and what follows it, `UNetMidBlock2D`.
pub(super) struct MidBlock {
    first: Layer,
    last: Option<ResnetBlock>,
}

impl MidBlock {
    pub(super) fn new(w: Weights<'_>, config: &BlockConfig) -> Result<MidBlock> {
        let channels = [config.inputs, config.outputs];
        let last = || ResnetBlock::new(w.child("resnets.1"), channels, Some(config.temb), config.norm);
        Ok(MidBlock {
            first: Layer::new(&w, 0, channels, config)?,
            last: (!config.transformers.is_empty()).then(last).transpose()?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, temb: &Tensor, states: &Tensor) -> Tensor {
        let x = self.first.forward(x, temb, states);
        match &self.last {
            Some(last) => last.forward(&x, Some(temb)),
            None => x,
        }
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    pub(super) fn new(w: Weights<'_>, config: &BlockConfig) -> Result<UpBlock> {
        let last = config.layers - 1;
        let channels = |i| {
            let x = if i == 0 { config.inputs } else { config.outputs };
            let skip = if i == last { config.skip } else { config.outputs };
            [x + skip, config.outputs]
        };
        Ok(UpBlock {
            layers: each(config.layers, |i| Layer::new(&w, i, channels(i), config))?,
            upsampler: match config.resamples {
                true => Some(Conv2d::new(w.child("upsamplers.0.conv"), [config.outputs; 2], 3)?),
                false => None,
            },
        })
    }

    /// Upsamples to the size of the next skip connection, which need not be twice the size.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        temb: &Tensor,
        states: &Tensor,
        skips: &mut Vec<Tensor>,
    ) -> Tensor {
        let mut x = x.clone();
        for layer in &self.layers {
            let skip = skips.pop().expect("one skip connection per layer going down");
            x = layer.forward(&Tensor::concat(&[x, skip], 1), temb, states);
        }
        if let (Some(conv), Some(next)) = (&self.upsampler, skips.last()) {
            let [_, _, h, w] = next.dims();
            x = conv.forward(&x.resize_nearest(&h, &w));
        }
        x
    }
}

struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2D>,
}

impl Layer {
    fn new(w: &Weights<'_>, i: usize, channels: [u64; 2], config: &BlockConfig) -> Result<Layer> {
        let resnet = w.child("resnets").child(i);
        Ok(Layer {
            resnet: ResnetBlock::new(resnet, channels, Some(config.temb), config.norm)?,
            attention: config
                .transformers
                .get(i)
                .map(|config| Transformer2D::new(w.child("attentions").child(i), *config))
                .transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, temb: &Tensor, states: &Tensor) -> Tensor {
        let x = self.resnet.forward(x, Some(temb));
        match &self.attention {
            Some(attention) => attention.forward(&x, states),
            None => x,
        }
    }
}
