//! What parts are built into, by target.

mod engines;
mod onnx;
mod row;

use std::collections::BTreeMap;

use kiln_bundle::{AttentionFacts, AxisSize, Component, PortInfo, Segment, Target, Tuning};
use kiln_graph::{Dim, ModelPort, StoredWeight};

use crate::TracedModel;
use crate::trace::Traced;

pub use engines::{
    AttentionRule, BuiltEngine, EngineBuilder, EngineJob, EngineOptions, InProcess, JobFailure, Profile, Range,
    Toolkit,
};
pub(crate) use engines::{OnnxModel, build as build_engines, build_from_onnx};
pub(crate) use onnx::build as build_onnx;
pub(crate) use row::TargetRow;

/// What engines are built for, and how.
#[derive(Clone, Debug)]
pub enum TargetOptions {
    /// ONNX for a CPU.
    Cpu,
    /// ONNX for ONNX Runtime's CUDA provider.
    Cuda(Tuning),
    /// ONNX to build engines from.
    Onnx,
    /// Engines of TensorRT-RTX or TensorRT.
    Engines(EngineOptions),
}

impl TargetOptions {
    /// The target.
    pub fn target(&self) -> Target {
        match self {
            TargetOptions::Cpu => Target::Cpu,
            TargetOptions::Cuda(_) => Target::Cuda,
            TargetOptions::Onnx => Target::Onnx,
            TargetOptions::Engines(options) => options.target,
        }
    }

    /// How the models run, where that is not in them.
    pub(crate) fn tuning(&self) -> Option<Tuning> {
        match self {
            TargetOptions::Cuda(tuning) => Some(*tuning),
            TargetOptions::Cpu | TargetOptions::Onnx | TargetOptions::Engines(_) => None,
        }
    }

    /// What a bundle says of how its engines were built.
    pub(crate) fn named(&self) -> BTreeMap<String, String> {
        match self {
            TargetOptions::Cpu | TargetOptions::Onnx => BTreeMap::new(),
            TargetOptions::Cuda(tuning) => BTreeMap::from([
                ("tf32".into(), tuning.tf32.to_string()),
                ("search".into(), tuning.search.to_string()),
            ]),
            TargetOptions::Engines(options) => options.named(),
        }
    }
}

/// What the manifest says of a component that was written.
fn component(traced: &Traced<'_>, models: &[&TracedModel]) -> Component {
    Component {
        stage: traced.stage,
        shares_weights_with: (traced.owner != traced.name).then_some(traced.owner),
        segments: models.iter().map(|model| segment(model)).collect(),
        weights: models.first().map(|model| model.weights.clone()),
        weight_bytes: traced.weights().map(StoredWeight::n_bytes).sum(),
        unread_weights: Vec::new(),
        precision: traced.precision.into(),
        inputs: ports(&traced.inputs),
        outputs: ports(&traced.outputs),
    }
}

pub(crate) fn ports(ports: &[ModelPort]) -> Vec<PortInfo> {
    ports.iter().map(port).collect()
}

fn segment(TracedModel { model, file, weight_bytes, .. }: &TracedModel) -> Segment {
    let names = |ports: &[ModelPort]| ports.iter().map(|port| port.name.clone()).collect();
    Segment {
        engine: file.clone(),
        weights: model.weights.iter().map(|weight| weight.name.clone()).collect(),
        weight_bytes: *weight_bytes,
        operators: model.n_nodes as u64,
        attention: AttentionFacts {
            fused: model.n_fused_attentions as u64,
            decomposed: model.n_decomposed_attentions as u64,
        },
        reads: names(&model.inputs),
        makes: names(&model.outputs),
    }
}

fn port(port: &ModelPort) -> PortInfo {
    let size = |dim: &Dim| dim.fixed().map_or_else(|| AxisSize::Dynamic(dim.to_string()), AxisSize::Fixed);
    PortInfo { name: port.name.clone(), dtype: port.dtype, shape: port.shape.iter().map(size).collect() }
}
