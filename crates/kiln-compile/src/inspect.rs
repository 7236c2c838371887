//! What is in a checkpoint or in an ONNX file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_bundle::read;
use kiln_graph::proto::{DimensionValue, ModelProto, ValueInfoProto};
use serde::Serialize;

use crate::weights::WeightFiles;
use crate::{Checkpoint, CompileError, ControlNetCheckpoint, Original};

/// Largest ONNX file that is read.
const MAX_ONNX: u64 = 2 << 30;

/// One component of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct ComponentSummary {
    /// Name of its folder.
    pub name: String,
    /// Its weight files.
    pub files: Vec<String>,
    /// Number of weights.
    pub n_weights: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Types that they are stored in.
    pub dtypes: Vec<String>,
}

/// An ONNX model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    /// Name of the graph.
    pub name: String,
    /// Who wrote it.
    pub producer: String,
    /// Opset per domain.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs with type and shape.
    pub inputs: Vec<String>,
    /// Outputs with type and shape.
    pub outputs: Vec<String>,
    /// Number of nodes per operator.
    pub operators: BTreeMap<String, usize>,
    /// Number of weights outside the file.
    pub n_external_weights: usize,
    /// Bytes of weights outside the file.
    pub external_bytes: u64,
}

/// Summarises the components of a checkpoint.
pub fn inspect_checkpoint(checkpoint: &Checkpoint) -> Vec<ComponentSummary> {
    checkpoint.networks().into_iter().map(|(name, weights)| summary(name, weights)).collect()
}

/// Summarises a ControlNet.
pub fn inspect_controlnet(checkpoint: &ControlNetCheckpoint) -> ComponentSummary {
    summary("controlnet", &checkpoint.part.weights)
}

/// Summarises the networks of a single-file checkpoint, whether or not kiln runs its kind.
pub fn inspect_original(original: &Original) -> Vec<ComponentSummary> {
    original.networks().map(|(name, weights)| summary(name, weights)).collect()
}

fn summary(name: &str, weights: &WeightFiles) -> ComponentSummary {
    let (n_weights, parameters, bytes, dtypes) = weights.summary();
    let file_name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ComponentSummary {
        name: name.into(),
        files: weights.files().iter().map(file_name).collect(),
        n_weights,
        parameters,
        bytes,
        dtypes: dtypes.iter().map(ToString::to_string).collect(),
    }
}

/// Summarises an ONNX file.
pub fn inspect_onnx(path: &Path) -> Result<ModelSummary, CompileError> {
    let bytes = read::bytes(path, MAX_ONNX, "ONNX file").map_err(|e| CompileError::reading(path, e))?;
    let model: ModelProto = kiln_graph::proto::decode(&bytes)
        .map_err(|reason| CompileError::checkpoint(path, format!("is not an ONNX model: {reason}")))?;
    let Some(graph) = model.graph else {
        return Err(CompileError::checkpoint(path, "is not an ONNX model: it has no graph"));
    };
    let mut operators = BTreeMap::new();
    for node in &graph.node {
        let name = match node.domain.as_str() {
            "" => node.op_type.clone(),
            domain => format!("{domain}.{}", node.op_type),
        };
        *operators.entry(name).or_insert(0) += 1;
    }
    let external: Vec<u64> = graph
        .initializer
        .iter()
        .filter(|tensor| !tensor.external_data.is_empty())
        .map(|tensor| {
            let length = tensor.external_data.iter().find(|entry| entry.key == "length");
            length.and_then(|entry| entry.value.parse().ok()).unwrap_or(0)
        })
        .collect();
    let domain = |domain: &str| if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() };
    Ok(ModelSummary {
        name: graph.name,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().into(),
        opsets: model.opset_import.iter().map(|opset| (domain(&opset.domain), opset.version)).collect(),
        inputs: graph.input.iter().map(port).collect(),
        outputs: graph.output.iter().map(port).collect(),
        operators,
        n_external_weights: external.len(),
        external_bytes: external.iter().fold(0, |sum, n| sum.saturating_add(*n)),
    })
}

fn port(info: &ValueInfoProto) -> String {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let dtype = match tensor.map_or(0, |t| t.elem_type) {
        1 => "f32",
        7 => "i64",
        10 => "f16",
        16 => "bf16",
        _ => "?",
    };
    let dims = tensor.and_then(|t| t.shape.as_ref()).map_or(&[][..], |shape| &shape.dim);
    let dims: Vec<String> = dims
        .iter()
        .map(|dim| match &dim.value {
            Some(DimensionValue::Value(n)) => n.to_string(),
            Some(DimensionValue::Param(name)) => name.clone(),
            None => "?".into(),
        })
        .collect();
    format!("{} {dtype} [{}]", info.name, dims.join(", "))
}
