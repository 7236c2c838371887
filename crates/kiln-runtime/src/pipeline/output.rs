use std::time::Duration;

use ndarray::ArrayD;

use crate::image::RgbImage;

/// What a request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// One picture per prompt.
    pub images: Vec<RgbImage>,
    /// The latents they were decoded from, `[B, C, H, W]`, in the denoiser's scale.
    pub latents: ArrayD<f32>,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// Until the first step: loading, tokenizing, encoding the prompt.
    pub start: Duration,
    /// All steps.
    pub steps: Duration,
    /// Decoding.
    pub decode: Duration,
}
