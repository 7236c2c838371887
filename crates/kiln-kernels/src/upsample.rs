//! Enlarging planes by repeating pixels.

use crate::error::{check_length, product};
use crate::memory::Shared;
use crate::parallel::Pool;
use crate::simd::{self, Kernel, Simd};
use crate::{Error, Isa, Parallel};

/// Nearest-neighbour upsampling of planes to twice their height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsample {
    /// Planes: images x channels.
    pub planes: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Instructions to use.
    pub isa: Isa,
}

impl Upsample {
    /// Computes it.
    pub fn run(&self, pool: &dyn Parallel, input: &[f32], output: &mut [f32]) -> Result<(), Error> {
        let [height, width] = self.size;
        let len = product(&[self.planes, height, width])?;
        check_length("the input", len, input.len())?;
        check_length("the output", product(&[len, 4])?, output.len())?;
        let rows = Rows { width, input, output: Shared::new(output) };
        simd::for_each(self.isa, Pool::new(pool), self.planes * height, &rows)
    }
}

/// Upsampling as a kernel: an item is a row of the input.
struct Rows<'a> {
    width: usize,
    input: &'a [f32],
    output: Shared,
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _lane: usize, item: usize) {
        let row = &self.input[item * self.width..][..self.width];
        let (first, second) =
            (self.output.at(4 * item * self.width), self.output.at((4 * item + 2) * self.width));
        for (x, &v) in row.iter().enumerate() {
            // SAFETY: the output has two rows of twice the width for each of the input's.
            unsafe {
                [first, second]
                    .into_iter()
                    .for_each(|to| to.add(2 * x).cast::<[f32; 2]>().write_unaligned([v; 2]))
            }
        }
    }
}
