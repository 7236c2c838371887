//! What engines are built with.

use std::sync::Arc;

use kiln_bundle::Target;
use kiln_compile::{
    BuildOptions, Checkpoint, ComputeCapability, EngineOptions, Profile, TargetOptions, TargetSpec,
};
use kiln_runtime::{Place, library};

use crate::backends::libraries;
use crate::build::OtherProcess;
use crate::failure::Failure;

/// What engines are built with that run in a place, as a specification says.
pub(crate) fn options_for(
    place: &Place,
    checkpoint: &Checkpoint,
    spec: TargetSpec,
) -> Result<BuildOptions, Failure> {
    let target = place.target();
    let of_device = place.compute_capability().filter(|_| target == Target::TensorrtRtx);
    let spec =
        TargetSpec { compute_capabilities: of_device.map(ComputeCapability).into_iter().collect(), ..spec };
    let trace = spec.trace_options(target, checkpoint, Vec::new())?;
    Ok(BuildOptions { trace, target: target_options(target, &spec, checkpoint)?, rehash: false })
}

pub(crate) fn target_options(
    target: Target,
    spec: &TargetSpec,
    checkpoint: &Checkpoint,
) -> Result<TargetOptions, Failure> {
    Ok(match target {
        Target::Cpu => TargetOptions::Cpu,
        Target::Cuda => TargetOptions::Cuda(spec.tuning()),
        Target::Onnx => TargetOptions::Onnx,
        Target::TensorrtRtx | Target::Tensorrt => {
            TargetOptions::Engines(engine_options(target, spec, spec.profiles(checkpoint)?)?)
        }
    })
}

pub(crate) fn engine_options(
    target: Target,
    spec: &TargetSpec,
    profiles: Vec<Profile>,
) -> Result<EngineOptions, Failure> {
    let Some(library) = library(target) else {
        return Err(Failure::usage(format!("no library builds engines for {target}")));
    };
    let path = libraries().find(library)?;
    Ok(EngineOptions {
        target,
        release: kiln_compile::release_of(&path)?,
        library: path,
        compute_capabilities: spec.compute_capabilities.iter().map(|c| c.0).collect(),
        profiles,
        workspace: spec.workspace.map(|bytes| bytes.0),
        optimization_level: spec.optimization_level,
        tf32: spec.tf32.unwrap_or(true),
        allow_slow_attention: spec.allow_slow_attention,
        builder: Arc::new(OtherProcess),
    })
}
