//! Convolutions as products: rows are output pixels, `k` is (input channel, kernel row, kernel column).

use std::ops::Range;

use crate::gemm::{self, Rows};
use crate::output::Output;
use crate::packed::PANEL;
use crate::simd::{MAX_LANES, ROW, Simd};
use crate::{ConvShape, Element, Error};

/// Output pixels of all images as rows.
pub(crate) struct Pixels<'a> {
    shape: ConvShape,
    input: &'a [f32],
    output: Output<'a>,
    /// Rows and columns of the output; a pointwise convolution's plane counts as one row.
    size: [usize; 2],
}

/// One `k`: input channel, kernel row and column.
#[derive(Clone, Copy)]
struct Tap {
    channel: usize,
    y: usize,
    x: usize,
}

impl Tap {
    #[inline(always)]
    fn new(k: usize, [height, width]: [usize; 2]) -> Self {
        Self { channel: k / (height * width), y: k / width % height, x: k % width }
    }

    #[inline(always)]
    fn next(self, [height, width]: [usize; 2]) -> Self {
        if self.x + 1 < width {
            return Self { x: self.x + 1, ..self };
        }
        match self.y + 1 < height {
            true => Self { x: 0, y: self.y + 1, ..self },
            false => Self { x: 0, y: 0, channel: self.channel + 1 },
        }
    }
}

impl<'a> Pixels<'a> {
    /// `input` and `output` have been checked.
    pub(crate) fn new(mut shape: ConvShape, input: &'a [f32], output: Output<'a>) -> Result<Self, Error> {
        if shape.kernel == [1; 2] && shape.stride == [1; 2] && shape.padding == [0; 4] {
            shape.size = [1, shape.size[0] * shape.size[1]];
        }
        Ok(Self { shape, input, output, size: shape.output_size()? })
    }

    /// Image, row and column of a pixel.
    #[inline(always)]
    fn place(&self, row: usize) -> [usize; 3] {
        let [height, width] = self.size;
        [row / (height * width), row / width % height, row % width]
    }

    /// What `tap` multiplies of the `n` output pixels from `place` on, which are in one row.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, [image, y, x]: [usize; 3], n: usize, tap: Tap) -> S::V {
        let [height, width] = self.shape.size;
        // Wraps to a large number above the input.
        let y = (y * self.shape.stride[0] + tap.y * self.shape.dilation[0]).wrapping_sub(self.shape.padding[0]);
        let x = (x * self.shape.stride[1] + tap.x * self.shape.dilation[1]).wrapping_sub(self.shape.padding[1]);
        // SAFETY: only pixels inside the input are read.
        unsafe {
            if y >= height {
                return S::splat(0.0);
            }
            let row = ((image * self.shape.in_channels + tap.channel) * height + y) * width;
            let row = &self.input[row..row + width];
            if self.shape.stride[1] == 1 && x < width && x + n <= width {
                // The channels of the vectors after this square.
                let ahead = S::LANES.div_ceil(self.shape.kernel[0] * self.shape.kernel[1]) * height * width;
                S::prefetch(row.as_ptr().wrapping_add(x + ahead));
                return S::load_n(row.as_ptr().add(x), n);
            }
            let mut pixels = [0.0; MAX_LANES];
            for (i, pixel) in pixels.iter_mut().enumerate().take(n) {
                *pixel = row.get(x.wrapping_add(i * self.shape.stride[1])).copied().unwrap_or(0.0);
            }
            S::load(pixels.as_ptr())
        }
    }

    /// Copies `k` of `n` pixels of one output row into as many rows of a block.
    ///
    /// # Safety
    /// As [`Rows::pack`].
    #[inline(always)]
    unsafe fn pack_run<S: Simd>(
        &self,
        place: [usize; 3],
        n: usize,
        k: Range<usize>,
        element: Element,
        to: *mut f32,
    ) {
        let mut tap = Tap::new(k.start, self.shape.kernel);
        for at in k.clone().step_by(S::LANES) {
            // SAFETY: the caller's promise; vectors past the last `k` stay in the block's row.
            unsafe {
                let mut square = [S::splat(0.0); MAX_LANES];
                for v in square.iter_mut().take(S::LANES.min(k.end - at)) {
                    *v = self.load::<S>(place, n, tap);
                    tap = tap.next(self.shape.kernel);
                }
                S::transpose(&mut square);
                for (i, &v) in square.iter().enumerate().take(n) {
                    gemm::store::<S>(element, to.add(i * ROW), at - k.start, v);
                }
            }
        }
    }
}

impl Rows for Pixels<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, element: Element, to: *mut f32) {
        let mut row = rows.start;
        while row < rows.end {
            let place = self.place(row);
            let n = S::LANES.min(rows.end - row).min(self.size[1] - place[2]);
            // SAFETY: the caller's promise.
            unsafe {
                self.pack_run::<S>(place, n, k.clone(), element, to.add((row - rows.start) * ROW));
            }
            row += n;
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *const f32) {
        let plane = self.size[0] * self.size[1];
        let mut row = rows.start;
        while row < rows.end {
            let (image, pixel) = (row / plane, row % plane);
            let n = S::LANES.min(rows.end - row).min(plane - pixel);
            for column in (0..PANEL).step_by(S::LANES) {
                let channel = panel * PANEL + column;
                // SAFETY: the caller's promise; there are 32 sums a row.
                unsafe {
                    let bias = self.output.bias::<S>(channel);
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for (i, v) in square.iter_mut().enumerate().take(n) {
                        *v = S::add(S::load(sums.add((row - rows.start + i) * PANEL + column)), bias);
                    }
                    self.output.write_plane::<S>(&mut square, n, (image, channel, pixel));
                }
            }
            row += n;
        }
    }
}
