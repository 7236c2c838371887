use std::path::Path;
use std::time::Instant;

use kiln_compile::{Checkpoint, Compiled, ControlNetCheckpoint, EngineCache, TraceOptions};
use kiln_graph::EmitPolicy;
use kiln_lora::Lora;
use kiln_nets::Sizes;
use serde_json::json;

use crate::args::{CacheArgs, CheckpointArgs, CompileArgs, SizeArgs};
use crate::failure::Failure;
use crate::generate::backend;
use crate::progress::Bar;
use crate::{output, paths, tasks, verify};

pub(crate) fn run(args: &CompileArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&args.checkpoint_dir, args.checkpoint.variant.as_deref())?;
    let sizes = sizes(&args.sizes, &checkpoint)?;
    let loras = tasks::loras(&args.lora)?;
    let mut compiled = compile(&checkpoint, &args.checkpoint, sizes, loras, &args.cache)?;
    if !args.no_reference && compiled.bundle.manifest().reference.is_none() {
        verify::record(&mut compiled.bundle, backend(args.backend)?)?;
    }
    let root = compiled.bundle.root().display().to_string();
    match args.json {
        true => output::data(
            &json!({
                "bundle": root,
                "key": compiled.bundle.manifest().provenance.key,
                "cached": compiled.was_cached,
                "seconds": start.elapsed().as_secs_f64(),
            })
            .to_string(),
        ),
        false => output::data(&root),
    }
    Ok(())
}

/// The checkpoint's bundle from the engine cache, made now if need be.
pub(crate) fn bundle(
    model: &Path,
    args: &CheckpointArgs,
    cache: &CacheArgs,
) -> Result<kiln_bundle::Bundle, Failure> {
    if kiln_bundle::Bundle::is_bundle(model) {
        return Ok(kiln_bundle::Bundle::open(model)?);
    }
    let checkpoint = Checkpoint::open(model, args.variant.as_deref())?;
    Ok(compile(&checkpoint, args, Sizes::Dynamic, Vec::new(), cache)?.bundle)
}

/// A ControlNet's bundle from the engine cache, made now if need be.
pub(crate) fn controlnet_bundle(
    folder: &Path,
    args: &CheckpointArgs,
    cache: &CacheArgs,
) -> Result<kiln_bundle::Bundle, Failure> {
    if kiln_bundle::Bundle::is_bundle(folder) {
        return Ok(kiln_bundle::Bundle::open(folder)?);
    }
    let checkpoint = ControlNetCheckpoint::open(folder, args.variant.as_deref())?;
    let cache = EngineCache::new(paths::engine_cache(cache)?);
    let bar = Bar::bytes("compiling");
    let options = TraceOptions::for_bundle(policy(args), Sizes::Dynamic);
    Ok(cache.compile_controlnet(&checkpoint, &options, &mut |progress| bar.compiling(progress))?.bundle)
}

fn policy(args: &CheckpointArgs) -> EmitPolicy {
    EmitPolicy { attention: args.attention, ..EmitPolicy::default() }
}

fn compile(
    checkpoint: &Checkpoint,
    args: &CheckpointArgs,
    sizes: Sizes,
    loras: Vec<Lora>,
    cache: &CacheArgs,
) -> Result<Compiled, Failure> {
    let cache = EngineCache::new(paths::engine_cache(cache)?);
    let bar = Bar::bytes("compiling");
    let options = TraceOptions { loras, ..TraceOptions::for_bundle(policy(args), sizes) };
    Ok(cache.compile(checkpoint, &options, &mut |progress| bar.compiling(progress))?)
}

/// Sizes in pixels as sizes in latents.
pub(crate) fn sizes(args: &SizeArgs, checkpoint: &Checkpoint) -> Result<Sizes, Failure> {
    let (Some(height), Some(width)) = (args.height, args.width) else { return Ok(Sizes::Dynamic) };
    let factor = checkpoint.scale_factor();
    let latents = |key: &str, pixels: u32| match u64::from(pixels) {
        n if n > 0 && n <= 8192 && n.is_multiple_of(factor.max(8)) => Ok(n / factor),
        _ => Err(Failure::usage(format!("{key}: {pixels} is not a multiple of {} up to 8192", factor.max(8)))),
    };
    let batch = match args.batch_size.unwrap_or(1) {
        n @ 1..=256 => u64::from(n),
        n => return Err(Failure::usage(format!("batch size: {n} is not a number from 1 to 256"))),
    };
    Ok(Sizes::Static { batch, height: latents("height", height)?, width: latents("width", width)? })
}
