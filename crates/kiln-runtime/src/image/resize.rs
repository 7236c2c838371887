//! Resizing as Pillow does it, to the bit (`libImaging/Resample.c`): diffusers resizes with Pillow, and a picture that is a
//! shade off leads to other latents.

/// Bits behind the point of a coefficient.
const PRECISION: u32 = 32 - 8 - 2;

/// Half the width of the window in source pixels, where nothing is shrunk.
const SUPPORT: f64 = 3.0;

/// `Image.resize(size, Image.LANCZOS)` for interleaved channels: rows first, then columns, rounded in between.
pub(super) fn lanczos(data: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let ([from_height, from_width], [height, width]) = (from, to);
    let rows = match from_width == width {
        true => data.to_vec(),
        false => across(data, from_height, from_width, width),
    };
    match from_height == height {
        true => rows,
        false => down(&rows, width, from_height, height),
    }
}

const CHANNELS: usize = 3;

fn across(data: &[u8], height: usize, from: usize, to: usize) -> Vec<u8> {
    let windows = windows(from, to);
    let mut out = Vec::with_capacity(height * to * CHANNELS);
    for row in data.chunks_exact(from * CHANNELS) {
        for window in &windows {
            for channel in 0..CHANNELS {
                out.push(window.sum(|i| row[i * CHANNELS + channel]));
            }
        }
    }
    out
}

fn down(data: &[u8], width: usize, from: usize, to: usize) -> Vec<u8> {
    let stride = width * CHANNELS;
    let mut out = Vec::with_capacity(to * stride);
    for window in &windows(from, to) {
        out.extend((0..stride).map(|x| window.sum(|i| data[i * stride + x])));
    }
    out
}

/// The source pixels of one pixel and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

impl Window {
    fn sum(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION - 1);
        let sum = self
            .weights
            .iter()
            .enumerate()
            .fold(half, |sum, (i, weight)| sum + i32::from(pixel(self.start + i)) * weight);
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let start = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (start..end).map(|x| kernel((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                let weight = if total == 0.0 { *weight } else { weight / total } * f64::from(1 << PRECISION);
                (weight + 0.5f64.copysign(weight)) as i32
            };
            Window { start, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

fn kernel(x: f64) -> f64 {
    if (-SUPPORT..SUPPORT).contains(&x) { sinc(x) * sinc(x / SUPPORT) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}
