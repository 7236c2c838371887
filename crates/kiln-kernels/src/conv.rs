//! Convolutions of `[batch][channel][y][x]`, and which algorithm computes them.

use crate::error::product;
use crate::implicit::Implicit;
use crate::output::Tensors;
use crate::parallel::Pool;
use crate::winograd::{F2, F4, Winograd};
use crate::{Element, Error, Isa, Parallel, Weights};

/// Sizes of a 2-D convolution, as ONNX's `Conv` with one group has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Rows and columns of the input.
    pub size: [usize; 2],
    /// Rows and columns that each pixel of the input counts as, or 1: nearest-neighbour upsampling before the convolution.
    pub upsampling: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Steps between output rows and columns.
    pub stride: [usize; 2],
    /// Steps between the kernel's rows and columns.
    pub dilation: [usize; 2],
    /// Zeros around the input: top, left, bottom, right.
    pub padding: [usize; 4],
}

impl ConvShape {
    /// A `kernel` x `kernel` convolution of stride 1 that keeps the size (for odd kernels).
    pub fn same(
        batch: usize,
        in_channels: usize,
        size: [usize; 2],
        out_channels: usize,
        kernel: usize,
    ) -> Self {
        let (one, padding) = ([1; 2], [kernel / 2; 4]);
        Self {
            batch,
            in_channels,
            size,
            upsampling: 1,
            out_channels,
            kernel: [kernel; 2],
            stride: one,
            dilation: one,
            padding,
        }
    }

    /// Rows and columns of the output.
    pub fn output_size(&self) -> Result<[usize; 2], Error> {
        let numbers = [self.batch, self.in_channels, self.out_channels, self.upsampling];
        let pairs = [self.size, self.kernel, self.stride, self.dilation];
        if numbers.iter().chain(pairs.iter().flatten()).any(|&n| n == 0) {
            return Err(Error::Shape(format!("a convolution has a size of zero: {self:?}")));
        }
        Ok([self.output_len(0)?, self.output_len(1)?])
    }

    /// Rows and columns after upsampling.
    pub fn upsampled(&self) -> Result<[usize; 2], Error> {
        let [height, width] = self.size.map(|len| product(&[len, self.upsampling]));
        Ok([height?, width?])
    }

    fn output_len(&self, axis: usize) -> Result<usize, Error> {
        let padded = crate::error::sum(&[self.upsampled()?[axis], self.padding[axis], self.padding[axis + 2]])?;
        let kernel = crate::error::sum(&[product(&[self.kernel[axis] - 1, self.dilation[axis]])?, 1])?;
        match padded.checked_sub(kernel) {
            Some(room) => Ok(room / self.stride[axis] + 1),
            None => Err(Error::Shape(format!("a kernel of {kernel} does not fit {padded} padded elements"))),
        }
    }

    /// `k` of the weights.
    pub fn k(&self) -> Result<usize, Error> {
        product(&[self.in_channels, self.kernel[0], self.kernel[1]])
    }

    /// Elements of the input and the output.
    pub fn lengths(&self) -> Result<(usize, usize), Error> {
        let [height, width] = self.output_size()?;
        let input = product(&[self.batch, self.in_channels, self.size[0], self.size[1]])?;
        Ok((input, product(&[self.batch, self.out_channels, height, width])?))
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// A product whose left factor is read from a copy of the input with channels last; any convolution.
    ImplicitGemm,
    /// Winograd's F(2x2, 3x3): 3x3, stride 1, 2.25 times fewer products.
    WinogradF2,
    /// Winograd's F(4x4, 3x3): 3x3, stride 1, 4 times fewer products.
    WinogradF4,
}

/// A convolution that is ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    shape: ConvShape,
    algorithm: Algorithm,
    products: Element,
    isa: Isa,
}

impl Conv {
    /// Checks that `algorithm` computes `shape`. `products` is what factors are rounded to; Winograd's are transformed
    /// in f32 before.
    pub fn new(shape: ConvShape, algorithm: Algorithm, products: Element, isa: Isa) -> Result<Self, Error> {
        isa.checked()?;
        shape.lengths()?;
        let winograd = shape.kernel == [3; 2] && shape.stride == [1; 2] && shape.dilation == [1; 2];
        if algorithm != Algorithm::ImplicitGemm && !winograd {
            return Err(Error::Algorithm(format!("{algorithm:?} is for 3x3 kernels of stride and dilation 1")));
        }
        Ok(Self { shape, algorithm, products, isa })
    }

    /// Elements of the scratch that a pool of `lanes` needs.
    pub fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        let lanes = lanes.max(1);
        match self.algorithm {
            Algorithm::ImplicitGemm => Implicit::new(self.shape, self.products, self.isa)?.scratch_len(lanes),
            Algorithm::WinogradF2 => Winograd::new::<F2>(self.shape, self.products, lanes)?.scratch_len(lanes),
            Algorithm::WinogradF4 => Winograd::new::<F4>(self.shape, self.products, lanes)?.scratch_len(lanes),
        }
    }

    /// Computes it.
    pub fn run(&self, pool: &dyn Parallel, weights: Weights<'_>, tensors: Tensors<'_>) -> Result<(), Error> {
        weights.check(self.shape.k()?, self.shape.out_channels)?;
        let pool = Pool::new(pool);
        let (input, output) = self.shape.lengths()?;
        tensors.check(input, output, self.shape.out_channels, self.scratch_len(pool.lanes)?)?;
        let [height, width] = self.shape.output_size()?;
        let tensors = tensors.split(self.shape.out_channels, product(&[height, width])?);
        match self.algorithm {
            Algorithm::ImplicitGemm => {
                Implicit::new(self.shape, self.products, self.isa)?.run(pool, weights, tensors)
            }
            Algorithm::WinogradF2 => {
                let winograd = Winograd::new::<F2>(self.shape, self.products, pool.lanes)?;
                winograd.run::<F2>(self.isa, pool, weights, tensors)
            }
            Algorithm::WinogradF4 => {
                let winograd = Winograd::new::<F4>(self.shape, self.products, pool.lanes)?;
                winograd.run::<F4>(self.isa, pool, weights, tensors)
            }
        }
    }
}
