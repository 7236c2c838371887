//! Blurring planes of numbers, and filling holes of pictures with the colours around them.

/// A plane of numbers, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plane {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<f32>,
}

impl Plane {
    /// Three boxes after each other, nearly Gauss' curve of these deviations in pixels.
    pub(super) fn blur(&mut self, sigma_x: f32, sigma_y: f32) {
        let (width, height) = (self.width, self.height);
        for _ in 0..3 {
            (0..height).for_each(|y| boxed(&mut self.data, y * width, 1, width, half(sigma_x)));
            (0..width).for_each(|x| boxed(&mut self.data, x, width, height, half(sigma_y)));
        }
    }
}

/// Half of one of three boxes: whole pixels, and the share of the one behind them (Gwosdek et al. 2011).
fn half(sigma: f32) -> (isize, f64) {
    let variance = f64::from(sigma).powi(2) / 3.0;
    let whole = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
    let over = whole * (whole + 1.0) - 3.0 * variance;
    let share = (2.0 * whole + 1.0) * over / (6.0 * (variance - (whole + 1.0).powi(2)));
    (whole as isize, share)
}

/// Averages one line over a box whose ends count in part; the line goes on as it ends.
fn boxed(data: &mut [f32], first: usize, stride: usize, n: usize, (whole, share): (isize, f64)) {
    if whole == 0 && share <= 0.0 {
        return;
    }
    let line: Vec<f32> = (0..n).map(|i| data[first + i * stride]).collect();
    let at = |i: isize| f64::from(line[i.clamp(0, n as isize - 1) as usize]);
    let length = 2.0 * (whole as f64 + share) + 1.0;
    let mut sum: f64 = (-whole..=whole).map(at).sum();
    for i in 0..n as isize {
        let ends = at(i - whole - 1) + at(i + whole + 1);
        data[first + i as usize * stride] = ((sum + share * ends) / length) as f32;
        sum += at(i + whole + 1) - at(i - whole);
    }
}

/// Red, green, blue of each pixel, filled where `mask` is 1 with the colours around, from afar to near (the web UIs'
/// "fill").
pub(super) fn fill(data: &[u8], mask: &Plane) -> Vec<u8> {
    let channel = |c: usize| {
        let value = |(i, mask): (usize, &f32)| {
            let value = if c < 3 { f32::from(data[3 * i + c]) / 255.0 } else { 1.0 };
            value * (1.0 - mask)
        };
        Plane { data: mask.data.iter().enumerate().map(value).collect(), ..*mask }
    };
    let seen = [0, 1, 2, 3].map(channel);
    let mut filled = vec![[0.0; 4]; mask.data.len()];
    for (sigma, times) in [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1)] {
        let mut layer = seen.clone();
        layer.iter_mut().for_each(|plane| plane.blur(sigma, sigma));
        for _ in 0..times {
            for (i, pixel) in filled.iter_mut().enumerate() {
                let left = 1.0 - layer[3].data[i];
                (0..4).for_each(|c| pixel[c] = layer[c].data[i] + left * pixel[c]);
            }
        }
    }
    let byte = |x: f32| (x.clamp(0.0, 1.0) * 255.0).round() as u8;
    filled.iter().flat_map(|[r, g, b, _]| [byte(*r), byte(*g), byte(*b)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_becomes_a_bell_of_the_right_width_and_sum() {
        for sigma in [0.5, 2.0, 4.0] {
            let mut plane = Plane { width: 81, height: 81, data: vec![0.0; 81 * 81] };
            plane.data[40 * 81 + 40] = 1.0;
            plane.blur(sigma, sigma);
            let sum: f32 = plane.data.iter().sum();
            let square = |i: usize| ((i % 81) as f32 - 40.0).powi(2);
            let variance: f32 = plane.data.iter().enumerate().map(|(i, x)| x * square(i)).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{sum}");
            assert!((variance.sqrt() / sigma - 1.0).abs() < 0.01, "{sigma}: {}", variance.sqrt());
        }
    }

    #[test]
    fn a_hole_takes_the_colours_around_it() {
        let inside = |i: usize| (12..20).contains(&(i % 32)) && (12..20).contains(&(i / 32));
        let data: Vec<u8> =
            (0..32 * 32).flat_map(|i| if inside(i) { [255, 255, 255] } else { [200, 40, 0] }).collect();
        let hole = (0..32 * 32).map(|i| if inside(i) { 1.0 } else { 0.0 }).collect();
        let filled = fill(&data, &Plane { width: 32, height: 32, data: hole });
        let at = |x: usize, y: usize| &filled[3 * (y * 32 + x)..][..3];
        assert_eq!(at(0, 0), [200, 40, 0]);
        let middle = at(16, 16);
        assert!(middle[0].abs_diff(200) < 30 && middle[1].abs_diff(40) < 30 && middle[2] < 10, "{middle:?}");
    }
}
