use std::sync::Arc;

use kiln_bundle::TensorFile;
use ndarray::{Array2, Axis, Slice};

use super::parts::{Part, Parts, elements};
use super::{Change, Weight, product};
use crate::LoraError;

/// Elements of a product that are computed at a time.
const CHUNK: usize = 1 << 20;

/// LoHa (Hyeon-Woo et al. 2022, lycoris `LohaModule`): `W + w * scale * (a1 @ b1) * (a2 @ b2)`, element by element;
/// each product may have a core between its factors (Tucker), and then the first of them is transposed.
#[derive(Debug)]
struct Hadamard {
    factors: [Factors; 2],
    shape: Vec<usize>,
    rank: usize,
    scale: f64,
}

#[derive(Debug)]
struct Factors {
    a: Part,
    b: Part,
    core: Option<Part>,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if !parts.has("hada_w1_a") {
        return Ok(None);
    }
    let factors = [
        Factors { a: parts.need("hada_w1_a")?, b: parts.need("hada_w1_b")?, core: parts.take("hada_t1")? },
        Factors { a: parts.need("hada_w2_a")?, b: parts.need("hada_w2_b")?, core: parts.take("hada_t2")? },
    ];
    let [first, second] = [factors[0].shape(parts)?, factors[1].shape(parts)?];
    if first != second {
        return Err(format!("module '{}' multiplies the elements of {first:?} by {second:?}", parts.module));
    }
    let rank = factors[0].b.shape[0];
    let scale = parts.scale(Some(rank))?;
    Ok(Some(Arc::new(Hadamard { factors, shape: first, rank, scale })))
}

impl Factors {
    /// Shape of the product.
    fn shape(&self, parts: &Parts<'_>) -> Result<Vec<usize>, String> {
        let misshapen =
            || format!("module '{}' multiplies {:?} by {:?}", parts.module, self.a.shape, self.b.shape);
        let (Some([rows, a]), Some([b, columns])) = (self.a.matrix(), self.b.matrix()) else {
            return Err(misshapen());
        };
        let (shape, ranks) = match self.core.as_ref().map(|core| core.shape.as_slice()) {
            None if a == b => (vec![rows, columns], [a, b]),
            Some(&[i, j, height, width]) if [i, j] == [rows, b] && height * width > 0 => {
                (vec![a, columns, height, width], [i, j])
            }
            _ => return Err(misshapen()),
        };
        let sides = [shape[0], elements(&shape[1..])];
        ranks.iter().try_for_each(|rank| parts.bound(*rank, sides))?;
        Ok(shape)
    }

    /// The factors of the product as two matrices.
    fn read(&self, tensors: &TensorFile) -> Result<[Array2<f32>; 2], LoraError> {
        let [a, b] = [product::matrix(tensors, &self.a)?, product::matrix(tensors, &self.b)?];
        let Some(core) = &self.core else { return Ok([a, b]) };
        let core = product::matrix(tensors, core)?;
        Ok([a.reversed_axes(), product::core_over_inputs(&core.view(), &b.view())])
    }
}

impl Change for Hadamard {
    fn kind(&self) -> &'static str {
        match self.factors[0].core {
            Some(_) => "LoHa (Tucker)",
            None => "LoHa",
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
        let [[a1, b1], [a2, b2]] = [self.factors[0].read(tensors)?, self.factors[1].read(tensors)?];
        let (rows, columns) = (weight.rows(), weight.columns());
        let scale = (factor * self.scale) as f32;
        let at_once = (CHUNK / columns.max(1)).max(1);
        for (i, part) in weight.values.chunks_mut(at_once * columns).enumerate() {
            let span = Slice::from(i * at_once..((i + 1) * at_once).min(rows));
            let [first, second] = [(&a1, &b1), (&a2, &b2)].map(|(a, b)| a.slice_axis(Axis(0), span).dot(b));
            for ((value, first), second) in part.iter_mut().zip(&first).zip(&second) {
                *value += scale * first * second;
            }
        }
        Ok(())
    }
}
