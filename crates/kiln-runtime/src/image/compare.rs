//! How close two pictures are.

use serde::Serialize;

use super::{ImageError, RgbImage};

/// Largest factor by which a difference picture amplifies.
const MAX_GAIN: u8 = 32;

/// Side of the window of the structural similarity, in pixels.
const WINDOW: usize = 11;

/// Standard deviation of that window's weights, in pixels.
const SIGMA: f64 = 1.5;

/// Differences between two pictures of one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Largest difference of a channel, from 0 to 255.
    pub max_difference: u8,
    /// Mean difference of the channels.
    pub mean_difference: f64,
    /// Share of the pixels that differ at all.
    pub differing: f64,
    /// Peak signal to noise ratio in decibels; none for equal pictures.
    pub psnr: Option<f64>,
    /// Structural similarity (Wang et al. 2004): mean over pixels and channels, with Gaussian weights of sigma 1.5 over
    /// windows of 11 pixels; none for pictures smaller than a window.
    pub ssim: Option<f64>,
}

impl RgbImage {
    /// Compares with a picture of the same size.
    pub fn compare(&self, other: &RgbImage) -> Result<Comparison, ImageError> {
        self.same_size(other)?;
        let differences = || self.data.iter().zip(&other.data).map(|(a, b)| a.abs_diff(*b));
        let n = self.data.len() as f64;
        let squares: f64 = differences().map(|d| f64::from(d).powi(2)).sum();
        let mut pixels = self.data.chunks_exact(3).zip(other.data.chunks_exact(3));
        let n_differing = pixels.by_ref().filter(|(a, b)| a != b).count();
        Ok(Comparison {
            max_difference: differences().max().unwrap_or(0),
            mean_difference: differences().map(f64::from).sum::<f64>() / n,
            differing: n_differing as f64 / (n / 3.0),
            psnr: (squares > 0.0).then(|| 10.0 * (255.0 * 255.0 * n / squares).log10()),
            ssim: self.ssim(other),
        })
    }

    /// The absolute differences, amplified to be seen, and the factor.
    pub fn difference(&self, other: &RgbImage) -> Result<(RgbImage, u8), ImageError> {
        self.same_size(other)?;
        let differences: Vec<u8> = self.data.iter().zip(&other.data).map(|(a, b)| a.abs_diff(*b)).collect();
        let gain = 255 / differences.iter().copied().max().unwrap_or(0).max(1);
        let gain = gain.min(MAX_GAIN);
        let data = differences.into_iter().map(|d| d.saturating_mul(gain)).collect();
        Ok((RgbImage { data, ..*self }, gain))
    }

    fn same_size(&self, other: &RgbImage) -> Result<(), ImageError> {
        let (a, b) = ([self.width, self.height], [other.width, other.height]);
        if a == b { Ok(()) } else { Err(ImageError::Sizes(a, b)) }
    }

    fn ssim(&self, other: &RgbImage) -> Option<f64> {
        let (width, height) = (self.width as usize, self.height as usize);
        if width < WINDOW || height < WINDOW {
            return None;
        }
        let plane = |image: &RgbImage, c: usize| Plane {
            width,
            values: image.data.iter().skip(c).step_by(3).map(|&x| f64::from(x)).collect(),
        };
        let channels = (0..3).map(|c| plane(self, c).ssim(&plane(other, c)));
        Some(channels.sum::<f64>() / 3.0)
    }
}

struct Plane {
    width: usize,
    values: Vec<f64>,
}

impl Plane {
    fn ssim(&self, other: &Plane) -> f64 {
        let (c1, c2) = ((0.01 * 255.0f64).powi(2), (0.03 * 255.0f64).powi(2));
        let product = |a: &Plane, b: &Plane| Plane {
            width: a.width,
            values: a.values.iter().zip(&b.values).map(|(a, b)| a * b).collect(),
        };
        let [mean_a, mean_b, aa, bb, ab] =
            [self, other, &product(self, self), &product(other, other), &product(self, other)]
                .map(Plane::blurred);
        let similarity = |i: usize| {
            let (a, b) = (mean_a[i], mean_b[i]);
            let (var_a, var_b, covariance) = (aa[i] - a * a, bb[i] - b * b, ab[i] - a * b);
            ((2.0 * a * b + c1) * (2.0 * covariance + c2)) / ((a * a + b * b + c1) * (var_a + var_b + c2))
        };
        mean_a.iter().enumerate().map(|(i, _)| similarity(i)).sum::<f64>() / mean_a.len() as f64
    }

    /// Weighted means over every window that lies within the picture.
    fn blurred(&self) -> Vec<f64> {
        let centre = (WINDOW / 2) as f64;
        let weights: Vec<f64> =
            (0..WINDOW).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|w| w / total).collect();
        let inner = self.width + 1 - WINDOW;
        let rows: Vec<f64> = self
            .values
            .chunks_exact(self.width)
            .flat_map(|row| row.windows(WINDOW).map(|w| w.iter().zip(&weights).map(|(x, w)| x * w).sum()))
            .collect();
        let height = rows.len() / inner;
        (0..(height + 1 - WINDOW) * inner)
            .map(|i| weights.iter().enumerate().map(|(k, w)| w * rows[i + k * inner]).sum())
            .collect()
    }
}
