use std::sync::Arc;

use kiln_bundle::TensorFile;
use ndarray::Array2;

use super::low_rank::LowRank;
use super::parts::{Part, Parts};
use super::{Change, Weight, product};
use crate::LoraError;

/// GLoRA (Chavan et al. 2023, lycoris `GLoRAModule`): `W + w * scale * (W a1 a2 + b1 b2)`, where `a1 a2` mixes inputs.
#[derive(Debug)]
struct Glora {
    a1: Part,
    a2: Part,
    inputs: usize,
    b: LowRank,
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    if !parts.has("a1") {
        return Ok(None);
    }
    let [a1, a2, b1, b2] = [parts.need("a1")?, parts.need("a2")?, parts.need("b1")?, parts.need("b2")?];
    let core = parts.take("bm")?;
    let b = LowRank::new(parts, b1, core, b2)?;
    let misshapen = || format!("module '{}' multiplies {:?} by {:?}", parts.module, a1.shape, a2.shape);
    let (Some([rows, inner]), Some([rank, columns])) = (a1.matrix(), a2.matrix()) else {
        return Err(misshapen());
    };
    let inputs = b.shape()[1];
    if inner != rank || rows != columns || rows != inputs {
        return Err(misshapen());
    }
    parts.bound(rank, [b.shape()[0], rows])?;
    Ok(Some(Arc::new(Glora { a1, a2, inputs, b })))
}

impl Change for Glora {
    fn kind(&self) -> &'static str {
        "GLoRA"
    }

    fn shape(&self) -> Vec<usize> {
        self.b.shape()
    }

    fn rank(&self) -> Option<usize> {
        self.b.rank()
    }

    fn scale(&self) -> f64 {
        self.b.scale()
    }

    fn fits(&self, weight: &[usize]) -> bool {
        self.b.fits(weight) && weight.get(1) == Some(&self.inputs)
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        let [inputs, kernel] = weight.inputs();
        let [a1, a2] = [product::matrix(tensors, &self.a1)?, product::matrix(tensors, &self.a2)?];
        let scale = (factor * self.scale()) as f32;
        for row in weight.values.chunks_mut(inputs * kernel) {
            let old = Array2::from_shape_fn((inputs, kernel), |(i, k)| row[i * kernel + k]);
            product::add(&a2.t(), &a1.t().dot(&old).view(), scale, row);
        }
        self.b.apply(tensors, factor, weight)
    }
}
