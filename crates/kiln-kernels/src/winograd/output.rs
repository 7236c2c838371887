//! Output: products are transformed back, and written with bias and residual.

use std::ops::Range;

use super::transform::{MAX_M, MAX_TILE, Transform};
use super::{Buffers, Run, Tiles, Winograd};
use crate::simd::{MAX_LANES, Simd};
use crate::weights::PANEL;

impl Run<'_> {
    /// Transforms the products of `tiles` and panel `panel` back, and writes them.
    ///
    /// # Safety
    /// The processor has `S`; the buffers are the lane's, and nobody else writes the same outputs.
    #[inline(always)]
    pub(super) unsafe fn transform_output<S: Simd, T: Transform>(
        &self,
        buffers: Buffers,
        tiles: &Range<usize>,
        panel: usize,
    ) {
        let stride = Winograd::product_stride(tiles.len());
        let mut tile = tiles.start;
        while tile < tiles.end {
            // As many as a vector has pixels.
            let run = self.run_of(tile, tiles.end, S::LANES.div_ceil(T::M));
            let products = buffers.products.wrapping_add((tile - tiles.start) * PANEL);
            for column in (0..PANEL).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let products = products.add(column);
                    self.fill_output::<S, T>(buffers.strip, products, stride, run.n);
                    self.write_tiles::<S, T>(buffers.strip, run, panel * PANEL + column);
                }
            }
            tile += run.n;
        }
    }

    /// Outputs of `n` tiles and a vector of channels, as `[y][x][channel]`.
    #[inline(always)]
    unsafe fn fill_output<S: Simd, T: Transform>(
        &self,
        to: *mut f32,
        products: *const f32,
        stride: usize,
        n: usize,
    ) {
        for i in 0..n {
            // SAFETY: the caller's promise; a tile is M rows and columns of at most 16 columns in all.
            unsafe {
                let square = square::<S, T>(products.add(i * PANEL), stride);
                for y in 0..T::M {
                    for x in 0..T::M {
                        S::store(to.add((y * MAX_LANES + i * T::M + x) * S::LANES), square[y][x]);
                    }
                }
            }
        }
    }

    /// Writes the tiles' outputs that are in the image.
    #[inline(always)]
    unsafe fn write_tiles<S: Simd, T: Transform>(&self, from: *const f32, run: Tiles, channel: usize) {
        let [height, width] = self.plan.size;
        let (first, x) = (run.y * T::M, run.x * T::M);
        let n = (run.n * T::M).min(width - x);
        // SAFETY: the caller's promise.
        unsafe {
            let bias = self.output.bias::<S>(channel);
            for row in 0..T::M.min(height - first) {
                let mut pixels = [S::splat(0.0); MAX_LANES];
                for i in 0..S::LANES {
                    pixels[i] = S::add(S::load(from.add((row * MAX_LANES + i) * S::LANES)), bias);
                }
                let place = (run.image, channel, (first + row) * width + x);
                self.output.write_plane::<S>(&mut pixels, n, place);
            }
        }
    }
}

/// The outputs of a tile whose elements are `stride` words apart.
#[inline(always)]
unsafe fn square<S: Simd, T: Transform>(from: *const f32, stride: usize) -> [[S::V; MAX_M]; MAX_M] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::splat(0.0); MAX_TILE]; MAX_M];
        for x in 0..T::TILE {
            let mut column = [S::splat(0.0); MAX_TILE];
            for y in 0..T::TILE {
                column[y] = S::load(from.add((y * T::TILE + x) * stride));
            }
            let column = T::output::<S>(column);
            for y in 0..T::M {
                rows[y][x] = column[y];
            }
        }
        let mut square = [[S::splat(0.0); MAX_M]; MAX_M];
        for y in 0..T::M {
            square[y] = T::output::<S>(rows[y]);
        }
        square
    }
}
