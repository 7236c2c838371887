use std::sync::Arc;

use kiln_bundle::TensorFile;

use super::parts::{Part, Parts};
use super::{Change, Weight, fits};
use crate::LoraError;

/// A whole tensor: `W + w * scale * difference` (lycoris `FullModule`, `NormModule`; peft's biases of LoRAs).
#[derive(Debug)]
struct Difference {
    difference: Part,
    scale: f64,
}

/// A whole tensor in place of another, `W + w * (replacement - W)` (peft's `modules_to_save` and `bias`).
#[derive(Debug)]
struct Replacement {
    replacement: Part,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    difference(parts, &["diff", "w_norm"], 1.0)
}

pub(super) fn read_replacement(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    replacement(parts, "saved_weight")
}

/// The change of a module's bias, if it has one; `scale` is that of the weight's change.
pub(crate) fn read_bias(parts: &mut Parts<'_>, scale: f64) -> Result<Option<Arc<dyn Change>>, String> {
    if let Some(change) = difference(parts, &["up_bias"], scale)? {
        return Ok(Some(change));
    }
    match difference(parts, &["diff_b", "b_norm"], 1.0)? {
        Some(change) => Ok(Some(change)),
        None => replacement(parts, "saved_bias"),
    }
}

fn difference(parts: &mut Parts<'_>, names: &[&str], scale: f64) -> Result<Option<Arc<dyn Change>>, String> {
    let Some(name) = names.iter().find(|name| parts.has(name)) else { return Ok(None) };
    let difference = parts.need(name)?;
    Ok(Some(Arc::new(Difference { difference, scale })))
}

fn replacement(parts: &mut Parts<'_>, name: &str) -> Result<Option<Arc<dyn Change>>, String> {
    let Some(replacement) = parts.take(name)? else { return Ok(None) };
    Ok(Some(Arc::new(Replacement { replacement })))
}

impl Change for Difference {
    fn kind(&self) -> &'static str {
        "difference"
    }

    fn shape(&self) -> Vec<usize> {
        self.difference.shape.clone()
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let scale = (factor * self.scale) as f32;
        let difference = tensors.read_f32(&self.difference.key)?;
        weight.values.iter_mut().zip(difference).for_each(|(value, change)| *value += scale * change);
        Ok(())
    }
}

impl Change for Replacement {
    fn kind(&self) -> &'static str {
        "replacement"
    }

    fn shape(&self) -> Vec<usize> {
        self.replacement.shape.clone()
    }

    fn fits(&self, weight: &[usize]) -> bool {
        fits(&self.replacement.shape, weight)
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let (kept, taken) = ((1.0 - factor) as f32, factor as f32);
        let replacement = tensors.read_f32(&self.replacement.key)?;
        weight.values.iter_mut().zip(replacement).for_each(|(value, new)| *value = kept * *value + taken * new);
        Ok(())
    }
}
