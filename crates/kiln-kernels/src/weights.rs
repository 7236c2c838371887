//! Weights as checkpoints store them, and the panels that products read.
//!
//! A panel has 32 of the `n` outputs; `panel[step][column]` is a 4-byte word. In f32, a step is one `k`, and the word
//! its weight. In bf16, a step is two `k`, and the word both weights, the first in its lower half; in int8, it is four
//! bytes. Columns past `n` and what the last step has beyond `k` are zero.
//!
//! Panels are made while an operator runs, never stored: that costs a few per cent of the products' time, and weights
//! stay mapped files that other runtimes read too, and that a LoRA changes as it does everywhere else.

use std::ops::Range;

use crate::error::{check_length, product};
use crate::simd::{MAX_LANES, Simd};
use crate::{Error, bf16, int8};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// What factors of products are rounded to; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// Exact f32.
    F32,
    /// Both factors rounded to bf16.
    Bf16,
}

impl Element {
    /// Values of a 4-byte word.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Element::F32 => 1,
            Element::Bf16 => 2,
        }
    }
}

/// How a linear layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Factors {
    /// Of factors of this type, summed in f32.
    Floats(Element),
    /// Of whole numbers from -127 to 127 times a scale that all factors of an input's row or of an output have, the least
    /// that fits, found in each run; summed exactly. NaN and infinity make all results of the row or output NaN.
    Int8,
}

impl From<Element> for Factors {
    fn from(element: Element) -> Factors {
        Factors::Floats(element)
    }
}

impl Factors {
    /// The most input features of a layer in int8.
    pub const MAX_INT8_FEATURES: usize = int8::MAX_K;

    /// Factors of a 4-byte word.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Factors::Floats(element) => element.per_word(),
            Factors::Int8 => int8::PER_WORD,
        }
    }
}

/// Numbers of a weight, in row-major order.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Values<'a> {
    /// f32.
    F32(&'a [f32]),
    /// The bits of bf16.
    Bf16(&'a [u16]),
}

/// Weights `[n][k]`: `n` output features or channels, `k` input features, or input channels x kernel height x kernel
/// width in this order.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    values: Values<'a>,
    n: usize,
    k: usize,
    /// Values from one output's first to the next one's.
    stride: usize,
}

impl<'a> Weights<'a> {
    /// A view of `n` x `k` values.
    pub fn new(values: Values<'a>, n: usize, k: usize) -> Result<Self, Error> {
        let len = match values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        };
        check_length("the weights", product(&[n, k])?, len)?;
        Ok(Self { values, n, k, stride: k })
    }

    /// `n` rows of `k` values, `stride` values apart, in values that reach the end of the last one at least.
    pub(crate) fn strided(values: Values<'a>, [n, k]: [usize; 2], stride: usize) -> Self {
        Self { values, n, k, stride }
    }

    /// `Ok` where they have `k` input and `n` output features.
    pub(crate) fn check(&self, k: usize, n: usize) -> Result<(), Error> {
        check_length("k of the weights", k, self.k)?;
        check_length("n of the weights", n, self.n)
    }

    /// Of each output.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Where the weights of output `n` begin that lie `k` behind its first, and the words that `n_k` of them fill: for
    /// prefetches, which may reach past the end.
    pub(crate) fn ahead(&self, n: usize, k: usize, n_k: usize) -> (*const f32, usize) {
        let at = n * self.stride + k;
        match self.values {
            Values::F32(values) => (values.as_ptr().wrapping_add(at), n_k),
            Values::Bf16(values) => (values.as_ptr().wrapping_add(at).cast(), n_k.div_ceil(2)),
        }
    }

    /// Writes `k` of a panel's outputs from `first` on as [`PANEL`] words a step; `k` starts at an even number for bf16.
    ///
    /// # Safety
    /// The processor has `S`; `to` has room for as many steps, written by nobody else.
    #[inline(always)]
    pub(crate) unsafe fn pack<S: Simd>(&self, first: usize, k: Range<usize>, products: Element, to: *mut f32) {
        for column in (0..PANEL).step_by(S::LANES) {
            let first = first + column;
            for at in k.clone().step_by(S::LANES) {
                let n_k = S::LANES.min(k.end - at);
                let to = to.wrapping_add((at - k.start) / products.per_word() * PANEL + column);
                // SAFETY: the caller's promise.
                unsafe { self.pack_square::<S>(first, at, n_k, products, to) }
            }
        }
    }

    /// Transposes `n_k` weights of each of a vector of outputs from `first` on.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[inline(always)]
    unsafe fn pack_square<S: Simd>(&self, first: usize, k: usize, n_k: usize, products: Element, to: *mut f32) {
        // SAFETY: the caller's promise; only outputs that there are are read.
        unsafe {
            let mut square = [S::splat(0.0); MAX_LANES];
            for (i, v) in square.iter_mut().enumerate().take(S::LANES) {
                *v = self.output::<S>(first + i, k, n_k);
            }
            S::transpose(&mut square);
            // Loops of a constant length keep the square in registers.
            match products {
                Element::F32 => {
                    for i in 0..S::LANES {
                        if i < n_k {
                            S::store(to.add(i * PANEL), square[i]);
                        }
                    }
                }
                Element::Bf16 => {
                    for i in 0..S::LANES / 2 {
                        if 2 * i < n_k {
                            S::store(to.add(i * PANEL), S::pair(square[2 * i], square[2 * i + 1]));
                        }
                    }
                }
            }
        }
    }

    /// `n_k` weights of an output from `k` on; zeros past the last output.
    ///
    /// # Safety
    /// The processor has `S`, and there are as many weights.
    #[inline(always)]
    pub(crate) unsafe fn output<S: Simd>(&self, output: usize, k: usize, n_k: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match output < self.n {
                true => self.load::<S>(output * self.stride + k, n_k),
                false => S::splat(0.0),
            }
        }
    }

    /// `n` values from `at` on, and zeros.
    ///
    /// # Safety
    /// The processor has `S`, and there are as many values.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, at: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match self.values {
                Values::F32(values) => S::load_n(values.as_ptr().add(at), n),
                Values::Bf16(values) if n == S::LANES => S::load_bf16(values.as_ptr().add(at)),
                Values::Bf16(values) => {
                    let mut wide = [0.0; MAX_LANES];
                    if values.len() - at >= S::LANES {
                        S::store(wide.as_mut_ptr(), S::load_bf16(values.as_ptr().add(at)));
                    } else {
                        let last = values[at..at + n].iter();
                        wide.iter_mut().zip(last).for_each(|(wide, x)| *wide = bf16::to_f32(*x));
                    }
                    S::load_n(wide.as_ptr(), n)
                }
            }
        }
    }
}
