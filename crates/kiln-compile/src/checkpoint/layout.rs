//! Where a checkpoint's components lie: in the folders of a folder, or in one file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use kiln_bundle::read;
use serde_json::Value;

use super::hub;
use crate::files::Network;
use crate::json::read_json;
use crate::weights::WeightFiles;
use crate::{CompileError, Original};

/// One component: its configuration and weights.
#[derive(Debug)]
pub(crate) struct Part<C> {
    /// Name of its folder.
    pub(crate) name: String,
    pub(crate) config: C,
    pub(crate) weights: WeightFiles,
    /// What of it is passed over, with its path.
    pub(crate) remarks: Vec<String>,
}

/// Where components are read from.
pub(super) enum Layout<'a> {
    Folder { root: &'a Path, variant: Option<&'a str> },
    File(&'a mut Original),
}

impl Layout<'_> {
    /// Reads a component of a class, which `model_index.json` names, whatever the configuration says; a folder by itself, which
    /// has no name, says it.
    pub(super) fn part<C>(
        &mut self,
        name: &str,
        class: &str,
        network: Network,
        parse: impl FnOnce(&str, &Value) -> Result<C, kiln_graph::TraceError>,
    ) -> Result<Part<C>, CompileError> {
        let (origin, value, weights) = match self {
            Layout::Folder { root, variant } => {
                let folder = root.join(name);
                let path = folder.join("config.json");
                let mut value = read_json(&path)?;
                if let Some(config) =
                    value.as_object_mut().filter(|_| network != Network::Clip && !name.is_empty())
                {
                    config.insert("_class_name".into(), class.into());
                }
                (path.display().to_string(), value, WeightFiles::open(&folder, network, *variant)?)
            }
            Layout::File(original) => {
                let (value, weights) = original.take(name)?;
                (format!("{}: {name}", original.path().display()), value, weights)
            }
        };
        let mut remarks: Vec<String> = weights.remark().map(str::to_owned).into_iter().collect();
        let unknown = kiln_nets::unknown_keys(class, &value);
        if !unknown.is_empty() {
            remarks.push(format!("{origin}: {class} has no {}, passed over", listed(&unknown)));
        }
        Ok(Part { name: name.into(), config: parse(&origin, &value)?, weights, remarks })
    }

    pub(super) fn config_path(&self, component: &str) -> PathBuf {
        match self {
            Layout::Folder { root, .. } => root.join(component).join("config.json"),
            Layout::File(original) => original.path().into(),
        }
    }
}

/// The first few of some names, and how many there are beyond.
pub(crate) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Something that a bundle is made from.
pub(crate) enum Source {
    File(PathBuf),
    /// What kiln made itself, for a checkpoint that does not hold it.
    Made(Vec<u8>),
}

/// Largest file that a bundle takes over as it is: a tokenizer.
const MAX_BYTES: u64 = 16 << 20;

impl Source {
    pub(crate) fn bytes(&self) -> Result<Cow<'_, [u8]>, CompileError> {
        match self {
            Source::File(path) => {
                let bytes = read::bytes(path, MAX_BYTES, "tokenizer or scheduler file");
                Ok(bytes.map_err(|e| CompileError::reading(path, e))?.into())
            }
            Source::Made(bytes) => Ok(bytes.as_slice().into()),
        }
    }

    /// The same without a file that may change.
    pub(crate) fn read(self) -> Result<Source, CompileError> {
        Ok(Source::Made(self.bytes()?.into_owned()))
    }
}

pub(super) fn tokenizer_files(root: &Path, name: &str) -> Result<Vec<(String, Source)>, CompileError> {
    let folder = root.join(name);
    let has = |file: &str| folder.join(file).exists();
    if !(has("tokenizer.json") || has("vocab.json") && has("merges.txt")) {
        let reason = "has neither tokenizer.json nor vocab.json and merges.txt";
        return Err(CompileError::checkpoint(&folder, reason));
    }
    let files = [
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ];
    let found = files.into_iter().filter(|file| has(file));
    Ok(found.map(|file| (format!("{name}/{file}"), Source::File(folder.join(file)))).collect())
}

/// The last part of a path, as far as it is fit for a file name.
pub(super) fn file_name(path: &Path) -> String {
    // A file's own name is kept where it is a link, as in the Hugging Face cache, whose blobs are named by digests.
    let name = match path.is_file() {
        true => path.file_stem().map(ToOwned::to_owned),
        false => {
            let path = path.canonicalize().unwrap_or_else(|_| path.into());
            hub::name(&path).map(Into::into).or_else(|| path.file_name().map(ToOwned::to_owned))
        }
    };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(64)
        .collect();
    match safe.trim_matches('.') {
        "" => "checkpoint".into(),
        safe => safe.into(),
    }
}
