//! How one target is built: a type per target, which holds what can be said of it and nothing else.

use kiln_bundle::{Size, Target};

use super::keys::{Keys, keys};
use super::sizes::{FixedSizes, Profiles};
use super::values::{AttentionSpec, Bytes, ComputeCapability, OptimizationLevel, PrecisionSpec};

/// How one target is built; what is left out has a default that suits the target.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetSpec {
    /// `cpu`.
    Cpu(CpuSpec),
    /// `cuda`.
    Cuda(CudaSpec),
    /// `tensorrt-rtx`.
    TensorrtRtx(RtxSpec),
    /// `tensorrt`.
    Tensorrt(EngineSpec),
    /// `onnx`.
    Onnx(OnnxSpec),
}

/// How networks are emitted, for every target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkSpec {
    /// `fused`, `plain`, or `sliced:N` heads at a time, where N may be `auto` for half of them and `max` for one.
    pub attention: Option<AttentionSpec>,
    /// Types of computation and storage.
    pub precision: PrecisionSpec,
    /// Whether there is a second UNet, which adds the residuals of ControlNets.
    pub controlnet: Option<bool>,
}

/// ONNX for a CPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuSpec {
    /// How networks are emitted.
    pub networks: NetworkSpec,
    /// The sizes that they run at; every size without it.
    pub profiles: FixedSizes,
    /// Most bytes of weights in a segment, as `16MiB`.
    pub segments: Option<Bytes>,
}

/// ONNX for ONNX Runtime's CUDA provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CudaSpec {
    /// How networks are emitted.
    pub networks: NetworkSpec,
    /// The sizes that they run at; every size without it.
    pub profiles: FixedSizes,
    /// Most bytes of weights in a segment; models are whole without it.
    pub segments: Option<Bytes>,
    /// 0 tries no algorithms of cuDNN, and all else each.
    pub optimization_level: Option<OptimizationLevel>,
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: Option<bool>,
    /// Whether convolutions and group norms run over channels that lie last.
    pub channels_last: Option<bool>,
}

/// Engines of TensorRT, and what those of TensorRT-RTX have in common with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineSpec {
    /// How networks are emitted.
    pub networks: NetworkSpec,
    /// Sizes that engines run at; those around the model's own without any.
    pub profiles: Profiles,
    /// Most bytes of weights in a segment; engines are whole without it.
    pub segments: Option<Bytes>,
    /// Most bytes of device memory that a layer may take while it runs, as `4GiB`.
    pub workspace: Option<Bytes>,
    /// How long tactics are searched for.
    pub optimization_level: Option<OptimizationLevel>,
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: Option<bool>,
    /// Whether an attention may become several kernels.
    pub allow_slow_attention: bool,
}

/// Engines of TensorRT-RTX.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RtxSpec {
    /// What engines of TensorRT have too.
    pub engines: EngineSpec,
    /// The devices that engines are for, as `"8.9"`; none for what the library takes by default.
    pub compute_capabilities: Vec<ComputeCapability>,
}

/// ONNX of the `ai.onnx` domain: whole models, to build engines from on another machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnnxSpec {
    /// How networks are emitted.
    pub networks: NetworkSpec,
    /// The sizes that they run at; every size without it.
    pub profiles: FixedSizes,
}

keys!(NetworkSpec: attention, precision, controlnet);
keys!(CpuSpec: profiles, segments; networks: NetworkSpec);
keys!(CudaSpec: profiles, segments, optimization_level, tf32, channels_last; networks: NetworkSpec);
keys!(
    EngineSpec: profiles, segments, workspace, optimization_level, tf32, allow_slow_attention;
    networks: NetworkSpec
);
keys!(RtxSpec: compute_capabilities; engines: EngineSpec);
keys!(OnnxSpec: profiles; networks: NetworkSpec);

impl TargetSpec {
    /// The defaults of a target.
    pub fn new(target: Target) -> TargetSpec {
        match target {
            Target::Cpu => TargetSpec::Cpu(CpuSpec::default()),
            Target::Cuda => TargetSpec::Cuda(CudaSpec::default()),
            Target::TensorrtRtx => TargetSpec::TensorrtRtx(RtxSpec::default()),
            Target::Tensorrt => TargetSpec::Tensorrt(EngineSpec::default()),
            Target::Onnx => TargetSpec::Onnx(OnnxSpec::default()),
        }
    }

    /// The target.
    pub fn target(&self) -> Target {
        match self {
            TargetSpec::Cpu(_) => Target::Cpu,
            TargetSpec::Cuda(_) => Target::Cuda,
            TargetSpec::TensorrtRtx(_) => Target::TensorrtRtx,
            TargetSpec::Tensorrt(_) => Target::Tensorrt,
            TargetSpec::Onnx(_) => Target::Onnx,
        }
    }

    /// The targets whose specifications take a key.
    pub(super) fn takers(key: &str) -> impl Iterator<Item = Target> {
        Target::ALL.into_iter().filter(move |target| {
            let keys = match target {
                Target::Cpu => CpuSpec::keys(),
                Target::Cuda => CudaSpec::keys(),
                Target::TensorrtRtx => RtxSpec::keys(),
                Target::Tensorrt => EngineSpec::keys(),
                Target::Onnx => OnnxSpec::keys(),
            };
            keys.contains(&key)
        })
    }

    /// How networks are emitted.
    pub fn networks(&self) -> &NetworkSpec {
        match self {
            TargetSpec::Cpu(spec) => &spec.networks,
            TargetSpec::Cuda(spec) => &spec.networks,
            TargetSpec::TensorrtRtx(spec) => &spec.engines.networks,
            TargetSpec::Tensorrt(spec) => &spec.networks,
            TargetSpec::Onnx(spec) => &spec.networks,
        }
    }

    /// How networks are emitted, to be changed.
    pub fn networks_mut(&mut self) -> &mut NetworkSpec {
        match self {
            TargetSpec::Cpu(spec) => &mut spec.networks,
            TargetSpec::Cuda(spec) => &mut spec.networks,
            TargetSpec::TensorrtRtx(spec) => &mut spec.engines.networks,
            TargetSpec::Tensorrt(spec) => &mut spec.networks,
            TargetSpec::Onnx(spec) => &mut spec.networks,
        }
    }

    /// How engines are built, where the target is made of engines.
    pub fn engines_mut(&mut self) -> Option<&mut EngineSpec> {
        match self {
            TargetSpec::TensorrtRtx(spec) => Some(&mut spec.engines),
            TargetSpec::Tensorrt(spec) => Some(spec),
            TargetSpec::Cpu(_) | TargetSpec::Cuda(_) | TargetSpec::Onnx(_) => None,
        }
    }

    /// The devices that engines are for, where they can be chosen.
    pub fn compute_capabilities_mut(&mut self) -> Option<&mut Vec<ComputeCapability>> {
        match self {
            TargetSpec::TensorrtRtx(spec) => Some(&mut spec.compute_capabilities),
            _ => None,
        }
    }

    /// Most bytes of weights in a segment, where there are segments.
    pub fn segments_mut(&mut self) -> Option<&mut Option<Bytes>> {
        match self {
            TargetSpec::Cpu(spec) => Some(&mut spec.segments),
            TargetSpec::Cuda(spec) => Some(&mut spec.segments),
            TargetSpec::TensorrtRtx(spec) => Some(&mut spec.engines.segments),
            TargetSpec::Tensorrt(spec) => Some(&mut spec.segments),
            TargetSpec::Onnx(_) => None,
        }
    }

    /// Fixes the number of pictures and their size.
    pub fn fix_sizes(&mut self, batch: u64, size: Size) {
        let fixed = FixedSizes::new(batch, size);
        match self {
            TargetSpec::Cpu(spec) => spec.profiles = fixed,
            TargetSpec::Cuda(spec) => spec.profiles = fixed,
            TargetSpec::TensorrtRtx(spec) => spec.engines.profiles = Profiles::one(batch, size),
            TargetSpec::Tensorrt(spec) => spec.profiles = Profiles::one(batch, size),
            TargetSpec::Onnx(spec) => spec.profiles = fixed,
        }
    }
}
