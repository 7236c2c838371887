//! What is compiled, from the arguments and what lies where they point.

use std::collections::BTreeMap;

use kiln_bundle::{Bundle, Precision, Size, Target};
use kiln_compile::{AttentionSpec, ControlNetCheckpoint, Specification, TargetSpec};

use crate::args::{CompileArgs, EngineArgs, NetworkArgs, PrecisionChoice, TracedArgs};
use crate::failure::Failure;
use crate::{backends, output};

/// What is compiled, with the arguments that have a meaning for it.
pub(super) enum Mode<'a> {
    /// A checkpoint of all that makes pictures.
    Pipeline(OfPipeline<'a>),
    /// A ControlNet by itself.
    ControlNet(&'a TracedArgs),
    /// A bundle of ONNX.
    Onnx(OfOnnx<'a>),
}

pub(super) struct OfPipeline<'a> {
    /// What the arguments and the specification, where there is one, say together; arguments win.
    pub(super) specification: Specification,
    pub(super) networks: &'a NetworkArgs,
    pub(super) traced: &'a TracedArgs,
}

pub(super) struct OfOnnx<'a> {
    pub(super) target: Target,
    pub(super) engines: &'a EngineArgs,
}

impl Mode<'_> {
    pub(super) fn of(args: &CompileArgs) -> Result<Mode<'_>, Failure> {
        if Bundle::is_bundle(&args.source) {
            return OfOnnx::new(args).map(Mode::Onnx);
        }
        if args.from_onnx {
            return Err(Failure::input(&args.source, "is not a bundle")
                .with_hint("kiln compile CHECKPOINT --target onnx makes what --from-onnx builds from"));
        }
        match ControlNetCheckpoint::is_one(&args.source) {
            true => of_controlnet(args).map(Mode::ControlNet),
            false => OfPipeline::new(args).map(Mode::Pipeline),
        }
    }
}

fn of_controlnet(args: &CompileArgs) -> Result<&TracedArgs, Failure> {
    let reason = "a ControlNet by itself is compiled for the CPU, in f32";
    let hint = "inside a pipeline's folder it is compiled for the pipeline's targets";
    let other = args.targets.iter().find(|target| **target != Target::Cpu);
    let targets = other.map_or(Ok(()), |_| Err(Failure::usage(format!("--target: {reason}"))));
    let components = match args.traced.args.checkpoint.components.given() {
        None => Ok(()),
        Some(option) => {
            Err(Failure::usage(format!("{option}: a ControlNet by itself has no other components")))
        }
    };
    let refused =
        args.networks.refuse(reason).and_then(|()| args.engines.refuse(reason)).and(targets).and(components);
    refused.map_err(|failure| failure.with_hint(hint))?;
    Ok(&args.traced.args)
}

impl OfOnnx<'_> {
    fn new(args: &CompileArgs) -> Result<OfOnnx<'_>, Failure> {
        let reason = "a bundle of ONNX was decided when it was traced";
        args.traced.refuse(reason)?;
        args.networks.refuse(reason)?;
        let engines = &args.engines.args;
        match args.targets.as_slice() {
            [target] if *target == Target::Tensorrt && !engines.compute_capabilities.is_empty() => {
                Err(no_meaning("--compute-capability", "engines of TensorRT-RTX"))
            }
            [target] if target.has_engines() => Ok(OfOnnx { target: *target, engines }),
            _ => Err(Failure::usage("a bundle can only be compiled with --target tensorrt-rtx, or tensorrt")),
        }
    }
}

impl OfPipeline<'_> {
    fn new(args: &CompileArgs) -> Result<OfPipeline<'_>, Failure> {
        let (networks, engines, traced) = (&args.networks.args, &args.engines.args, &args.traced.args);
        let mut specification = read(args)?;
        let (mut with_segments, mut with_engines, mut with_devices) = (false, false, false);
        for spec in specification.targets.values_mut() {
            apply(networks, traced, spec)?;
            warn_of_int8(spec)?;
            if let (Some(bytes), Some(segments)) = (networks.segment_size, spec.segments_mut()) {
                *segments = Some(bytes);
                with_segments = true;
            }
            if let Some(spec) = spec.engines_mut() {
                spec.allow_slow_attention |= engines.allow_slow_attention;
                with_engines = true;
            }
            if let Some(devices) = spec.compute_capabilities_mut() {
                if !engines.compute_capabilities.is_empty() {
                    devices.clone_from(&engines.compute_capabilities);
                }
                with_devices = true;
            }
        }
        if networks.segment_size.is_some() && !with_segments {
            return Err(no_meaning("--segment-size", "targets other than onnx, which takes whole models"));
        }
        if engines.allow_slow_attention && !with_engines {
            return Err(no_meaning("--allow-slow-attention", "engines for GPUs"));
        }
        if !engines.compute_capabilities.is_empty() && !with_devices {
            return Err(no_meaning("--compute-capability", "engines for GPUs of TensorRT-RTX"));
        }
        Ok(OfPipeline { specification, networks, traced })
    }
}

fn no_meaning(option: &str, without: &str) -> Failure {
    Failure::usage(format!("{option} has no meaning without {without}"))
        .with_hint("--target tensorrt-rtx builds for GPUs")
}

/// The specification, for the targets that were asked for, or for the CPU where nothing names any.
fn read(args: &CompileArgs) -> Result<Specification, Failure> {
    let is_specification = args.source.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let mut specification = match is_specification {
        true => Specification::read(&args.source)?,
        false => Specification { checkpoint: args.source.clone(), ..Specification::default() },
    };
    if !args.targets.is_empty() {
        let mut said = std::mem::take(&mut specification.targets);
        let spec = |target| said.remove(&target).unwrap_or_else(|| TargetSpec::new(target));
        let wanted: std::collections::BTreeSet<Target> = args.targets.iter().copied().collect();
        specification.targets = wanted.into_iter().map(spec).map(|spec| (spec.target(), spec)).collect();
    }
    if specification.targets.is_empty() {
        specification.targets = BTreeMap::from([(Target::Cpu, TargetSpec::new(Target::Cpu))]);
    }
    Ok(specification)
}

/// Applies the arguments that every target takes.
fn apply(networks: &NetworkArgs, traced: &TracedArgs, spec: &mut TargetSpec) -> Result<(), Failure> {
    let target = spec.target();
    let said = spec.networks_mut();
    if let Some(policy) = traced.checkpoint.attention {
        said.attention = Some(AttentionSpec(policy));
    }
    if let Some(precision) = networks.precision {
        said.precision.compute = match (precision, target) {
            (PrecisionChoice::Of(precision), _) => Some(precision),
            (PrecisionChoice::Auto, Target::Cpu) => Some(of_this_processor()?),
            (PrecisionChoice::Auto, _) => None,
        };
    }
    if let Some(storage) = networks.storage {
        said.precision.storage = Some(storage);
    }
    if let (Some(height), Some(width)) = (networks.sizes.height, networks.sizes.width) {
        spec.fix_sizes(networks.sizes.batch_size.unwrap_or(1).into(), Size::new(width, height));
    }
    Ok(())
}

/// Says so where nothing is gained by int8 here; the bundle may be for another processor.
fn warn_of_int8(spec: &TargetSpec) -> Result<(), Failure> {
    let precision = &spec.networks().precision;
    let mut asked = precision.compute.iter().chain(precision.components.values());
    if spec.target() != Target::Cpu || !asked.any(|precision| *precision == Precision::Int8) {
        return Ok(());
    }
    let fast = backends::libraries().fast_precisions()?;
    if !fast.contains(&Precision::Int8) {
        let instead = if fast.contains(&Precision::Bf16) { Precision::Bf16 } else { Precision::F32 };
        output::say(&format!(
            "precision int8 is no faster on this processor, which computes in {instead} instead"
        ));
    }
    Ok(())
}

/// The precision that is fast on this processor, said in one line.
fn of_this_processor() -> Result<Precision, Failure> {
    let (precision, reason) = match backends::libraries().fast_precisions()?.contains(&Precision::Bf16) {
        true => (Precision::Bf16, "which this processor multiplies faster than f32"),
        false => (Precision::F32, "because kiln does not multiply bf16 faster on this processor"),
    };
    output::say(&format!("--precision auto: {precision}, {reason}"));
    Ok(precision)
}
