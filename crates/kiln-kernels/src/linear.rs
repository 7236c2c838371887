//! Linear layers: `output[row][n] = sum over k of input[row][k] * weight[n][k]`, with bias and residual.

use std::ops::Range;

use crate::error::product;
use crate::gemm::{self, Blocks, Rows};
use crate::output::{Output, Tensors};
use crate::parallel::Pool;
use crate::simd::{ROW, Simd};
use crate::weights::PANEL;
use crate::{Element, Error, Isa, Parallel, Weights};

/// A linear layer over `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Rows of the input and output.
    pub rows: usize,
    /// `k`: elements of an input row.
    pub in_features: usize,
    /// `n`: elements of an output row.
    pub out_features: usize,
    /// What factors are rounded to.
    pub products: Element,
    /// Instructions to use.
    pub isa: Isa,
}

impl Linear {
    /// Elements of the scratch that a pool of `lanes` needs.
    pub fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        self.blocks(lanes)?.scratch_len(lanes.max(1))
    }

    /// Computes it.
    pub fn run(&self, pool: &dyn Parallel, weights: Weights<'_>, tensors: Tensors<'_>) -> Result<(), Error> {
        let pool = Pool::new(pool);
        let blocks = self.blocks(pool.lanes)?;
        weights.check(self.in_features, self.out_features)?;
        let (input, output) = self.lengths()?;
        tensors.check(input, output, self.out_features, blocks.scratch_len(pool.lanes)?)?;
        let (input, output, scratch) = tensors.split(self.out_features, 1);
        let rows = Dense { input, k: self.in_features, output };
        gemm::run(self.isa, pool, blocks, &rows, weights, scratch)
    }

    fn blocks(&self, lanes: usize) -> Result<Blocks, Error> {
        self.lengths()?;
        let sizes = [self.out_features, self.in_features];
        Ok(Blocks::new(self.isa, self.rows, sizes, self.products, lanes.max(1)))
    }

    /// Elements of the input and the output.
    fn lengths(&self) -> Result<(usize, usize), Error> {
        if self.rows == 0 || self.in_features == 0 || self.out_features == 0 {
            return Err(Error::Shape(format!("a linear layer of the sizes {self:?} is empty")));
        }
        Ok((product(&[self.rows, self.in_features])?, product(&[self.rows, self.out_features])?))
    }
}

/// Rows that lie one after the other.
struct Dense<'a> {
    input: &'a [f32],
    k: usize,
    output: Output<'a>,
}

impl Rows for Dense<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, element: Element, to: *mut f32) {
        for (i, row) in rows.enumerate() {
            let from = self.input.as_ptr().wrapping_add(row * self.k);
            for at in k.clone().step_by(S::LANES) {
                // SAFETY: no more than the row's elements are read; the rest is the caller's promise.
                unsafe {
                    let v = S::load_n(from.add(at), S::LANES.min(k.end - at));
                    gemm::store::<S>(element, to.add(i * ROW), at - k.start, v);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *const f32) {
        for (i, row) in rows.enumerate() {
            // SAFETY: the caller's promise; there are 32 sums a row.
            unsafe { self.output.write_row::<S>(row, panel, sums.add(i * PANEL)) }
        }
    }
}
