//! Where a checkpoint's components lie: in the folders of a folder, or in one file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use kiln_bundle::read;
use serde_json::Value;

use crate::error::listed;
use crate::files::Network;
use crate::json::read_json;
use crate::original::{Given, GivenPart, complete};
use crate::weights::WeightFiles;
use crate::{CompileError, Original, hub};

/// One component: its configuration and weights.
#[derive(Debug)]
pub(crate) struct Part<C> {
    /// Name of its folder.
    pub(crate) name: String,
    /// Where its configuration comes from.
    pub(crate) path: PathBuf,
    pub(crate) config: C,
    pub(crate) weights: WeightFiles,
    /// What of it is passed over, with its path.
    pub(crate) remarks: Vec<String>,
}

/// Where components are read from.
pub(super) enum Layout<'a> {
    Folder { root: &'a Path, variant: Option<&'a str>, given: Given },
    File(&'a mut Original),
}

/// A component's configuration and weights, before the configuration is understood.
pub(super) struct Raw {
    name: String,
    class: String,
    path: PathBuf,
    /// What errors call the configuration.
    origin: String,
    config: Value,
    weights: WeightFiles,
    /// Whether the configuration is made of shapes.
    is_inferred: bool,
    /// The configuration of the component that one from elsewhere replaces.
    replaced: Option<Value>,
    remarks: Vec<String>,
}

impl Raw {
    /// Completes a configuration that is made of shapes: by `published`, and by that of the component that it replaces.
    pub(super) fn completed(mut self, published: impl FnOnce(&mut Value)) -> Raw {
        if self.is_inferred {
            published(&mut self.config);
            self.replaced.iter().for_each(|replaced| complete(&mut self.config, replaced));
        }
        self
    }

    pub(super) fn parse<C>(
        self,
        parse: impl FnOnce(&str, &Value) -> Result<C, kiln_graph::TraceError>,
    ) -> Result<Part<C>, CompileError> {
        let Raw { name, class, path, origin, config, weights, mut remarks, .. } = self;
        remarks.extend(weights.remark().map(str::to_owned));
        let unknown = kiln_nets::unknown_keys(&class, &config);
        if !unknown.is_empty() {
            remarks.push(format!("{origin}: {class} has no {}, passed over", listed(&unknown)));
        }
        Ok(Part { name, path, config: parse(&origin, &config)?, weights, remarks })
    }
}

impl Layout<'_> {
    /// Reads a component of a class, which `model_index.json` names, whatever the configuration says; a folder by itself, which
    /// has no name, says it.
    pub(super) fn raw(&mut self, name: &str, class: &str, network: Network) -> Result<Raw, CompileError> {
        let raw = |path: PathBuf, config, weights| Raw {
            name: name.into(),
            class: class.into(),
            origin: path.display().to_string(),
            path,
            config,
            weights,
            is_inferred: false,
            replaced: None,
            remarks: Vec::new(),
        };
        match self {
            Layout::Folder { root, variant, given } => {
                let path = root.join(name).join("config.json");
                if let Some(GivenPart { origin, piece, is_inferred, remarks }) = given.take(name) {
                    let replaced = path.is_file().then(|| read_json(&path)).transpose()?;
                    let raw = raw(origin, piece.config, piece.weights);
                    return Ok(Raw { is_inferred, replaced, remarks, ..raw });
                }
                let mut config = read_json(&path)?;
                if let Some(config) =
                    config.as_object_mut().filter(|_| network != Network::Clip && !name.is_empty())
                {
                    config.insert("_class_name".into(), class.into());
                }
                let weights = WeightFiles::open(&root.join(name), network, *variant)?;
                Ok(raw(path, config, weights))
            }
            Layout::File(original) => {
                let (config, weights) = original.take(name)?;
                let path = original.origin(name);
                let origin = format!("{}: {name}", path.display());
                Ok(Raw { origin, ..raw(path.into(), config, weights) })
            }
        }
    }

    /// Reads and understands a component.
    pub(super) fn part<C>(
        &mut self,
        name: &str,
        class: &str,
        network: Network,
        parse: impl FnOnce(&str, &Value) -> Result<C, kiln_graph::TraceError>,
    ) -> Result<Part<C>, CompileError> {
        self.raw(name, class, network)?.parse(parse)
    }

    /// Refuses components from elsewhere that the pipeline has no place for.
    pub(super) fn finish(&self, class: &str) -> Result<(), CompileError> {
        match self {
            Layout::Folder { given, .. } => given.finish(class),
            Layout::File(_) => Ok(()),
        }
    }

    /// A component that comes from elsewhere.
    pub(super) fn given(&self, name: &str) -> Option<&GivenPart> {
        match self {
            Layout::Folder { given, .. } => given.get(name),
            Layout::File(_) => None,
        }
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

/// What is called after a path: its last part without a file's ending, as far as it is fit for a file name.
pub fn file_name(path: &Path) -> String {
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
