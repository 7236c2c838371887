use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::{Bundle, Content, Target};
use kiln_compile::{
    AttentionSpec, BuildOptions, Checkpoint, Compiled, ControlNetCheckpoint, EngineCache, EngineOptions, Plan,
    Profile, ProfileSpec, RangeSpec, Specification, Step, TargetOptions, TargetSpec, Type,
};
use serde_json::{Value, json};

use crate::args::{CheckpointArgs, CompileArgs, Precision};
use crate::build::OtherProcess;
use crate::execution::backend;
use crate::failure::Failure;
use crate::models::{cache, check_companions, failure, open, options, sizes};
use crate::place::{Place, library};
use crate::progress::Bar;
use crate::{measure, models, output, runtime, tasks, verify};

pub(crate) fn run(args: &CompileArgs) -> Result<(), Failure> {
    let start = Instant::now();
    if Bundle::is_bundle(&args.source) {
        return from_onnx(args, start);
    }
    if args.from_onnx {
        return Err(Failure::input(&args.source, "is no bundle")
            .with_hint("kiln compile CHECKPOINT --target onnx makes what --from-onnx builds from"));
    }
    if ControlNetCheckpoint::is_one(&args.source) {
        return controlnet(args, start);
    }
    let mut spec = specification(args)?;
    let checkpoint_args = CheckpointArgs { variant: spec.variant.take(), ..args.checkpoint.clone() };
    let checkpoint = open(&spec.checkpoint, &checkpoint_args)?;
    if checkpoint.original().is_none() {
        check_companions(&checkpoint)?;
    }
    let mut loras = spec.open_loras()?;
    loras.extend(tasks::loras(&args.lora)?);
    sizes(&args.sizes, &checkpoint)?;
    let cache = cache(&args.cache)?;
    let bar = Bar::bytes("compiling");
    let mut progress = |progress| bar.compiling(progress);
    let mut plans = Vec::new();
    for (target, spec) in &spec.targets {
        let trace = spec.trace_options(*target, &checkpoint, loras.clone())?;
        let target = target_options(*target, spec, &checkpoint)?;
        let options = BuildOptions { trace, target, rehash: args.rehash };
        plans.push(cache.plan(&checkpoint, &options, &mut progress).map_err(|e| failure(e, &cache))?);
    }
    let reports = execute(plans, &cache, args, bar)?;
    finish(args, reports, start);
    Ok(())
}

/// Shows the plans, or carries them out; what is told of each.
fn execute(
    plans: Vec<Plan<'_>>,
    cache: &EngineCache,
    args: &CompileArgs,
    bar: Bar,
) -> Result<Vec<Value>, Failure> {
    let failure = |e| failure(e, cache);
    let mut reports = Vec::new();
    let mut steps = Vec::new();
    for plan in plans.iter().filter(|_| args.dry_run || args.why) {
        steps.push(plan.steps(cache).map_err(failure)?);
    }
    if args.dry_run {
        drop(bar);
        let plans = plans.iter().zip(&steps);
        return Ok(plans.map(|(plan, steps)| report_plan(plan.target(), steps, args)).collect());
    }
    cache.build(&plans, args.jobs, &mut |progress| bar.compiling(progress)).map_err(failure)?;
    drop(bar);
    let mut steps = steps.into_iter();
    let mut made: Vec<PathBuf> = Vec::new();
    for plan in &plans {
        let target = plan.target();
        let bar = Bar::bytes("compiling");
        let compiled = cache.execute(plan, &mut |progress| bar.compiling(progress));
        drop(bar);
        let mut compiled = compiled.map_err(failure)?;
        let manifest = compiled.bundle.manifest();
        let can_verify = target == Target::Cpu && matches!(manifest.content, Content::Pipeline(_));
        if can_verify && !args.no_reference && manifest.reference.is_none() {
            verify::record(&mut compiled.bundle, backend(args.execution)?, &models::seal_key()?)?;
        }
        if can_verify && !args.no_figures && compiled.bundle.manifest().figures.is_none() {
            // The bundle is good without them.
            if let Err(failure) = measure::record(&mut compiled.bundle, args.execution) {
                output::say(&format!("{}; kiln measure tries again", failure.message()));
            }
        }
        made.push(compiled.bundle.root().into());
        reports.push(report_bundle(target, &compiled, &steps.next().unwrap_or_default(), args));
    }
    if let Some(limit) = args.cache_limit {
        let keep: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
        let pruned = cache.prune(Some(limit.0), None, &keep, false)?;
        if pruned.kept_bytes > limit.0 {
            let [kept, limit] = [pruned.kept_bytes, limit.0].map(output::bytes);
            output::say(&format!(
                "the engine cache holds {kept}, over its limit of {limit}: this run needs them"
            ));
        }
    }
    Ok(reports)
}

fn finish(args: &CompileArgs, reports: Vec<Value>, start: Instant) {
    if args.json {
        let key = if args.dry_run { "plans" } else { "bundles" };
        output::data(&json!({ key: reports, "seconds": start.elapsed().as_secs_f64() }).to_string());
    }
}

/// Compiles a ControlNet by itself, for every pipeline of its family.
fn controlnet(args: &CompileArgs, start: Instant) -> Result<(), Failure> {
    let unused = [
        ("--precision", args.precision.is_some()),
        ("--storage", args.storage.is_some()),
        ("--segment-size", args.segment_size.is_some()),
        ("--lora", !args.lora.is_empty()),
        ("--width", args.sizes.width.is_some()),
        ("--compute-capability", !args.compute_capabilities.is_empty()),
        ("--target", args.targets.iter().any(|target| *target != Target::Cpu)),
    ];
    if let Some((option, _)) = unused.into_iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::usage(format!(
            "{option}: a ControlNet by itself is compiled for the CPU, in f32"
        ))
        .with_hint("inside a pipeline's folder it is compiled for the pipeline's targets"));
    }
    let checkpoint = ControlNetCheckpoint::open(&args.source, args.checkpoint.variant.as_deref())?;
    let cache = cache(&args.cache)?;
    let bar = Bar::bytes("compiling");
    let options = BuildOptions { rehash: args.rehash, ..options(&args.checkpoint) };
    let plan = cache.plan_controlnet(&checkpoint, &options, &mut |progress| bar.compiling(progress));
    let reports = execute(vec![plan.map_err(|e| failure(e, &cache))?], &cache, args, bar)?;
    finish(args, reports, start);
    Ok(())
}

/// Builds engines from a bundle of ONNX, which another machine may have traced.
fn from_onnx(args: &CompileArgs, start: Instant) -> Result<(), Failure> {
    let unused = [
        ("--attention", args.checkpoint.attention.is_some()),
        ("--variant", args.checkpoint.variant.is_some()),
        ("--precision", args.precision.is_some()),
        ("--storage", args.storage.is_some()),
        ("--segment-size", args.segment_size.is_some()),
        ("--lora", !args.lora.is_empty()),
        ("--prediction-type", args.checkpoint.prediction_type.is_some()),
        ("--rehash", args.rehash),
        ("--width", args.sizes.width.is_some()),
    ];
    if let Some((option, _)) = unused.into_iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::usage(format!("{option}: a bundle of ONNX was decided when it was traced")));
    }
    let [target] = args.targets.as_slice() else {
        return Err(Failure::usage("a bundle can only be compiled with --target tensorrt-rtx, or tensorrt"));
    };
    if !target.has_engines() {
        return Err(Failure::usage("a bundle can only be compiled with --target tensorrt-rtx, or tensorrt"));
    }
    let source = Bundle::open(&args.source)?;
    let spec = TargetSpec {
        compute_capabilities: args.compute_capabilities.clone(),
        allow_slow_attention: args.allow_slow_attention,
        ..TargetSpec::default()
    };
    let options = engine_options(*target, &spec, vec![profile_of(&source)?])?;
    let cache = cache(&args.cache)?;
    let plan = cache.plan_from_onnx(&source, &options).map_err(|e| failure(e, &cache))?;
    let reports = execute(vec![plan], &cache, args, Bar::bytes("compiling"))?;
    finish(args, reports, start);
    Ok(())
}

/// What the arguments and the specification, where there is one, say together; arguments win.
fn specification(args: &CompileArgs) -> Result<Specification, Failure> {
    let is_specification = args.source.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let mut spec = match is_specification {
        true => Specification::read(&args.source)?,
        false => Specification { checkpoint: args.source.clone(), ..Specification::default() },
    };
    if let Some(variant) = &args.checkpoint.variant {
        spec.variant = Some(variant.clone());
    }
    if !args.targets.is_empty() {
        let wanted = args.targets.iter();
        spec.targets = wanted.map(|t| (*t, spec.targets.get(t).cloned().unwrap_or_default())).collect();
    }
    if spec.targets.is_empty() {
        spec.targets = BTreeMap::from([(Target::Cpu, TargetSpec::default())]);
    }
    if !spec.targets.keys().any(|target| target.has_engines()) {
        let foreign = [
            ("--compute-capability", !args.compute_capabilities.is_empty()),
            ("--allow-slow-attention", args.allow_slow_attention),
        ];
        if let Some((option, _)) = foreign.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Failure::usage(format!("{option} has no meaning without engines for GPUs"))
                .with_hint("--target tensorrt-rtx builds for GPUs"));
        }
    }
    for (target, spec) in &mut spec.targets {
        if let Some(policy) = args.checkpoint.attention {
            spec.attention = Some(AttentionSpec(policy));
        }
        if let Some(precision) = args.precision {
            spec.precision.compute = Some(type_of(precision));
        }
        if let (Some(height), Some(width)) = (args.sizes.height, args.sizes.width) {
            let fixed = |n: u32| RangeSpec::Fixed(n.into());
            let batch = Some(fixed(args.sizes.batch_size.unwrap_or(1)));
            spec.profiles = vec![ProfileSpec { batch, height: fixed(height), width: fixed(width) }];
        }
        if let Some(bytes) = args.segment_size {
            spec.segments = Some(bytes);
        }
        if let Some(storage) = args.storage {
            spec.precision.storage = Some(type_of(storage));
        }
        if target.has_engines() {
            if *target == Target::TensorrtRtx && !args.compute_capabilities.is_empty() {
                spec.compute_capabilities.clone_from(&args.compute_capabilities);
            }
            spec.allow_slow_attention |= args.allow_slow_attention;
        }
    }
    Ok(spec)
}

fn type_of(precision: Precision) -> Type {
    match precision {
        Precision::F32 => Type::F32,
        Precision::F16 => Type::F16,
    }
}

/// What engines are built with that run in a place, as a specification says.
pub(crate) fn options_for(
    place: &Place,
    checkpoint: &Checkpoint,
    spec: TargetSpec,
) -> Result<BuildOptions, Failure> {
    let target = place.target();
    let spec = TargetSpec { compute_capabilities: place.compute_capabilities(), ..spec };
    let trace = spec.trace_options(target, checkpoint, Vec::new())?;
    Ok(BuildOptions { trace, target: target_options(target, &spec, checkpoint)?, rehash: false })
}

fn target_options(
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

fn engine_options(target: Target, spec: &TargetSpec, profiles: Vec<Profile>) -> Result<EngineOptions, Failure> {
    let found = runtime::find(library(target))?;
    Ok(EngineOptions {
        target,
        release: kiln_compile::release_of(&found.path)?,
        library: found.path,
        compute_capabilities: spec.compute_capabilities.iter().map(|c| c.0).collect(),
        profiles,
        workspace: spec.workspace.map(|bytes| bytes.0),
        optimization_level: spec.optimization_level,
        tf32: spec.tf32.unwrap_or(true),
        allow_slow_attention: spec.allow_slow_attention,
        builder: Arc::new(OtherProcess),
    })
}

/// Sizes around the default ones of a bundle.
fn profile_of(bundle: &Bundle) -> Result<Profile, Failure> {
    let info = bundle.pipeline()?;
    let positions = info.text_encoders.first().map_or(77, |encoder| u64::from(encoder.positions));
    let side = |pixels: u32| u64::from(pixels / info.latents.scale_factor);
    Ok(Profile::around(side(info.size.height), side(info.size.width), positions))
}

fn report_plan(target: Target, steps: &[Step], args: &CompileArgs) -> Value {
    if !args.json {
        output::data(&format!("{target}"));
        steps.iter().for_each(|step| report_step(step, args.why, output::data));
    }
    json!({ "target": target.to_string(), "parts": steps.iter().map(describe).collect::<Vec<_>>() })
}

fn report_bundle(target: Target, compiled: &Compiled, steps: &[Step], args: &CompileArgs) -> Value {
    let root = compiled.bundle.root().display().to_string();
    if !args.json {
        let built = steps.iter().filter(|step| !step.is_cached);
        built.for_each(|step| report_step(step, true, output::say));
        output::data(&root);
    }
    let mut report = json!({
        "target": target.to_string(),
        "bundle": root,
        "key": compiled.bundle.manifest().provenance.key,
        "cached": compiled.was_cached,
    });
    if args.why {
        report["parts"] = steps.iter().map(describe).collect();
    }
    report
}

fn report_step(step: &Step, why: bool, print: fn(&str)) {
    let state = match (step.is_cached, step.differences.is_empty()) {
        (true, _) => "cached".into(),
        (false, true) => "to build: there is none like it".into(),
        (false, false) => {
            let names: Vec<&str> = step.differences.iter().map(|d| d.name.as_str()).collect();
            format!("to build: other {}", names.join(", "))
        }
    };
    let slash = if step.folder.is_empty() { "" } else { "/" };
    let size = output::bytes(step.weight_bytes);
    let line = format!("  {}{slash}{:<16} {size} of weights, {state}", step.folder, step.recipe.part);
    print(&line);
    if why {
        for difference in &step.differences {
            let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
            print(&format!(
                "    {}: {} -> {}",
                difference.name,
                show(&difference.before),
                show(&difference.now)
            ));
        }
    }
}

fn describe(step: &Step) -> Value {
    let differences =
        step.differences.iter().map(|d| json!({ "name": d.name, "before": d.before, "now": d.now }));
    json!({
        "folder": step.folder,
        "part": step.recipe.part,
        "key": step.recipe.key(),
        "cached": step.is_cached,
        "weight_bytes": step.weight_bytes,
        "differences": differences.collect::<Vec<_>>(),
    })
}
