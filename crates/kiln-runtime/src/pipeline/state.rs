//! The state before the first step of a pass.

use ndarray::{ArrayD, Axis, concatenate};

use crate::Error;

/// The state before the first step.
pub(super) struct Start {
    /// `[B, C, H, W]`.
    pub(super) latents: ArrayD<f32>,
    /// The sampler's first step to take.
    pub(super) begin: usize,
    pub(super) inpainting: Option<Inpainting>,
}

/// What to paint anew and what to keep.
pub(super) struct Inpainting {
    /// `[B, 1, H, W]`, 1 where to paint.
    pub(super) mask: ArrayD<f32>,
    /// Mask and masked picture `[B, 1 + C, H, W]` for a UNet that was trained to inpaint.
    pub(super) channels: Option<ArrayD<f32>>,
    /// For any other UNet: what is put back after each step.
    pub(super) blend: Option<Blend>,
}

pub(super) struct Blend {
    /// The picture's latents `[B, C, H, W]`.
    pub(super) kept: ArrayD<f32>,
    /// The noise that they get.
    pub(super) noise: ArrayD<f32>,
}

/// Arrays joined along an axis.
pub(super) fn joined(axis: Axis, parts: &[&ArrayD<f32>]) -> Result<ArrayD<f32>, Error> {
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    concatenate(axis, &views).map_err(|e| Error::Shapes(e.to_string()))
}
