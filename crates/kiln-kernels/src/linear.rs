//! Linear layers: `output[row][n] = sum over k of input[row][k] * weight[n][k]`, with bias and residual, or gates.

use std::ops::Range;

use crate::error::{product, sum};
use crate::gemm::{self, Blocks, Rows, Stored};
use crate::int8::{QuantisedRows, QuantisedWeights};
use crate::output::{Output, Tensors};
use crate::parallel::Pool;
use crate::simd::{ROW, Simd, gelu};
use crate::weights::PANEL;
use crate::{Element, Error, Factors, Isa, Parallel, Weights, int8};

/// A linear layer over `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Rows of the input and output.
    pub rows: usize,
    /// `k`: elements of an input row.
    pub in_features: usize,
    /// `n`: elements of an output row.
    pub out_features: usize,
    /// Whether each output has a gate, by whose GELU it is multiplied (Shazeer, "GLU Variants Improve Transformer", 2020):
    /// weights and bias are those of all outputs, then those of their gates.
    pub is_gated: bool,
    /// What factors are rounded to.
    pub factors: Factors,
    /// Instructions to use.
    pub isa: Isa,
}

impl Linear {
    /// Elements of the scratch that a pool of `lanes` needs.
    pub fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        sum(&[self.blocks(lanes)?.scratch_len(lanes.max(1))?, self.bytes_len()?])
    }

    /// Elements of the scratch for bytes.
    fn bytes_len(&self) -> Result<usize, Error> {
        match self.factors {
            Factors::Floats(_) => Ok(0),
            Factors::Int8 => int8::scratch_len(self.rows, self.in_features),
        }
    }

    /// Computes it.
    pub fn run(
        &self,
        pool: &dyn Parallel,
        weights: Weights<'_>,
        mut tensors: Tensors<'_>,
    ) -> Result<(), Error> {
        let pool = Pool::new(pool);
        let blocks = self.blocks(pool.lanes)?;
        weights.check(self.in_features, self.n()?)?;
        let (input, output) = self.lengths()?;
        tensors.check(input, output, self.n()?, self.scratch_len(pool.lanes)?)?;
        let gates = self.is_gated.then(|| Gates { bias: tensors.bias.take(), n: self.out_features });
        let (input, output, scratch) = tensors.split(self.out_features, 1);
        let (of_bytes, scratch) = scratch.split_at_mut(self.bytes_len()?);
        let (results, k) = (Results { output, gates }, self.in_features);
        match self.factors {
            Factors::Floats(element) => {
                let (rows, columns) = (Dense { input, k, element, results }, Stored { weights, element });
                gemm::run(self.isa, pool, blocks, &rows, &columns, scratch)
            }
            Factors::Int8 => {
                let rows = QuantisedRows::new(self.isa, pool, input, [self.rows, k], results, of_bytes)?;
                gemm::run(self.isa, pool, blocks, &rows, &QuantisedWeights(weights), scratch)
            }
        }
    }

    fn blocks(&self, lanes: usize) -> Result<Blocks, Error> {
        self.lengths()?;
        let (sizes, lanes) = ([self.n()?, self.in_features], lanes.max(1));
        Ok(Blocks::new(self.isa, self.rows, sizes, self.factors, lanes, self.is_gated))
    }

    /// Outputs, and their gates.
    fn n(&self) -> Result<usize, Error> {
        product(&[self.out_features, if self.is_gated { 2 } else { 1 }])
    }

    /// Elements of the input and the output.
    fn lengths(&self) -> Result<(usize, usize), Error> {
        if self.rows == 0 || self.in_features == 0 || self.out_features == 0 {
            return Err(Error::Shape(format!("a linear layer of the sizes {self:?} is empty")));
        }
        if self.factors == Factors::Int8 && self.in_features > int8::MAX_K {
            let k = self.in_features;
            return Err(Error::Shape(format!(
                "sums of {k} products of int8 may overflow; {} do not",
                int8::MAX_K
            )));
        }
        Ok((product(&[self.rows, self.in_features])?, product(&[self.rows, self.out_features])?))
    }
}

/// Rows that lie one after the other.
struct Dense<'a> {
    input: &'a [f32],
    k: usize,
    element: Element,
    results: Results<'a>,
}

/// Where sums go, by way of their gates.
pub(crate) struct Results<'a> {
    output: Output<'a>,
    gates: Option<Gates<'a>>,
}

impl Results<'_> {
    /// Writes sums as [`Rows::write`] does.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *mut f32) {
        if let Some(gates) = &self.gates {
            // SAFETY: the caller's promise.
            unsafe { gates.apply::<S>(rows.len(), panel, sums) }
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: the caller's promise; there are 32 sums a row.
            unsafe { self.output.write_row::<S>(row, panel, sums.add(i * PANEL)) }
        }
    }
}

/// Gates of `n` outputs, whose bias is that of the outputs and the gates.
struct Gates<'a> {
    bias: Option<&'a [f32]>,
    n: usize,
}

impl Gates<'_> {
    /// Multiplies sums of a panel, `[row][32]`, by the GELU of those behind them.
    ///
    /// # Safety
    /// The processor has `S`, and there are as many sums.
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, rows: usize, panel: usize, sums: *mut f32) {
        for column in (0..PANEL).step_by(S::LANES) {
            let feature = panel * PANEL + column;
            let n = self.n.saturating_sub(feature).min(S::LANES);
            // SAFETY: the caller's promise; the bias has as many elements.
            unsafe {
                let bias = |at: usize| match self.bias {
                    Some(bias) => S::load_n(bias.as_ptr().wrapping_add(at), n),
                    None => S::splat(0.0),
                };
                let (of_value, of_gate) = (bias(feature), bias(self.n + feature));
                for row in 0..rows {
                    let value = sums.add(row * PANEL + column);
                    let gate = S::add(S::load(value.add(rows * PANEL)), of_gate);
                    let product = S::mul(S::add(S::load(value), of_value), gelu::<S>(gate));
                    S::store(value, product);
                }
            }
        }
    }
}

impl Rows for Dense<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, to: *mut f32) {
        for (i, row) in rows.enumerate() {
            let from = self.input.as_ptr().wrapping_add(row * self.k);
            for at in k.clone().step_by(S::LANES) {
                // SAFETY: no more than the row's elements are read; the rest is the caller's promise.
                unsafe {
                    let v = S::load_n(from.add(at), S::LANES.min(k.end - at));
                    gemm::store::<S>(self.element, to.add(i * ROW), at - k.start, v);
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
