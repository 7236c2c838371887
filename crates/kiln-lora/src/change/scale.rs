use std::sync::Arc;

use kiln_bundle::TensorFile;

use super::parts::{Part, Parts, elements};
use super::{Change, Weight};
use crate::LoraError;

/// (IA)^3 (Liu et al. 2022): factors of the outputs or inputs, which lycoris' `IA3Module` stores less one.
#[derive(Clone, Debug)]
struct Scale {
    factors: Part,
    on_inputs: bool,
    /// What is taken of a factor to have its change.
    one: f32,
}

/// What peft's configuration does not say where both sides are one.
const AMBIGUOUS: &str = "does not tell whether it scales inputs or outputs";

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if let Some(scale) = of_peft(parts)? {
        return Ok(Some(Arc::new(scale)));
    }
    let Some(on_inputs) = parts.number("on_input")? else { return Ok(None) };
    let factors = parts.need("weight")?;
    Ok(Some(Arc::new(Scale { factors, on_inputs: on_inputs != 0.0, one: 0.0 })))
}

/// peft scales biases with their outputs, where there are any.
pub(crate) fn read_bias(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    let scale = of_peft(parts)?.filter(|scale| !scale.on_inputs);
    Ok(scale.map(|scale| Arc::new(scale) as Arc<dyn Change>))
}

/// `[out, 1]` or `[1, in]`; of a convolution `[1, n, 1, 1]`, whose side the configuration tells.
fn of_peft(parts: &mut Parts<'_>) -> Result<Option<Scale>, String> {
    let Some(factors) = parts.peek("ia3_l")? else { return Ok(None) };
    let on_inputs = match *factors.shape.as_slice() {
        [_, 1] => false,
        [1, _] => true,
        [1, _, 1, 1] => parts.scaling.scales_inputs,
        _ => return Err(format!("module '{}' {AMBIGUOUS}", parts.module)),
    };
    Ok(Some(Scale { factors, on_inputs, one: 1.0 }))
}

impl Change for Scale {
    fn kind(&self) -> &'static str {
        "(IA)^3"
    }

    fn shape(&self) -> Vec<usize> {
        self.factors.shape.clone()
    }

    fn fits(&self, weight: &[usize]) -> bool {
        let side = if self.on_inputs { weight.get(1) } else { weight.first() };
        side == Some(&elements(&self.factors.shape))
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let factors = tensors.read_f32(&self.factors.key)?;
        let [inputs, kernel] = weight.inputs();
        let columns = weight.columns();
        for (i, value) in weight.values.iter_mut().enumerate() {
            let place = if self.on_inputs { i / kernel % inputs } else { i / columns };
            *value *= 1.0 + factor as f32 * (factors[place] - self.one);
        }
        Ok(())
    }
}
