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
    sums: Sums,
    /// For red, green and blue: a factor per channel, and a constant.
    factors: [Vec<f64>; 3],
}

/// The normal equations of least squares.
#[derive(Clone, Debug, PartialEq)]
struct Sums {
    left: Vec<Vec<f64>>,
    right: [Vec<f64>; 3],
}

/// What is added to the diagonal, in shares of its mean: keeps the fit of nearly flat pictures small.
const RIDGE: f64 = 1e-3;

/// Weight of all earlier pictures beside a new one of the same size.
const MEMORY: f64 = 0.5;

impl LatentColours {
    /// Fits the map to latents `[1, C, H, W]` and the picture that was decoded from them; none where sizes do not fit.
    pub fn fit(latents: &ArrayD<f32>, picture: &RgbImage) -> Option<LatentColours> {
        let sums = Sums::of(latents, picture)?;
        Some(LatentColours { factors: sums.solve()?, sums })
    }

    /// Fits the map to one more picture; it stays as it is where that one does not fit.
    pub fn learn(&mut self, latents: &ArrayD<f32>, picture: &RgbImage) {
        let Some(new) = Sums::of(latents, picture).filter(|new| new.left.len() == self.sums.left.len()) else {
            return;
        };
        let sums = self.sums.clone().faded_into(new);
        if let Some(factors) = sums.solve() {
            (self.sums, self.factors) = (sums, factors);
        }
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

impl Sums {
    fn of(latents: &ArrayD<f32>, picture: &RgbImage) -> Option<Sums> {
        let latents = latents.view().into_dimensionality::<Ix4>().ok()?;
        let (_, channels, height, width) = latents.dim();
        if height == 0 || width == 0 {
            return None;
        }
        let colours = picture.resized(Size::new(width as u32, height as u32));
        let n = channels + 1;
        let mut sums = Sums { left: vec![vec![0.0; n]; n], right: [vec![0.0; n], vec![0.0; n], vec![0.0; n]] };
        for (i, colour) in colours.data().as_chunks::<3>().0.iter().enumerate() {
            let at = |channel| f64::from(latents[[0, channel, i / width, i % width]]);
            let row: Vec<f64> = (0..channels).map(at).chain([1.0]).collect();
            sums.add(&row, *colour);
        }
        Some(sums)
    }

    fn add(&mut self, row: &[f64], colour: [u8; 3]) {
        for (i, factor) in row.iter().enumerate() {
            self.left[i].iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
            for (right, value) in self.right.iter_mut().zip(colour) {
                right[i] += factor * f64::from(value) / 255.0;
            }
        }
    }

    /// The sums of earlier pictures, which count less, with those of a new one.
    fn faded_into(mut self, new: Sums) -> Sums {
        let fade = |old: &mut Vec<f64>, new: &Vec<f64>| {
            old.iter_mut().zip(new).for_each(|(old, new)| *old = MEMORY * *old + new);
        };
        self.left.iter_mut().zip(&new.left).for_each(|(old, new)| fade(old, new));
        self.right.iter_mut().zip(&new.right).for_each(|(old, new)| fade(old, new));
        self
    }

    /// The factors of red, green and blue.
    fn solve(&self) -> Option<[Vec<f64>; 3]> {
        let mut left = self.left.clone();
        let channels = left.len() - 1;
        let trace: f64 = (0..channels).map(|i| left[i][i]).sum();
        (0..channels).for_each(|i| left[i][i] += RIDGE * trace / channels.max(1) as f64);
        let [r, g, b] = &self.right;
        let solve = |right: &Vec<f64>| solve(left.clone(), right.clone());
        Some([solve(r)?, solve(g)?, solve(b)?])
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
    use kiln_runtime::generator::{Generator, GeneratorKind};

    use super::*;

    #[test]
    fn a_linear_picture_is_found_again() {
        let latents = Generator::new(GeneratorKind::Cpu, 1).randn(&[1, 4, 8, 8]);
        let colour = |y: usize, x: usize, c: usize| {
            let sum: f32 = (0..4).map(|k| latents[[0, k, y, x]] * 0.03 * (k as f32 - c as f32)).sum();
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
    fn what_was_learned_first_fades() {
        let latents = |phase: f32| {
            ArrayD::from_shape_fn(vec![1, 2, 8, 8], |i| ((i[1] * 7 + i[2] * 3 + i[3]) as f32 + phase).sin())
        };
        let picture = |latents: &ArrayD<f32>, sign: f32| {
            let grey =
                (0..64).map(|i| ((0.5 + 0.3 * sign * latents[[0, 0, i / 8, i % 8]]) * 255.0).round() as u8);
            RgbImage::from_raw(8, 8, grey.flat_map(|grey| [grey; 3]).collect()).expect("a picture")
        };
        let first = latents(0.0);
        let mut colours = LatentColours::fit(&first, &picture(&first, -1.0)).expect("a map");
        for i in 1..8 {
            let latents = latents(i as f32);
            colours.learn(&latents, &picture(&latents, 1.0));
        }
        let found = colours.picture(&first).expect("a picture");
        let expected = picture(&first, 1.0);
        let worst = found.data().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst.expect("pixels") <= 8, "{worst:?}");
        let before = colours.clone();
        colours.learn(
            &ArrayD::zeros(vec![1, 16, 2, 2]),
            &RgbImage::from_raw(2, 2, vec![9; 12]).expect("a picture"),
        );
        assert_eq!(colours, before);
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
