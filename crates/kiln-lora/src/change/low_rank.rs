use std::sync::Arc;

use kiln_bundle::TensorFile;

use super::parts::{Part, Parts, elements};
use super::{Change, Weight, product};
use crate::LoraError;

/// LoRA and LoCon (Hu et al. 2021): `W + w * scale * up @ down`, and with a core between them the Tucker form of
/// convolutions (Yeh et al. 2023, lycoris `LoConModule`).
#[derive(Debug)]
pub(super) struct LowRank {
    up: Part,
    /// `[rank, rank, kernel]`.
    core: Option<Part>,
    down: Part,
    shape: Vec<usize>,
    rank: usize,
    scale: f64,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if !["up", "down", "mid"].iter().any(|part| parts.has(part)) {
        return Ok(None);
    }
    let (Some(down), Some(up)) = (parts.take("down")?, parts.take("up")?) else {
        return Err(format!("module '{}' lacks one of its two matrices", parts.module));
    };
    let core = parts.take("mid")?;
    let change = LowRank::new(parts, up, core, down)?;
    Ok(Some(Arc::new(change)))
}

impl LowRank {
    /// The change that factors make, with the module's alpha.
    pub(super) fn new(
        parts: &mut Parts<'_>,
        up: Part,
        core: Option<Part>,
        down: Part,
    ) -> Result<LowRank, String> {
        let misshapen = || format!("module '{}' multiplies {:?} by {:?}", parts.module, up.shape, down.shape);
        let (&[outputs, up_rank, ref kernel @ ..], &[rank, ref inputs @ ..]) =
            (up.shape.as_slice(), down.shape.as_slice())
        else {
            return Err(misshapen());
        };
        let is_empty = up.shape.contains(&0) || down.shape.contains(&0);
        let is_known = matches!(inputs.len(), 1 | 3) && matches!(kernel.len(), 0 | 2);
        if is_empty || !is_known || kernel.iter().any(|n| *n != 1) {
            return Err(misshapen());
        }
        let shape = match core.as_ref().map(|core| core.shape.as_slice()) {
            None if rank == up_rank => [&[outputs], inputs].concat(),
            Some(&[a, b, ref kernel @ ..]) if [a, b] == [up_rank, rank] && !kernel.contains(&0) => {
                if inputs[1..].iter().any(|n| *n != 1) || kernel.len() != 2 {
                    return Err(misshapen());
                }
                [&[outputs, inputs[0]], kernel].concat()
            }
            Some(core) => {
                return Err(format!("{} through {core:?}", misshapen()));
            }
            None => return Err(misshapen()),
        };
        let sides = [outputs, elements(&shape[1..])];
        parts.bound(rank.max(up_rank), sides)?;
        let scale = parts.scale(Some(rank))?;
        Ok(LowRank { up, core, down, shape, rank, scale })
    }
}

impl Change for LowRank {
    fn kind(&self) -> &'static str {
        match self.core {
            Some(_) => "LoCon (Tucker)",
            None => "LoRA",
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let up = product::matrix(tensors, &self.up)?;
        let mut down = product::matrix(tensors, &self.down)?;
        if let Some(core) = &self.core {
            down = product::core_over_inputs(&product::matrix(tensors, core)?.view(), &down.view());
        }
        product::add(&up.view(), &down.view(), (factor * self.scale) as f32, weight.values);
        Ok(())
    }
}
