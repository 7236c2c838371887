//! Group normalisation.

use kiln_kernels::NormTensors;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Work, all_sizes, failed, given, output};

/// Group normalisation of `[batch][channel]...`, with scale and shift of each channel, and SiLU where one follows.
pub(super) struct GroupNorm(Work);

/// Attributes: the number of groups, what is added to variances, and whether SiLU follows.
pub(super) const GROUPS: &str = "groups";
pub(super) const EPSILON: &str = "epsilon";
pub(super) const SILU: &str = "silu";

impl GroupNorm {
    /// Its name in kiln's domain.
    pub(super) const NAME: &str = "GroupNorm";

    pub(super) fn new(work: Work) -> GroupNorm {
        GroupNorm(work)
    }
}

impl Operator for GroupNorm {
    type Kernel<'attr> = GroupNormKernel;

    fn name(&self) -> &str {
        GroupNorm::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [Float32; 3].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<GroupNormKernel> {
        let groups: i64 = context.get(GROUPS).ok_or_else(|| failed("the number of groups is missing"))?;
        Ok(GroupNormKernel {
            work: self.0,
            groups: usize::try_from(groups).map_err(failed)?,
            epsilon: context.get(EPSILON).ok_or_else(|| failed("epsilon is missing"))?,
            has_silu: context.get(SILU).unwrap_or(0_i64) != 0,
        })
    }
}

pub(super) struct GroupNormKernel {
    work: Work,
    groups: usize,
    epsilon: f32,
    has_silu: bool,
}

impl Kernel for GroupNormKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, scale, shift) = (given(context, 0)?, given(context, 1)?, given(context, 2)?);
        let (shape, input) = x.try_extract_tensor::<f32>()?;
        let (_, scale) = scale.try_extract_tensor::<f32>()?;
        let (_, shift) = shift.try_extract_tensor::<f32>()?;
        let sizes = all_sizes(shape)?;
        let [batch, channels, ref plane @ ..] = sizes[..] else {
            return Err(failed(format!("a shape of {} axes", sizes.len())));
        };
        let mut output = output(context, &sizes)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let Work { isa, threads } = self.work;
        let norm = kiln_kernels::GroupNorm {
            batch,
            channels,
            plane: plane.iter().product(),
            groups: self.groups,
            epsilon: self.epsilon,
            has_silu: self.has_silu,
            isa,
        };
        norm.run(&Pool { context, threads }, NormTensors { input, scale, shift, output }).map_err(failed)
    }
}
