//! What a path of a model leads to, found out once.

use std::path::{Path, PathBuf};

use kiln_bundle::Bundle;
use kiln_compile::{Checkpoint, CheckpointOptions};
use kiln_runtime::scheduler::{Correction, SchedulerError};
use kiln_runtime::{Error, ModelScheduler, NamedClass};

use crate::failure::Failure;
use crate::output;

/// A model. Bundles are open; checkpoints are opened when it is known how.
#[expect(clippy::large_enum_variant, reason = "a process has a few")]
pub(crate) enum Model {
    /// A compiled one.
    Bundle(Bundle),
    /// The folder of a checkpoint, or nothing that is known.
    Folder(PathBuf),
    /// A checkpoint in one file, or a file of something else.
    File(PathBuf),
}

impl Model {
    /// Tells what it is, and opens it if it is a bundle.
    pub(crate) fn open(path: &Path) -> Result<Model, Failure> {
        Ok(match path {
            path if Bundle::is_bundle(path) => Model::Bundle(Bundle::open(path)?),
            path if path.is_file() => Model::File(path.into()),
            path => Model::Folder(path.into()),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Model::Bundle(bundle) => bundle.root(),
            Model::Folder(path) | Model::File(path) => path,
        }
    }

    /// Opens the checkpoint of a pipeline, and tells what of it is passed over.
    pub(crate) fn checkpoint(&self, options: &CheckpointOptions) -> Result<Checkpoint, Failure> {
        let checkpoint = self.open_checkpoint(options)?;
        checkpoint.remarks().iter().for_each(|remark| output::say(remark));
        Ok(checkpoint)
    }

    fn open_checkpoint(&self, options: &CheckpointOptions) -> Result<Checkpoint, Failure> {
        let path = match self {
            Model::Bundle(bundle) => {
                return Err(Failure::input(bundle.root(), "is a bundle where a checkpoint is expected"));
            }
            Model::File(_) if options.variant.is_some() && options.components.is_empty() => {
                let reason = "--variant chooses between the files of a folder, and this is one file";
                return Err(Failure::usage(reason));
            }
            Model::Folder(_) if options.prediction_type.is_some() => {
                return Err(Failure::usage("--prediction-type is for single-file checkpoints")
                    .with_hint("a folder says it in scheduler/scheduler_config.json"));
            }
            Model::File(path) | Model::Folder(path) => path,
        };
        Ok(Checkpoint::open_with(path, options)?)
    }

    /// Opens the checkpoint of a pipeline that the runtime can load once it is compiled, and draw with a scheduler, by
    /// default the model's.
    pub(crate) fn runnable_checkpoint(
        &self,
        options: &CheckpointOptions,
        scheduler: Option<&str>,
    ) -> Result<Checkpoint, Failure> {
        let checkpoint = self.checkpoint(options)?;
        check_companions(&checkpoint)?;
        check_scheduler(&checkpoint, scheduler)?;
        Ok(checkpoint)
    }

    /// Opens the checkpoint of a pipeline to compile it, also one whose scheduler does not run here: a request may
    /// name another.
    pub(crate) fn compilable_checkpoint(&self, options: &CheckpointOptions) -> Result<Checkpoint, Failure> {
        let checkpoint = self.checkpoint(options)?;
        check_companions(&checkpoint)?;
        let Some(scheduler) = scheduler(&checkpoint)? else { return Ok(checkpoint) };
        match scheduler.config(None, Correction::None) {
            Err(error @ Error::SchedulerFile { source: SchedulerError::Class { .. }, .. }) => {
                output::say(&format!("{error}; kiln generate --scheduler draws with another one"));
            }
            read => drop(read?),
        }
        Ok(checkpoint)
    }
}

/// Opens a bundle.
pub(crate) fn open_bundle(path: &Path) -> Result<Bundle, Failure> {
    match Bundle::is_bundle(path) {
        true => Ok(Bundle::open(path)?),
        false => Err(Failure::input(path, "is not a bundle").with_hint("kiln compile makes bundles")),
    }
}

/// Refuses a folder whose tokenizers the runtime could not load from the bundle; those of single files are made.
pub(crate) fn check_companions(checkpoint: &Checkpoint) -> Result<(), Failure> {
    if checkpoint.original().is_some() {
        return Ok(());
    }
    for tokenizer in checkpoint.tokenizers()? {
        kiln_runtime::open_tokenizer(&tokenizer.folder, tokenizer.positions, tokenizer.vocabulary)?;
    }
    Ok(())
}

/// Refuses a scheduler that a folder's settings do not fit: the one of a name, or the folder's own.
pub(crate) fn check_scheduler(checkpoint: &Checkpoint, name: Option<&str>) -> Result<(), Failure> {
    if let Some(scheduler) = scheduler(checkpoint)? {
        scheduler.config(name, Correction::None)?;
    }
    Ok(())
}

/// A folder's scheduler; settings that none reads are told.
fn scheduler(checkpoint: &Checkpoint) -> Result<Option<ModelScheduler>, Failure> {
    if checkpoint.original().is_some() {
        return Ok(None);
    }
    let index = checkpoint.index_path();
    let class = checkpoint.scheduler_class();
    let class = class.map(|class| NamedClass { file: &index, key: "scheduler", class });
    let scheduler = ModelScheduler::open(&checkpoint.scheduler()?, class)?;
    scheduler.note().iter().for_each(|note| output::say(note));
    Ok(Some(scheduler))
}
