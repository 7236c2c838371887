//! Classifier-free guidance (Ho, Salimans 2022).

use ndarray::{ArrayD, ArrayViewD, Axis, Slice, Zip};

/// How predictions are guided.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Guidance {
    /// Weight of the prompt; up to 1 there is no guidance.
    pub scale: f32,
    /// How far the guided prediction's spread is drawn back to that of the prompt's (Lin et al. 2023, section 3.4).
    pub rescale: f32,
    /// Whether the denoiser itself is told the scale, so that one prediction is enough.
    pub is_embedded: bool,
}

impl Guidance {
    /// Whether the unconditional prediction is needed.
    pub fn is_guided(self) -> bool {
        self.scale > 1.0 && !self.is_embedded
    }

    /// Rows of the denoiser's batch for so many pictures.
    pub fn rows(self, batch: usize) -> usize {
        if self.is_guided() { 2 * batch } else { batch }
    }

    /// The guided prediction `[B, C, H, W]` from `[2B, C, H, W]`, the unconditional half first.
    pub(crate) fn combine(self, prediction: &ArrayD<f32>) -> ArrayD<f32> {
        let half = prediction.shape()[0] / 2;
        let unconditional = prediction.slice_axis(Axis(0), Slice::from(..half));
        let conditional = prediction.slice_axis(Axis(0), Slice::from(half..));
        let scale = self.scale;
        let mut guided = Zip::from(unconditional).and(&conditional).map_collect(|u, c| u + scale * (c - u));
        if self.rescale > 0.0 {
            for (mut guided, text) in guided.axis_iter_mut(Axis(0)).zip(conditional.axis_iter(Axis(0))) {
                let factor = std(text) / std(guided.view());
                let factor = self.rescale * factor + (1.0 - self.rescale);
                guided.mapv_inplace(|x| x * factor);
            }
        }
        guided
    }
}

/// The unbiased standard deviation, as `torch.std` gives it.
fn std(values: ArrayViewD<'_, f32>) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt() as f32
}
