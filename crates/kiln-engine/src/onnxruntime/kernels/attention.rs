//! Attention.

use kiln_kernels::AttentionTensors;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

use super::{Pool, Stored, Work, failed, given, output, room, sizes};

/// `MultiHeadAttention` of `com.microsoft` with query, key and value `[batch][position][hidden]` alone, and a scale.
pub(super) struct Attention {
    work: Work,
    /// That of the model's products.
    factors: Stored,
}

impl Attention {
    pub(super) fn new(work: Work, factors: Stored) -> Attention {
        Attention { work, factors }
    }

    /// Its name in kiln's domain.
    pub(super) fn name_of(factors: Stored) -> &'static str {
        match factors {
            Stored::F32 => "Attention",
            Stored::Bf16 => "AttentionBf16",
        }
    }
}

impl Operator for Attention {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &str {
        Attention::name_of(self.factors)
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [Float32; 3].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<AttentionKernel> {
        let heads: i64 = context.get("num_heads").ok_or_else(|| failed("the number of heads is missing"))?;
        Ok(AttentionKernel {
            work: self.work,
            factors: self.factors,
            heads: usize::try_from(heads).map_err(failed)?,
            scale: context.get("scale").ok_or_else(|| failed("the scale is missing"))?,
            is_causal: context.get("unidirectional").unwrap_or(0_i64) != 0,
        })
    }
}

pub(super) struct AttentionKernel {
    work: Work,
    factors: Stored,
    heads: usize,
    scale: f32,
    is_causal: bool,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (query, key, value) = (given(context, 0)?, given(context, 1)?, given(context, 2)?);
        let (q_shape, query) = query.try_extract_tensor::<f32>()?;
        let (k_shape, key) = key.try_extract_tensor::<f32>()?;
        let (_, value) = value.try_extract_tensor::<f32>()?;
        let ([batch, queries, width], [_, keys, _]) = (sizes(q_shape)?, sizes(k_shape)?);
        if self.heads == 0 || width % self.heads != 0 {
            return Err(failed(format!("{} heads of {width} elements", self.heads)));
        }
        let mut output = output(context, &[batch, queries, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;

        let Work { isa, threads } = self.work;
        let attention = kiln_kernels::Attention {
            batch,
            queries,
            keys,
            heads: self.heads,
            head_size: width / self.heads,
            scale: self.scale,
            is_causal: self.is_causal,
            products: self.factors.products(isa),
            isa,
        };
        let mut room = room(attention.scratch_len(threads))?;
        let tensors = AttentionTensors { query, key, value, output, scratch: room.numbers() };
        attention.run(&Pool { context, threads }, tensors).map_err(failed)
    }
}
