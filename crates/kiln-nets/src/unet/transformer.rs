//! Spatial transformer (diffusers `models/transformers/transformer_2d.py` and `models/attention.py`).

use kiln_graph::{Attention, Tensor, Weights};

use super::config::TransformerConfig;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Norm, Result, each, from_sequence, to_sequence};

/// `Transformer2DModel` over continuous input.
pub(super) struct Transformer2D {
    scope: String,
    norm: GroupNorm,
    projection: Projection,
    blocks: Vec<BasicTransformerBlock>,
}

/// SD 1.x projects pictures by a 1x1 convolution, SD 2.x sequences by a linear layer; the result is the same.
enum Projection {
    Conv { proj_in: Conv2d, proj_out: Conv2d },
    Linear { proj_in: Linear, proj_out: Linear },
}

impl Transformer2D {
    pub(super) fn new(w: Weights<'_>, config: TransformerConfig) -> Result<Transformer2D> {
        let square = [config.channels; 2];
        let (proj_in, proj_out) = (w.child("proj_in"), w.child("proj_out"));
        let norm = Norm { groups: config.groups, epsilon: 1e-6 };
        Ok(Transformer2D {
            scope: w.scope().into(),
            norm: GroupNorm::new(w.child("norm"), config.channels, norm)?,
            projection: match config.linear_projection {
                true => Projection::Linear {
                    proj_in: Linear::new(proj_in, square)?,
                    proj_out: Linear::new(proj_out, square)?,
                },
                false => Projection::Conv {
                    proj_in: Conv2d::new(proj_in, square, 1)?,
                    proj_out: Conv2d::new(proj_out, square, 1)?,
                },
            },
            blocks: each(config.layers, |i| {
                BasicTransformerBlock::new(w.child("transformer_blocks").child(i), config)
            })?,
        })
    }

    /// `x` is `[B, C, H, W]`, `states` `[B, 77, cross]`.
    pub(super) fn forward(&self, x: &Tensor, states: &Tensor) -> Tensor {
        let h = self.norm.forward(x);
        let mut h = match &self.projection {
            Projection::Conv { proj_in, .. } => to_sequence(&proj_in.forward(&h)),
            Projection::Linear { proj_in, .. } => proj_in.forward(&to_sequence(&h)),
        };
        for block in &self.blocks {
            h = block.forward(&h, states);
        }
        let h = match &self.projection {
            Projection::Conv { proj_out, .. } => proj_out.forward(&from_sequence(&h, x)),
            Projection::Linear { proj_out, .. } => from_sequence(&proj_out.forward(&h), x),
        };
        h.add(x).cut(&self.scope)
    }
}

struct BasicTransformerBlock {
    scope: String,
    norm1: LayerNorm,
    attn1: CrossAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    inner: u64,
}

impl BasicTransformerBlock {
    fn new(w: Weights<'_>, config: TransformerConfig) -> Result<BasicTransformerBlock> {
        let channels = config.channels;
        let inner = 4 * channels;
        let norm = |name| LayerNorm::new(w.child(name), channels, 1e-5);
        Ok(BasicTransformerBlock {
            scope: w.scope().into(),
            norm1: norm("norm1")?,
            attn1: CrossAttention::new(w.child("attn1"), channels, config)?,
            norm2: norm("norm2")?,
            attn2: CrossAttention::new(w.child("attn2"), config.cross_attention_dim, config)?,
            norm3: norm("norm3")?,
            ff_in: Linear::new(w.child("ff.net.0.proj"), [channels, 2 * inner])?,
            ff_out: Linear::new(w.child("ff.net.2"), [inner, channels])?,
            inner,
        })
    }

    fn forward(&self, x: &Tensor, states: &Tensor) -> Tensor {
        let h = self.norm1.forward(x);
        let x = self.attn1.forward(&h, &h).add(x).cut(&format!("{}.attn1", self.scope));
        let h = self.norm2.forward(&x);
        let x = self.attn2.forward(&h, states).add(&x).cut(&format!("{}.attn2", self.scope));
        self.feed_forward(&self.norm3.forward(&x)).add(&x).cut(&self.scope)
    }

    /// GEGLU: one half gated by the GELU of the other.
    fn feed_forward(&self, x: &Tensor) -> Tensor {
        let both = self.ff_in.forward(x);
        let (value, gate) = (both.slice(2, 0, self.inner), both.slice(2, self.inner, 2 * self.inner));
        self.ff_out.forward(&value.mul(&gate.gelu()))
    }
}

struct CrossAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    options: Attention,
}

impl CrossAttention {
    fn new(w: Weights<'_>, context: u64, config: TransformerConfig) -> Result<CrossAttention> {
        let TransformerConfig { channels, heads, upcast, .. } = config;
        let scale = ((channels / heads) as f32).powf(-0.5);
        Ok(CrossAttention {
            to_q: Linear::without_bias(w.child("to_q"), [channels; 2])?,
            to_k: Linear::without_bias(w.child("to_k"), [context, channels])?,
            to_v: Linear::without_bias(w.child("to_v"), [context, channels])?,
            to_out: Linear::new(w.child("to_out.0"), [channels; 2])?,
            options: Attention { heads, scale, causal: false, upcast },
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let (q, k, v) = (self.to_q.forward(x), self.to_k.forward(context), self.to_v.forward(context));
        self.to_out.forward(&Tensor::attention(&q, &k, &v, self.options))
    }
}
