//! What a pipeline reads besides its engines: the same checks for a checkpoint that is to be compiled and for a bundle.

use std::path::{Path, PathBuf};

use kiln_bundle::{Bundle, TextEncoderInfo, TokenizerInfo, read};

use crate::scheduler::{Correction, SchedulerClass, SchedulerConfig, SchedulerError, SchedulerSettings};
use crate::tokenizer::ClipTokenizer;
use crate::{BundleError, Error};

/// What manifests call the tokenizer of CLIP.
const CLIP: &str = "clip";

/// Largest `scheduler_config.json` that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Most keys that one line tells of, and most characters of each.
const MOST_KEYS: usize = 8;

const MOST_CHARS: usize = 40;

/// A class of scheduler that decides instead of the one in `scheduler_config.json`.
#[derive(Clone, Copy, Debug)]
pub struct NamedClass<'a> {
    /// The file that names it.
    pub file: &'a Path,
    /// The key there.
    pub key: &'static str,
    /// The class.
    pub class: &'a str,
}

/// A model's scheduler, as its files describe it.
#[derive(Clone, Debug)]
pub struct ModelScheduler {
    path: PathBuf,
    /// The file that names the class.
    class_path: PathBuf,
    settings: SchedulerSettings,
}

impl ModelScheduler {
    /// Reads a `scheduler_config.json`; `named` is the class that decides instead of the file's.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, or is no configuration of any class.
    pub fn open(path: &Path, named: Option<NamedClass<'_>>) -> Result<ModelScheduler, Error> {
        let refuse = |source: SchedulerError| Error::SchedulerFile { path: path.into(), source };
        let unread = |reason: String| refuse(SchedulerError::Config { key: "(root)".into(), reason });
        let text = read::text(path, MAX_BYTES, "configuration");
        let text = text.map_err(|e| e.map(|e| Error::io(path, e), unread))?;
        let settings = SchedulerSettings::from_json(&text).map_err(refuse)?;
        let settings = match named {
            Some(named) => settings.of_class(named.key, named.class),
            None => settings,
        };
        let class_path = named.map_or(path, |named| named.file).into();
        Ok(ModelScheduler { path: path.into(), class_path, settings })
    }

    /// The configuration of the scheduler of a name, or of the model's own, as a pipeline corrects it.
    ///
    /// # Errors
    ///
    /// Where the scheduler is unknown or reads something in the settings that it does not know.
    pub fn config(&self, name: Option<&str>, correction: Correction) -> Result<SchedulerConfig, Error> {
        let settings = self.settings.corrected(correction);
        let Some(name) = name else { return settings.config().map_err(|source| self.refuse(source)) };
        SchedulerClass::named(name)?;
        settings.with_scheduler(name).map_err(|source| self.refuse(source))
    }

    fn refuse(&self, source: SchedulerError) -> Error {
        let path = match &source {
            SchedulerError::Class { .. } => &self.class_path,
            _ => &self.path,
        };
        Error::SchedulerFile { path: path.clone(), source }
    }

    /// What is told of settings that no scheduler reads: one line.
    pub fn note(&self) -> Option<String> {
        let ignored: Vec<String> = self.settings.ignored().take(MOST_KEYS + 1).map(legible).collect();
        let more = if ignored.len() > MOST_KEYS { " and more" } else { "" };
        let keys = ignored[..ignored.len().min(MOST_KEYS)].join(", ");
        let path = self.path.display();
        (!ignored.is_empty()).then(|| format!("{path}: no scheduler reads {keys}{more}: ignored"))
    }
}

/// The beginning of a name that a file gives, without line breaks and control characters.
fn legible(name: &str) -> String {
    name.chars().take(MOST_CHARS).flat_map(char::escape_debug).collect()
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
