//! Components that come from elsewhere than the checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_nets::ClipTextConfig;
use serde_json::Value;

use super::keys::Piece;
use super::piece;
use crate::error::listed;
use crate::files::Network;
use crate::json::read_json;
use crate::weights::WeightFiles;
use crate::{CompileError, Components, hub};

/// A component from elsewhere.
#[derive(Debug)]
pub(crate) struct GivenPart {
    /// Where its configuration comes from: `config.json`, or the file whose shapes tell it.
    pub(crate) origin: PathBuf,
    pub(crate) piece: Piece,
    /// Whether the configuration is made of shapes, which do not tell all.
    pub(crate) is_inferred: bool,
    pub(crate) remarks: Vec<String>,
}

/// The components that come from elsewhere, opened, by name.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeMap<&'static str, GivenPart>);

impl Given {
    pub(crate) fn open(components: &Components, variant: Option<&str>) -> Result<Given, CompileError> {
        let open = |(name, path)| Ok((name, part(name, path, variant)?));
        Ok(Given(components.iter().map(open).collect::<Result<_, CompileError>>()?))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&GivenPart> {
        self.0.get(name)
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<GivenPart> {
        self.0.remove(name)
    }

    /// Whether the text encoder is one of OpenCLIP's, where it is from elsewhere.
    pub(crate) fn is_open_clip(&self, name: &str) -> Result<Option<bool>, CompileError> {
        let Some(part) = self.get(name) else { return Ok(None) };
        let config = ClipTextConfig::from_json(&part.origin.display().to_string(), &part.piece.config)?;
        Ok(Some(config.is_open_clip()))
    }

    /// Refuses what the checkpoint has no place for.
    pub(crate) fn finish(&self, class: &str) -> Result<(), CompileError> {
        match self.0.iter().next() {
            None => Ok(()),
            Some((name, part)) => {
                let reason = format!("is given as {name}, which {class} does not have");
                Err(CompileError::checkpoint(&part.origin, reason))
            }
        }
    }
}

fn part(name: &'static str, path: &Path, variant: Option<&str>) -> Result<GivenPart, CompileError> {
    let network = match name {
        "unet" => Network::Plain,
        "vae" => Network::Vae,
        _ => Network::Clip,
    };
    if !path.exists() {
        return Err(CompileError::absent(
            path,
            "file or folder",
            "expected a folder with config.json, or one file",
        ));
    }
    let path = &*hub::snapshot(path)?;
    if path.is_dir() {
        let folder = if path.join("model_index.json").exists() { path.join(name) } else { path.into() };
        return configured(&folder, WeightFiles::open(&folder, network, variant));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.join("config.json").is_file() && !piece::is_original(path, name)? {
        return configured(folder, WeightFiles::of_files(vec![path.into()], network));
    }
    let (piece, passed_over) = piece::piece(path, name)?;
    let passed_over: Vec<&str> = passed_over.iter().map(String::as_str).collect();
    let remark = (!passed_over.is_empty())
        .then(|| format!("{}: no network has {}, passed over", path.display(), listed(&passed_over)));
    Ok(GivenPart { origin: path.into(), piece, is_inferred: true, remarks: remark.into_iter().collect() })
}

/// A component with its `config.json`.
fn configured(folder: &Path, weights: Result<WeightFiles, CompileError>) -> Result<GivenPart, CompileError> {
    let origin = folder.join("config.json");
    let config = read_json(&origin)?;
    Ok(GivenPart {
        origin,
        piece: Piece { config, weights: weights? },
        is_inferred: false,
        remarks: Vec::new(),
    })
}

/// Keys that shapes do not tell, of the component that one with the same shapes replaces.
const OF_SHAPES: [&str; 9] = [
    "addition_time_embed_dim",
    "attention_head_dim",
    "eos_token_id",
    "hidden_act",
    "layer_norm_eps",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "upcast_attention",
];

/// Keys of the latents, whichever the component's shapes.
const OF_LATENTS: [&str; 6] =
    ["force_upcast", "latents_mean", "latents_std", "sample_size", "scaling_factor", "shift_factor"];

/// Completes a configuration that is made of shapes by that of the component that it replaces.
pub(crate) fn complete(config: &mut Value, replaced: &Value) {
    let is_same = |key| config.get(key) == replaced.get(key);
    let has_same_shapes = is_same("block_out_channels") && is_same("hidden_size");
    let keys = OF_SHAPES.iter().filter(|_| has_same_shapes).chain(&OF_LATENTS);
    for key in keys.filter(|key| replaced.get(*key).is_some()) {
        config[*key] = replaced[*key].clone();
    }
}
