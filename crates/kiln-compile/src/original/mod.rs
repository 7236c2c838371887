//! Checkpoints in one file, in the layout of the models' own training code (LDM, SGM).
//!
//! Such a file holds UNet, autoencoder and text encoders under the names that CompVis's and Stability AI's code gave them,
//! and nothing else: no configuration, no tokenizer, no scheduler. [`Original::open`] reads the header alone and makes of it
//! what a diffusers folder would hold, as diffusers' `from_single_file` does (`loaders/single_file_utils.py`):
//!
//! - each weight's canonical name, as a view of the file's tensor: the tensor itself, a third of its rows (OpenCLIP's fused
//!   projections), or its transpose (`text_projection`), so that weights stream from file to file like a folder's;
//! - each component's `config.json`, inferred from the shapes, and where shapes cannot tell, from the family;
//! - the scheduler's configuration and CLIP's tokenizer.
//!
//! Keys are taken one by one, by structure: what is missing is named as the file would name it, and what is left over and
//! not known to be harmless is refused. Components that come from elsewhere ([`CheckpointOptions`](crate::CheckpointOptions)) stand beside the file's.

mod detect;
mod given;
mod index;
mod keys;
mod piece;
mod published;
mod read;
mod scheduler;
mod text;
mod tokenizer;
mod unet;
mod vae;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_bundle::OutputFolder;
use kiln_bundle::fs::create_folder;
use kiln_graph::{ElementType, StoredWeight};
use serde_json::Value;

use crate::weights::WeightFiles;
use crate::{CompileError, Family};

pub(crate) use given::{Given, GivenPart, complete};
pub(crate) use published::Published;
use tokenizer::Padding;

/// A single-file checkpoint, its header read and understood.
#[derive(Debug)]
pub struct Original {
    path: PathBuf,
    family: Family,
    index: Value,
    configs: BTreeMap<&'static str, Value>,
    weights: BTreeMap<&'static str, WeightFiles>,
    tokenizers: Vec<(&'static str, Padding)>,
    /// Where the configurations of components come from that are not the file's.
    elsewhere: BTreeMap<&'static str, PathBuf>,
    remarks: Vec<String>,
    passed_over: Vec<String>,
}

/// A weight as a network asks for it, and the tensor of the file that it is a view of.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightView<'a> {
    /// diffusers' name, without `text_model.` in text encoders.
    pub name: &'a str,
    /// The file; another one than the checkpoint's where the network comes from elsewhere.
    pub path: &'a Path,
    /// The file's name of the tensor.
    pub key: &'a str,
    /// Shape of the view.
    pub shape: &'a [u64],
    /// Stored type.
    pub dtype: ElementType,
    /// First byte of the view in the file.
    pub offset: u64,
    /// Whether rows and columns are exchanged.
    pub is_transposed: bool,
}

impl Original {
    /// Whether a file is one for [`Original::open`] by its name or first bytes, be it only to be refused by it.
    pub fn is_candidate(path: &Path) -> bool {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
        match extension.as_deref() {
            Some("safetensors" | "ckpt" | "pt" | "pth") => path.is_file(),
            Some("onnx") => false,
            _ => path.is_file() && first_bytes(path).is_some_and(|bytes| bytes[8] == b'{'),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys that belong to no network and are passed over.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// What of components from elsewhere is passed over, a line each.
    pub(crate) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Where a component's configuration comes from.
    pub(crate) fn origin(&self, component: &str) -> &Path {
        self.elsewhere.get(component).unwrap_or(&self.path)
    }

    /// Which line of models it belongs to.
    pub fn family(&self) -> Family {
        self.family
    }

    /// diffusers' class of the pipeline; a ControlNet by itself has none.
    pub fn class(&self) -> Option<&str> {
        self.index["_class_name"].as_str()
    }

    /// `model_index.json`.
    pub fn index(&self) -> &Value {
        &self.index
    }

    /// `config.json` of each network and `scheduler_config.json`, by component.
    pub fn configs(&self) -> &BTreeMap<&'static str, Value> {
        &self.configs
    }

    /// What each weight of a network is a view of, in the order of the names that networks ask for.
    pub fn weights(&self, component: &str) -> impl Iterator<Item = WeightView<'_>> {
        let weights = self.weights.get(component).into_iter();
        let places = weights.flat_map(|weights| weights.places().map(|place| (weights.files(), place)));
        places.map(|(files, (name, place))| WeightView {
            name,
            path: &files[place.file],
            key: place.key.as_deref().unwrap_or(name),
            shape: &place.info.shape,
            dtype: place.info.dtype,
            offset: place.offset,
            is_transposed: place.is_transposed,
        })
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = (&'static str, &WeightFiles)> {
        self.weights.iter().map(|(name, weights)| (*name, weights))
    }

    /// A network's configuration and weights; the weights can be taken once.
    pub(crate) fn take(&mut self, component: &str) -> Result<(Value, WeightFiles), CompileError> {
        let weights = self.weights.remove(component);
        let found = self.configs.get(component).cloned().zip(weights);
        found.ok_or_else(|| CompileError::checkpoint(&self.path, format!("has no {component}")))
    }

    /// Tokenizers and the scheduler's configuration: path in a diffusers folder, and content.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, CompileError> {
        let mut files = Vec::new();
        for (folder, padding) in &self.tokenizers {
            let made = tokenizer::files(*padding).map_err(|e| CompileError::io(&self.path, &e))?;
            files.extend(made.into_iter().map(|(name, bytes)| (format!("{folder}/{name}"), bytes)));
        }
        if let Some(scheduler) = self.configs.get("scheduler") {
            files.push(("scheduler/scheduler_config.json".into(), pretty(scheduler)));
        }
        Ok(files)
    }

    /// Writes the checkpoint as a diffusers folder, weights in the types they are stored in; an existing folder is refused
    /// unless it is empty. `progress` is told the bytes written and the bytes in all.
    pub fn save(&self, folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, CompileError> {
        let total = self.weights.values().map(|weights| weights.summary().2).sum();
        let mut done = 0;
        let output = OutputFolder::open(folder)?;
        let root = output.path();
        let mut files = self.companions()?;
        if self.class().is_some() {
            files.push(("model_index.json".into(), pretty(&self.index)));
        }
        for (component, weights) in &self.weights {
            files.push((format!("{component}/config.json"), pretty(&self.configs[component])));
            create_folder(&root.join(component))?;
            let (base, prefix) = match component.starts_with("text_encoder") {
                true => ("model", "text_model."),
                false => ("diffusion_pytorch_model", ""),
            };
            // Readers before transformers 5.6 know CLIP's weights by this prefix only, later ones by both.
            let weights = weights.renamed(|name| match name.starts_with("text_projection.") {
                true => name.to_owned(),
                false => format!("{prefix}{name}"),
            });
            let stored: Vec<StoredWeight> = weights
                .places()
                .map(|(name, place)| StoredWeight {
                    name: name.into(),
                    dtype: place.info.dtype,
                    dims: place.info.shape.clone(),
                })
                .collect();
            let path = root.join(component).join(format!("{base}.safetensors"));
            weights.write(&path, &stored.iter().collect::<Vec<_>>(), None, &mut |bytes| {
                done += bytes;
                progress(done, total);
            })?;
        }
        for (name, bytes) in files {
            let path = root.join(name);
            create_folder(path.parent().unwrap_or(root))?;
            std::fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))?;
        }
        Ok(output.publish()?)
    }
}

/// Heads of width 64, as CLIP's encoders and all UNets since Stable Diffusion 2 have them; narrower than that, one.
fn heads_of_64(width: u64) -> Option<u64> {
    match width {
        1..64 => Some(1),
        width => width.is_multiple_of(64).then_some(width / 64),
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    (serde_json::to_string_pretty(value).unwrap_or_default() + "\n").into_bytes()
}

fn first_bytes(path: &Path) -> Option<[u8; 9]> {
    let mut bytes = [0; 9];
    kiln_bundle::read::open(path).ok()?.0.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Refuses what torch pickled, by name or by its first bytes: a ZIP archive, or a pickle of protocol 2 and up.
fn refuse_pickle(path: &Path) -> Result<(), CompileError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
    let named = matches!(extension.as_deref(), Some("ckpt" | "pt" | "pth" | "bin" | "pkl"));
    let looks = first_bytes(path).is_some_and(|bytes| {
        bytes[8] != b'{'
            && (bytes.starts_with(b"PK\x03\x04") || (bytes[0] == 0x80 && (2..=5).contains(&bytes[1])))
    });
    if !path.is_file() || !(named || looks) {
        return Ok(());
    }
    let reason = "pickled weights can run code when they are read, and kiln refuses them";
    Err(CompileError::checkpoint(path, reason).with_hint("convert the checkpoint to safetensors"))
}
