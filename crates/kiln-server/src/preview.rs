//! What latents look like, by a linear map to colours.
//!
//! Each colour of a picture's block of pixels is nearly a linear function of the latent in its place, so that a preview
//! costs a few multiplications per latent instead of a decoder. The map is fitted to pictures of the model itself, by least
//! squares over a decoded picture.

use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use kiln_runtime::ndarray::{ArrayD, Ix4};

/// A map from latents to colours from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentColours {
    /// For red, green and blue: a factor per channel, and a constant.
    factors: [Vec<f64>; 3],
}

/// What is added to the diagonal, in shares of its mean: keeps the fit of nearly flat pictures small.
const RIDGE: f64 = 1e-3;

impl LatentColours {
    /// Fits the map to latents `[1, C, H, W]` and the picture that was decoded from them; none where sizes do not fit.
    pub fn fit(latents: &ArrayD<f32>, picture: &RgbImage) -> Option<LatentColours> {
        let latents = latents.view().into_dimensionality::<Ix4>().ok()?;
        let (_, channels, height, width) = latents.dim();
        if height == 0 || width == 0 {
            return None;
        }
        let colours = picture.resized(Size::new(width as u32, height as u32));
        let n = channels + 1;
        let mut normal = vec![vec![0.0; n]; n];
        let mut right = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
        for y in 0..height {
            for x in 0..width {
                let row: Vec<f64> =
                    (0..channels).map(|c| f64::from(latents[[0, c, y, x]])).chain([1.0]).collect();
                for i in 0..n {
                    (0..n).for_each(|j| normal[i][j] += row[i] * row[j]);
                    for (colour, right) in right.iter_mut().enumerate() {
                        let value = colours.data()[3 * (y * width + x) + colour];
                        right[i] += row[i] * f64::from(value) / 255.0;
                    }
                }
            }
        }
        let trace: f64 = (0..channels).map(|i| normal[i][i]).sum();
        (0..channels).for_each(|i| normal[i][i] += RIDGE * trace / channels.max(1) as f64);
        let [r, g, b] = right.map(|right| solve(normal.clone(), right));
        Some(LatentColours { factors: [r?, g?, b?] })
    }

    /// The first picture of latents `[B, C, H, W]`, one pixel per latent; none where the channels are others.
    pub fn picture(&self, latents: &ArrayD<f32>) -> Option<RgbImage> {
        let latents = latents.view().into_dimensionality::<Ix4>().ok()?;
        let (_, channels, height, width) = latents.dim();
        if self.factors[0].len() != channels + 1 {
            return None;
        }
        let mut data = Vec::with_capacity(3 * height * width);
        for y in 0..height {
            for x in 0..width {
                for factors in &self.factors {
                    let sum: f64 = (0..channels).map(|c| factors[c] * f64::from(latents[[0, c, y, x]])).sum();
                    data.push(((sum + factors[channels]).clamp(0.0, 1.0) * 255.0).round() as u8);
                }
            }
        }
        RgbImage::from_raw(width as u32, height as u32, data).ok()
    }
}

/// Solves a system of linear equations by elimination with pivots; none where it has no single solution.
fn solve(mut rows: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        if rows[pivot][column].abs() < 1e-12 {
            return None;
        }
        rows.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..n {
            let factor = rows[row][column] / rows[column][column];
            let (above, below) = rows.split_at_mut(row);
            let pairs = below[0].iter_mut().zip(&above[column]).skip(column);
            pairs.for_each(|(value, above)| *value -= factor * above);
            right[row] -= factor * right[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| rows[row][k] * right[k]).sum();
        right[row] = (right[row] - known) / rows[row][row];
    }
    right.iter().all(|value| value.is_finite()).then_some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_picture_is_found_again() {
        let latents =
            ArrayD::from_shape_fn(vec![1, 4, 8, 8], |i| ((i[1] * 7 + i[2] * 3 + i[3] * i[1]) as f32).sin());
        let colour = |y: usize, x: usize, c: usize| {
            let sum: f32 = (0..4).map(|k| latents[[0, k, y, x]] * 0.1 * (k as f32 - c as f32)).sum();
            ((sum + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8
        };
        let data = (0..64).flat_map(|i| (0..3).map(move |c| colour(i / 8, i % 8, c))).collect();
        let picture = RgbImage::from_raw(8, 8, data).expect("a picture");
        let colours = LatentColours::fit(&latents, &picture).expect("a map");
        let found = colours.picture(&latents).expect("a picture");
        let worst = found.data().iter().zip(picture.data()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst.expect("pixels") <= 2, "{worst:?}");
    }

    #[test]
    fn flat_latents_and_other_channels_have_no_preview() {
        let flat = ArrayD::zeros(vec![1, 4, 2, 2]);
        let picture = RgbImage::from_raw(2, 2, vec![9; 12]).expect("a picture");
        assert_eq!(LatentColours::fit(&flat, &picture), None);
        let latents = ArrayD::from_shape_fn(vec![1, 4, 2, 2], |i| (i[1] * 5 + i[2] * 3 + i[3]) as f32);
        let colours = LatentColours::fit(&latents, &picture).expect("a map");
        assert_eq!(colours.picture(&ArrayD::zeros(vec![1, 16, 2, 2])), None);
    }
}
