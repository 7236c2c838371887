//! What a pipeline reads besides its engines: the same checks for a checkpoint that is to be compiled and for a bundle.

use std::path::Path;

use kiln_bundle::{Bundle, TextEncoderInfo, TokenizerInfo, read};

use crate::scheduler::{SchedulerConfig, SchedulerError};
use crate::tokenizer::ClipTokenizer;
use crate::{BundleError, Error};

/// What manifests call the tokenizer of CLIP.
const CLIP: &str = "clip";

/// Largest `scheduler_config.json` that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Reads and checks a `scheduler_config.json`.
pub fn open_scheduler(path: &Path) -> Result<SchedulerConfig, Error> {
    let refuse = |source: SchedulerError| Error::SchedulerFile { path: path.into(), source };
    let unread = |reason: String| refuse(SchedulerError::Config { key: "(root)".into(), reason });
    let text = read::text(path, MAX_BYTES, "configuration");
    let text = text.map_err(|e| e.map(|e| Error::io(path, e), unread))?;
    SchedulerConfig::from_json(&text).map_err(refuse)
}

/// Loads the tokenizer of a text encoder.
pub(crate) fn tokenizer_of(bundle: &Bundle, encoder: &TextEncoderInfo) -> Result<ClipTokenizer, Error> {
    let refuse = |reason: String| BundleError::Manifest { path: bundle.manifest_path(), reason };
    let TokenizerInfo { kind, folder } = &encoder.tokenizer;
    let folder = folder.as_ref().filter(|_| kind == CLIP);
    let folder = folder.ok_or_else(|| {
        refuse(format!("{}: tokenizer: '{kind}' is not {CLIP}, or has no folder", encoder.component))
    })?;
    open_tokenizer(&bundle.path(folder), encoder.positions as usize, u64::from(encoder.vocabulary))
}

/// Loads the tokenizer in a folder for a text encoder of `positions` tokens, start and end included, that knows the ids
/// below `vocabulary`.
pub fn open_tokenizer(folder: &Path, positions: usize, vocabulary: u64) -> Result<ClipTokenizer, Error> {
    let tokenizer = ClipTokenizer::from_dir(folder, positions)?;
    tokenizer.check_vocabulary(vocabulary)?;
    Ok(tokenizer)
}
