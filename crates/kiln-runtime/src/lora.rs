//! LoRAs at run time: which weights of a bundle they change, and the changed weights.

use std::collections::BTreeSet;
use std::sync::Arc;

use half::{bf16, f16};
use kiln_bundle::{Bundle, Component, Segment, Stage, TensorFile};
use kiln_engine::{Elements, WeightOverride, WeightSource};
use kiln_lora::{Lora, LoraError, ModelWeights, WeightChanges};
use safetensors::Dtype;

use crate::Error;

/// The weights of a bundle that LoRAs can change.
pub(crate) fn targets(bundle: &Bundle, loras: &[Lora]) -> Result<ModelWeights, Error> {
    let mut model = ModelWeights::new();
    if loras.is_empty() {
        return Ok(model);
    }
    for (name, component) in &bundle.manifest().components {
        let takes_loras = matches!(component.stage, Stage::TextEncoder | Stage::Denoiser);
        if !takes_loras || component.shares_weights_with.is_some() {
            continue;
        }
        let (_, file) = weights_of(bundle, component)?;
        let weights = file.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone()));
        model.insert(*name, weights, component.unread_weights.iter().cloned());
    }
    Ok(model)
}

/// A component's weight file and its name.
fn weights_of<'a>(bundle: &Bundle, component: &'a Component) -> Result<(&'a str, TensorFile), LoraError> {
    let name = component.weights.as_deref().ok_or_else(|| {
        LoraError::new(bundle.root(), "has its weights inside of its engines, where LoRAs cannot change them")
    })?;
    Ok((name, TensorFile::open(&bundle.path(name))?))
}

/// The changed weights of a segment, each computed from the one that the bundle holds.
#[derive(Debug)]
pub(crate) struct ChangedWeights {
    name: String,
    file: TensorFile,
    changes: Arc<WeightChanges>,
    names: Vec<String>,
}

impl ChangedWeights {
    /// `None` where the changes are in other segments.
    pub(crate) fn new(
        bundle: &Bundle,
        component: &Component,
        segment: &Segment,
        changes: &Arc<WeightChanges>,
    ) -> Result<Option<ChangedWeights>, Error> {
        let of_segment: BTreeSet<&str> = segment.weights.iter().map(String::as_str).collect();
        let names: Vec<String> =
            changes.names().filter(|name| of_segment.contains(*name)).map(str::to_owned).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let (name, file) = weights_of(bundle, component)?;
        Ok(Some(ChangedWeights { name: name.into(), file, changes: changes.clone(), names }))
    }

    fn changed(&self, name: &str) -> Result<WeightOverride, LoraError> {
        let mut values = self.file.read_f32(name)?;
        self.changes.apply(name, &mut values)?;
        let info = &self.file.tensors()[name];
        let elements = match info.dtype {
            Dtype::F16 => Elements::F16(self.rounded(name, &values)?),
            Dtype::BF16 => Elements::BF16(values.into_iter().map(bf16::from_f32).collect()),
            Dtype::F32 => Elements::F32(values),
            other => {
                let reason =
                    format!("'{name}' is stored as {other:?}; LoRAs change weights of F32, F16 and BF16");
                return Err(LoraError::new(self.name.as_ref(), reason));
            }
        };
        Ok(WeightOverride { offset: info.offset, shape: info.shape.clone(), elements })
    }

    fn rounded(&self, name: &str, values: &[f32]) -> Result<Vec<f16>, LoraError> {
        let halves = values.iter().map(|&value| match f16::from_f32(value) {
            half if half.is_finite() => Ok(half),
            _ => Err(LoraError::new(
                self.file.path(),
                format!("LoRAs make '{name}' {value}, which overflows f16"),
            )),
        });
        halves.collect()
    }
}

impl WeightSource for ChangedWeights {
    fn file(&self) -> &str {
        &self.name
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn weight(&self, name: &str) -> Result<WeightOverride, String> {
        self.changed(name).map_err(|e| e.to_string())
    }
}
