use std::sync::Arc;

use kiln_bundle::TensorFile;

use super::parts::{Part, Parts, elements};
use super::{Change, Weight};
use crate::LoraError;

/// DoRA (Liu et al. 2024) around another change: the changed weight's rows, or columns, get a length that was trained.
///
/// At weight `w`, peft gives the length to `W + w * change`; the trainers that write `dora_scale` mix:
/// `W + w * (W' - W)`, where `W'` is the whole changed weight with its length.
#[derive(Debug)]
struct Magnitude {
    change: Arc<dyn Change>,
    lengths: Part,
    is_peft: bool,
    /// Whether columns of inputs have lengths, and not rows of outputs.
    of_inputs: bool,
}

/// Wraps a change in its module's lengths, if it has any.
pub(super) fn read(parts: &mut Parts<'_>, change: Arc<dyn Change>) -> Result<Arc<dyn Change>, String> {
    let is_peft = parts.has("lora_magnitude_vector");
    let name = if is_peft { "lora_magnitude_vector" } else { "dora_scale" };
    let Some(lengths) = parts.take(name)? else { return Ok(change) };
    let (n, shape) = (elements(&lengths.shape), change.shape());
    let outputs = shape.first().copied().unwrap_or(0);
    let is_row = matches!(*lengths.shape.as_slice(), [1, n] | [1, n, 1, 1] if n != 1 || outputs != 1);
    let of_inputs = is_row && !is_peft;
    if shape.len() < 2 || !of_inputs && n != outputs {
        let module = parts.module;
        return Err(format!("module '{module}' has lengths of shape {:?} for {shape:?}", lengths.shape));
    }
    Ok(Arc::new(Magnitude { change, lengths, is_peft, of_inputs }))
}

impl Magnitude {
    /// Gives the weight's rows or columns their lengths.
    fn normalize(&self, lengths: &[f32], weight: &mut Weight<'_>) {
        let [inputs, kernel] = weight.inputs();
        let columns = weight.columns();
        let place = |i: usize| if self.of_inputs { i / kernel % inputs } else { i / columns };
        let mut sums = vec![0.0f64; lengths.len()];
        for (i, value) in weight.values.iter().enumerate() {
            sums[place(i)] += f64::from(*value) * f64::from(*value);
        }
        let factors: Vec<f32> = lengths
            .iter()
            .zip(sums)
            .map(|(length, sum)| (f64::from(*length) / (sum.sqrt() + self.epsilon())) as f32)
            .collect();
        weight.values.iter_mut().enumerate().for_each(|(i, value)| *value *= factors[place(i)]);
    }

    /// What lycoris adds to lengths, and peft does not.
    fn epsilon(&self) -> f64 {
        if self.is_peft { 0.0 } else { f64::from(f32::EPSILON) }
    }
}

impl Change for Magnitude {
    fn kind(&self) -> &'static str {
        match self.change.kind() {
            "LoRA" => "DoRA",
            "LoHa" => "LoHa with DoRA",
            "LoKr" => "LoKr with DoRA",
            _ => "DoRA of another kind",
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.change.shape()
    }

    fn rank(&self) -> Option<usize> {
        self.change.rank()
    }

    fn scale(&self) -> f64 {
        self.change.scale()
    }

    fn fits(&self, weight: &[usize]) -> bool {
        let side = if self.of_inputs { weight.get(1) } else { weight.first() };
        self.change.fits(weight) && side == Some(&elements(&self.lengths.shape))
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let lengths = tensors.read_f32(&self.lengths.key)?;
        if self.is_peft || factor == 1.0 {
            self.change.apply(tensors, factor, weight)?;
            self.normalize(&lengths, weight);
            return Ok(());
        }
        let old = weight.values.to_vec();
        self.change.apply(tensors, 1.0, weight)?;
        self.normalize(&lengths, weight);
        let factor = factor as f32;
        weight.values.iter_mut().zip(old).for_each(|(new, old)| *new = old + factor * (*new - old));
        Ok(())
    }
}
