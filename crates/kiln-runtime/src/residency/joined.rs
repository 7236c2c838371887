//! Rows of a batch as one run of an engine.

use kiln_bundle::Segment;
use kiln_engine::{Engine, Port, Tensor, TensorView};
use ndarray::{ArrayViewD, Axis, concatenate};

use super::chain::{Given, rows_of};
use crate::Error;

/// Bytes of weights per byte that a row reads, from which on rows run together: their products wait for weights, which
/// are then read once, and what is copied to join them does not count.
const WEIGHTS_PER_INPUT: u64 = 16;

/// Whether a segment's rows had better run together.
pub(super) fn gains(segment: &Segment, row: &Given<'_>) -> bool {
    let read: u64 = row.iter().map(|(_, view)| view.n_bytes()).sum();
    segment.weight_bytes >= WEIGHTS_PER_INPUT * read.max(1)
}

/// What an engine makes for each row, of one run where there are several.
pub(super) fn run(engine: &mut dyn Engine, rows: &[Given<'_>]) -> Result<Vec<Vec<Tensor>>, Error> {
    if let [_, _, ..] = rows
        && let Some(made) = together(engine, rows)?
    {
        return Ok(made);
    }
    rows.iter().map(|row| Ok(engine.run(row)?)).collect()
}

/// The same in one run; none of rows that cannot be joined, or of outputs that cannot be told apart.
fn together(engine: &mut dyn Engine, rows: &[Given<'_>]) -> Result<Option<Vec<Vec<Tensor>>>, Error> {
    let joined: Option<Vec<(&str, Tensor)>> =
        rows[0].iter().enumerate().map(|(at, (name, _))| Some((*name, join(engine, rows, at)?))).collect();
    let Some(joined) = joined else { return Ok(None) };
    let inputs: Vec<(&str, TensorView<'_>)> =
        joined.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
    let made = engine.run(&inputs)?;
    let made: Vec<_> = made.iter().zip(engine.outputs().iter().map(has_batch)).collect();
    let row = |i: usize| {
        let of_row = made.iter().map(|(tensor, has_batch)| match has_batch {
            true if tensor.view().shape()[0] != rows.len() => None,
            true => owned(rows_of(&tensor.view(), i..i + 1)),
            false => owned(tensor.view()),
        });
        of_row.collect::<Option<Vec<Tensor>>>()
    };
    Ok((0..rows.len()).map(row).collect())
}

/// The input at a place, of all rows.
fn join(engine: &dyn Engine, rows: &[Given<'_>], at: usize) -> Option<Tensor> {
    let views: Vec<&TensorView<'_>> = rows.iter().map(|row| &row[at].1).collect();
    let port = engine.inputs().iter().find(|port| port.name == rows[0][at].0)?;
    if !has_batch(port) {
        return owned(views[0].reborrow());
    }
    if views.iter().any(|view| view.shape().first() != Some(&1)) {
        return None;
    }
    match views[0] {
        TensorView::F32(_) => {
            let floats = views.iter().map(|view| match view {
                TensorView::F32(floats) => Some(floats.view()),
                _ => None,
            });
            joined(&floats.collect::<Option<Vec<_>>>()?)
        }
        TensorView::I64(_) => {
            let numbers = views.iter().map(|view| match view {
                TensorView::I64(numbers) => Some(numbers.view()),
                _ => None,
            });
            joined(&numbers.collect::<Option<Vec<_>>>()?)
        }
        _ => None,
    }
}

fn joined<T: Clone>(rows: &[ArrayViewD<'_, T>]) -> Option<Tensor>
where
    Tensor: From<ndarray::ArrayD<T>>,
{
    concatenate(Axis(0), rows).ok().map(Tensor::from)
}

/// A tensor of its own, in memory of the host.
fn owned(view: TensorView<'_>) -> Option<Tensor> {
    match view {
        TensorView::F32(floats) => Some(floats.to_owned().into()),
        TensorView::I64(numbers) => Some(numbers.to_owned().into()),
        _ => None,
    }
}

/// Whether the first axis is that of the batch: no other first axis is open.
fn has_batch(port: &Port) -> bool {
    port.shape.first() == Some(&None)
}
