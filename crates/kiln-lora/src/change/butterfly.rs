use std::sync::Arc;

use kiln_bundle::TensorFile;

use super::orthogonal::{Rotations, rescale, turn};
use super::parts::{Part, Parts};
use super::{Change, Weight};
use crate::LoraError;

/// BOFT (Liu et al. 2024, lycoris `ButterflyOFTModule`): several stages of OFT, each over rows that lie twice as far
/// apart as in the one before. Blocks of four dimensions tell it from OFT.
#[derive(Debug)]
struct Butterfly {
    rotations: Rotations,
    rescale: Option<Part>,
    n_stages: usize,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    let Some(&[n_stages, n_blocks, b, _]) = parts.shape("oft_blocks") else { return Ok(None) };
    let rotations = Rotations::read(parts)?;
    let rescale = rotations.rescale(parts)?;
    let spans_all = u32::try_from(n_stages - 1).ok().and_then(|n| 1usize.checked_shl(n));
    if b % 2 != 0 || spans_all.is_none_or(|span| span == 0 || n_blocks % span != 0) {
        let module = parts.module;
        return Err(format!("module '{module}' has {n_stages} stages of {n_blocks} blocks of {b} rows"));
    }
    Ok(Some(Arc::new(Butterfly { rotations, rescale, n_stages })))
}

/// The rows in the order in which a stage's blocks take them: of each pair of halves in turn.
fn order(rows: usize, half: usize) -> impl Iterator<Item = usize> {
    let of_span = move |start: usize| (0..half).flat_map(move |k| [start + k, start + half + k]);
    (0..rows).step_by(2 * half).flat_map(of_span)
}

impl Change for Butterfly {
    fn kind(&self) -> &'static str {
        "BOFT"
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.rotations.rows()]
    }

    fn fits(&self, weight: &[usize]) -> bool {
        weight.len() > 1 && weight[0] == self.rotations.rows()
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let (b, rows) = (self.rotations.size(), self.rotations.rows());
        let rotations = self.rotations.read_all(tensors, factor)?;
        for (stage, rotations) in rotations.chunks(rotations.len() / self.n_stages).enumerate() {
            let places: Vec<usize> = order(rows, (b / 2) << stage).collect();
            for (rotation, places) in rotations.iter().zip(places.chunks(b)) {
                turn(&rotation.view(), places, weight);
            }
        }
        rescale(tensors, self.rescale.as_ref(), weight)
    }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn stages_reach_twice_as_far_as_the_one_before() {
        let order = |half| order(8, half).collect::<Vec<_>>();
        assert_eq!(order(1), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(order(2), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(order(4), [0, 4, 1, 5, 2, 6, 3, 7]);
    }
}
