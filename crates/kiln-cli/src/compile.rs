//! `kiln compile`: what is compiled is decided once, as a [`Mode`], and what a mode does not take is refused there.

mod mode;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_bundle::{Bundle, Content, Staging, Target, fs};
use kiln_compile::{
    BuildOptions, CheckpointOptions, ControlNetCheckpoint, EngineCache, EngineSpec, Plan, Profile, TargetSpec,
};
use serde_json::Value;

use crate::args::{CompileArgs, TracedArgs};
use crate::backends::on_host;
use crate::building::toolkit;
use crate::failure::Failure;
use crate::model::Model;
use crate::models::{cache, failure, options, sizes};
use crate::progress::Bar;
use crate::{accuracy, measure, models, output, tasks, verify};

use mode::{Mode, OfOnnx, OfPipeline};

pub(crate) fn run(args: &CompileArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let cache = cache(&args.cache)?;
    let reports = match Mode::of(args)? {
        Mode::Pipeline(mode) => pipeline(mode, &cache, args)?,
        Mode::ControlNet(traced) => controlnet(traced, &cache, args)?,
        Mode::Onnx(mode) => from_onnx(&mode, &cache, args)?,
    };
    report::finish(args, reports, start);
    Ok(())
}

/// Compiles all that makes pictures, for every target.
fn pipeline(mode: OfPipeline<'_>, cache: &EngineCache, args: &CompileArgs) -> Result<Vec<Value>, Failure> {
    let OfPipeline { specification, networks, traced } = mode;
    let asked = traced.checkpoint.options();
    let opening = CheckpointOptions {
        variant: asked.variant.or(specification.variant.clone()),
        components: asked.components.or(specification.components.clone()),
        ..asked
    };
    let checkpoint = Model::open(&specification.checkpoint)?.compilable_checkpoint(&opening)?;
    let mut loras = specification.open_loras()?;
    loras.extend(tasks::loras(&networks.lora)?);
    sizes(&networks.sizes, &checkpoint)?;
    let bar = Bar::bytes("compiling");
    let mut progress = |progress| bar.compiling(progress);
    let mut plan = |spec: &TargetSpec| {
        let options = spec.build_options(&checkpoint, loras.clone(), toolkit)?;
        let options = BuildOptions { rehash: traced.rehash, ..options };
        cache.plan(&checkpoint, &options, &mut progress).map_err(|e| failure(e, cache))
    };
    let plans = specification.targets.values().map(&mut plan).collect::<Result<_, _>>()?;
    let reduced = specification.targets.get(&Target::Cpu).filter(|_| !args.no_accuracy && !args.dry_run);
    let exact = reduced.and_then(TargetSpec::exact).map(|spec| plan(&spec)).transpose()?;
    execute(plans, exact, cache, args, bar)
}

/// Compiles a ControlNet by itself, for every pipeline of its family.
fn controlnet(traced: &TracedArgs, cache: &EngineCache, args: &CompileArgs) -> Result<Vec<Value>, Failure> {
    let checkpoint = ControlNetCheckpoint::open(&args.source, traced.checkpoint.variant.as_deref())?;
    checkpoint.remarks().iter().for_each(|remark| output::say(remark));
    let bar = Bar::bytes("compiling");
    let options = BuildOptions { rehash: traced.rehash, ..options(&traced.checkpoint) };
    let plan = cache.plan_controlnet(&checkpoint, &options, &mut |progress| bar.compiling(progress));
    execute(vec![plan.map_err(|e| failure(e, cache))?], None, cache, args, bar)
}

/// Measures how far a bundle is from an exact one, which is compiled for that where it is not in the cache.
fn compare(
    bundle: &mut Bundle,
    exact: &Plan<'_>,
    cache: &EngineCache,
    args: &CompileArgs,
) -> Result<(), Failure> {
    let cached = cache.bundle_of(exact).map_err(|e| failure(e, cache))?;
    if cached.as_ref().is_some_and(|exact| exact.root() == bundle.root()) {
        return Ok(());
    }
    if !accuracy::is_measured_here(bundle)? {
        output::say("how far int8 is from f32 is not measured: this processor computes it more exactly");
        return Ok(());
    }
    let backend = on_host(args.execution)?;
    if let Some(exact) = cached {
        return accuracy::record(bundle, exact, backend);
    }
    // One at a time; what a crash leaves of it the cache removes.
    let _lock = fs::Lock::acquire(&cache.root().join(".f32.lock"))?;
    let staging = Staging::new(&cache.root().join("f32"))?;
    let scratch = EngineCache::new(staging.path());
    let bar = Bar::bytes("compiling in f32");
    let compiled = scratch.execute(exact, &mut |progress| bar.compiling(progress));
    drop(bar);
    accuracy::record(bundle, compiled.map_err(|e| failure(e, &scratch))?.bundle, backend)
}

/// Builds engines from a bundle of ONNX, which another machine may have traced.
fn from_onnx(mode: &OfOnnx<'_>, cache: &EngineCache, args: &CompileArgs) -> Result<Vec<Value>, Failure> {
    let source = Bundle::open(&args.source)?;
    let spec = EngineSpec { allow_slow_attention: mode.engines.allow_slow_attention, ..EngineSpec::default() };
    let (target, profiles) = (mode.target, vec![Profile::of_bundle(&source)?]);
    let options = spec.options(target, toolkit(target)?, &mode.engines.compute_capabilities, profiles);
    let plan = cache.plan_from_onnx(&source, &options).map_err(|e| failure(e, cache))?;
    execute(vec![plan], None, cache, args, Bar::bytes("compiling"))
}

/// Shows the plans, or carries them out; what is told of each. `exact` is the plan of the same networks for the processor
/// in f32, where one of the plans is not.
fn execute(
    plans: Vec<Plan<'_>>,
    exact: Option<Plan<'_>>,
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
        return Ok(plans.map(|(plan, steps)| report::plan(plan.target(), steps, args)).collect());
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
            verify::record(&mut compiled.bundle, on_host(args.execution)?, &models::seal_key()?)?;
        }
        if can_verify && !args.no_figures && compiled.bundle.manifest().figures.is_none() {
            // The bundle is good without them.
            if let Err(failure) = measure::record(&mut compiled.bundle, args.execution) {
                output::say(&format!("{}; kiln measure tries again", failure.message()));
            }
        }
        let exact = exact.as_ref().filter(|_| can_verify && compiled.bundle.manifest().accuracy.is_none());
        if let Some(exact) = exact
            && let Err(failure) = compare(&mut compiled.bundle, exact, cache, args)
        {
            // As it is without this.
            output::say(&format!("how far it is from f32 is not known: {}", failure.message()));
        }
        made.push(compiled.bundle.root().into());
        reports.push(report::bundle(target, &compiled, &steps.next().unwrap_or_default(), args));
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
