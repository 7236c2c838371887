//! The bundles of models, from the engine cache where they are checkpoints.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_bundle::{Bundle, SealKey};
use kiln_compile::{
    AttentionSpec, BuildOptions, Checkpoint, CompileError, ControlNetCheckpoint, EngineCache, SEGMENT_BYTES,
    TargetSpec, TraceOptions,
};
use kiln_graph::{Cuts, EmitPolicy};
use kiln_nets::Sizes;
use kiln_runtime::{Backend, Pipeline, Place, limits};

use crate::args::{CacheArgs, CheckpointArgs, SizeArgs};
use crate::failure::Failure;
use crate::model::{Model, check_companions, check_scheduler};
use crate::progress::Bar;
use crate::{building, output, paths};

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

/// The model's bundle: itself, or that of the checkpoint from the engine cache, made now if need be; `scheduler` is
/// the one that pictures are drawn with, by default the model's.
pub(crate) fn bundle(
    model: Model,
    args: &CheckpointArgs,
    cache: &CacheArgs,
    place: &Place,
    scheduler: Option<&str>,
) -> Result<Bundle, Failure> {
    if let Model::Bundle(bundle) = model {
        return Ok(bundle);
    }
    let checkpoint = model.checkpoint(&args.options())?;
    check_scheduler(&checkpoint, scheduler)?;
    let cache = self::cache(cache)?;
    let bar = Bar::bytes("compiling");
    let options = match place.gpu() {
        None => options(args),
        Some(_) => {
            let attention = args.attention.map(AttentionSpec);
            {
                let mut spec = TargetSpec::new(place.target());
                spec.networks_mut().attention = attention;
                building::options_for(place, &checkpoint, spec)?
            }
        }
    };
    let mut progress = |progress| bar.compiling(progress);
    let plan = cache.plan(&checkpoint, &options, &mut progress).map_err(|e| failure(e, &cache))?;
    // What is compiled was checked before it was.
    match cache.bundle_of(&plan).map_err(|e| failure(e, &cache))? {
        Some(bundle) => Ok(bundle),
        None => {
            check_companions(&checkpoint)?;
            Ok(cache.execute(&plan, &mut progress).map_err(|e| failure(e, &cache))?.bundle)
        }
    }
}

/// A ControlNet's bundle: itself, or that from the engine cache, made now if need be.
pub(crate) fn controlnet_bundle(
    model: Model,
    args: &CheckpointArgs,
    cache: &CacheArgs,
) -> Result<Bundle, Failure> {
    let path = match model {
        Model::Bundle(bundle) => return Ok(bundle),
        Model::Folder(path) | Model::File(path) => path,
    };
    let checkpoint = ControlNetCheckpoint::open(&path, args.variant.as_deref())?;
    checkpoint.remarks().iter().for_each(|remark| output::say(remark));
    let cache = self::cache(cache)?;
    let bar = Bar::bytes("compiling");
    let mut progress = |progress| bar.compiling(progress);
    let plan = cache.plan_controlnet(&checkpoint, &options(args), &mut progress);
    let compiled = plan.and_then(|plan| cache.execute(&plan, &mut progress));
    Ok(compiled.map_err(|e| failure(e, &cache))?.bundle)
}

/// Refuses options about compiling where all of `models` are bundles, which are compiled already.
pub(crate) fn refuse_unused<'a>(
    args: &CheckpointArgs,
    models: impl IntoIterator<Item = &'a Model>,
) -> Result<(), Failure> {
    let mut models = models.into_iter().peekable();
    let first = models.peek().map(|model| model.path().display().to_string()).unwrap_or_default();
    match args.given() {
        Some(option) if models.all(|model| matches!(model, Model::Bundle(_))) => {
            let reason =
                format!("{option}: {first} is a bundle, for which that was decided when it was compiled");
            Err(Failure::usage(reason).with_hint(format!("kiln compile takes {option} and a checkpoint")))
        }
        _ => Ok(()),
    }
}

/// What engines of the CPU are built with where nothing else is asked for.
pub(crate) fn options(args: &CheckpointArgs) -> BuildOptions {
    let cuts = Cuts::Every(SEGMENT_BYTES);
    let policy = EmitPolicy { attention: args.attention(), cuts, ..EmitPolicy::default() };
    BuildOptions::cpu(TraceOptions::for_bundle(policy, Sizes::Dynamic))
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

/// Refuses more pictures than a request may have, before there is a prompt for each.
pub(crate) fn check_batch(n: usize) -> Result<usize, Failure> {
    match n <= limits::MAX_BATCH {
        true => Ok(n),
        false => {
            Err(Failure::usage(format!("batch size: {n} is not a number from 1 to {}", limits::MAX_BATCH)))
        }
    }
}

/// A pipeline of a bundle, with this user's key and kernels.
pub(crate) fn pipeline(bundle: Bundle, backend: Arc<dyn Backend>) -> Result<Pipeline, Failure> {
    let is_code = bundle.manifest().target.has_engines();
    let builder = Pipeline::builder(bundle).backend(backend);
    let builder = match is_code {
        true => builder.seal_key(seal_key()?).kernel_cache(kiln_native::cache_dir()?.join("kernels")),
        false => builder,
    };
    Ok(builder.build()?)
}
