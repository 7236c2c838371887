//! Convolutions: by Winograd's algorithm where kernels are 3 x 3 and strides 1, else as products of matrices.

use kiln_kernels::{Algorithm, ConvShape, Element, Isa, Tensors, Weights};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Stored, Work, failed, given, inputs, numbers, output, room, sizes};

/// The attribute that says how many rows and columns each pixel of the input counts as.
pub(super) const UPSAMPLING: &str = "upsampling";

/// `Conv` of `ai.onnx` with one group: input, weights and perhaps a bias and a residual; the input may be upsampled before.
pub(super) struct Conv {
    work: Work,
    stored: Stored,
}

impl Conv {
    /// Its name in kiln's domain, by the type of its weights.
    pub(super) const fn name_of(stored: Stored) -> &'static str {
        match stored {
            Stored::F32 => "Conv",
            Stored::Bf16 => "ConvBf16",
        }
    }

    pub(super) fn new(work: Work, stored: Stored) -> Conv {
        Conv { work, stored }
    }
}

impl Operator for Conv {
    type Kernel<'attr> = ConvKernel;

    fn name(&self) -> &str {
        Conv::name_of(self.stored)
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs(self.stored)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ConvKernel> {
        let given = |name: &str, default: &[i64]| context.get(name).unwrap_or_else(|| default.to_vec());
        Ok(ConvKernel {
            work: self.work,
            stored: self.stored,
            upsampling: context.get::<i64>(UPSAMPLING).map_or(Ok(1), usize::try_from).map_err(failed)?,
            padding: sizes(&given("pads", &[0; 4]))?,
            stride: sizes(&given("strides", &[1; 2]))?,
            dilation: sizes(&given("dilations", &[1; 2]))?,
        })
    }
}

pub(super) struct ConvKernel {
    work: Work,
    stored: Stored,
    upsampling: usize,
    padding: [usize; 4],
    stride: [usize; 2],
    dilation: [usize; 2],
}

impl Kernel for ConvKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, weights) = (given(context, 0)?, given(context, 1)?);
        let (bias, residual) = (context.input(2)?, context.input(3)?);
        let (x_shape, input) = x.try_extract_tensor::<f32>()?;
        let (w_shape, values) = self.stored.numbers(&weights)?;
        let (bias, residual) = (numbers(&bias)?, numbers(&residual)?);
        let shape = self.shape(x_shape, w_shape)?;
        let [height, width] = shape.output_size().map_err(failed)?;
        let mut output = output(context, &[shape.batch, shape.out_channels, height, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;

        let Work { isa, threads } = self.work;
        let (algorithm, products) = plan(&shape, self.stored.products(isa), isa);
        let conv = kiln_kernels::Conv::new(shape, algorithm, products, isa).map_err(failed)?;
        let k = shape.k().map_err(failed)?;
        let weights = Weights::new(values, shape.out_channels, k).map_err(failed)?;
        let mut room = room(conv.scratch_len(threads))?;
        let tensors = Tensors { input, bias, residual, output, scratch: room.numbers() };
        conv.run(&Pool { context, threads }, weights, tensors).map_err(failed)
    }
}

impl ConvKernel {
    fn shape(&self, x: &[i64], weights: &[i64]) -> ort::Result<ConvShape> {
        let [batch, in_channels, height, width] = sizes(x)?;
        let [out_channels, channels, rows, columns] = sizes(weights)?;
        if channels != in_channels {
            return Err(failed(format!("{in_channels} channels, of which the weights have {channels}")));
        }
        let (size, kernel, padding) = ([height, width], [rows, columns], self.padding);
        let &ConvKernel { upsampling, stride, dilation, .. } = self;
        Ok(ConvShape { batch, in_channels, size, upsampling, out_channels, kernel, stride, dilation, padding })
    }
}

/// Fewer channels are filled up with zeros to as many by implicit GEMM.
const MANY_CHANNELS: usize = 32;

/// By the size of a picture alone: what a batch has besides does not change a picture's sums. Winograd's algorithm is never
/// of bf16, in which it loses more than it saves, and AMX does not need it but for few channels.
fn plan(shape: &ConvShape, products: Element, isa: Isa) -> (Algorithm, Element) {
    let is_winograds = shape.kernel == [3; 2] && shape.stride == [1; 2] && shape.dilation == [1; 2];
    match shape.size.map(|len| len.saturating_mul(shape.upsampling)).into_iter().min() {
        _ if !is_winograds
            || (products == Element::Bf16 && isa == Isa::Amx && shape.in_channels >= MANY_CHANNELS) =>
        {
            (Algorithm::ImplicitGemm, products)
        }
        Some(0..=8) => (Algorithm::WinogradF2, Element::F32),
        _ => (Algorithm::WinogradF4, Element::F32),
    }
}
