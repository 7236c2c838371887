//! Input: strips of tile rows are brought to `[y][x][channel]`, and transformed tile by tile.

use std::ops::Range;

use super::transform::{MAX_TILE, Transform};
use super::{Buffers, Run, Tiles};
use crate::ConvShape;
use crate::gemm;
use crate::simd::{MAX_LANES, Simd};

/// Tiles of the longest strip.
const STRIP: usize = 16;

/// Words of a strip's rows and columns of vectors, and of one vector of columns past the end; an output tile's rows
/// need no more.
pub(super) const fn strip_words<T: Transform>() -> usize {
    (T::TILE * (STRIP * T::M + 2) + MAX_LANES) * MAX_LANES
}

impl Run<'_> {
    /// Transforms `channels` of `tiles`. `channels` starts at a multiple of 16.
    ///
    /// # Safety
    /// The processor has `S`; the strip, and the tiles and channels in the buffer, are written by nobody else.
    #[inline(always)]
    pub(super) unsafe fn transform_input<S: Simd, T: Transform>(
        &self,
        buffers: Buffers,
        tiles: &Range<usize>,
        channels: Range<usize>,
    ) {
        let mut tile = tiles.start;
        while tile < tiles.end {
            let run = self.run_of(tile, tiles.end, STRIP);
            for channel in channels.clone().step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    self.fill_strip::<S, T>(buffers.strip, run, channel);
                    self.transform_strip::<S, T>(buffers, run, channel);
                }
            }
            tile += run.n;
        }
    }

    /// Brings `run`'s part of the input, a vector of channels, into the strip.
    #[inline(always)]
    unsafe fn fill_strip<S: Simd, T: Transform>(&self, strip: *mut f32, run: Tiles, channel: usize) {
        let width = run.n * T::M + 2;
        for row in 0..T::TILE {
            // SAFETY: the caller's promise; the row before is filled.
            unsafe {
                let to = strip.add(row * width * S::LANES);
                match row > 0 && self.repeats_row::<T>(run, row) {
                    true => to.copy_from_nonoverlapping(to.sub(width * S::LANES), width * S::LANES),
                    false => self.fill_row::<S, T>(to, run, row, channel),
                }
            }
        }
    }

    /// Whether a row of the strip is the one before it again, after upsampling.
    #[inline(always)]
    fn repeats_row<T: Transform>(&self, run: Tiles, row: usize) -> bool {
        let y = (run.y * T::M + row).wrapping_sub(self.plan.shape.padding[0]);
        y < self.plan.upsampled[0] && !y.is_multiple_of(self.plan.shape.upsampling)
    }

    #[inline(always)]
    unsafe fn fill_row<S: Simd, T: Transform>(&self, strip: *mut f32, run: Tiles, row: usize, channel: usize) {
        let [height, width] = self.plan.upsampled;
        let [top, left, ..] = self.plan.shape.padding;
        let n = run.n * T::M + 2;
        // Wraps to a large number above the input.
        let y = (run.y * T::M + row).wrapping_sub(top);
        let start = run.x * T::M;
        // Columns of the strip that are in the input.
        let inside = match y < height {
            true => left.saturating_sub(start).min(n)..(width + left).saturating_sub(start).min(n),
            false => 0..0,
        };
        let inside = inside.start..inside.end.max(inside.start);
        // SAFETY: the caller's promise; only pixels inside the input are read.
        unsafe {
            for x in (0..inside.start).chain(inside.end..n) {
                S::store(strip.add(x * S::LANES), S::splat(0.0));
            }
            if !inside.is_empty() {
                let ConvShape { size: [height, width], upsampling, in_channels, .. } = self.plan.shape;
                let first = (run.image * in_channels + channel) * height * width;
                let from = self.input.as_ptr().add(first + y / upsampling * width);
                let (x, strip) = (start + inside.start - left, strip.add(inside.start * S::LANES));
                match upsampling {
                    1 => self.transpose_row::<S>(from.add(x), inside.len(), channel, |x, pixel| {
                        S::store(strip.add(x * S::LANES), pixel);
                    }),
                    _ => self.repeat_row::<S>(strip, from, x..x + inside.len(), channel),
                }
            }
        }
    }

    /// Brings upsampled pixels, a vector of channels, into the strip.
    #[inline(always)]
    unsafe fn repeat_row<S: Simd>(
        &self,
        strip: *mut f32,
        from: *const f32,
        pixels: Range<usize>,
        channel: usize,
    ) {
        let upsampling = self.plan.shape.upsampling;
        let (first, n) =
            (pixels.start / upsampling, (pixels.end - 1) / upsampling - pixels.start / upsampling + 1);
        // SAFETY: the caller's promise; only pixels that are asked for are written.
        unsafe {
            self.transpose_row::<S>(from.add(first), n, channel, |x, pixel| {
                let start = (first + x) * upsampling;
                for at in start.max(pixels.start)..(start + upsampling).min(pixels.end) {
                    S::store(strip.add((at - pixels.start) * S::LANES), pixel);
                }
            });
        }
    }

    /// Hands `n` neighbouring pixels over, a vector of channels each, and what is past them up to a vector's end.
    #[inline(always)]
    unsafe fn transpose_row<S: Simd>(
        &self,
        from: *const f32,
        n: usize,
        channel: usize,
        mut store: impl FnMut(usize, S::V),
    ) {
        let plane = self.plan.shape.size[0] * self.plan.shape.size[1];
        let n_channels = S::LANES.min(self.plan.shape.in_channels - channel);
        for x in (0..n).step_by(S::LANES) {
            let n = S::LANES.min(n - x);
            // SAFETY: the caller's promise; channels past the last are not read.
            unsafe {
                let mut square = [S::splat(0.0); MAX_LANES];
                if n == S::LANES && n_channels == S::LANES {
                    for i in 0..S::LANES {
                        square[i] = S::load(from.add(i * plane + x));
                    }
                } else {
                    for i in 0..S::LANES {
                        square[i] =
                            S::load_n(from.wrapping_add(i * plane + x), if i < n_channels { n } else { 0 });
                    }
                }
                for i in 0..S::LANES {
                    S::prefetch(from.wrapping_add((i + S::LANES) * plane + x));
                }
                S::transpose(&mut square);
                for i in 0..S::LANES {
                    store(x + i, square[i]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn transform_strip<S: Simd, T: Transform>(&self, buffers: Buffers, run: Tiles, channel: usize) {
        let width = run.n * T::M + 2;
        let (block, channel) = (channel / self.plan.channel_block(), channel % self.plan.channel_block());
        let stride = buffers.element_stride();
        for i in 0..run.n {
            let to = buffers.tile(run.tile + i).wrapping_add(block * self.plan.n_elements * stride);
            // SAFETY: the caller's promise.
            unsafe {
                let square = square::<S, T>(buffers.strip.add(i * T::M * S::LANES), width);
                for y in 0..T::TILE {
                    for x in 0..T::TILE {
                        let row = to.add((y * T::TILE + x) * stride);
                        gemm::store::<S>(self.plan.products, row, channel, square[y][x]);
                    }
                }
            }
        }
    }
}

/// A transformed tile of a strip whose rows have `width` vectors.
#[inline(always)]
unsafe fn square<S: Simd, T: Transform>(from: *const f32, width: usize) -> [[S::V; MAX_TILE]; MAX_TILE] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut square = [[S::splat(0.0); MAX_TILE]; MAX_TILE];
        for x in 0..T::TILE {
            let mut column = [S::splat(0.0); MAX_TILE];
            for y in 0..T::TILE {
                column[y] = S::load(from.add((y * width + x) * S::LANES));
            }
            let column = T::input::<S>(column);
            for y in 0..T::TILE {
                square[y][x] = column[y];
            }
        }
        for row in square.iter_mut().take(T::TILE) {
            *row = T::input::<S>(*row);
        }
        square
    }
}
