//! Convolutions of 3 x 3 kernels and stride 1 by Winograd's algorithm.

use kiln_kernels::{Algorithm, ConvShape, Element, Tensors, Values, Weights};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Work, failed};
use crate::heap::Room;

/// `Conv` of `ai.onnx` with one group: input, weights and perhaps a bias.
pub(super) struct Conv(Work);

impl Conv {
    /// Its name in kiln's domain.
    pub(super) const NAME: &str = "Conv";

    pub(super) fn new(work: Work) -> Conv {
        Conv(work)
    }
}

impl Operator for Conv {
    type Kernel<'attr> = ConvKernel;

    fn name(&self) -> &str {
        Conv::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32), OperatorInput::required(Float32), OperatorInput::optional(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ConvKernel> {
        let pads: Vec<i64> = context.get("pads").unwrap_or_else(|| vec![0; 4]);
        let pads = pads.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let padding = <[usize; 4]>::try_from(pads).map_err(|_| failed("pads are not four"))?;
        Ok(ConvKernel { work: self.0, padding })
    }
}

pub(super) struct ConvKernel {
    work: Work,
    padding: [usize; 4],
}

impl Kernel for ConvKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || failed("an input is missing");
        let (x, weights) = (context.input(0)?.ok_or_else(missing)?, context.input(1)?.ok_or_else(missing)?);
        let bias = context.input(2)?;
        let (x_shape, input) = x.try_extract_tensor::<f32>()?;
        let (w_shape, weights) = weights.try_extract_tensor::<f32>()?;
        let bias =
            bias.as_ref().map(|bias| bias.try_extract_tensor::<f32>()).transpose()?.map(|(_, bias)| bias);
        let shape = self.shape(x_shape, w_shape)?;
        let [height, width] = shape.output_size().map_err(failed)?;
        let sizes = [shape.batch, shape.out_channels, height, width].map(|n| n as i64);
        let mut output = context.output(0, sizes)?.ok_or_else(|| failed("the output is missing"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;

        let conv =
            kiln_kernels::Conv::new(shape, algorithm(&shape), Element::F32, self.work.isa).map_err(failed)?;
        let k = shape.k().map_err(failed)?;
        let weights = Weights::new(Values::F32(weights), shape.out_channels, k).map_err(failed)?;
        let scratch = conv.scratch_len(self.work.threads).map_err(failed)?;
        let pool = Pool { context, threads: self.work.threads };
        let mut room = Room::new(scratch).ok_or_else(|| failed("no memory for intermediate results"))?;
        let tensors = Tensors { input, bias, residual: None, output, scratch: room.numbers() };
        conv.run(&pool, weights, tensors).map_err(failed)
    }
}

impl ConvKernel {
    fn shape(&self, x: &[i64], weights: &[i64]) -> ort::Result<ConvShape> {
        let sizes = |shape: &[i64]| -> ort::Result<[usize; 4]> {
            let sizes =
                shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
            sizes.try_into().map_err(|_| failed(format!("a shape of {} axes, not 4", shape.len())))
        };
        let ([batch, in_channels, height, width], [out_channels, channels, rows, columns]) =
            (sizes(x)?, sizes(weights)?);
        if channels != in_channels {
            return Err(failed(format!("{in_channels} channels, of which the weights have {channels}")));
        }
        let (size, kernel, padding) = ([height, width], [rows, columns], self.padding);
        let ones = [1; 2];
        Ok(ConvShape { batch, in_channels, size, out_channels, kernel, stride: ones, dilation: ones, padding })
    }
}

/// By the size of a picture alone: what a batch has besides does not change a picture's sums.
fn algorithm(shape: &ConvShape) -> Algorithm {
    match shape.size.into_iter().min() {
        Some(0..=8) => Algorithm::WinogradF2,
        _ => Algorithm::WinogradF4,
    }
}
