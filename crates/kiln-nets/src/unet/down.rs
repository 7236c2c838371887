//! What a UNet and a ControlNet have in common.

use kiln_graph::{Dim, Tensor, Weights};

use super::UnetPorts;
use super::blocks::{DownBlock, MidBlock};
use super::config::DownPathConfig;
use super::embedding::{Conditions, Embedding};
use crate::layers::{Conv2d, Result, each};

/// Embeddings, first convolution, the levels going down and the middle.
pub(super) struct DownPath {
    pub(super) embedding: Embedding,
    pub(super) conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
}

/// The inputs that a UNet and its ControlNets share.
pub(super) struct Inputs {
    pub(super) sample: Tensor,
    pub(super) conditions: Conditions,
    /// `[B, tokens, cross_attention_dim]`.
    pub(super) states: Tensor,
}

impl Inputs {
    pub(super) fn new(config: &DownPathConfig, ports: &UnetPorts) -> Inputs {
        let [b, h, w] = ports.sizes.axes();
        let rows = |name: &str, width: u64| Tensor::input(name, [b.clone(), width.into()]);
        let addition = config.embedding.addition.zip(ports.pooled).and_then(|(addition, pooled)| {
            let n = addition.n_time_ids(pooled)?;
            Some([rows("text_embeds", pooled), rows("time_ids", n)])
        });
        let tokens = ports.tokens.map_or(Dim::from(kiln_graph::Symbol::TOKENS), Dim::from);
        Inputs {
            sample: Tensor::input("sample", [b.clone(), config.in_channels.into(), h, w]),
            conditions: Conditions {
                timestep: Tensor::input("timestep", [if ports.timestep_rows { b.clone() } else { 1.into() }]),
                timestep_cond: config.embedding.time_cond_proj_dim.map(|n| rows("timestep_cond", n)),
                addition,
            },
            states: Tensor::input(
                "encoder_hidden_states",
                [b.clone(), tokens, config.cross_attention_dim.into()],
            ),
        }
    }

    pub(super) fn list(&self) -> Vec<Tensor> {
        let conditions = &self.conditions;
        let mut inputs = vec![self.sample.clone(), conditions.timestep.clone(), self.states.clone()];
        inputs.extend(conditions.timestep_cond.clone());
        inputs.extend(conditions.addition.iter().flatten().cloned());
        inputs
    }
}

impl DownPath {
    pub(super) fn new(w: Weights<'_>, config: &DownPathConfig) -> Result<DownPath> {
        let channels = [config.in_channels, config.block_out_channels[0]];
        Ok(DownPath {
            embedding: Embedding::new(w.clone(), &config.embedding)?,
            conv_in: Conv2d::new(w.child("conv_in"), channels, config.conv_in_kernel)?,
            down_blocks: each(config.n_levels(), |i| {
                DownBlock::new(w.child("down_blocks").child(i), &config.block(i))
            })?,
            mid_block: match config.has_mid_block {
                true => Some(MidBlock::new(w.child("mid_block"), &config.mid_block())?),
                false => None,
            },
        })
    }

    /// From what the first convolution made to what the middle makes, and the skip connections on the way.
    pub(super) fn forward(&self, x: &Tensor, temb: &Tensor, states: &Tensor) -> (Tensor, Vec<Tensor>) {
        let mut x = x.clone();
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.forward(&x, temb, states, &mut skips).cut(&format!("down_blocks.{i}"));
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, temb, states).cut("mid_block");
        }
        (x, skips)
    }
}
