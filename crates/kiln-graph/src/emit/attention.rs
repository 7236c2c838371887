//! Attention under each policy.

use super::builder::{Builder, Value};
use crate::policy::LEAST_SCORE;
use crate::proto::AttributeProto;
use crate::tensor::Op;
use crate::{AttentionPolicy, Dim, ElementType, Flavor, Tensor, TraceError};

impl Builder<'_> {
    pub(super) fn attention(&mut self, tensor: &Tensor, dtype: ElementType) -> Result<Value, TraceError> {
        let Op::Attention { heads, scale, causal, upcast } = tensor.0.op else { return Ok(Value::new()) };
        self.n_attentions += 1;
        self.has_exact_scores |= upcast;
        let scores = if upcast { ElementType::F32 } else { dtype };
        let values = self.values::<3>(&tensor.0.inputs, scores)?;
        let value = match self.policy.attention {
            AttentionPolicy::Fused => self.fused(&values, heads, scale, causal),
            AttentionPolicy::Plain => self.by_heads(tensor, &values, heads, scores)?,
            AttentionPolicy::Sliced(n) => self.by_heads(tensor, &values, n.clamp(1, heads), scores)?,
            AttentionPolicy::Halved => self.by_heads(tensor, &values, heads.div_ceil(2), scores)?,
        };
        Ok(self.cast(&value, scores, dtype))
    }

    fn fused(&mut self, [q, k, v]: &[Value; 3], heads: u64, scale: f32, causal: bool) -> Value {
        let scale = AttributeProto::float("scale", scale);
        match self.policy.flavor {
            Flavor::OnnxRuntime | Flavor::OnnxRuntimeCuda => {
                let mut attributes = vec![AttributeProto::int("num_heads", heads as i64), scale];
                if causal {
                    attributes.push(AttributeProto::int("unidirectional", 1));
                }
                self.contrib("MultiHeadAttention", &[q, k, v], attributes)
            }
            Flavor::Standard => {
                let mut attributes = vec![
                    AttributeProto::int("q_num_heads", heads as i64),
                    AttributeProto::int("kv_num_heads", heads as i64),
                    scale,
                ];
                if causal {
                    attributes.push(AttributeProto::int("is_causal", 1));
                }
                self.op("Attention", &[q, k, v], attributes)
            }
        }
    }

    /// MatMul, Softmax, MatMul over `at_once` heads at a time.
    fn by_heads(
        &mut self,
        tensor: &Tensor,
        [q, k, v]: &[Value; 3],
        at_once: u64,
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        let Op::Attention { heads, scale, causal, .. } = tensor.0.op else { return Ok(Value::new()) };
        let [query, key, _] = [0, 1, 2].map(|i| &tensor.0.inputs[i]);
        let scale = self.scalar(scale, dtype);
        let q = self.op("Mul", &[q, &scale], vec![]);
        let q = self.split_heads(&q, query, heads, &[0, 2, 1, 3])?;
        let k = self.split_heads(k, key, heads, &[0, 2, 3, 1])?;
        let v = self.split_heads(v, key, heads, &[0, 2, 1, 3])?;
        let mask = if causal { Some(self.causal_mask(tensor, dtype)?) } else { None };

        let mut parts = Vec::new();
        for start in (0..heads).step_by(at_once as usize) {
            let end = (start + at_once).min(heads);
            let take = |b: &mut Self, x: &Value| match end - start == heads {
                true => x.clone(),
                false => b.slice(x, 1, start, end),
            };
            let (q, k, v) = (take(self, &q), take(self, &k), take(self, &v));
            parts.push(self.attend(&q, &k, &v, mask.as_deref(), dtype));
        }
        let joined = if parts.len() == 1 { parts.remove(0) } else { self.concat(&parts, 1) };
        let merged = self.transpose(&joined, &[0, 2, 1, 3]);
        let [b, n, _] = query.dims();
        self.reshape(&merged, &[b, n, Dim::from(0), Dim::from(0)], tensor.shape())
    }

    fn attend(&mut self, q: &str, k: &str, v: &str, mask: Option<&str>, dtype: ElementType) -> Value {
        let softmax_dtype = match dtype {
            ElementType::F32 => ElementType::F32,
            _ => self.policy.precision.softmax,
        };
        let mut scores = self.op("MatMul", &[q, k], vec![]);
        if let Some(mask) = mask {
            scores = self.op("Add", &[&scores, mask], vec![]);
        }
        let scores = self.cast(&scores, dtype, softmax_dtype);
        let weights = self.op("Softmax", &[&scores], vec![AttributeProto::int("axis", -1)]);
        let weights = self.cast(&weights, softmax_dtype, dtype);
        self.op("MatMul", &[&weights, v], vec![])
    }

    fn split_heads(
        &mut self,
        value: &str,
        tensor: &Tensor,
        heads: u64,
        perm: &[usize],
    ) -> Result<Value, TraceError> {
        let [b, n, width] = tensor.dims();
        let head = Dim::from(width.fixed().unwrap_or_default() / heads);
        let split = self.reshape(value, tensor.shape(), &[b, n, Dim::from(heads), head])?;
        Ok(self.transpose(&split, perm))
    }

    fn causal_mask(&mut self, tensor: &Tensor, dtype: ElementType) -> Result<Value, TraceError> {
        let [_, n, _] = tensor.dims();
        let Some(n) = n.fixed() else {
            return Err(TraceError::Unsupported {
                node: tensor.0.scope.to_string(),
                reason: format!("causal attention over {n} positions needs a fixed length unless it is fused"),
            });
        };
        let least = if self.policy.finite_masks { LEAST_SCORE } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { least } else { 0.0 }).collect();
        let mask = self.floats(&mask, &[n, n]);
        Ok(self.cast(&mask, ElementType::F32, dtype))
    }
}
