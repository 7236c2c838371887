//! From a specification to what the compile stage is told.

use std::collections::BTreeMap;

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, TEXT_ENCODER_2, VAE_DECODER, VAE_ENCODER};
use kiln_bundle::{ComponentName, Target, Tuning};
use kiln_graph::{Cuts, ElementType, EmitPolicy, Flavor, Precision, PrecisionPolicy};
use kiln_lora::Lora;
use kiln_nets::Sizes;

use super::sizes;
use super::target::{CudaSpec, EngineSpec, TargetSpec};
use super::values::{Bytes, ComputeCapability, OptimizationLevel, PrecisionSpec};
use crate::targets::{EngineOptions, Profile, TargetOptions, TargetRow, Toolkit};
use crate::{BuildOptions, Checkpoint, CompileError, TraceOptions};

/// What runs once a picture, where less precision saves next to no time.
const ONCE: [ComponentName; 4] = [TEXT_ENCODER, TEXT_ENCODER_2, VAE_ENCODER, VAE_DECODER];

impl TargetSpec {
    /// The same in the precision of the target's own; none where it is that already.
    pub fn exact(&self) -> Option<TargetSpec> {
        let mut exact = self.clone();
        exact.networks_mut().precision = PrecisionSpec::default();
        (exact != *self).then_some(exact)
    }

    /// How the networks are traced for this target.
    pub fn trace_options(
        &self,
        checkpoint: &Checkpoint,
        loras: Vec<Lora>,
    ) -> Result<TraceOptions, CompileError> {
        let (row, networks) = (TargetRow::of(self.target()), self.networks());
        let precision = &networks.precision;
        for asked in precision.compute.iter().chain(precision.components.values()) {
            self.check(*asked).map_err(|(reason, hint)| CompileError::Option {
                path: checkpoint.root().into(),
                reason: format!("precision: {reason}"),
                hint: hint.into(),
            })?;
        }
        let of = |compute: Precision| PrecisionPolicy {
            norms: if row.norms_as_computed { compute.stored() } else { ElementType::F32 },
            scopes: precision.keep_f32.iter().map(|scope| (scope.clone(), ElementType::F32)).collect(),
            storage: precision.storage,
            ..match (self.target(), compute) {
                // Its graphs are of f32; kernels round what they multiply.
                (Target::Cpu, Precision::Bf16 | Precision::Int8) => PrecisionPolicy::with_products(compute),
                _ => PrecisionPolicy::uniform(compute.stored()),
            }
        };
        let segments = self.segments().map(|bytes| bytes.0).or(row.segments);
        let policy = EmitPolicy {
            attention: networks.attention.map(|attention| attention.0).unwrap_or_default(),
            precision: of(precision.compute.unwrap_or(row.compute)),
            flavor: self.flavor().unwrap_or(row.flavor),
            cuts: segments.map_or(Cuts::None, Cuts::Every),
            ..EmitPolicy::default()
        };
        let mut components: BTreeMap<ComponentName, Precision> = BTreeMap::new();
        if precision.compute.is_none() && row.compute != Precision::F32 && checkpoint.vae_overflows() {
            components.extend([(VAE_ENCODER, Precision::F32), (VAE_DECODER, Precision::F32)]);
        }
        if precision.compute == Some(Precision::Int8) {
            components.extend(ONCE.map(|name| (name, Precision::Bf16)));
        }
        components.extend(&precision.components);
        Ok(TraceOptions {
            precisions: components.into_iter().map(|(name, compute)| (name, of(compute))).collect(),
            controlled: networks.controlnet.unwrap_or(row.controlled),
            loras,
            ..TraceOptions::for_bundle(policy, self.sizes(checkpoint)?)
        })
    }

    /// What a bundle of the checkpoint is built with; `toolkit` finds what builds engines, for the targets that are made of
    /// them.
    pub fn build_options<E: From<CompileError>>(
        &self,
        checkpoint: &Checkpoint,
        loras: Vec<Lora>,
        toolkit: impl FnOnce(Target) -> Result<Toolkit, E>,
    ) -> Result<BuildOptions, E> {
        let trace = self.trace_options(checkpoint, loras)?;
        let engines = |spec: &EngineSpec, devices: &[ComputeCapability]| {
            let profiles = spec.profiles(checkpoint)?;
            let target = self.target();
            Ok::<_, E>(TargetOptions::Engines(spec.options(target, toolkit(target)?, devices, profiles)))
        };
        let target = match self {
            TargetSpec::Cpu(_) => return Ok(BuildOptions::cpu(trace)),
            TargetSpec::Cuda(spec) => TargetOptions::Cuda(spec.tuning()),
            TargetSpec::TensorrtRtx(spec) => engines(&spec.engines, &spec.compute_capabilities)?,
            TargetSpec::Tensorrt(spec) => engines(spec, &[])?,
            TargetSpec::Onnx(_) => TargetOptions::Onnx,
        };
        Ok(BuildOptions { trace, target, rehash: false })
    }

    /// Why networks of the target cannot compute in this, and what can.
    fn check(&self, precision: Precision) -> Result<(), (&'static str, &'static str)> {
        match (self.target(), precision) {
            (Target::Cuda, Precision::Bf16) => Err((
                "ONNX Runtime's CUDA provider has no kernels of bf16 for all operators",
                "f16 is the default for cuda",
            )),
            (target, Precision::Int8) if target != Target::Cpu => {
                Err(("int8 is computed by kiln's kernels for the target cpu", "--target cpu takes int8"))
            }
            _ => Ok(()),
        }
    }

    fn segments(&self) -> Option<Bytes> {
        match self {
            TargetSpec::Cpu(spec) => spec.segments,
            TargetSpec::Cuda(spec) => spec.segments,
            TargetSpec::TensorrtRtx(spec) => spec.engines.segments,
            TargetSpec::Tensorrt(spec) => spec.segments,
            TargetSpec::Onnx(_) => None,
        }
    }

    /// The dialect of ONNX, where it is not the target's own.
    fn flavor(&self) -> Option<Flavor> {
        match self {
            TargetSpec::Cuda(spec) if spec.channels_last == Some(false) => Some(Flavor::OnnxRuntime),
            _ => None,
        }
    }

    fn sizes(&self, checkpoint: &Checkpoint) -> Result<Sizes, CompileError> {
        match self {
            TargetSpec::Cpu(spec) => spec.profiles.sizes(checkpoint),
            TargetSpec::Cuda(spec) => spec.profiles.sizes(checkpoint),
            TargetSpec::TensorrtRtx(spec) => sizes::sizes(&spec.engines.profiles, checkpoint),
            TargetSpec::Tensorrt(spec) => sizes::sizes(&spec.profiles, checkpoint),
            TargetSpec::Onnx(spec) => spec.profiles.sizes(checkpoint),
        }
    }
}

impl CudaSpec {
    /// How ONNX Runtime's CUDA provider runs the models: as fast as it can, unless told.
    pub fn tuning(&self) -> Tuning {
        let search = self.optimization_level != Some(OptimizationLevel::NONE);
        Tuning { tf32: self.tf32.unwrap_or(true), search }
    }
}

impl EngineSpec {
    /// The profiles in latents; without any, one around the model's own size.
    pub fn profiles(&self, checkpoint: &Checkpoint) -> Result<Vec<Profile>, CompileError> {
        sizes::in_latents(&self.profiles, checkpoint)
    }

    /// What engines are built with, for these devices and at these sizes.
    pub fn options(
        &self,
        target: Target,
        toolkit: Toolkit,
        devices: &[ComputeCapability],
        profiles: Vec<Profile>,
    ) -> EngineOptions {
        EngineOptions {
            target,
            library: toolkit.library,
            release: toolkit.release,
            compute_capabilities: devices.iter().map(|device| device.0).collect(),
            profiles,
            workspace: self.workspace.map(|bytes| bytes.0),
            optimization_level: self.optimization_level.map(OptimizationLevel::get),
            tf32: self.tf32.unwrap_or(true),
            allow_slow_attention: self.allow_slow_attention,
            builder: toolkit.builder,
        }
    }
}
