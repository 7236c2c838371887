//! Upsampling.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Work, failed, given, output, sizes};

/// `Resize` of `ai.onnx` to twice the height and width of `[batch][channel][y][x]`, by the nearest pixel.
pub(super) struct Upsample(Work);

impl Upsample {
    /// Its name in kiln's domain.
    pub(super) const NAME: &str = "Upsample";

    pub(super) fn new(work: Work) -> Upsample {
        Upsample(work)
    }
}

impl Operator for Upsample {
    type Kernel<'attr> = UpsampleKernel;

    fn name(&self) -> &str {
        Upsample::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<UpsampleKernel> {
        Ok(UpsampleKernel(self.0))
    }
}

pub(super) struct UpsampleKernel(Work);

impl Kernel for UpsampleKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let x = given(context, 0)?;
        let (shape, input) = x.try_extract_tensor::<f32>()?;
        let [batch, channels, height, width] = sizes(shape)?;
        let mut output = output(context, &[batch, channels, 2 * height, 2 * width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let Work { isa, threads } = self.0;
        let upsample = kiln_kernels::Upsample { planes: batch * channels, size: [height, width], isa };
        upsample.run(&Pool { context, threads }, input, output).map_err(failed)
    }
}
