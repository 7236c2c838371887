//! The model under construction: values by tensor and type, initializers, run-time sizes.

use std::collections::{HashMap, HashSet};

use super::{EmittedModel, ModelPort, StoredWeight, fuse, metadata, model_proto};
use crate::dim::Atom;
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, data_type};
use crate::tensor::Op;
use crate::{Dim, ElementType, EmitPolicy, Tensor, TraceError};

/// Name of a value in the ONNX graph.
pub(super) type Value = String;

pub(super) struct Builder<'a> {
    pub(super) policy: &'a EmitPolicy,
    name: String,
    scope: String,
    nodes: Vec<NodeProto>,
    names: HashSet<String>,
    constants: Vec<TensorProto>,
    weights: Vec<StoredWeight>,
    inputs: Vec<ModelPort>,
    /// Inputs of the network that this segment does not read, but whose shape it may ask for.
    spare_inputs: Vec<(Tensor, ModelPort)>,
    outputs: Vec<ModelPort>,
    pub(super) n_attentions: usize,
    /// Whether scores of an attention must not be rounded.
    pub(super) has_exact_scores: bool,
    computed: HashMap<u64, (Value, ElementType)>,
    /// Weights of convolutions and linear layers.
    factors: &'a HashSet<u64>,
    casts: HashMap<(Value, ElementType), Value>,
    flattened: HashMap<Value, Value>,
    sizes: HashMap<Dim, Value>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        name: String,
        policy: &'a EmitPolicy,
        factors: &'a HashSet<u64>,
        spare_inputs: Vec<(Tensor, ModelPort)>,
    ) -> Builder<'a> {
        Builder {
            spare_inputs,
            policy,
            name,
            scope: String::new(),
            nodes: Vec::new(),
            names: HashSet::new(),
            constants: Vec::new(),
            weights: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            n_attentions: 0,
            has_exact_scores: false,
            computed: HashMap::new(),
            factors,
            casts: HashMap::new(),
            flattened: HashMap::new(),
            sizes: HashMap::new(),
        }
    }

    pub(super) fn add_input(&mut self, tensor: &Tensor, port: &ModelPort) {
        self.names.insert(port.name.clone());
        self.computed.insert(tensor.0.id, (port.name.clone(), port.dtype));
        self.inputs.push(port.clone());
    }

    pub(super) fn add_output(
        &mut self,
        tensor: &Tensor,
        name: &str,
        dtype: ElementType,
    ) -> Result<(), TraceError> {
        self.enter("output");
        let value = self.value(tensor, dtype)?;
        self.nodes.push(NodeProto {
            input: vec![value],
            output: vec![name.into()],
            name: format!("/output/{name}"),
            op_type: "Identity".into(),
            ..Default::default()
        });
        self.outputs.push(ModelPort { name: name.into(), dtype, shape: tensor.shape().to_vec() });
        Ok(())
    }

    pub(super) fn finish(mut self) -> EmittedModel {
        fuse::drop_identities(&mut self.nodes);
        fuse::activate_group_norms(&mut self.nodes, &self.outputs);
        let n_nodes = self.nodes.len();
        let is_attention =
            |node: &&NodeProto| matches!(node.op_type.as_str(), "Attention" | "MultiHeadAttention");
        let n_fused_attentions = self.nodes.iter().filter(is_attention).count();
        let graph = GraphProto { node: self.nodes, initializer: self.constants, ..Default::default() };
        EmittedModel {
            proto: ModelProto {
                metadata_props: metadata(self.policy.precision.products, self.has_exact_scores),
                ..model_proto(&self.name, self.policy, graph, [&self.inputs, &self.outputs])
            },
            name: self.name,
            inputs: self.inputs,
            outputs: self.outputs,
            weights: self.weights,
            n_nodes,
            n_fused_attentions,
            n_decomposed_attentions: self.n_attentions - n_fused_attentions,
        }
    }

    /// Starts the nodes of a scope: `down_blocks.0.resnets.1.conv1` becomes `/down_blocks.0/resnets.1/conv1`.
    pub(super) fn enter(&mut self, scope: &str) {
        self.scope.clear();
        for part in scope.split('.').filter(|part| !part.is_empty()) {
            let is_index = part.bytes().all(|b| b.is_ascii_digit());
            self.scope.push(if is_index && !self.scope.is_empty() { '.' } else { '/' });
            self.scope.push_str(part);
        }
    }

    /// Adds an operator of the `ai.onnx` domain.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Value {
        self.op_in("", op, inputs, attributes)
    }

    /// Adds an operator of ONNX Runtime's `com.microsoft` domain.
    pub(super) fn contrib(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Value {
        self.op_in("com.microsoft", op, inputs, attributes)
    }

    fn op_in(&mut self, domain: &str, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> Value {
        let name = self.unique(&format!("{}/{op}", self.scope));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.into()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute,
            domain: domain.into(),
        });
        name
    }

    fn unique(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut n = 0;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{base}_{n}");
        }
        name
    }

    /// Records what a tensor became.
    pub(super) fn define(&mut self, tensor: &Tensor, value: Value, dtype: ElementType) {
        self.computed.insert(tensor.0.id, (value, dtype));
    }

    /// The tensor's value in the given type; weights and constants come into being here.
    pub(super) fn value(&mut self, tensor: &Tensor, dtype: ElementType) -> Result<Value, TraceError> {
        let tensor = tensor.resolved();
        if let Some((value, found)) = self.computed.get(&tensor.0.id).cloned() {
            return Ok(self.cast(&value, found, dtype));
        }
        match &tensor.0.op {
            Op::Weight { name } => {
                let dims: Vec<u64> = tensor.shape().iter().filter_map(Dim::fixed).collect();
                Ok(self.weight(&tensor, name, &dims, dtype))
            }
            Op::Constant(values) => {
                let dims: Vec<u64> = tensor.shape().iter().filter_map(Dim::fixed).collect();
                let value = self.floats(values, &dims);
                self.define(&tensor, value.clone(), ElementType::F32);
                Ok(self.cast(&value, ElementType::F32, dtype))
            }
            _ => Err(TraceError::Unsupported {
                node: tensor.0.scope.to_string(),
                reason: "read before it is computed; the network declares an input that it does not list"
                    .into(),
            }),
        }
    }

    /// A weight under a shape of its own, which must hold the same elements.
    pub(super) fn weight_as(
        &mut self,
        tensor: &Tensor,
        dims: &[u64],
        dtype: ElementType,
    ) -> Result<Value, TraceError> {
        match &tensor.resolved().0.op {
            Op::Weight { name } => Ok(self.weight(&tensor.resolved(), name, dims, dtype)),
            _ => Err(TraceError::Unsupported {
                node: tensor.0.scope.to_string(),
                reason: "a norm's parameter is not a weight".into(),
            }),
        }
    }

    fn weight(&mut self, tensor: &Tensor, name: &str, dims: &[u64], dtype: ElementType) -> Value {
        if let Some((value, found)) = self.computed.get(&tensor.0.id).cloned() {
            return self.cast(&value, found, dtype);
        }
        let stored = self.policy.precision.stored(&tensor.0.scope, self.factors.contains(&tensor.0.id), dtype);
        if self.names.insert(name.to_owned()) {
            self.weights.push(StoredWeight { name: name.into(), dtype: stored, dims: dims.to_vec() });
        }
        self.define(tensor, name.into(), stored);
        self.cast(name, stored, dtype)
    }

    pub(super) fn cast(&mut self, value: &str, from: ElementType, to: ElementType) -> Value {
        if from == to {
            return value.to_owned();
        }
        let key = (value.to_owned(), to);
        if let Some(cast) = self.casts.get(&key) {
            return cast.clone();
        }
        let cast = self.op("Cast", &[value], vec![AttributeProto::int("to", data_type(to).into())]);
        self.casts.insert(key, cast.clone());
        cast
    }

    pub(super) fn floats(&mut self, values: &[f32], dims: &[u64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(ElementType::F32, dims, bytes)
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(ElementType::I64, &[values.len() as u64], bytes)
    }

    fn initializer(&mut self, dtype: ElementType, dims: &[u64], bytes: Vec<u8>) -> Value {
        let dims: Vec<i64> = dims.iter().map(|&n| n as i64).collect();
        let same = |t: &&TensorProto| {
            t.data_type == data_type(dtype) && t.dims == dims && t.raw_data.as_deref() == Some(&bytes)
        };
        if let Some(known) = self.constants.iter().find(same) {
            return known.name.clone();
        }
        let name = self.unique("constant");
        self.constants.push(TensorProto {
            dims,
            data_type: data_type(dtype),
            name: name.clone(),
            raw_data: Some(bytes),
            ..Default::default()
        });
        name
    }

    /// `value` with all axes but the last joined, which is what `Gemm` multiplies.
    pub(super) fn flatten(&mut self, value: &str, last: &Dim) -> Value {
        if let Some(flat) = self.flattened.get(value) {
            return flat.clone();
        }
        let shape = self.ints(&[-1, last.fixed().map_or(-1, |n| n as i64)]);
        let flat = self.op("Reshape", &[value, &shape], vec![]);
        self.flattened.insert(value.into(), flat.clone());
        flat
    }

    /// Reshapes, leaving to ONNX's `0` and `-1` what they can express and computing the rest at run time.
    pub(super) fn reshape(&mut self, value: &str, from: &[Dim], to: &[Dim]) -> Result<Value, TraceError> {
        let mut n_inferred = 0;
        let target: Vec<i64> = to
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim.fixed() {
                Some(n) => n as i64,
                None if from.get(axis) == Some(dim) => 0,
                None => {
                    n_inferred += 1;
                    -1
                }
            })
            .collect();
        let shape = if n_inferred <= 1 { self.ints(&target) } else { self.sizes(to)? };
        Ok(self.op("Reshape", &[value, &shape], vec![]))
    }

    /// A 1-D tensor of sizes.
    pub(super) fn sizes(&mut self, dims: &[Dim]) -> Result<Value, TraceError> {
        if let Some(fixed) = dims.iter().map(|d| d.fixed().map(|n| n as i64)).collect::<Option<Vec<i64>>>() {
            return Ok(self.ints(&fixed));
        }
        let parts: Vec<Value> = dims.iter().map(|dim| self.size(dim)).collect::<Result<_, _>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.op("Concat", &parts, vec![AttributeProto::int("axis", 0)]))
    }

    /// A size as a tensor of one element.
    fn size(&mut self, dim: &Dim) -> Result<Value, TraceError> {
        if let Some(fixed) = dim.fixed() {
            return Ok(self.ints(&[fixed as i64]));
        }
        if let Some(value) = self.sizes.get(dim) {
            return Ok(value.clone());
        }
        let value = match self.port_size(dim) {
            Some(value) => value,
            None => {
                let mut product = match dim.factor() {
                    1 => None,
                    factor => Some(self.ints(&[factor as i64])),
                };
                for &atom in dim.atoms() {
                    let value = self.atom_size(atom, dim)?;
                    product = Some(match product {
                        None => value,
                        Some(product) => self.op("Mul", &[&product, &value], vec![]),
                    });
                }
                product.unwrap_or_default()
            }
        };
        self.sizes.insert(dim.clone(), value.clone());
        Ok(value)
    }

    fn atom_size(&mut self, atom: Atom, wanted_for: &Dim) -> Result<Value, TraceError> {
        let ports = self.inputs.iter().flat_map(|port| &port.shape);
        let source = ports
            .filter_map(|dim| match dim.atoms() {
                [a] if a.symbol == atom.symbol && atom.divisor.is_multiple_of(a.divisor) => {
                    Some((dim.clone(), dim.factor(), atom.divisor / a.divisor))
                }
                _ => None,
            })
            .min_by_key(|(_, factor, divisor)| factor * divisor);
        let Some((dim, factor, divisor)) = source else {
            return self.atom_size_of_spare_input(atom, wanted_for);
        };
        let mut value = self.port_size(&dim).unwrap_or_default();
        if factor > 1 {
            let factor = self.ints(&[factor as i64]);
            value = self.op("Div", &[&value, &factor], vec![]);
        }
        if divisor > 1 {
            let (round_up, divisor) = (self.ints(&[divisor as i64 - 1]), self.ints(&[divisor as i64]));
            value = self.op("Add", &[&value, &round_up], vec![]);
            value = self.op("Div", &[&value, &divisor], vec![]);
        }
        Ok(value)
    }

    fn atom_size_of_spare_input(&mut self, atom: Atom, wanted_for: &Dim) -> Result<Value, TraceError> {
        let has_symbol = |dim: &Dim| dim.atoms().iter().any(|a| a.symbol == atom.symbol);
        let found = self.spare_inputs.iter().position(|(_, port)| port.shape.iter().any(has_symbol));
        let Some(index) = found else {
            return Err(TraceError::UnresolvedDim {
                node: self.scope.clone(),
                dim: wanted_for.clone(),
                segment: self.name.clone(),
            });
        };
        let (tensor, port) = self.spare_inputs.remove(index);
        self.add_input(&tensor, &port);
        self.atom_size(atom, wanted_for)
    }

    fn port_size(&mut self, dim: &Dim) -> Option<Value> {
        let (port, axis) = self
            .inputs
            .iter()
            .find_map(|port| Some((port.name.clone(), port.shape.iter().position(|d| d == dim)? as i64)))?;
        let range = vec![AttributeProto::int("start", axis), AttributeProto::int("end", axis + 1)];
        Some(self.op("Shape", &[&port], range))
    }
}
