//! Linear layers.

use kiln_kernels::{Factors, Isa, Tensors, Weights};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Stored, Work, failed, given, inputs, numbers, output, room, sizes};

/// `Gemm` of `ai.onnx` with `transB` of 1 and nothing else: a matrix, weights `[n][k]`, and perhaps a bias `[n]` and a
/// residual.
pub(super) struct Linear {
    work: Work,
    form: Form,
}

/// How weights are stored and multiplied, each an operator of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// f32.
    F32,
    /// bf16, where the processor multiplies it.
    Bf16,
    /// Stored in bf16, multiplied in int8.
    Int8,
}

impl Form {
    pub(super) const ALL: [Form; 3] = [Form::F32, Form::Bf16, Form::Int8];

    /// Its operator's name in kiln's domain.
    pub(super) fn name(self) -> &'static str {
        match self {
            Form::F32 => "Linear",
            Form::Bf16 => "LinearBf16",
            Form::Int8 => "LinearInt8",
        }
    }

    fn stored(self) -> Stored {
        match self {
            Form::F32 => Stored::F32,
            Form::Bf16 | Form::Int8 => Stored::Bf16,
        }
    }

    fn factors(self, isa: Isa) -> Factors {
        match self {
            Form::F32 | Form::Bf16 => self.stored().products(isa).into(),
            Form::Int8 => Factors::Int8,
        }
    }
}

/// The attribute that is 1 where the second half of the outputs are gates of the first.
pub(super) const GATED: &str = "gated";

impl Linear {
    pub(super) fn new(work: Work, form: Form) -> Linear {
        Linear { work, form }
    }
}

impl Operator for Linear {
    type Kernel<'attr> = LinearKernel;

    fn name(&self) -> &str {
        self.form.name()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs(self.form.stored())
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<LinearKernel> {
        let is_gated = context.get(GATED).unwrap_or(0_i64) != 0;
        Ok(LinearKernel { work: self.work, form: self.form, is_gated })
    }
}

pub(super) struct LinearKernel {
    work: Work,
    form: Form,
    is_gated: bool,
}

impl Kernel for LinearKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, weights) = (given(context, 0)?, given(context, 1)?);
        let (bias, residual) = (context.input(2)?, context.input(3)?);
        let (x_shape, input) = x.try_extract_tensor::<f32>()?;
        let (w_shape, values) = self.form.stored().numbers(&weights)?;
        let (bias, residual) = (numbers(&bias)?, numbers(&residual)?);
        let ([rows, in_features], [n, k]) = (sizes(x_shape)?, sizes(w_shape)?);
        if k != in_features {
            return Err(failed(format!("{in_features} features, of which the weights have {k}")));
        }
        let out_features = if self.is_gated { n / 2 } else { n };
        let mut output = output(context, &[rows, out_features])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;

        let (Work { isa, threads }, is_gated) = (self.work, self.is_gated);
        let factors = self.form.factors(isa);
        let linear = kiln_kernels::Linear { rows, in_features, out_features, is_gated, factors, isa };
        let weights = Weights::new(values, n, in_features).map_err(failed)?;
        let mut room = room(linear.scratch_len(threads))?;
        let tensors = Tensors { input, bias, residual, output, scratch: room.numbers() };
        linear.run(&Pool { context, threads }, weights, tensors).map_err(failed)
    }
}
