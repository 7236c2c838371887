//! What a path of a model leads to, found out once.

use std::path::{Path, PathBuf};

use kiln_bundle::Bundle;
use kiln_compile::Checkpoint;

use crate::args::{CheckpointArgs, PredictionChoice};
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
    pub(crate) fn checkpoint(&self, args: &CheckpointArgs) -> Result<Checkpoint, Failure> {
        let checkpoint = self.open_checkpoint(args)?;
        checkpoint.remarks().iter().for_each(|remark| output::say(remark));
        Ok(checkpoint)
    }

    fn open_checkpoint(&self, args: &CheckpointArgs) -> Result<Checkpoint, Failure> {
        let asked = args.prediction_type.map(PredictionChoice::prediction_type);
        match (self, &args.variant, asked) {
            (Model::Bundle(bundle), ..) => {
                Err(Failure::input(bundle.root(), "is a bundle where a checkpoint is expected"))
            }
            (Model::File(_), Some(_), _) => {
                Err(Failure::usage("--variant chooses between the files of a folder, and this is one file"))
            }
            (Model::File(path), None, asked) => Ok(Checkpoint::open_original(path, asked)?),
            (Model::Folder(_), _, Some(_)) => {
                Err(Failure::usage("--prediction-type is for single-file checkpoints")
                    .with_hint("a folder says it in scheduler/scheduler_config.json"))
            }
            (Model::Folder(path), variant, None) => Ok(Checkpoint::open(path, variant.as_deref())?),
        }
    }

    /// Opens the checkpoint of a pipeline that the runtime can load once it is compiled.
    pub(crate) fn runnable_checkpoint(&self, args: &CheckpointArgs) -> Result<Checkpoint, Failure> {
        let checkpoint = self.checkpoint(args)?;
        check_companions(&checkpoint)?;
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

/// Refuses a folder whose scheduler or tokenizers the runtime could not load from the bundle; those of single files are
/// made.
pub(crate) fn check_companions(checkpoint: &Checkpoint) -> Result<(), Failure> {
    if checkpoint.original().is_some() {
        return Ok(());
    }
    kiln_runtime::open_scheduler(&checkpoint.scheduler()?)?;
    for tokenizer in checkpoint.tokenizers()? {
        kiln_runtime::open_tokenizer(&tokenizer.folder, tokenizer.positions, tokenizer.vocabulary)?;
    }
    Ok(())
}
