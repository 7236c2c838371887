use std::collections::BTreeMap;

use kiln_bundle::{TensorFile, is_float, not_floats};

use crate::settings::Scaling;

/// The tensors of a module by what they are to it; kinds take out those that they know.
pub(crate) struct Parts<'a> {
    /// The module as the file spells it.
    pub(crate) module: &'a str,
    pub(crate) scaling: Scaling,
    tensors: &'a TensorFile,
    keys: BTreeMap<&'static str, String>,
}

/// A tensor of floats.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) key: String,
    pub(crate) shape: Vec<usize>,
}

impl Part {
    /// Its first side, and the product of the others.
    pub(crate) fn matrix(&self) -> Option<[usize; 2]> {
        let [rows, rest @ ..] = self.shape.as_slice() else { return None };
        (!rest.is_empty() && !self.shape.contains(&0)).then(|| [*rows, elements(rest)])
    }
}

/// Number of elements of a shape, which may be of no tensor.
pub(crate) fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n: usize, side| n.saturating_mul(*side))
}

impl<'a> Parts<'a> {
    pub(crate) fn new(
        tensors: &'a TensorFile,
        module: &'a str,
        keys: BTreeMap<&'static str, String>,
        scaling: Scaling,
    ) -> Parts<'a> {
        Parts { module, scaling, tensors, keys }
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.keys.contains_key(part)
    }

    /// Shape of a tensor.
    pub(crate) fn shape(&self, part: &str) -> Option<&[usize]> {
        Some(&self.tensors.tensors()[self.keys.get(part)?].shape)
    }

    /// A tensor that need not be there, and that others use too.
    pub(crate) fn peek(&self, part: &str) -> Result<Option<Part>, String> {
        let Some(key) = self.keys.get(part) else { return Ok(None) };
        let info = &self.tensors.tensors()[key];
        match is_float(info.dtype) {
            true => Ok(Some(Part { shape: info.shape.clone(), key: key.clone() })),
            false => Err(format!("'{key}' {}", not_floats(info.dtype))),
        }
    }

    /// A tensor that need not be there.
    pub(crate) fn take(&mut self, part: &str) -> Result<Option<Part>, String> {
        let found = self.peek(part)?;
        self.keys.remove(part);
        Ok(found)
    }

    /// A tensor without which the others mean nothing.
    pub(crate) fn need(&mut self, part: &str) -> Result<Part, String> {
        self.take(part)?.ok_or_else(|| format!("module '{}' lacks its {part}", self.module))
    }

    /// A number that need not be there.
    pub(crate) fn number(&mut self, part: &str) -> Result<Option<f64>, String> {
        let Some(key) = self.keys.remove(part) else { return Ok(None) };
        self.tensors.read_number(&key).map(Some).map_err(|e| e.reason())
    }

    /// The factor of a product: the module's own alpha over its rank, else what a configuration says.
    pub(crate) fn scale(&mut self, rank: Option<usize>) -> Result<f64, String> {
        match (self.number("alpha")?, rank) {
            (Some(alpha), Some(rank)) => Ok(alpha / rank as f64),
            (_, rank) => self.scaling.of(rank),
        }
    }

    /// Refuses factors that are larger than what they make: a rank beyond both sides of a matrix adds nothing.
    pub(crate) fn bound(&self, rank: usize, sides: [usize; 2]) -> Result<(), String> {
        let largest = sides[0].max(sides[1]);
        match rank > largest {
            true => Err(format!(
                "module '{}' has rank {rank}, above the sides {sides:?} of the weight that it changes",
                self.module
            )),
            false => Ok(()),
        }
    }

    /// The key of a tensor that no kind has taken.
    pub(crate) fn left(&mut self) -> Option<String> {
        ["alpha", "ia3_l"].iter().for_each(|shared| drop(self.keys.remove(shared)));
        self.keys.pop_first().map(|(_, key)| key)
    }
}
