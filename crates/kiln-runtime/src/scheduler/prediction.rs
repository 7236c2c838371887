//! What a model's output says about the clean latents and the noise, and how clean latents are kept in range.

use ndarray::{ArrayD, Axis, Zip};

/// What the UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean latents.
    Sample,
    /// Velocity (Salimans, Ho 2022).
    VPrediction,
}

impl PredictionType {
    /// The clean latents, where latents are `signal` times those plus `spread` times noise.
    pub(super) fn original(self, (signal, spread): (f32, f32), output: f32, latent: f32) -> f32 {
        match self {
            PredictionType::Epsilon => (latent - spread * output) / signal,
            PredictionType::Sample => output,
            PredictionType::VPrediction => signal * latent - spread * output,
        }
    }

    /// The noise, where latents are `signal` times clean ones plus `spread` times it.
    pub(super) fn epsilon(self, (signal, spread): (f32, f32), output: f32, latent: f32) -> f32 {
        match self {
            PredictionType::Epsilon => output,
            PredictionType::Sample => (latent - signal * output) / spread,
            PredictionType::VPrediction => signal * output + spread * latent,
        }
    }
}

/// How predicted clean latents are kept in range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Thresholding {
    /// They are not.
    None,
    /// Clamped to `[-range, range]`.
    Clip {
        /// `clip_sample_range`.
        range: f32,
    },
    /// By a quantile of each sample (Saharia et al. 2022).
    Dynamic {
        /// `dynamic_thresholding_ratio`.
        ratio: f32,
        /// `sample_max_value`.
        max: f32,
    },
}

impl Thresholding {
    /// Keeps clean latents `[B, ..]` in range, sample by sample.
    pub(super) fn apply(self, original: &mut ArrayD<f32>) {
        match self {
            Thresholding::None => {}
            Thresholding::Clip { range } => original.mapv_inplace(|x| x.clamp(-range, range)),
            Thresholding::Dynamic { ratio, max } => {
                for mut sample in original.axis_iter_mut(Axis(0)) {
                    let range = quantile(sample.iter().map(|x| x.abs()).collect(), ratio).max(1.0).min(max);
                    sample.mapv_inplace(|x| x.clamp(-range, range) / range);
                }
            }
        }
    }
}

/// `torch.quantile` with linear interpolation.
fn quantile(mut values: Vec<f32>, ratio: f32) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f32::total_cmp);
    let rank = f64::from(ratio) * (values.len() - 1) as f64;
    let (low, high) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
    low + (high - low) * rank.fract() as f32
}

/// A function of output and latents, element by element.
pub(super) fn combine(output: &ArrayD<f32>, latents: &ArrayD<f32>, f: impl Fn(f32, f32) -> f32) -> ArrayD<f32> {
    Zip::from(output).and(latents).map_collect(|&output, &latent| f(output, latent))
}
