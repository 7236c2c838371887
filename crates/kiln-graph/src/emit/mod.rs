//! From a traced DAG to ONNX models.

mod attention;
mod builder;
mod fuse;
mod lower;
mod segments;

use std::collections::BTreeSet;

use crate::proto::{
    DimensionProto, DimensionValue, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use crate::{ElementType, EmitPolicy, Precision, Shape, Tensor, TraceError};

use crate::tensor::Op;
use builder::Builder;
use segments::Plan;

/// A traced network: what it reads and what it makes.
#[derive(Clone)]
pub struct Graph {
    /// Name of the component, such as `unet`.
    pub name: String,
    /// The inputs, made by [`Tensor::input`].
    pub inputs: Vec<Tensor>,
    /// The outputs and their names.
    pub outputs: Vec<(String, Tensor)>,
}

impl Graph {
    /// What it reads, in order.
    pub fn input_ports(&self) -> Vec<ModelPort> {
        let named = self.inputs.iter().filter_map(|tensor| match &tensor.0.op {
            Op::Input { name } => Some((name, tensor)),
            _ => None,
        });
        named.map(|(name, tensor)| segments::port(name, tensor)).collect()
    }

    /// What it makes, in order.
    pub fn output_ports(&self) -> Vec<ModelPort> {
        self.outputs.iter().map(|(name, tensor)| segments::port(name, tensor)).collect()
    }

    /// Names of the cut points, in the order in which they are passed.
    pub fn cut_points(&self) -> Vec<String> {
        segments::cut_names(&segments::post_order(self.outputs.iter().map(|(_, t)| t)))
    }

    /// Scopes of the nodes, such as `down_blocks.0.resnets.1.conv1`.
    pub fn scopes(&self) -> BTreeSet<String> {
        let nodes = segments::post_order(self.outputs.iter().map(|(_, t)| t));
        nodes.iter().map(|t| t.0.scope.to_string()).filter(|scope| !scope.is_empty()).collect()
    }
}

/// One input or output of an emitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPort {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub dtype: ElementType,
    /// Shape; run-time sizes are symbols.
    pub shape: Shape,
}

/// A weight that a model reads, as it has to be stored for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWeight {
    /// Name in the checkpoint and of the initializer.
    pub name: String,
    /// Type to store it in.
    pub dtype: ElementType,
    /// Shape of the initializer; the checkpoint's but for axes of size one.
    pub dims: Vec<u64>,
}

impl StoredWeight {
    /// Number of bytes.
    pub fn n_bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() * self.dtype.n_bytes() as u64
    }
}

/// An ONNX model whose weights still have to be placed ([`EmittedModel::to_onnx`]).
#[derive(Clone, Debug)]
pub struct EmittedModel {
    /// The component's name, followed by the segment's number where there are several.
    pub name: String,
    /// Inputs, in order.
    pub inputs: Vec<ModelPort>,
    /// Outputs, in order.
    pub outputs: Vec<ModelPort>,
    /// Weights, in the order of their first use.
    pub weights: Vec<StoredWeight>,
    /// Number of operators.
    pub n_nodes: usize,
    /// Number of attentions that are one operator.
    pub n_fused_attentions: usize,
    /// Number of attentions that are several operators.
    pub n_decomposed_attentions: usize,
    pub(crate) proto: ModelProto,
}

/// Emits a network under a policy: one model, or one per segment in the order in which they run.
///
/// The result depends on the DAG and the policy alone: equal inputs give equal bytes.
pub fn emit(graph: &Graph, policy: &EmitPolicy) -> Result<Vec<EmittedModel>, TraceError> {
    if let Some(reason) = policy.refusal() {
        return Err(TraceError::Unsupported { node: graph.name.clone(), reason });
    }
    let plan = Plan::new(graph, policy)?;
    (0..plan.n_segments()).map(|segment| emit_segment(graph, policy, &plan, segment)).collect()
}

fn emit_segment(
    graph: &Graph,
    policy: &EmitPolicy,
    plan: &Plan,
    segment: usize,
) -> Result<EmittedModel, TraceError> {
    let name = match plan.n_segments() {
        1 => graph.name.clone(),
        _ => format!("{}.{segment}", graph.name),
    };
    let mut builder = Builder::new(name, policy, plan.factors(), plan.spare_inputs(segment));
    for (tensor, port) in plan.inputs(segment) {
        builder.add_input(tensor, port);
    }
    for tensor in plan.nodes(segment) {
        builder.lower(tensor)?;
    }
    for (tensor, port, dtype) in plan.outputs(segment) {
        builder.add_output(tensor, port, *dtype)?;
    }
    Ok(builder.finish())
}

fn model_proto(name: &str, policy: &EmitPolicy, mut graph: GraphProto, ports: [&[ModelPort]; 2]) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let mut opset_import = vec![opset("", policy.opset())];
    if policy.flavor.has_contrib() {
        opset_import.push(opset("com.microsoft", 1));
    }
    let [inputs, outputs] = ports.map(|ports| ports.iter().map(value_info).collect());
    graph.name = name.into();
    graph.input = inputs;
    graph.output = outputs;
    ModelProto {
        ir_version: if policy.opset() >= 23 { 11 } else { 8 },
        producer_name: "kiln".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import,
        graph: Some(graph),
        metadata_props: Vec::new(),
    }
}

/// What asks for products of a precision, of which those of attention may be exempt.
fn metadata(products: Option<Precision>, has_exact_scores: bool) -> Vec<StringStringEntryProto> {
    let entry =
        |key: &str, value: Precision| StringStringEntryProto { key: key.into(), value: value.to_string() };
    let Some(products) = products else { return Vec::new() };
    let scores = has_exact_scores.then(|| entry("kiln.scores", Precision::F32));
    [entry("kiln.products", products)].into_iter().chain(scores).collect()
}

fn value_info(port: &ModelPort) -> ValueInfoProto {
    let dim = port
        .shape
        .iter()
        .map(|dim| {
            let value = match dim.fixed() {
                Some(n) => DimensionValue::Value(n as i64),
                None => DimensionValue::Param(dim.to_string()),
            };
            DimensionProto { value: Some(value) }
        })
        .collect();
    let tensor_type =
        TensorTypeProto { elem_type: data_type(port.dtype), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: port.name.clone(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}
