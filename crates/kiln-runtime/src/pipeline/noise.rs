//! Random numbers of a batch.

use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Axis, Slice, Zip};

use crate::generator::{Generator, GeneratorKind};
use crate::{Error, Request};

/// One generator for the whole batch, or one per picture (diffusers `utils/torch_utils.py`, `randn_tensor`).
pub(super) struct Noise {
    generators: Vec<Generator>,
}

impl Noise {
    pub(super) fn new(kind: GeneratorKind, seeds: &[u64]) -> Noise {
        Noise { generators: seeds.iter().map(|&seed| Generator::new(kind, seed)).collect() }
    }

    /// Whether pictures draw from generators of their own.
    pub(super) fn is_per_picture(&self) -> bool {
        self.generators.len() > 1
    }

    /// Normal numbers for the whole batch, `shape[0]` pictures.
    pub(super) fn randn(&mut self, shape: &[usize]) -> ArrayD<f32> {
        if let [generator] = &mut self.generators[..] {
            return generator.randn(shape);
        }
        let mut all = ArrayD::zeros(shape);
        let one: Vec<usize> = [1].into_iter().chain(shape[1..].iter().copied()).collect();
        for (i, generator) in self.generators.iter_mut().enumerate().take(shape[0]) {
            all.slice_axis_mut(Axis(0), Slice::from(i..=i)).assign(&generator.randn(&one));
        }
        all
    }
}

/// The latents' noise of a request `[B, C, H, W]`, mixed with that of its variation.
pub(super) fn initial_noise(
    request: &Request,
    noise: &mut Noise,
    shape: &[usize],
) -> Result<ArrayD<f32>, Error> {
    let mut own = noise.randn(shape);
    if let Some(variation) = &request.variation {
        let other = Noise::new(request.generator, &variation.seeds).randn(shape);
        for (own, other) in own.axis_iter_mut(Axis(0)).zip(other.axis_iter(Axis(0))) {
            slerp(own, other, variation.strength);
        }
    }
    Ok(own)
}

/// Spherical interpolation (Shoemake 1985) of one picture's noise; nearly parallel noise is interpolated linearly.
fn slerp(mut own: ArrayViewMutD<'_, f32>, other: ArrayViewD<'_, f32>, share: f32) {
    let norm = |x: f64| x.sqrt().max(f64::MIN_POSITIVE);
    let (mut dot, mut own_square, mut other_square) = (0.0, 0.0, 0.0);
    for (&a, &b) in own.iter().zip(&other) {
        let (a, b) = (f64::from(a), f64::from(b));
        dot += a * b;
        own_square += a * a;
        other_square += b * b;
    }
    let cosine = dot / (norm(own_square) * norm(other_square));
    let share = f64::from(share);
    let (keep, take) = match cosine.abs() {
        parallel if parallel > 0.9995 => (1.0 - share, share),
        _ => {
            let angle = cosine.acos();
            (((1.0 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin())
        }
    };
    let (keep, take) = (keep as f32, take as f32);
    Zip::from(&mut own).and(&other).for_each(|own, &other| *own = keep * *own + take * other);
}
