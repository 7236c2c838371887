//! How adapters change a weight: one file for each kind.

mod butterfly;
mod difference;
mod glora;
mod hadamard;
mod inputs;
mod kronecker;
mod low_rank;
mod magnitude;
mod orthogonal;
mod parts;
mod product;
mod scale;

use std::fmt;
use std::sync::Arc;

use kiln_bundle::TensorFile;

use crate::LoraError;
pub(crate) use parts::Parts;
use parts::elements;

/// The change of one weight.
pub(crate) trait Change: fmt::Debug + Send + Sync {
    /// What people call it.
    fn kind(&self) -> &'static str;

    /// Shape of the weight, as far as the adapter's tensors tell: outputs, then inputs and the kernel's sides, which
    /// may be one axis.
    fn shape(&self) -> Vec<usize>;

    /// Rank of its factors, if it has any.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// Factor of the change by itself: alpha over rank where it has both.
    fn scale(&self) -> f64 {
        1.0
    }

    /// Whether it changes a weight of the given shape.
    fn fits(&self, weight: &[usize]) -> bool {
        fits(&self.shape(), weight)
    }

    /// Changes the weight, which fits, `factor` times as much as it was trained to.
    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError>;
}

/// A weight in row-major order: outputs, then inputs and the kernel's sides.
#[derive(Debug)]
pub(crate) struct Weight<'a> {
    pub(crate) shape: &'a [usize],
    pub(crate) values: &'a mut [f32],
}

impl Weight<'_> {
    /// Its first side.
    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Product of the others.
    fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Inputs, and elements of the kernel.
    fn inputs(&self) -> [usize; 2] {
        [self.shape.get(1).copied().unwrap_or(1), self.shape.iter().skip(2).product()]
    }
}

type Read = fn(&mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String>;

/// Each reads a module if it has the tensors of its kind.
const KINDS: [Read; 10] = [
    low_rank::read,
    hadamard::read,
    kronecker::read,
    butterfly::read,
    orthogonal::read,
    inputs::read,
    glora::read,
    scale::read,
    difference::read,
    difference::read_replacement,
];

/// The change of a module's weight, if it has one.
pub(crate) fn of_weight(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    for read in KINDS {
        if let Some(change) = read(parts)? {
            return magnitude::read(parts, change).map(Some);
        }
    }
    Ok(None)
}

pub(crate) use difference::read_bias as of_bias;
pub(crate) use inputs::Cayley;
pub(crate) use scale::read_bias as of_optional_bias;

/// Whether two shapes are one but for last axes of 1, or but for axes that one of them joins.
///
/// Checkpoints lack a 1x1 kernel's axes where a linear layer stands for it, and bundles have more for group norms.
fn fits(own: &[usize], weight: &[usize]) -> bool {
    let squeezed = |shape: &[usize]| {
        let n = shape.iter().rposition(|side| *side != 1).map_or(0, |last| last + 1);
        shape[..n].to_vec()
    };
    let joined = |shape: &[usize]| match shape {
        [rows, rest @ ..] => vec![*rows, elements(rest)],
        [] => Vec::new(),
    };
    squeezed(own) == squeezed(weight) || own.len() == 2 && weight.len() == 4 && own == joined(weight)
}
