//! Layers that hold weights.

use kiln_graph::{Tensor, TraceError, Weights};

pub(crate) type Result<T> = std::result::Result<T, TraceError>;

/// Collects one layer per index.
pub(crate) fn each<T>(n: usize, make: impl FnMut(usize) -> Result<T>) -> Result<Vec<T>> {
    (0..n).map(make).collect()
}

pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: u64,
    padding: [u64; 4],
}

impl Conv2d {
    pub(crate) fn new(w: Weights<'_>, channels: [u64; 2], kernel: u64) -> Result<Conv2d> {
        let bias = Some(w.weight("bias", &[channels[1]])?);
        Ok(Conv2d { bias, ..Conv2d::without_bias(w, channels, kernel)? })
    }

    pub(crate) fn without_bias(w: Weights<'_>, [inputs, outputs]: [u64; 2], kernel: u64) -> Result<Conv2d> {
        Ok(Conv2d {
            weight: w.weight("weight", &[outputs, inputs, kernel, kernel])?,
            bias: None,
            stride: 1,
            padding: [(kernel - 1) / 2; 4],
        })
    }

    /// Halves height and width; padding is top, left, bottom, right.
    pub(crate) fn strided(self, padding: [u64; 4]) -> Conv2d {
        Conv2d { stride: 2, padding, ..self }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), self.stride, self.padding)
    }
}

pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(w: Weights<'_>, [inputs, outputs]: [u64; 2]) -> Result<Linear> {
        let bias = Some(w.weight("bias", &[outputs])?);
        Ok(Linear { bias, ..Linear::without_bias(w, [inputs, outputs])? })
    }

    pub(crate) fn without_bias(w: Weights<'_>, [inputs, outputs]: [u64; 2]) -> Result<Linear> {
        Ok(Linear { weight: w.weight("weight", &[outputs, inputs])?, bias: None })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: u64,
    epsilon: f32,
}

/// Number of groups and epsilon of the group norms of one network.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) groups: u64,
    pub(crate) epsilon: f32,
}

impl GroupNorm {
    pub(crate) fn new(w: Weights<'_>, channels: u64, norm: Norm) -> Result<GroupNorm> {
        Ok(GroupNorm {
            weight: w.weight("weight", &[channels])?,
            bias: w.weight("bias", &[channels])?,
            groups: norm.groups,
            epsilon: norm.epsilon,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, &self.weight, &self.bias, self.epsilon)
    }
}

pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    pub(crate) fn new(w: Weights<'_>, channels: u64, epsilon: f32) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: w.weight("weight", &[channels])?,
            bias: w.weight("bias", &[channels])?,
            epsilon,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(&self.weight, &self.bias, self.epsilon)
    }
}

/// Residual block of two convolutions (diffusers `models/resnet.py`, `ResnetBlock2D`).
pub(crate) struct ResnetBlock {
    scope: String,
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(crate) fn new(
        w: Weights<'_>,
        [inputs, outputs]: [u64; 2],
        temb: Option<u64>,
        norm: Norm,
    ) -> Result<ResnetBlock> {
        Ok(ResnetBlock {
            scope: w.scope().into(),
            norm1: GroupNorm::new(w.child("norm1"), inputs, norm)?,
            conv1: Conv2d::new(w.child("conv1"), [inputs, outputs], 3)?,
            time_emb_proj: temb.map(|n| Linear::new(w.child("time_emb_proj"), [n, outputs])).transpose()?,
            norm2: GroupNorm::new(w.child("norm2"), outputs, norm)?,
            conv2: Conv2d::new(w.child("conv2"), [outputs, outputs], 3)?,
            conv_shortcut: match inputs == outputs {
                true => None,
                false => Some(Conv2d::new(w.child("conv_shortcut"), [inputs, outputs], 1)?),
            },
        })
    }

    /// `x` is `[B, C, H, W]`, `temb` the activated time embedding `[B or 1, T]`.
    pub(crate) fn forward(&self, x: &Tensor, temb: Option<&Tensor>) -> Tensor {
        let mut h = self.conv1.forward(&self.norm1.forward(x).silu());
        if let (Some(proj), Some(temb)) = (&self.time_emb_proj, temb) {
            let shift = proj.forward(temb);
            let [b, c] = shift.dims();
            h = h.add(&shift.reshape(vec![b, c, 1.into(), 1.into()]));
        }
        let h = self.conv2.forward(&self.norm2.forward(&h.cut(&format!("{}.conv1", self.scope))).silu());
        let sum = match &self.conv_shortcut {
            Some(conv) => conv.forward(x).add(&h),
            None => x.add(&h),
        };
        sum.cut(&self.scope)
    }
}

/// `[B, C, H, W]` as a sequence `[B, H * W, C]`.
pub(crate) fn to_sequence(x: &Tensor) -> Tensor {
    let [b, c, h, w] = x.dims();
    x.transpose(&[0, 2, 3, 1]).reshape(vec![b, h.times(&w), c])
}

/// A sequence `[B, H * W, C]` in the shape of `like`, `[B, C, H, W]`.
pub(crate) fn from_sequence(x: &Tensor, like: &Tensor) -> Tensor {
    let [b, c, h, w] = like.dims();
    x.reshape(vec![b, h, w, c]).transpose(&[0, 3, 1, 2])
}
