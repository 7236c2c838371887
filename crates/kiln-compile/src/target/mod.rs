//! What parts are built into, by target.

mod cpu;
mod rtx;

use kiln_bundle::{AttentionFacts, Component, ElementType, PortInfo, Size, Target};
use kiln_graph::{DType, Dim, EmittedModel, ModelPort};

pub(crate) use cpu::build as build_onnx;
pub use rtx::{
    AttentionRule, BuiltEngine, EngineBuilder, EngineJob, InProcess, Profile, Range, RtxOptions, release_of,
};
pub(crate) use rtx::{OnnxModel, build as build_for_rtx, build_from_onnx};

/// What engines are built for, and how.
#[derive(Clone, Debug)]
pub enum TargetOptions {
    /// ONNX for a CPU.
    Cpu,
    /// ONNX to build engines from.
    Onnx,
    /// TensorRT-RTX engines.
    TensorrtRtx(RtxOptions),
}

impl TargetOptions {
    /// The target.
    pub fn target(&self) -> Target {
        match self {
            TargetOptions::Cpu => Target::Cpu,
            TargetOptions::Onnx => Target::Onnx,
            TargetOptions::TensorrtRtx(_) => Target::TensorrtRtx,
        }
    }
}

/// What a model says of itself, as the manifest has it.
fn component(model: &EmittedModel, engine: String, weights: Option<String>, precision: DType) -> Component {
    let ports = |ports: &[ModelPort]| ports.iter().map(port).collect();
    Component {
        engine,
        weights,
        weight_bytes: model.weights.iter().map(|w| w.dims.iter().product::<u64>() * w.dtype.size()).sum(),
        unread_weights: Vec::new(),
        operators: model.n_nodes as u64,
        attention: AttentionFacts {
            fused: model.n_fused_attentions as u64,
            decomposed: model.n_decomposed_attentions as u64,
        },
        precision: precision.to_string(),
        inputs: ports(&model.inputs),
        outputs: ports(&model.outputs),
    }
}

fn port(port: &ModelPort) -> PortInfo {
    let size = |dim: &Dim| dim.fixed().map_or_else(|| Size::Dynamic(dim.to_string()), Size::Fixed);
    PortInfo {
        name: port.name.clone(),
        dtype: match port.dtype {
            DType::F32 => ElementType::F32,
            DType::F16 => ElementType::F16,
            DType::BF16 => ElementType::Bf16,
            DType::I64 => ElementType::I64,
        },
        shape: port.shape.iter().map(size).collect(),
    }
}
