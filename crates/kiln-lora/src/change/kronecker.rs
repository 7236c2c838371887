use std::sync::Arc;

use kiln_bundle::TensorFile;
use ndarray::Array2;

use super::parts::{Part, Parts, elements};
use super::{Change, Weight, product};
use crate::LoraError;

/// LoKr (Yeh et al. 2023, lycoris `LokrModule`): `W + w * scale * kron(w1, w2)`. Each factor is whole or a product, the
/// second one perhaps with a core (Tucker). Without a rank, the scale is 1 whatever alpha says.
#[derive(Debug)]
struct Kronecker {
    first: Factor,
    second: Factor,
    shape: Vec<usize>,
    rank: Option<usize>,
    scale: f64,
}

#[derive(Debug)]
enum Factor {
    Whole(Part),
    Product { a: Part, b: Part },
    Tucker { core: Part, a: Part, b: Part },
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if !parts.has("lokr_w1") && !parts.has("lokr_w1_a") {
        return Ok(None);
    }
    let first = Factor::read(parts, ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1"])?;
    let second = Factor::read(parts, ["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"])?;
    let misshapen = || format!("module '{}' has factors of shapes that do not multiply", parts.module);
    let ([rows, columns], inner) =
        (first.sides().ok_or_else(misshapen)?, second.shape().ok_or_else(misshapen)?);
    let [rows_2, rest @ ..] = inner.as_slice() else { return Err(misshapen()) };
    let side = |a: usize, b: usize| a.checked_mul(b).ok_or_else(misshapen);
    let mut shape = vec![side(rows, *rows_2)?];
    shape.extend(rest);
    shape[1] = side(columns, rest[0])?;
    let sides = [shape[0], elements(&shape[1..])];
    let rank = first.rank().or(second.rank());
    for rank in [first.rank(), second.rank()].into_iter().flatten() {
        parts.bound(rank, sides)?;
    }
    let scale = match rank {
        None if parts.number("alpha")?.is_some() => 1.0,
        rank => parts.scale(rank)?,
    };
    Ok(Some(Arc::new(Kronecker { first, second, shape, rank, scale })))
}

impl Factor {
    fn read(parts: &mut Parts<'_>, [whole, a, b, core]: [&str; 4]) -> Result<Factor, String> {
        if let Some(whole) = parts.take(whole)? {
            return Ok(Factor::Whole(whole));
        }
        let [a, b] = [parts.need(a)?, parts.need(b)?];
        match parts.take(core)? {
            Some(core) => Ok(Factor::Tucker { core, a, b }),
            None => Ok(Factor::Product { a, b }),
        }
    }

    /// Shape of the matrix or kernel, if its parts multiply: outputs, then inputs and perhaps a kernel.
    fn shape(&self) -> Option<Vec<usize>> {
        match self {
            Factor::Whole(part) => part.matrix().map(|_| part.shape.clone()),
            Factor::Product { a, b } => {
                let ([rows, inner], [rank, _]) = (a.matrix()?, b.matrix()?);
                (inner == rank).then(|| [&[rows], &b.shape[1..]].concat())
            }
            Factor::Tucker { core, a, b } => {
                let ([i, rows], [j, columns]) = (a.matrix()?, b.matrix()?);
                let &[core_i, core_j, height, width] = core.shape.as_slice() else { return None };
                ([i, j] == [core_i, core_j] && height * width > 0).then(|| vec![rows, columns, height, width])
            }
        }
    }

    fn sides(&self) -> Option<[usize; 2]> {
        let shape = self.shape()?;
        Some([shape[0], elements(&shape[1..])])
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Factor::Whole(_) => None,
            Factor::Product { b, .. } => Some(b.shape[0]),
            Factor::Tucker { a, b, .. } => Some(a.shape[0].max(b.shape[0])),
        }
    }

    /// The factor as a matrix, a kernel's sides joined to the inputs.
    fn matrix(&self, tensors: &TensorFile) -> Result<Array2<f32>, LoraError> {
        let read = |part: &Part| product::matrix(tensors, part);
        match self {
            Factor::Whole(part) => read(part),
            Factor::Product { a, b } => Ok(read(a)?.dot(&read(b)?)),
            Factor::Tucker { core, a, b } => {
                Ok(read(a)?.t().dot(&product::core_over_inputs(&read(core)?.view(), &read(b)?.view())))
            }
        }
    }
}

impl Change for Kronecker {
    fn kind(&self) -> &'static str {
        match self.second {
            Factor::Tucker { .. } => "LoKr (Tucker)",
            _ => "LoKr",
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn rank(&self) -> Option<usize> {
        self.rank
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let [first, second] = [self.first.matrix(tensors)?, self.second.matrix(tensors)?];
        let scale = (factor * self.scale) as f32;
        let columns = weight.columns();
        for (i, row) in weight.values.chunks_mut(columns).enumerate() {
            let (outer, inner) = (first.row(i / second.nrows()), second.row(i % second.nrows()));
            for (part, a) in row.chunks_mut(inner.len()).zip(outer) {
                part.iter_mut().zip(inner).for_each(|(value, b)| *value += scale * a * b);
            }
        }
        Ok(())
    }
}
