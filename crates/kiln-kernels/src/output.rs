//! What happens to sums on their way to memory: bias, residual, and the layout of the output.

use crate::Error;
use crate::error::check_length;
use crate::memory::Shared;
use crate::simd::{MAX_LANES, Simd};
use crate::weights::PANEL;

/// What a run reads and writes besides the weights.
#[derive(Debug)]
pub struct Tensors<'a> {
    /// The input.
    pub input: &'a [f32],
    /// Added to each output channel or feature.
    pub bias: Option<&'a [f32]>,
    /// Added to the output, element by element.
    pub residual: Option<&'a [f32]>,
    /// The output, overwritten.
    pub output: &'a mut [f32],
    /// Room for intermediate results, of at least the length that the plan says for the pool's lanes.
    pub scratch: &'a mut [f32],
}

impl<'a> Tensors<'a> {
    /// Checks all lengths: `input`, `output`, and `channels` of the bias.
    pub(crate) fn check(
        &self,
        input: usize,
        output: usize,
        channels: usize,
        scratch: usize,
    ) -> Result<(), Error> {
        check_length("the input", input, self.input.len())?;
        check_length("the output", output, self.output.len())?;
        check_length("the bias", channels, self.bias.map_or(channels, <[f32]>::len))?;
        check_length("the residual", output, self.residual.map_or(output, <[f32]>::len))?;
        match self.scratch.len() < scratch {
            true => Err(Error::Length { what: "the scratch", expected: scratch, found: self.scratch.len() }),
            false => Ok(()),
        }
    }

    /// The input, where sums go, and the scratch, of checked tensors.
    pub(crate) fn split(self, channels: usize, plane: usize) -> (&'a [f32], Output<'a>, &'a mut [f32]) {
        let Tensors { input, bias, residual, output, scratch } = self;
        (input, Output { to: Shared::new(output), bias, residual, channels, plane }, scratch)
    }
}

/// Where sums go: `[image][channel][pixel]`, or `[row][channel]` where a pixel is a row's only one.
pub(crate) struct Output<'a> {
    to: Shared,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    channels: usize,
    plane: usize,
}

impl Output<'_> {
    /// How many of a vector's channels from `channel` on there are.
    #[inline(always)]
    pub(crate) fn n_channels<S: Simd>(&self, channel: usize) -> usize {
        self.channels.saturating_sub(channel).min(S::LANES)
    }

    /// The bias of a vector of channels.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub(crate) unsafe fn bias<S: Simd>(&self, channel: usize) -> S::V {
        // SAFETY: the bias has `channels` elements, of which no more are read.
        unsafe {
            match self.bias {
                Some(bias) => S::load_n(bias.as_ptr().wrapping_add(channel), self.n_channels::<S>(channel)),
                None => S::splat(0.0),
            }
        }
    }

    /// Writes `pixels` (vectors of channels from `channel` on, of `n` neighbouring pixels), transposed.
    ///
    /// # Safety
    /// The processor has `S`, the pixels are in the plane, and nobody else writes them.
    #[inline(always)]
    pub(crate) unsafe fn write_plane<S: Simd>(
        &self,
        pixels: &mut [S::V; MAX_LANES],
        n: usize,
        (image, channel, pixel): (usize, usize, usize),
    ) {
        // SAFETY: the caller's promise; channels past the last are not written.
        unsafe {
            S::transpose(pixels);
            let first = (image * self.channels + channel) * self.plane + pixel;
            for (i, &v) in pixels.iter().enumerate().take(self.n_channels::<S>(channel)) {
                self.write::<S>(first + i * self.plane, v, n);
            }
        }
    }

    /// Writes a row's sums of panel `panel`, with the bias.
    ///
    /// # Safety
    /// The processor has `S`, and nobody else writes the row's panel; `sums` has 32 elements.
    #[inline(always)]
    pub(crate) unsafe fn write_row<S: Simd>(&self, row: usize, panel: usize, sums: *const f32) {
        for column in (0..PANEL).step_by(S::LANES) {
            let channel = panel * PANEL + column;
            // SAFETY: the caller's promise; channels past the last are not written.
            unsafe {
                let v = S::add(S::load(sums.add(column)), self.bias::<S>(channel));
                self.write::<S>(row * self.channels + channel, v, self.n_channels::<S>(channel));
            }
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, at: usize, v: S::V, n: usize) {
        // SAFETY: the caller's promise; the residual is as long as the output.
        unsafe {
            let v = match self.residual {
                Some(residual) => S::add(v, S::load_n(residual.as_ptr().wrapping_add(at), n)),
                None => v,
            };
            match n == S::LANES {
                true => S::store(self.to.at(at), v),
                false => S::store_n(self.to.at(at), v, n),
            }
        }
    }
}
