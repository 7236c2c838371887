//! Linear layers with weights in bf16.

use kiln_kernels::{Tensors, Weights};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Stored, Work, failed, given, sizes};
use crate::heap::Room;

/// `Gemm` of `ai.onnx` with `transB` of 1 and nothing else: a matrix, weights `[n][k]` and perhaps a bias `[n]`.
pub(super) struct Linear(Work);

impl Linear {
    /// Its name in kiln's domain.
    pub(super) const NAME: &str = "LinearBf16";

    pub(super) fn new(work: Work) -> Linear {
        Linear(work)
    }
}

impl Operator for Linear {
    type Kernel<'attr> = LinearKernel;

    fn name(&self) -> &str {
        Linear::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(Float32),
            OperatorInput::required(Stored::Bf16.element_type()),
            OperatorInput::optional(Float32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<LinearKernel> {
        Ok(LinearKernel(self.0))
    }
}

pub(super) struct LinearKernel(Work);

impl Kernel for LinearKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, weights, bias) = (given(context, 0)?, given(context, 1)?, context.input(2)?);
        let (x_shape, input) = x.try_extract_tensor::<f32>()?;
        let (w_shape, values) = Stored::Bf16.numbers(&weights)?;
        let bias =
            bias.as_ref().map(|bias| bias.try_extract_tensor::<f32>()).transpose()?.map(|(_, bias)| bias);
        let ([rows, in_features], [out_features, k]) = (sizes(x_shape)?, sizes(w_shape)?);
        if k != in_features {
            return Err(failed(format!("{in_features} features, of which the weights have {k}")));
        }
        let mut output = context
            .output(0, [rows, out_features].map(|n| n as i64))?
            .ok_or_else(|| failed("the output is missing"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;

        let Work { isa, threads } = self.0;
        let products = Stored::Bf16.products(isa);
        let linear = kiln_kernels::Linear { rows, in_features, out_features, products, isa };
        let weights = Weights::new(values, out_features, in_features).map_err(failed)?;
        let scratch = linear.scratch_len(threads).map_err(failed)?;
        let mut room = Room::new(scratch).ok_or_else(|| failed("no memory for intermediate results"))?;
        let tensors = Tensors { input, bias, residual: None, output, scratch: room.numbers() };
        linear.run(&Pool { context, threads }, weights, tensors).map_err(failed)
    }
}
