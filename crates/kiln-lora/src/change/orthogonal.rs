use std::sync::Arc;

use kiln_bundle::TensorFile;
use ndarray::{Array2, ArrayView2};

use super::parts::{Part, Parts, elements};
use super::{Change, Weight};
use crate::LoraError;

/// Diagonal OFT (Qiu et al. 2023, lycoris `DiagOFTModule`): each `b` rows of `W` are turned by
/// `R = (1 + Q)(1 - Q)^-1` transposed, where `Q` is a block minus its transpose; at weight `w` by `w R + (1 - w)`.
#[derive(Debug)]
struct Orthogonal {
    rotations: Rotations,
    rescale: Option<Part>,
}

/// Skew-symmetric blocks `[n, b, b]`, or `[stages, n, b, b]`, whose length together is at most that of the constraint, if there is one.
#[derive(Debug)]
pub(super) struct Rotations {
    blocks: Part,
    /// alpha times the number of rows.
    constraint: f64,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if !parts.has("oft_blocks") {
        return Ok(None);
    }
    let rotations = Rotations::read(parts)?;
    let rescale = rotations.rescale(parts)?;
    Ok(Some(Arc::new(Orthogonal { rotations, rescale })))
}

impl Rotations {
    pub(super) fn read(parts: &mut Parts<'_>) -> Result<Rotations, String> {
        let blocks = parts.need("oft_blocks")?;
        let is_square = matches!(*blocks.shape.as_slice(), [.., a, b] if a == b);
        if blocks.shape.contains(&0) || !matches!(blocks.shape.len(), 3 | 4) || !is_square {
            let (module, shape) = (parts.module, &blocks.shape);
            return Err(format!("module '{module}' turns by blocks of shape {shape:?}"));
        }
        let mut rotations = Rotations { blocks, constraint: 0.0 };
        rotations.constraint = parts.number("alpha")?.unwrap_or(0.0) * rotations.rows() as f64;
        Ok(rotations)
    }

    /// Rows of the weight that they turn.
    pub(super) fn rows(&self) -> usize {
        match *self.blocks.shape.as_slice() {
            [.., n, b, _] => n.saturating_mul(b),
            _ => 0,
        }
    }

    /// Rows of a block.
    pub(super) fn size(&self) -> usize {
        self.blocks.shape.last().copied().unwrap_or(1)
    }

    /// The factor of each row behind the rotations, which need not be there.
    pub(super) fn rescale(&self, parts: &mut Parts<'_>) -> Result<Option<Part>, String> {
        let rescale = parts.take("rescale")?;
        match rescale.as_ref().map(|part| elements(&part.shape)) {
            Some(n) if n != self.rows() => {
                Err(format!("module '{}' scales {n} rows, and turns {}", parts.module, self.rows()))
            }
            _ => Ok(rescale),
        }
    }

    /// The rotations, `factor` of each and the rest of doing nothing.
    pub(super) fn read_all(&self, tensors: &TensorFile, factor: f64) -> Result<Vec<Array2<f64>>, LoraError> {
        let (values, b) = (tensors.read_f32(&self.blocks.key)?, self.size());
        let blocks: Vec<Array2<f64>> = values.chunks(b * b).map(|block| skew(block, b)).collect();
        let length = blocks.iter().flatten().map(|q| q * q).sum::<f64>().sqrt() + 1e-8;
        let shrink = if self.constraint > 0.0 { (self.constraint / length).min(1.0) } else { 1.0 };
        let rotation = |block: Array2<f64>| {
            let turned = cayley(&(block * shrink));
            turned * factor + Array2::<f64>::eye(b) * (1.0 - factor)
        };
        Ok(blocks.into_iter().map(rotation).collect())
    }
}

/// A block minus its transpose.
fn skew(block: &[f32], b: usize) -> Array2<f64> {
    Array2::from_shape_fn((b, b), |(i, j)| f64::from(block[i * b + j]) - f64::from(block[j * b + i]))
}

/// `(1 + Q)(1 - Q)^-1` by elimination; `1 - Q` has an inverse because `Q` is skew-symmetric.
pub(super) fn cayley(q: &Array2<f64>) -> Array2<f64> {
    // The factors commute: (1 - Q) R = 1 + Q.
    let n = q.nrows();
    let one = Array2::<f64>::eye(n);
    let (mut left, mut right) = (&one - q, &one + q);
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| left[[a, column]].abs().total_cmp(&left[[b, column]].abs()));
        let pivot = pivot.unwrap_or(column);
        for matrix in [&mut left, &mut right] {
            (0..n).for_each(|j| matrix.swap([column, j], [pivot, j]));
        }
        let divisor = left[[column, column]];
        for matrix in [&mut left, &mut right] {
            matrix.row_mut(column).mapv_inplace(|value| value / divisor);
        }
        for row in (0..n).filter(|&row| row != column) {
            let times = left[[row, column]];
            for matrix in [&mut left, &mut right] {
                let pivot = matrix.row(column).to_owned();
                matrix.row_mut(row).scaled_add(-times, &pivot);
            }
        }
    }
    right
}

/// `rotation @ rows`, in place; rows are those at the given places of the weight.
pub(super) fn turn(rotation: &ArrayView2<'_, f64>, places: &[usize], weight: &mut Weight<'_>) {
    let columns = weight.columns();
    let mut turned = vec![0.0; columns];
    let old: Vec<Vec<f32>> =
        places.iter().map(|row| weight.values[row * columns..][..columns].to_vec()).collect();
    for (place, factors) in places.iter().zip(rotation.rows()) {
        turned.fill(0.0);
        for (factor, row) in factors.iter().zip(&old) {
            turned.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
        let row = &mut weight.values[place * columns..][..columns];
        row.iter_mut().zip(&turned).for_each(|(value, turned)| *value = *turned as f32);
    }
}

/// Multiplies each row by its factor.
pub(super) fn rescale(
    tensors: &TensorFile,
    factors: Option<&Part>,
    weight: &mut Weight<'_>,
) -> Result<(), LoraError> {
    let Some(part) = factors else { return Ok(()) };
    let (factors, columns) = (tensors.read_f32(&part.key)?, weight.columns());
    for (row, factor) in weight.values.chunks_mut(columns).zip(factors) {
        row.iter_mut().for_each(|value| *value *= factor);
    }
    Ok(())
}

impl Change for Orthogonal {
    fn kind(&self) -> &'static str {
        "OFT"
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.rotations.rows()]
    }

    fn fits(&self, weight: &[usize]) -> bool {
        weight.len() > 1 && weight[0] == self.rotations.rows()
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let b = self.rotations.size();
        for (i, rotation) in self.rotations.read_all(tensors, factor)?.iter().enumerate() {
            let places: Vec<usize> = (i * b..(i + 1) * b).collect();
            turn(&rotation.t(), &places, weight);
        }
        rescale(tensors, self.rescale.as_ref(), weight)
    }
}
