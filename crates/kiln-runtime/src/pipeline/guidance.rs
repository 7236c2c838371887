//! Classifier-free guidance (Ho, Salimans 2022).

use ndarray::{ArrayD, ArrayViewD, Axis, Slice, Zip};

/// Weight of the prompt and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Guidance {
    pub(super) scale: f32,
    pub(super) rescale: f32,
    /// Width of the embedding through which the UNet itself is told the scale (LCM).
    pub(super) embedding: Option<u32>,
}

impl Guidance {
    /// Whether the unconditional prediction is needed.
    pub(super) fn is_guided(self) -> bool {
        self.scale > 1.0 && self.embedding.is_none()
    }

    /// The guided prediction `[B, C, H, W]` from `[2B, C, H, W]`, the unconditional half first.
    pub(super) fn combine(self, prediction: &ArrayD<f32>) -> ArrayD<f32> {
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

    /// The scale as LCM's UNet reads it, `[B, n]` (diffusers `get_guidance_scale_embedding`).
    pub(super) fn embedded(self, batch: usize) -> Option<ArrayD<f32>> {
        let width = self.embedding? as usize;
        let half = width / 2;
        let step = 10000f32.ln() / (half.max(2) - 1) as f32;
        let scaled = (self.scale - 1.0) * 1000.0;
        let angle = |i: usize| scaled * (i as f32 * -step).exp();
        Some(ArrayD::from_shape_fn(vec![batch, width], |index| match index[1] {
            i if i < half => angle(i).sin(),
            i if i < 2 * half => angle(i - half).cos(),
            _ => 0.0,
        }))
    }
}

/// The unbiased standard deviation, as `torch.std` gives it.
fn std(values: ArrayViewD<'_, f32>) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt() as f32
}
