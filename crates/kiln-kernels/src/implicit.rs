//! Convolutions as products: rows are output pixels, `k` is (input channel, kernel row, kernel column).

use std::ops::Range;

use crate::gemm::{self, Rows};
use crate::output::Output;
use crate::simd::{MAX_LANES, ROW, Simd};
use crate::weights::PANEL;
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
        let is_pointwise = shape.kernel == [1; 2] && shape.stride == [1; 2] && shape.padding == [0; 4];
        if is_pointwise && shape.upsampling == 1 {
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
        let ConvShape { size: [height, width], upsampling, .. } = self.shape;
        // Wraps to a large number above the input.
        let y = (y * self.shape.stride[0] + tap.y * self.shape.dilation[0]).wrapping_sub(self.shape.padding[0]);
        let x = (x * self.shape.stride[1] + tap.x * self.shape.dilation[1]).wrapping_sub(self.shape.padding[1]);
        // SAFETY: only pixels inside the input are read.
        unsafe {
            if y >= height * upsampling {
                return S::splat(0.0);
            }
            let row = ((image * self.shape.in_channels + tap.channel) * height + y / upsampling) * width;
            let row = &self.input[row..row + width];
            if self.shape.stride[1] == 1 && upsampling == 1 && x < width && x + n <= width {
                // The channels of the vectors after this square.
                let ahead = S::LANES.div_ceil(self.shape.kernel[0] * self.shape.kernel[1]) * height * width;
                S::prefetch(row.as_ptr().wrapping_add(x + ahead));
                return S::load_n(row.as_ptr().add(x), n);
            }
            let mut pixels = [0.0; MAX_LANES];
            for (i, pixel) in pixels.iter_mut().enumerate().take(n) {
                let x = x.wrapping_add(i * self.shape.stride[1]);
                *pixel = row.get(x / upsampling).copied().unwrap_or(0.0);
            }
            S::load(pixels.as_ptr())
        }
    }

    /// Copies a vector of `k` from `tap` on, `n_k` of which there are, of `n` pixels of one output row into as many
    /// rows of a block.
    ///
    /// # Safety
    /// As [`Rows::pack`].
    #[inline(always)]
    unsafe fn pack_square<S: Simd>(
        &self,
        place: [usize; 3],
        n: usize,
        (mut tap, n_k): (Tap, usize),
        element: Element,
        to: *mut f32,
    ) {
        // SAFETY: the caller's promise; vectors past the last `k` stay in the block's row.
        unsafe {
            let mut square = [S::splat(0.0); MAX_LANES];
            for v in square.iter_mut().take(n_k) {
                *v = self.load::<S>(place, n, tap);
                tap = tap.next(self.shape.kernel);
            }
            S::transpose(&mut square);
            // Loops of a constant length keep the square in registers.
            for i in 0..S::LANES {
                if i < n {
                    gemm::store::<S>(element, to.add(i * ROW), 0, square[i]);
                }
            }
        }
    }

    /// The place of the pixel `n` behind `place`, in the same row or at the next one's start.
    #[inline(always)]
    fn advance(&self, [image, y, x]: [usize; 3], n: usize) -> [usize; 3] {
        if x + n < self.size[1] {
            return [image, y, x + n];
        }
        if y + 1 < self.size[0] { [image, y + 1, 0] } else { [image + 1, 0, 0] }
    }
}

impl Rows for Pixels<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, element: Element, to: *mut f32) {
        // A few channels at a time, so that few pages are read.
        for at in k.clone().step_by(S::LANES) {
            let taps = (Tap::new(at, self.shape.kernel), S::LANES.min(k.end - at));
            let to = to.wrapping_add((at - k.start) / element.per_word());
            let (mut row, mut place) = (rows.start, self.place(rows.start));
            while row < rows.end {
                let n = S::LANES.min(rows.end - row).min(self.size[1] - place[2]);
                // SAFETY: the caller's promise.
                unsafe { self.pack_square::<S>(place, n, taps, element, to.add((row - rows.start) * ROW)) }
                (row, place) = (row + n, self.advance(place, n));
            }
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *mut f32) {
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
