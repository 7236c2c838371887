//! Convolutions as products: rows are output pixels, `k` is (kernel row, kernel column, channel).
//!
//! The input is copied strip by strip, with its padding and its channels last, in the type of the factors: what a tap
//! multiplies of a pixel's channels then lies in one piece.

use std::ops::Range;

use crate::error::{product, sum};
use crate::gemm::{self, Blocks, Columns, Rows, part};
use crate::memory::Shared;
use crate::output::Output;
use crate::parallel::Pool;
use crate::simd::{self, Kernel, MAX_LANES, ROW, Simd};
use crate::weights::PANEL;
use crate::{ConvShape, Element, Error, Isa, Weights};

/// Words of a strip, about, unless a line of the output needs more: 8 MiB.
const STRIP_WORDS: usize = 2 << 20;

/// A convolution's sizes, and how it is split.
#[derive(Clone, Copy)]
pub(crate) struct Implicit {
    shape: ConvShape,
    element: Element,
    isa: Isa,
    /// Rows and columns of the output.
    size: [usize; 2],
    /// Rows and columns of an image with what lies around it, as far as the kernel reaches.
    padded: [usize; 2],
    /// Channels of a pixel of the copy: as many as fill vectors of words.
    channels: usize,
    /// Words of a row of the copy.
    row_words: usize,
    /// Lines of outputs, those of all images, are computed in so many strips.
    strips: usize,
}

impl Implicit {
    pub(crate) fn new(shape: ConvShape, element: Element, isa: Isa) -> Result<Self, Error> {
        let size = shape.output_size()?;
        let reach = |axis: usize| {
            let kernel = product(&[shape.kernel[axis] - 1, shape.dilation[axis]])?;
            sum(&[product(&[size[axis] - 1, shape.stride[axis]])?, kernel, 1])
        };
        let channels = product(&[shape.in_channels.div_ceil(MAX_LANES * element.per_word()), MAX_LANES])?;
        let channels = product(&[channels, element.per_word()])?;
        let padded = [reach(0)?, reach(1)?];
        let row_words = product(&[padded[1], channels / element.per_word()])?;
        let words = product(&[shape.batch, padded[0], row_words])?;
        let strips = words.div_ceil(STRIP_WORDS).min(product(&[shape.batch, size[0]])?);
        Ok(Self { shape, element, isa, size, padded, channels, row_words, strips })
    }

    /// `k` of the product.
    fn k(&self) -> Result<usize, Error> {
        product(&[self.shape.kernel[0], self.shape.kernel[1], self.channels])
    }

    fn lines(&self) -> usize {
        self.shape.batch * self.size[0]
    }

    /// Rows of the copy, of all images one after the other, that a line of the output begins at.
    fn first_row(&self, line: usize) -> usize {
        line / self.size[0] * self.padded[0] + line % self.size[0] * self.shape.stride[0]
    }

    /// Rows of the copy that lines need.
    fn rows(&self, lines: &Range<usize>) -> Range<usize> {
        let kernel = (self.shape.kernel[0] - 1) * self.shape.dilation[0] + 1;
        self.first_row(lines.start)..self.first_row(lines.end - 1) + kernel
    }

    fn blocks(&self, lines: &Range<usize>, lanes: usize) -> Result<Blocks, Error> {
        let rows = product(&[lines.len(), self.size[1]])?;
        let sizes = [self.shape.out_channels, self.k()?];
        Ok(Blocks::new(self.isa, rows, sizes, self.element.into(), lanes, false))
    }

    fn strips(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (lines, n) = (self.lines(), self.strips);
        (0..n).map(move |index| part(lines, n, index))
    }

    /// Words of the largest strip's copy.
    fn copy_words(&self) -> Result<usize, Error> {
        let rows = self.strips().map(|lines| self.rows(&lines).len()).max().unwrap_or(0);
        product(&[rows, self.row_words])
    }

    /// Words that `lanes` need.
    pub(crate) fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        let mut most = 0;
        for lines in self.strips() {
            most = most.max(self.blocks(&lines, lanes)?.scratch_len(lanes)?);
        }
        sum(&[self.copy_words()?, most])
    }

    /// Computes it; all lengths have been checked.
    pub(crate) fn run(
        &self,
        pool: Pool<'_>,
        weights: Weights<'_>,
        (input, output, scratch): (&[f32], Output<'_>, &mut [f32]),
    ) -> Result<(), Error> {
        let (copy, scratch) = scratch.split_at_mut(self.copy_words()?);
        let copy = Shared::new(copy);
        let columns = Taps { weights, implicit: self };
        for lines in self.strips() {
            let rows = self.rows(&lines);
            let first_row = rows.start;
            let copying = CopyingRows { implicit: self, input, copy, first_row };
            simd::for_each(self.isa, pool, rows.len(), &copying)?;
            let blocks = self.blocks(&lines, pool.lanes)?;
            let pixels = Pixels { implicit: self, output: &output, copy, first_row, first_line: lines.start };
            gemm::run(self.isa, pool, blocks, &pixels, &columns, scratch)?;
        }
        Ok(())
    }
}

/// Rows of the copy in the making, one an item.
struct CopyingRows<'a> {
    implicit: &'a Implicit,
    input: &'a [f32],
    copy: Shared,
    /// Of the copy.
    first_row: usize,
}

impl Kernel for CopyingRows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _lane: usize, item: usize) {
        let Implicit { shape, element, padded, channels, row_words, .. } = *self.implicit;
        let ConvShape { size: [height, width], upsampling, padding: [top, left, ..], in_channels, .. } = shape;
        let row = self.first_row + item;
        let (image, y) = (row / padded[0], row % padded[0]);
        let to = self.copy.at(item * row_words);
        let pixel_words = channels / element.per_word();
        // Wraps to a large number above the input.
        let y = y.wrapping_sub(top);
        let (first, end) = (left.min(padded[1]), (left + width * upsampling).min(padded[1]));
        // SAFETY: the row is the item's own, and only pixels of the input are read.
        unsafe {
            if y >= height * upsampling || first == end {
                return zeros::<S>(to, row_words);
            }
            zeros::<S>(to, first * pixel_words);
            zeros::<S>(to.add(end * pixel_words), (padded[1] - end) * pixel_words);
            for channel in (0..channels).step_by(S::LANES) {
                let n = in_channels.saturating_sub(channel).min(S::LANES);
                let plane = |i: usize| ((image * in_channels + channel + i) * height + y / upsampling) * width;
                for x in (0..width).step_by(S::LANES) {
                    let n_pixels = S::LANES.min(width - x);
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for (i, v) in square.iter_mut().enumerate().take(n) {
                        let from = self.input.as_ptr().add(plane(i) + x);
                        // The same pixels of the channels after these.
                        S::prefetch(from.wrapping_add(S::LANES * height * width));
                        *v = S::load_n(from, n_pixels);
                    }
                    S::transpose(&mut square);
                    // Loops of a constant length keep the square in registers.
                    for i in 0..S::LANES {
                        for column in first + (x + i) * upsampling..first + (x + i + 1) * upsampling {
                            if i < n_pixels && column < end {
                                let to = to.add(column * pixel_words);
                                gemm::store::<S>(element, to, channel, square[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Writes zeros.
///
/// # Safety
/// The processor has `S`; there are as many words, written by nobody else.
#[inline(always)]
unsafe fn zeros<S: Simd>(to: *mut f32, words: usize) {
    for at in (0..words).step_by(S::LANES) {
        // SAFETY: the caller's promise; pixels are whole vectors of words.
        unsafe { S::store(to.add(at), S::splat(0.0)) }
    }
}

/// A strip's output pixels as rows.
struct Pixels<'a> {
    implicit: &'a Implicit,
    output: &'a Output<'a>,
    copy: Shared,
    /// Of the copy.
    first_row: usize,
    /// Of the outputs of all images.
    first_line: usize,
}

impl Pixels<'_> {
    /// Words of the copy from its start to a pixel's first tap.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        let Implicit { size, shape, channels, element, .. } = *self.implicit;
        let (line, x) = (self.first_line + row / size[1], row % size[1]);
        let row = self.implicit.first_row(line) - self.first_row;
        row * self.implicit.row_words + x * shape.stride[1] * (channels / element.per_word())
    }
}

impl Rows for Pixels<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, to: *mut f32) {
        let Implicit { shape, channels, element, .. } = *self.implicit;
        let mut at = k.start;
        while at < k.end {
            let (tap, channel) = (at / channels, at % channels);
            let n = (channels - channel).min(k.end - at);
            let (y, x) = (tap / shape.kernel[1] * shape.dilation[0], tap % shape.kernel[1] * shape.dilation[1]);
            let tap = y * self.implicit.row_words + (x * channels + channel) / element.per_word();
            let words = n / element.per_word();
            let to = to.wrapping_add((at - k.start) / element.per_word());
            for (i, row) in rows.clone().enumerate() {
                let from = self.copy.at(self.start(row) + tap);
                for word in (0..words).step_by(S::LANES) {
                    // SAFETY: the caller's promise; pixels, and pieces of them, are whole vectors of words.
                    unsafe { S::store(to.add(i * ROW + word), S::load(from.add(word))) }
                }
            }
            at += n;
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *mut f32) {
        let [height, width] = self.implicit.size;
        let (plane, first) = (height * width, self.first_line * width);
        let mut row = rows.start;
        while row < rows.end {
            let (image, pixel) = ((first + row) / plane, (first + row) % plane);
            let n = S::LANES.min(rows.end - row).min(plane - pixel);
            for column in (0..PANEL).step_by(S::LANES) {
                let channel = panel * PANEL + column;
                // SAFETY: the caller's promise; there are 32 sums a row.
                unsafe {
                    let bias = self.output.bias::<S>(channel);
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for i in 0..S::LANES {
                        let sums = sums.add((row - rows.start + i.min(n - 1)) * PANEL + column);
                        square[i] = S::add(S::load(sums), bias);
                    }
                    self.output.write_plane::<S>(&mut square, n, (image, channel, pixel));
                }
            }
            row += n;
        }
    }
}

/// Weights whose `k` become (kernel row, kernel column, channel).
struct Taps<'a> {
    weights: Weights<'a>,
    implicit: &'a Implicit,
}

impl Columns for Taps<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, first: usize, to: *mut f32) {
        let Implicit { shape, channels, element, .. } = *self.implicit;
        let taps = shape.kernel[0] * shape.kernel[1];
        let steps = channels / element.per_word();
        // SAFETY: the caller's promise.
        unsafe {
            if taps == 1 {
                self.weights.pack::<S>(first, 0..shape.in_channels, element, to);
                let used = shape.in_channels.div_ceil(element.per_word());
                return zeros::<S>(to.add(used * PANEL), (steps - used) * PANEL);
            }
            for column in (0..PANEL).step_by(S::LANES) {
                for step in 0..steps {
                    for tap in (0..taps).step_by(S::LANES) {
                        let to = to.add((tap * steps + step) * PANEL + column);
                        let n = S::LANES.min(taps - tap);
                        let channel = step * element.per_word();
                        self.pack_step::<S>(first + column, channel, tap..tap + n, to);
                    }
                }
            }
        }
    }
}

impl Taps<'_> {
    /// Writes a step of each of `taps`, at most a vector of them, for a vector of outputs from `first` on.
    ///
    /// # Safety
    /// As [`Columns::pack`].
    #[inline(always)]
    unsafe fn pack_step<S: Simd>(&self, first: usize, channel: usize, taps: Range<usize>, to: *mut f32) {
        let Implicit { channels, element, .. } = *self.implicit;
        let stride = channels / element.per_word() * PANEL;
        // SAFETY: the caller's promise.
        unsafe {
            let square = self.square::<S>(first, channel, taps.clone());
            match element {
                Element::F32 => {
                    for i in 0..S::LANES {
                        if i < taps.len() {
                            S::store(to.add(i * stride), square[i]);
                        }
                    }
                }
                Element::Bf16 => {
                    let second = self.square::<S>(first, channel + 1, taps.clone());
                    for i in 0..S::LANES {
                        if i < taps.len() {
                            S::store(to.add(i * stride), S::pair(square[i], second[i]));
                        }
                    }
                }
            }
        }
    }

    /// Weights of a channel for a vector of outputs, one vector a tap; zeros past the last channel.
    ///
    /// # Safety
    /// As [`Columns::pack`].
    #[inline(always)]
    unsafe fn square<S: Simd>(&self, first: usize, channel: usize, taps: Range<usize>) -> [S::V; MAX_LANES] {
        let shape = self.implicit.shape;
        // SAFETY: the caller's promise.
        unsafe {
            let mut square = [S::splat(0.0); MAX_LANES];
            if channel < shape.in_channels {
                let k = channel * shape.kernel[0] * shape.kernel[1] + taps.start;
                for (i, v) in square.iter_mut().enumerate().take(S::LANES) {
                    *v = self.weights.output::<S>(first + i, k, taps.len());
                }
                S::transpose(&mut square);
            }
            square
        }
    }
}
