//! Each semantic operator as ONNX operators.

use std::f32::consts::SQRT_2;

use super::builder::{Builder, Value};
use super::fuse::ACTIVATION;
use crate::proto::{AttributeProto, data_type};
use crate::tensor::{Binary, Op, Unary};
use crate::{Dim, ElementType, Flavor, Tensor, TraceError};

/// Axes of NCHW in the order of NHWC.
const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];

/// Axes of NHWC in the order of NCHW.
const CHANNELS_FIRST: [usize; 4] = [0, 3, 1, 2];

impl Builder<'_> {
    /// Emits one node whose inputs have been emitted.
    pub(super) fn lower(&mut self, tensor: &Tensor) -> Result<(), TraceError> {
        let dtype = tensor.dtype(&self.policy.precision);
        self.enter(&tensor.0.scope);
        let inputs = &tensor.0.inputs;
        let value = match &tensor.0.op {
            Op::Input { .. } | Op::Weight { .. } | Op::Constant(_) | Op::Cut { .. } => return Ok(()),
            Op::Unary(op) => {
                let x = self.value(&inputs[0], dtype)?;
                self.unary(*op, &x, dtype)
            }
            Op::Binary(op) => {
                let (a, b) = (self.value(&inputs[0], dtype)?, self.value(&inputs[1], dtype)?);
                let name = match op {
                    Binary::Add => "Add",
                    Binary::Mul => "Mul",
                    Binary::Div => "Div",
                };
                self.op(name, &[&a, &b], vec![])
            }
            Op::Conv2d { stride, padding } => self.conv2d(inputs, *stride, padding, dtype)?,
            Op::Linear => self.linear(tensor, dtype)?,
            Op::Embedding => self.embedding(inputs, dtype)?,
            Op::PickEnd { end } => self.pick_end(inputs, *end, dtype)?,
            Op::Sinusoid { frequencies, cosine_first } => {
                let x = self.value(&inputs[0], ElementType::F32)?;
                self.sinusoid(&x, frequencies, *cosine_first)
            }
            Op::GroupNorm { groups, epsilon } => self.group_norm(tensor, *groups, *epsilon, dtype)?,
            Op::LayerNorm { epsilon } => {
                let [x, weight, bias] = self.values::<3>(inputs, dtype)?;
                let attributes =
                    vec![AttributeProto::float("epsilon", *epsilon), AttributeProto::int("axis", -1)];
                self.op("LayerNormalization", &[&x, &weight, &bias], attributes)
            }
            Op::Attention { .. } => self.attention(tensor, dtype)?,
            Op::Reshape => {
                let x = self.value(&inputs[0], dtype)?;
                self.reshape(&x, inputs[0].shape(), tensor.shape())?
            }
            Op::Transpose { perm } => {
                let x = self.value(&inputs[0], dtype)?;
                self.transpose(&x, perm)
            }
            Op::Concat { axis } => {
                let parts = inputs.iter().map(|t| self.value(t, dtype)).collect::<Result<Vec<_>, _>>()?;
                self.concat(&parts, *axis)
            }
            Op::Slice { axis, start, end } => {
                let x = self.value(&inputs[0], dtype)?;
                self.slice(&x, *axis, *start, *end)
            }
            Op::PadEnd { axis, n } => {
                let x = self.value(&inputs[0], dtype)?;
                let rank = tensor.shape().len();
                let mut pads = vec![0; 2 * rank];
                pads[rank + axis] = *n as i64;
                let pads = self.ints(&pads);
                self.op("Pad", &[&x, &pads], vec![])
            }
            Op::ResizeNearest => self.resize_nearest(tensor, dtype)?,
        };
        self.define(tensor, value, dtype);
        Ok(())
    }

    pub(super) fn values<const N: usize>(
        &mut self,
        inputs: &[Tensor],
        dtype: ElementType,
    ) -> Result<[Value; N], TraceError> {
        let mut values = [const { Value::new() }; N];
        for (value, input) in values.iter_mut().zip(inputs) {
            *value = self.value(input, dtype)?;
        }
        Ok(values)
    }

    fn unary(&mut self, op: Unary, x: &str, dtype: ElementType) -> Value {
        let contrib = self.policy.flavor.has_contrib();
        let alpha = |alpha| vec![AttributeProto::float("alpha", alpha)];
        match op {
            Unary::Relu => self.op("Relu", &[x], vec![]),
            Unary::Tanh => self.op("Tanh", &[x], vec![]),
            Unary::Silu if contrib => self.contrib("QuickGelu", &[x], alpha(1.0)),
            Unary::QuickGelu if contrib => self.contrib("QuickGelu", &[x], alpha(1.702)),
            Unary::Gelu if contrib => self.contrib("Gelu", &[x], vec![]),
            Unary::Silu => {
                let gate = self.op("Sigmoid", &[x], vec![]);
                self.op("Mul", &[x, &gate], vec![])
            }
            Unary::QuickGelu => {
                let alpha = self.scalar(1.702, dtype);
                let scaled = self.op("Mul", &[x, &alpha], vec![]);
                let gate = self.op("Sigmoid", &[&scaled], vec![]);
                self.op("Mul", &[x, &gate], vec![])
            }
            Unary::Gelu => {
                let (sqrt_2, one, half) =
                    (self.scalar(SQRT_2, dtype), self.scalar(1.0, dtype), self.scalar(0.5, dtype));
                let scaled = self.op("Div", &[x, &sqrt_2], vec![]);
                let erf = self.op("Erf", &[&scaled], vec![]);
                let gate = self.op("Add", &[&erf, &one], vec![]);
                let product = self.op("Mul", &[x, &gate], vec![]);
                self.op("Mul", &[&product, &half], vec![])
            }
        }
    }

    fn embedding(&mut self, inputs: &[Tensor], dtype: ElementType) -> Result<Value, TraceError> {
        let (table, ids) = (self.value(&inputs[0], dtype)?, self.value(&inputs[1], ElementType::I64)?);
        let Some(learned) = inputs.get(2) else { return Ok(self.op("Gather", &[&table, &ids], vec![])) };
        let learned = self.value(learned, dtype)?;
        let last = inputs[0].shape()[0].fixed().unwrap_or(1) as i64 - 1;
        let (last, axis) = (self.ints(&[last]), self.ints(&[-1]));
        let is_learned = self.op("Greater", &[&ids, &last], vec![]);
        let is_learned = self.op("Unsqueeze", &[&is_learned, &axis], vec![]);
        let known = self.op("Min", &[&ids, &last], vec![]);
        let rows = self.op("Gather", &[&table, &known], vec![]);
        Ok(self.op("Where", &[&is_learned, &learned, &rows], vec![]))
    }

    fn pick_end(
        &mut self,
        inputs: &[Tensor],
        end: Option<i64>,
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        let (states, mut ids) = (self.value(&inputs[0], dtype)?, self.value(&inputs[1], ElementType::I64)?);
        if let Some(end) = end {
            let end = self.ints(&[end]);
            let is_end = self.op("Equal", &[&ids, &end], vec![]);
            ids = self.op(
                "Cast",
                &[&is_end],
                vec![AttributeProto::int("to", data_type(ElementType::I64).into())],
            );
        }
        // Backends differ in which of equal maxima they give; earlier positions get a head start.
        let n = inputs[0].shape()[1].fixed().unwrap_or(1) as i64;
        let (weight, head_start) = (self.ints(&[n]), self.ints(&(0..n).rev().collect::<Vec<_>>()));
        let weighted = self.op("Mul", &[&ids, &weight], vec![]);
        let unequal = self.op("Add", &[&weighted, &head_start], vec![]);
        let along = vec![AttributeProto::int("axis", 1), AttributeProto::int("keepdims", 1)];
        let position = self.op("ArgMax", &[&unequal], along);
        Ok(self.op("GatherND", &[&states, &position], vec![AttributeProto::int("batch_dims", 1)]))
    }

    fn sinusoid(&mut self, x: &str, frequencies: &[f32], cosine_first: bool) -> Value {
        let frequencies = self.floats(frequencies, &[1, frequencies.len() as u64]);
        let angles = self.op("Mul", &[x, &frequencies], vec![]);
        let halves = ["Sin", "Cos"].map(|op| self.op(op, &[&angles], vec![]));
        match cosine_first {
            true => self.concat(&[halves[1].clone(), halves[0].clone()], 1),
            false => self.concat(&halves, 1),
        }
    }

    pub(super) fn scalar(&mut self, value: f32, dtype: ElementType) -> Value {
        let value = self.floats(&[value], &[1]);
        self.cast(&value, ElementType::F32, dtype)
    }

    pub(super) fn transpose(&mut self, x: &str, perm: &[usize]) -> Value {
        let perm = perm.iter().map(|&axis| axis as i64).collect();
        self.op("Transpose", &[x], vec![AttributeProto::ints("perm", perm)])
    }

    pub(super) fn concat(&mut self, parts: &[Value], axis: usize) -> Value {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.op("Concat", &parts, vec![AttributeProto::int("axis", axis as i64)])
    }

    pub(super) fn slice(&mut self, x: &str, axis: usize, start: u64, end: u64) -> Value {
        let [start, end, axis] = [start as i64, end as i64, axis as i64].map(|n| self.ints(&[n]));
        self.op("Slice", &[x, &start, &end, &axis], vec![])
    }

    fn conv2d(
        &mut self,
        inputs: &[Tensor],
        stride: u64,
        padding: &[u64; 4],
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        let values = inputs.iter().map(|t| self.value(t, dtype)).collect::<Result<Vec<_>, _>>()?;
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let [_, _, kh, kw] = inputs[1].dims();
        let kernel = [kh, kw].iter().filter_map(Dim::fixed).map(|n| n as i64).collect();
        let attributes = vec![
            AttributeProto::ints("kernel_shape", kernel),
            AttributeProto::ints("strides", vec![stride as i64; 2]),
            AttributeProto::ints("pads", padding.iter().map(|&n| n as i64).collect()),
        ];
        match self.policy.flavor {
            Flavor::Standard | Flavor::OnnxRuntime => Ok(self.op("Conv", &values, attributes)),
            Flavor::OnnxRuntimeCuda => {
                // What transposes back and forth is cancelled, and what transposes weights is done, when a model is loaded.
                let [x, weight] = [values[0], values[1]].map(|value| self.transpose(value, &CHANNELS_LAST));
                let operands = [&[x.as_str(), &weight], &values[2..]].concat();
                let made = self.contrib("NhwcConv", &operands, attributes);
                Ok(self.transpose(&made, &CHANNELS_FIRST))
            }
        }
    }

    /// `Gemm` reads the weight as the checkpoint stores it; `MatMul` would need a transposed copy.
    fn linear(&mut self, tensor: &Tensor, dtype: ElementType) -> Result<Value, TraceError> {
        let inputs = &tensor.0.inputs;
        let values = inputs.iter().map(|t| self.value(t, dtype)).collect::<Result<Vec<_>, _>>()?;
        let [_, width] = inputs[1].dims();
        let is_matrix = inputs[0].shape().len() == 2;
        let x = if is_matrix { values[0].clone() } else { self.flatten(&values[0], &width) };
        let operands: Vec<&str> =
            [x.as_str()].into_iter().chain(values[1..].iter().map(String::as_str)).collect();
        let product = self.op("Gemm", &operands, vec![AttributeProto::int("transB", 1)]);
        if is_matrix {
            return Ok(product);
        }
        let flat = [Dim::from(0), tensor.shape()[tensor.shape().len() - 1].clone()];
        self.reshape(&product, &flat, tensor.shape())
    }

    fn group_norm(
        &mut self,
        tensor: &Tensor,
        groups: u64,
        epsilon: f32,
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        match (self.policy.flavor, tensor.shape().len()) {
            (Flavor::OnnxRuntimeCuda, 4) => self.group_norm_of_last(tensor, groups, epsilon, dtype),
            _ => self.group_norm_by_instance(tensor, groups, epsilon, dtype),
        }
    }

    /// ONNX Runtime's operator for channels that lie last, whose parameters are 32-bit floats.
    fn group_norm_of_last(
        &mut self,
        tensor: &Tensor,
        groups: u64,
        epsilon: f32,
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        let [x, weight, bias] = [&tensor.0.inputs[0], &tensor.0.inputs[1], &tensor.0.inputs[2]];
        let value = self.value(x, dtype)?;
        let channels = [x.shape()[1].fixed().unwrap_or_default()];
        let weight = self.weight_as(weight, &channels, ElementType::F32)?;
        let bias = self.weight_as(bias, &channels, ElementType::F32)?;
        let attributes = vec![
            AttributeProto::float("epsilon", epsilon),
            AttributeProto::int("groups", groups as i64),
            AttributeProto::int(ACTIVATION, 0),
            AttributeProto::int("channels_last", 1),
        ];
        let last = self.transpose(&value, &CHANNELS_LAST);
        let normal = self.contrib("GroupNorm", &[&last, &weight, &bias], attributes);
        Ok(self.transpose(&normal, &CHANNELS_FIRST))
    }

    /// Instance normalisation of `[B, groups, rest]`, then the per-channel affine map.
    fn group_norm_by_instance(
        &mut self,
        tensor: &Tensor,
        groups: u64,
        epsilon: f32,
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        let [x, weight, bias] = [&tensor.0.inputs[0], &tensor.0.inputs[1], &tensor.0.inputs[2]];
        let value = self.value(x, dtype)?;
        let [ones, zeros] = [1.0, 0.0].map(|v| self.floats(&vec![v; groups as usize], &[groups]));
        let [ones, zeros] = [ones, zeros].map(|v| self.cast(&v, ElementType::F32, dtype));
        let grouped_shape = self.ints(&[0, groups as i64, -1]);
        let grouped = self.op("Reshape", &[&value, &grouped_shape], vec![]);
        let epsilon = vec![AttributeProto::float("epsilon", epsilon)];
        let normal = self.op("InstanceNormalization", &[&grouped, &ones, &zeros], epsilon);
        let grouped_dims = [x.shape()[0].clone(), Dim::from(groups), Dim::from(0)];
        let normal = self.reshape(&normal, &grouped_dims, x.shape())?;
        let channels = x.shape()[1].fixed().unwrap_or_default();
        let weight = self.weight_as(weight, &[channels, 1, 1], dtype)?;
        let bias = self.weight_as(bias, &[channels, 1, 1], dtype)?;
        let scaled = self.op("Mul", &[&normal, &weight], vec![]);
        Ok(self.op("Add", &[&scaled, &bias], vec![]))
    }

    fn resize_nearest(&mut self, tensor: &Tensor, dtype: ElementType) -> Result<Value, TraceError> {
        let x = &tensor.0.inputs[0];
        let value = self.value(x, dtype)?;
        let doubles = |axis: usize| tensor.shape()[axis] == x.shape()[axis].times(&Dim::from(2));
        let attributes = vec![
            AttributeProto::string("mode", "nearest"),
            AttributeProto::string("coordinate_transformation_mode", "asymmetric"),
            AttributeProto::string("nearest_mode", "floor"),
        ];
        if doubles(2) && doubles(3) {
            let scales = self.floats(&[1.0, 1.0, 2.0, 2.0], &[4]);
            return Ok(self.op("Resize", &[&value, "", &scales], attributes));
        }
        let sizes = self.sizes(tensor.shape())?;
        Ok(self.op("Resize", &[&value, "", "", &sizes], attributes))
    }
}
