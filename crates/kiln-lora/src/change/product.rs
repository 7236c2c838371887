//! Products of matrices that are read from a file.

use kiln_bundle::TensorFile;
use ndarray::{Array2, ArrayView2, Axis, Slice};

use super::parts::Part;
use crate::LoraError;

/// Elements of a product that are computed at a time.
const CHUNK: usize = 1 << 20;

/// A tensor's first axis, and the others as one.
pub(super) fn matrix(tensors: &TensorFile, part: &Part) -> Result<Array2<f32>, LoraError> {
    let values = tensors.read_f32(&part.key)?;
    Array2::from_shape_vec(part.matrix().unwrap_or_default(), values)
        .map_err(|e| LoraError::new(tensors.path(), format!("'{}': {e}", part.key)))
}

/// `sum_j core[i, j, k] * down[j, n]` as `[i, n * k]`: a core's rows over the inputs.
pub(super) fn core_over_inputs(core: &ArrayView2<'_, f32>, down: &ArrayView2<'_, f32>) -> Array2<f32> {
    let (ranks, inputs) = (down.nrows(), down.ncols());
    let kernel = core.ncols() / ranks;
    let mut out = Array2::zeros((core.nrows(), inputs * kernel));
    for (core, mut out) in core.rows().into_iter().zip(out.rows_mut()) {
        let core: Array2<f32> = Array2::from_shape_fn((ranks, kernel), |(j, k)| core[j * kernel + k]);
        let product = down.t().dot(&core);
        out.iter_mut().zip(&product).for_each(|(out, value)| *out = *value);
    }
    out
}

/// `weight += scale * up @ down`, some rows at a time.
pub(super) fn add(up: &ArrayView2<'_, f32>, down: &ArrayView2<'_, f32>, scale: f32, weight: &mut [f32]) {
    let (rows, columns) = (up.nrows(), down.ncols());
    let at_once = (CHUNK / columns.max(1)).max(1);
    for (i, part) in weight.chunks_mut(at_once * columns).enumerate() {
        let from = i * at_once;
        let to = (from + at_once).min(rows);
        let product = up.slice_axis(Axis(0), Slice::from(from..to)).dot(down);
        for (value, change) in part.iter_mut().zip(&product) {
            *value += scale * change;
        }
    }
}
