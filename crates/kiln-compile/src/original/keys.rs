//! Taking a file's tensors one by one, each by its own key, until nothing unknown is left.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_bundle::{TensorFile, TensorInfo};
use serde_json::Value;

use crate::CompileError;
use crate::stored::Scales;
use crate::weights::{MAX_TRANSPOSED, Place, WeightFiles};

/// Keys that no network reads: schedules that the scheduler computes, training state and constants.
const HARMLESS: [&str; 23] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "denoiser.log_sigmas",
    "denoiser.sigmas",
    "epoch",
    "global_step",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "model.betas",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "scale_factor",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "state_dict",
    "v_pred",
    "ztsnr",
];

/// Averaged copies of the weights, which diffusers leaves aside too, and what only training needs.
const HARMLESS_PREFIXES: [&str; 3] = ["first_stage_model.loss.", "first_stage_model.model_ema.", "model_ema."];

/// Buffers and projections of text encoders that the family does not use.
const HARMLESS_TEXT_ENDINGS: [&str; 5] =
    [".attn_mask", ".logit_scale", ".position_ids", ".text_projection", ".text_projection.weight"];

fn is_harmless(key: &str) -> bool {
    let is_text = key.starts_with("cond_stage_model.") || key.starts_with("conditioner.embedders.");
    HARMLESS.contains(&key)
        || HARMLESS_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || (is_text && HARMLESS_TEXT_ENDINGS.iter().any(|ending| key.ends_with(ending)))
}

/// The tensors of a file that nobody has taken yet.
pub(super) struct Keys<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, TensorInfo>,
    scales: Scales,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &'a Path, file: &TensorFile) -> Result<Keys<'a>, CompileError> {
        let scales = Scales::read(file)?;
        let mut tensors = file.tensors().clone();
        tensors.retain(|key, _| !scales.has(key));
        Ok(Keys { path, tensors, scales })
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> CompileError {
        CompileError::checkpoint(self.path, reason)
    }

    pub(super) fn get(&self, key: &str) -> Option<&TensorInfo> {
        self.tensors.get(key)
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The first key, in the order of the alphabet, that starts so.
    pub(super) fn first_with(&self, prefix: &str) -> Option<&str> {
        let (key, _) = self.tensors.range(prefix.to_owned()..).next()?;
        key.starts_with(prefix).then_some(key)
    }

    /// Leaves tensors aside that the family does not use.
    pub(super) fn discard(&mut self, prefix: &str) {
        self.tensors.retain(|key, _| !key.starts_with(prefix));
    }

    /// What nobody has taken and is not known to be harmless; refused under the prefixes of networks that draw, which
    /// might read it.
    ///
    /// diffusers passes over all of it (`loaders/single_file_utils.py`).
    pub(super) fn finish(self, drawing: &[&str]) -> Result<Vec<String>, CompileError> {
        let draws = |key: &&&str| drawing.iter().any(|prefix| key.starts_with(prefix));
        let unknown: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|key| !is_harmless(key)).collect();
        let n_more = unknown.iter().filter(draws).count().saturating_sub(1);
        match (unknown.iter().find(draws), n_more) {
            (None, _) => Ok(unknown.into_iter().map(str::to_owned).collect()),
            (Some(key), 0) => Err(self.error(format!("unknown key '{key}'"))),
            (Some(key), n) => Err(self.error(format!("unknown key '{key}' (and {n} more)"))),
        }
    }
}

/// A network, its configuration made of shapes.
#[derive(Debug)]
pub(crate) struct Piece {
    /// `config.json`.
    pub(crate) config: Value,
    pub(crate) weights: WeightFiles,
}

/// One network of the file, as it is put together: canonical names and what they are views of.
pub(super) struct Component<'k, 'a> {
    keys: &'k mut Keys<'a>,
    prefix: &'k str,
    places: BTreeMap<String, Place>,
}

impl<'k, 'a> Component<'k, 'a> {
    /// Keys are given without `prefix` from here on.
    pub(super) fn new(keys: &'k mut Keys<'a>, prefix: &'k str) -> Component<'k, 'a> {
        Component { keys, prefix, places: BTreeMap::new() }
    }

    pub(super) fn error(&self, key: &str, reason: &str) -> CompileError {
        self.keys.error(format!("'{}{key}' {reason}", self.prefix))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.get(&format!("{}{key}", self.prefix)).is_some()
    }

    /// Whether any key starts so.
    pub(super) fn has_under(&self, key: &str) -> bool {
        self.keys.first_with(&format!("{}{key}", self.prefix)).is_some()
    }

    fn tensor(&self, key: &str) -> Result<&TensorInfo, CompileError> {
        let key = format!("{}{key}", self.prefix);
        self.keys.get(&key).ok_or_else(|| self.keys.error(format!("missing weight '{key}'")))
    }

    /// The shape of a tensor that must be there with so many axes, none of them empty.
    pub(super) fn shape<const N: usize>(&self, key: &str) -> Result<[u64; N], CompileError> {
        let tensor = self.tensor(key)?;
        match <[usize; N]>::try_from(tensor.shape.as_slice()) {
            Ok(shape) if !shape.contains(&0) => Ok(shape.map(|n| n as u64)),
            _ => Err(self.error(key, &format!("has shape {:?} where {N} axes are expected", tensor.shape))),
        }
    }

    /// Number of axes of a tensor that must be there.
    pub(super) fn rank(&self, key: &str) -> Result<usize, CompileError> {
        Ok(self.tensor(key)?.shape.len())
    }

    /// How many blocks are numbered from `first` on without a gap; `probe` makes the key by which one is known.
    pub(super) fn count(&self, probe: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&probe(i))).count()
    }

    fn place(&mut self, key: &str) -> Result<Place, CompileError> {
        self.tensor(key)?;
        let key = format!("{}{key}", self.prefix);
        let Some(tensor) = self.keys.tensors.remove(&key) else {
            return Err(self.keys.error(format!("missing weight '{key}'")));
        };
        let place = Place::of_tensor(0, self.keys.path, &key, &tensor, &self.keys.scales)?;
        Ok(Place { key: Some(key), ..place })
    }

    /// Takes a tensor as it is.
    pub(super) fn take(&mut self, key: &str, name: &str) -> Result<(), CompileError> {
        let place = self.place(key)?;
        self.places.insert(name.into(), place);
        Ok(())
    }

    /// Takes `.weight` and `.bias`.
    pub(super) fn pair(&mut self, key: &str, name: &str) -> Result<(), CompileError> {
        self.take(&format!("{key}.weight"), &format!("{name}.weight"))?;
        self.take(&format!("{key}.bias"), &format!("{name}.bias"))
    }

    /// Takes a convolution of kernel 1 as the matrix that it is, with its bias.
    pub(super) fn pair_as_linear(&mut self, key: &str, name: &str) -> Result<(), CompileError> {
        let mut place = self.place(&format!("{key}.weight"))?;
        while place.info.shape.len() > 2 && place.info.shape.last() == Some(&1) {
            place.info.shape.pop();
        }
        self.places.insert(format!("{name}.weight"), place);
        self.take(&format!("{key}.bias"), &format!("{name}.bias"))
    }

    /// Takes equal numbers of consecutive rows under one name each.
    pub(super) fn split_rows(&mut self, key: &str, names: &[String]) -> Result<(), CompileError> {
        let n = names.len() as u64;
        let rows = self.tensor(key)?.shape.first().map_or(0, |&rows| rows as u64);
        if rows == 0 || !rows.is_multiple_of(n) {
            let shape = &self.tensor(key)?.shape;
            return Err(self.error(key, &format!("has shape {shape:?}, whose rows are not {n} equal parts")));
        }
        let mut place = self.place(key)?;
        place.info.shape[0] = rows / n;
        let bytes = place.n_bytes();
        for name in names {
            self.places.insert(name.clone(), place.clone());
            place.offset += bytes;
        }
        Ok(())
    }

    /// Takes a matrix with rows and columns exchanged.
    pub(super) fn take_transposed(&mut self, key: &str, name: &str) -> Result<(), CompileError> {
        let [rows, columns] = self.shape(key)?;
        let mut place = self.place(key)?;
        if place.n_bytes() > MAX_TRANSPOSED {
            return Err(self.error(key, &format!("has shape [{rows}, {columns}], more than any projection")));
        }
        place.info.shape = vec![columns, rows];
        place.is_transposed = true;
        self.places.insert(name.into(), place);
        Ok(())
    }

    pub(super) fn finish(self, config: Value) -> Piece {
        Piece { config, weights: WeightFiles::in_file(self.keys.path, self.places) }
    }
}
