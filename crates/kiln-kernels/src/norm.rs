//! Group normalisation (Wu and He, 2018), with scale and shift of each channel, and SiLU where one follows.

use crate::error::{check_length, product};
use crate::memory::Shared;
use crate::parallel::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd, silu};
use crate::{Error, Isa, Parallel};

/// Group normalisation of `[batch][channel][pixel]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Pixels of a channel.
    pub plane: usize,
    /// Groups of neighbouring channels, of which `channels` is a multiple.
    pub groups: usize,
    /// Added to variances.
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub has_silu: bool,
    /// Instructions to use.
    pub isa: Isa,
}

/// What group normalisation reads and writes.
#[derive(Debug)]
pub struct NormTensors<'a> {
    /// The input.
    pub input: &'a [f32],
    /// Factor of each channel.
    pub scale: &'a [f32],
    /// Term of each channel.
    pub shift: &'a [f32],
    /// The output, overwritten.
    pub output: &'a mut [f32],
}

impl GroupNorm {
    /// Computes it. An image's output does not depend on what a batch has besides.
    pub fn run(&self, pool: &dyn Parallel, tensors: NormTensors<'_>) -> Result<(), Error> {
        let Self { batch, channels, plane, groups, .. } = *self;
        if [batch, channels, plane, groups].contains(&0) || !channels.is_multiple_of(groups) {
            return Err(Error::Shape(format!("{groups} groups of {channels} channels of {plane} pixels")));
        }
        let len = product(&[batch, channels, plane])?;
        let NormTensors { input, scale, shift, output } = tensors;
        check_length("the input", len, input.len())?;
        check_length("the scale", channels, scale.len())?;
        check_length("the shift", channels, shift.len())?;
        check_length("the output", len, output.len())?;
        let of_groups = Groups { of: *self, input, scale, shift, output: Shared::new(output) };
        simd::for_each(self.isa, Pool::new(pool), batch * groups, &of_groups)
    }
}

/// Elements whose moments are computed while they are in L1.
const PART: usize = 4096;

/// Number, mean, and sum of squared deviations of elements.
#[derive(Clone, Copy, Default)]
struct Moments {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Those of both (Chan, Golub and LeVeque, 1979).
    fn join(self, other: Moments) -> Moments {
        let n = self.n + other.n;
        let apart = other.mean - self.mean;
        Moments {
            n,
            mean: self.mean + apart * other.n / n,
            squares: self.squares + other.squares + apart * apart * self.n * other.n / n,
        }
    }
}

/// Group normalisation as a kernel: an item is a group of an image.
struct Groups<'a> {
    of: GroupNorm,
    input: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    output: Shared,
}

impl Kernel for Groups<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _lane: usize, item: usize) {
        let GroupNorm { channels, plane, groups, epsilon, .. } = self.of;
        let per_group = channels / groups;
        let start = item * per_group * plane;
        // SAFETY: the caller's promise; the item's group is its own.
        unsafe {
            let moments = self.input[start..start + per_group * plane]
                .chunks(PART)
                .fold(Moments::default(), |sum, part| sum.join(moments::<S>(part)));
            let deviation = (moments.squares / moments.n + f64::from(epsilon)).sqrt();
            for i in 0..per_group {
                let channel = item % groups * per_group + i;
                let factor = f64::from(self.scale[channel]) / deviation;
                let term = f64::from(self.shift[channel]) - moments.mean * factor;
                self.write::<S>(start + i * plane, factor as f32, term as f32);
            }
        }
    }
}

impl Groups<'_> {
    /// # Safety
    /// The processor has `S`, and nobody else writes the channel that begins at `start`.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, start: usize, factor: f32, term: f32) {
        let GroupNorm { plane, has_silu, .. } = self.of;
        // SAFETY: the caller's promise; no more than the channel's elements are read and written.
        unsafe {
            let (factor, term) = (S::splat(factor), S::splat(term));
            for at in (0..plane).step_by(S::LANES) {
                let n = S::LANES.min(plane - at);
                let (from, to) = (self.input.as_ptr().add(start + at), self.output.at(start + at));
                let x = if n == S::LANES { S::load(from) } else { S::load_n(from, n) };
                let v = S::mul_add(x, factor, term);
                let v = if has_silu { silu::<S>(v) } else { v };
                if n == S::LANES { S::store(to, v) } else { S::store_n(to, v, n) }
            }
        }
    }
}

/// Moments of at most [`PART`] elements.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn moments<S: Simd>(part: &[f32]) -> Moments {
    let n = part.len() as f64;
    // SAFETY: the caller's promise.
    unsafe {
        let mean = sum::<S>(part, |x| x) / n;
        let center = S::splat(mean as f32);
        let squares = sum::<S>(part, |x| {
            let apart = S::sub(x, center);
            S::mul(apart, apart)
        });
        // What the center was rounded by.
        let rounding = mean - f64::from(mean as f32);
        Moments { n, mean, squares: squares - n * rounding * rounding }
    }
}

/// The sum of what `of` makes of a part's elements.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn sum<S: Simd>(part: &[f32], of: impl Fn(S::V) -> S::V) -> f64 {
    let whole = part.len() / (4 * S::LANES) * 4 * S::LANES;
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the caller's promise; all reads are within the part.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for at in (0..whole).step_by(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, of(S::load(part.as_ptr().add(at + i * S::LANES))));
            }
        }
        let [a, b, c, d] = sums;
        S::store(lanes.as_mut_ptr(), S::add(S::add(a, b), S::add(c, d)));
        let mut rest = 0.0;
        for &x in &part[whole..] {
            let mut one = [0.0; MAX_LANES];
            S::store(one.as_mut_ptr(), of(S::splat(x)));
            rest += f64::from(one[0]);
        }
        lanes[..S::LANES].iter().map(|&x| f64::from(x)).sum::<f64>() + rest
    }
}
