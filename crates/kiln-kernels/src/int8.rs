//! int8: factors as whole numbers from -127 to 127, times a scale that all of a row's or an output's have.
//!
//! The scale is that of the largest, found anew in each run, so that nothing has to be calibrated (Dettmers et al.,
//! "LLM.int8()", 2022, section 2.1). Sums are exact, so that all instruction sets compute the same. Bytes of the left factor
//! are 128 larger and have no sign, as `vpdpbusd` wants them; what that adds to a sum is subtracted afterwards.

use std::ops::Range;

use crate::gemm::{Columns, Rows, part};
use crate::linear::Results;
use crate::memory::Shared;
use crate::parallel::Pool;
use crate::simd::{self, Kernel, MAX_LANES, ROW, Simd};
use crate::weights::PANEL;
use crate::{Error, Isa, Weights};

/// Factors of a word.
pub(crate) const PER_WORD: usize = 4;

/// The most factors of a row or an output: a sum of more could overflow 32 bits.
pub(crate) const MAX_K: usize = 1 << 16;

/// Words behind a panel's steps: of each output, what the left factor's bytes without sign add to its sums, and its scale.
pub(crate) const TAIL: usize = 2 * PANEL;

/// The largest factor.
const LARGEST: f32 = 127.0;

/// Factors below are zeros: their scale would have no inverse.
const LEAST: f32 = 1e-30;

/// Rows that are made at once.
const ROWS_AT_ONCE: usize = 16;

/// The nearest whole number, ties to even.
pub(crate) fn round(x: f32) -> i8 {
    x.round_ties_even() as i8
}

/// A sum, and the products of the bytes of two words: of `a` without sign, of `b` with one.
pub(crate) fn dot(sum: u32, a: u32, b: u32) -> u32 {
    let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    products.fold(sum, |sum, (a, b)| sum.wrapping_add_signed(i32::from(a) * i32::from(b as i8)))
}

/// The scale of factors, and what they are multiplied by to be whole numbers.
#[derive(Clone, Copy)]
struct Scale {
    scale: f32,
    inverse: f32,
}

impl Scale {
    /// Of `k` factors, whose vectors `load` reads, which has where they begin and how many they are. A scale is NaN where
    /// a factor is, or is not finite.
    ///
    /// # Safety
    /// The processor has `S`; as `load`.
    #[inline(always)]
    unsafe fn of<S: Simd>(k: usize, load: impl Fn(usize, usize) -> S::V) -> Scale {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = S::splat(0.0);
            let (mut largest, mut spread) = (zero, zero);
            for at in (0..k).step_by(S::LANES) {
                let v = load(at, S::LANES.min(k - at));
                largest = S::max(S::max(v, S::sub(zero, v)), largest);
                spread = S::mul_add(v, zero, spread);
            }
            let (mut all, mut rest) = ([0.0f32; MAX_LANES], [0.0f32; MAX_LANES]);
            S::store(all.as_mut_ptr(), largest);
            S::store(rest.as_mut_ptr(), spread);
            let largest = all.into_iter().fold(0.0, f32::max) + rest.into_iter().sum::<f32>();
            let inverse = if largest > LEAST { LARGEST / largest } else { 0.0 };
            Scale { scale: largest / LARGEST, inverse }
        }
    }
}

/// Weights in int8.
pub(crate) struct QuantisedWeights<'a>(pub(crate) Weights<'a>);

impl Columns for QuantisedWeights<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, first: usize, to: *mut f32) {
        let k = self.0.k();
        let tail = to.wrapping_add(k.div_ceil(PER_WORD) * PANEL);
        for column in (0..PANEL).step_by(S::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let (mut scales, mut inverses) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
                for i in 0..S::LANES {
                    let Scale { scale, inverse } =
                        Scale::of::<S>(k, |at, n| self.0.output::<S>(first + column + i, at, n));
                    (scales[i], inverses[i]) = (scale, inverse);
                }
                let inverse = S::load(inverses.as_ptr());
                let unsigned = S::splat(f32::from_bits(0x8080_8080));
                let mut sums = S::splat(0.0);
                for at in (0..k).step_by(S::LANES) {
                    let n_k = S::LANES.min(k - at);
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for (i, v) in square.iter_mut().enumerate().take(S::LANES) {
                        *v = self.0.output::<S>(first + column + i, at, n_k);
                    }
                    S::transpose(&mut square);
                    // Loops of a constant length keep the square in registers.
                    for i in 0..S::LANES / PER_WORD {
                        if PER_WORD * i < n_k {
                            let four: [S::V; PER_WORD] =
                                std::array::from_fn(|j| S::mul(square[PER_WORD * i + j], inverse));
                            let words = S::bytes(four);
                            sums = S::dot_bytes(sums, unsigned, words);
                            S::store(to.add((at / PER_WORD + i) * PANEL + column), words);
                        }
                    }
                }
                S::store(tail.add(column), sums);
                S::store(tail.add(PANEL + column), S::load(scales.as_ptr()));
            }
        }
    }
}

/// Rows of bytes and their scales, in the making.
struct Quantising<'a> {
    input: &'a [f32],
    rows: usize,
    k: usize,
    bytes: Shared,
    scales: Shared,
}

impl Kernel for Quantising<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _lane: usize, item: usize) {
        for row in part(self.rows, self.rows.div_ceil(ROWS_AT_ONCE), item) {
            let from = self.input.as_ptr().wrapping_add(row * self.k);
            let to = self.bytes.at(row * row_words(self.k)).cast::<u8>();
            // SAFETY: no more than the row's elements are read; its words and scale are the item's own.
            unsafe {
                let load = |at: usize, n: usize| S::load_n(from.add(at), n);
                let Scale { scale, inverse } = Scale::of::<S>(self.k, load);
                *self.scales.at(row) = scale;
                for at in (0..self.k).step_by(S::LANES) {
                    let v = S::mul(load(at, S::LANES.min(self.k - at)), S::splat(inverse));
                    S::store_bytes(to.add(at), v);
                }
            }
        }
    }
}

/// Words of a row of `k` bytes: whole vectors.
fn row_words(k: usize) -> usize {
    k.div_ceil(MAX_LANES) * (MAX_LANES / PER_WORD)
}

/// Words that [`QuantisedRows`] of `rows` rows need.
pub(crate) fn scratch_len(rows: usize, k: usize) -> Result<usize, Error> {
    crate::error::product(&[rows, row_words(k) + 1])
}

/// Rows of a linear layer in int8.
pub(crate) struct QuantisedRows<'a> {
    bytes: Shared,
    scales: Shared,
    k: usize,
    results: Results<'a>,
}

impl<'a> QuantisedRows<'a> {
    /// Makes bytes of `rows` rows of `k` elements; `scratch` is as long as [`scratch_len`] says.
    pub(crate) fn new(
        isa: Isa,
        pool: Pool<'_>,
        input: &[f32],
        [rows, k]: [usize; 2],
        results: Results<'a>,
        scratch: &mut [f32],
    ) -> Result<Self, Error> {
        let (scales, bytes) = scratch.split_at_mut(rows);
        let made = Self { bytes: Shared::new(bytes), scales: Shared::new(scales), k, results };
        let quantising = Quantising { input, rows, k, bytes: made.bytes, scales: made.scales };
        simd::for_each(isa, pool, rows.div_ceil(ROWS_AT_ONCE), &quantising)?;
        Ok(made)
    }
}

impl Rows for QuantisedRows<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, to: *mut f32) {
        for (i, row) in rows.enumerate() {
            let from = self.bytes.at(row * row_words(self.k) + k.start / PER_WORD).cast_const();
            // SAFETY: the caller's promise; a row of bytes has as many words.
            unsafe { std::ptr::copy_nonoverlapping(from, to.add(i * ROW), k.len().div_ceil(PER_WORD)) }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, rows: Range<usize>, sums: *mut f32, panel_end: *const f32) {
        let tail = panel_end.wrapping_sub(TAIL);
        for column in (0..PANEL).step_by(S::LANES) {
            // SAFETY: the caller's promise; the panel ends with its tail, and each row has a scale.
            unsafe {
                let (added, of_output) = (S::load(tail.add(column)), S::load(tail.add(PANEL + column)));
                for (i, row) in rows.clone().enumerate() {
                    let sum = sums.add(i * PANEL + column);
                    let whole = S::from_whole(S::sub_whole(S::load(sum), added));
                    let scale = S::mul(S::splat(*self.scales.at(row)), of_output);
                    S::store(sum, S::mul(whole, scale));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.results.write::<S>(rows, panel, sums) }
    }
}
