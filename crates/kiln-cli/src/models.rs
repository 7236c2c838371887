//! Opening models: checkpoints and bundles, compiled into the engine cache where they are not.

use std::path::{Path, PathBuf};

use kiln_bundle::{Bundle, SealKey};
use kiln_compile::{
    AttentionSpec, BuildOptions, Checkpoint, CompileError, ControlNetCheckpoint, EngineCache, SEGMENT_BYTES,
    TargetSpec, TraceOptions,
};
use kiln_graph::{Cuts, EmitPolicy};
use kiln_nets::Sizes;

use crate::args::{CacheArgs, CheckpointArgs, PredictionChoice, SizeArgs};
use crate::failure::Failure;
use crate::place::Place;
use crate::progress::Bar;
use crate::{build, paths};

/// The engine cache, whose entries bear the user's seal.
pub(crate) fn cache(args: &CacheArgs) -> Result<EngineCache, Failure> {
    Ok(EngineCache::new(paths::engine_cache(args)?).with_key(seal_key_file()?))
}

/// The user's key, with which entries and bundles are sealed.
pub(crate) fn seal_key() -> Result<SealKey, Failure> {
    Ok(SealKey::open(&seal_key_file()?)?)
}

fn seal_key_file() -> Result<PathBuf, Failure> {
    Ok(kiln_native::cache_dir()?.join(SealKey::FILE))
}

/// Opens a checkpoint folder or a single-file checkpoint.
pub(crate) fn open(path: &Path, args: &CheckpointArgs) -> Result<Checkpoint, Failure> {
    match (path.is_file(), &args.variant, args.prediction_type) {
        (true, Some(_), _) => {
            Err(Failure::usage("--variant chooses between the files of a folder, and this is one file"))
        }
        (false, _, Some(_)) => Err(Failure::usage("--prediction-type is for single-file checkpoints")
            .with_hint("a folder says it in scheduler/scheduler_config.json")),
        (true, None, asked) => {
            Ok(Checkpoint::open_original(path, asked.map(PredictionChoice::prediction_type))?)
        }
        (false, variant, None) => Ok(Checkpoint::open(path, variant.as_deref())?),
    }
}

/// The checkpoint's bundle from the engine cache, made now if need be.
pub(crate) fn bundle(
    model: &Path,
    args: &CheckpointArgs,
    cache: &CacheArgs,
    place: &Place,
) -> Result<Bundle, Failure> {
    if Bundle::is_bundle(model) {
        return Ok(Bundle::open(model)?);
    }
    let checkpoint = open(model, args)?;
    if checkpoint.original().is_none() {
        check_companions(&checkpoint)?;
    }
    let cache = self::cache(cache)?;
    let bar = Bar::bytes("compiling");
    let options = match place {
        Place::Host => options(args),
        Place::Gpu(_) => {
            let attention = args.attention.map(AttentionSpec);
            let mut spec = TargetSpec::new(place.target());
            spec.networks_mut().attention = attention;
            build::options_for(place, &checkpoint, spec)?
        }
    };
    let compiled = cache.compile(&checkpoint, &options, &mut |progress| bar.compiling(progress));
    Ok(compiled.map_err(|e| failure(e, &cache))?.bundle)
}

/// A ControlNet's bundle from the engine cache, made now if need be.
pub(crate) fn controlnet_bundle(
    folder: &Path,
    args: &CheckpointArgs,
    cache: &CacheArgs,
) -> Result<Bundle, Failure> {
    if Bundle::is_bundle(folder) {
        return Ok(Bundle::open(folder)?);
    }
    let checkpoint = ControlNetCheckpoint::open(folder, args.variant.as_deref())?;
    let cache = self::cache(cache)?;
    let bar = Bar::bytes("compiling");
    let mut progress = |progress| bar.compiling(progress);
    let plan = cache.plan_controlnet(&checkpoint, &options(args), &mut progress);
    let compiled = plan.and_then(|plan| cache.execute(&plan, &mut progress));
    Ok(compiled.map_err(|e| failure(e, &cache))?.bundle)
}

/// Refuses options about compiling where all of `models` are bundles, which are compiled already.
pub(crate) fn refuse_unused(args: &CheckpointArgs, models: &[&Path]) -> Result<(), Failure> {
    let given = [("--variant", args.variant.is_some()), ("--attention", args.attention.is_some())];
    let Some((option, _)) = given.into_iter().find(|(_, is_given)| *is_given) else { return Ok(()) };
    match models.iter().all(|model| Bundle::is_bundle(model)) {
        false => Ok(()),
        true => {
            let model = models.first().map(|model| model.display().to_string()).unwrap_or_default();
            let reason =
                format!("{option}: {model} is a bundle, for which that was decided when it was compiled");
            Err(Failure::usage(reason).with_hint(format!("kiln compile takes {option} and a checkpoint")))
        }
    }
}

/// What engines of the CPU are built with where nothing else is asked for.
pub(crate) fn options(args: &CheckpointArgs) -> BuildOptions {
    let cuts = Cuts::Every(SEGMENT_BYTES);
    let policy = EmitPolicy { attention: args.attention(), cuts, ..EmitPolicy::default() };
    BuildOptions::cpu(TraceOptions::for_bundle(policy, Sizes::Dynamic))
}

/// Refuses a checkpoint whose scheduler or tokenizers the runtime could not load from the bundle.
pub(crate) fn check_companions(checkpoint: &Checkpoint) -> Result<(), Failure> {
    kiln_runtime::open_scheduler(&checkpoint.scheduler()?)?;
    for tokenizer in checkpoint.tokenizers()? {
        kiln_runtime::open_tokenizer(&tokenizer.folder, tokenizer.positions, tokenizer.vocabulary)?;
    }
    Ok(())
}

pub(crate) fn failure(error: CompileError, cache: &EngineCache) -> Failure {
    match error {
        CompileError::Bundle(error) => Failure::of_cache(error, cache.root()),
        other => other.into(),
    }
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
