use std::sync::Arc;

use kiln_bundle::TensorFile;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use super::orthogonal::cayley;
use super::parts::{Part, Parts, elements};
use super::{Change, Weight};
use crate::LoraError;

/// What peft does to the inputs of a layer, and so to the columns of `W`, kernels joined: `W T^T`, at weight `w` with
/// `w T + (1 - w)`.
#[derive(Debug)]
enum Inputs {
    /// OFT (peft `oft/layer.py`): blocks of `b` inputs turn by a rotation each, or all by one.
    Blocks { triangles: Part, b: usize, cayley: Cayley },
    /// BOFT (peft `boft/layer.py`): stages of OFT, each over halves of blocks that lie twice as far apart as in the one
    /// before; then rows times factors.
    Butterfly { blocks: Part, factors: Part, sides: [usize; 3] },
    /// HRA (peft `hra/layer.py`): a reflection for each column, which are made orthogonal first if they say so.
    Reflections { vectors: Part, orthogonal: bool, sides: [usize; 2] },
}

/// How peft makes a rotation of a skew-symmetric matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cayley {
    /// Terms of the series in its place; none for `(1 - Q)(1 + Q)^-1` itself.
    pub(crate) terms: Option<u32>,
    /// The largest length of a matrix, times the root of their number; none where they are free.
    pub(crate) bound: Option<f64>,
}

impl Default for Cayley {
    fn default() -> Cayley {
        Cayley { terms: Some(5), bound: None }
    }
}

pub(super) fn read(parts: &mut Parts<'_>) -> Result<Option<Arc<dyn Change>>, String> {
    let inputs = if parts.has("oft_R") {
        blocks(parts)?
    } else if parts.has("boft_R") {
        butterfly(parts)?
    } else if parts.has("hra_u") {
        reflections(parts)?
    } else {
        return Ok(None);
    };
    Ok(Some(Arc::new(inputs)))
}

fn blocks(parts: &mut Parts<'_>) -> Result<Inputs, String> {
    let triangles = parts.need("oft_R")?;
    // b (b - 1) / 2 elements are above the diagonal of a block.
    let side = |n: usize| ((1.0 + 8.0 * n as f64).sqrt() as usize).div_ceil(2);
    match *triangles.shape.as_slice() {
        [r, n] if r > 0 && n > 0 && side(n) * (side(n) - 1) / 2 == n => {
            Ok(Inputs::Blocks { b: side(n), triangles, cayley: parts.scaling.cayley })
        }
        ref shape => Err(format!("module '{}' turns by triangles of shape {shape:?}", parts.module)),
    }
}

fn butterfly(parts: &mut Parts<'_>) -> Result<Inputs, String> {
    let (blocks, factors) = (parts.need("boft_R")?, parts.need("boft_s")?);
    let (module, shape) = (parts.module, &blocks.shape);
    let refuse = || Err(format!("module '{module}' turns by blocks of shape {shape:?}"));
    let [stages, n, b, other] = *shape.as_slice() else { return refuse() };
    let span = stages.checked_sub(1).and_then(|i| u32::try_from(i).ok()).and_then(|i| 1usize.checked_shl(i));
    let is_whole = span.is_some_and(|span| span > 0 && n > 0 && n % span == 0 && (stages == 1 || b % 2 == 0));
    if b != other || b == 0 || !is_whole || !matches!(*factors.shape.as_slice(), [_, 1] | [1, _]) {
        return refuse();
    }
    Ok(Inputs::Butterfly { sides: [stages, n, b], blocks, factors })
}

fn reflections(parts: &mut Parts<'_>) -> Result<Inputs, String> {
    let vectors = parts.need("hra_u")?;
    match *vectors.shape.as_slice() {
        [columns, r] if r > 0 => {
            parts.bound(r, [columns, columns])?;
            Ok(Inputs::Reflections { sides: [columns, r], vectors, orthogonal: parts.scaling.orthogonal })
        }
        ref shape => Err(format!("module '{}' mirrors along vectors of shape {shape:?}", parts.module)),
    }
}

impl Change for Inputs {
    fn kind(&self) -> &'static str {
        match self {
            Inputs::Blocks { .. } => "OFT",
            Inputs::Butterfly { .. } => "BOFT",
            Inputs::Reflections { .. } => "HRA",
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Inputs::Blocks { triangles, b, .. } => vec![triangles.shape[0].saturating_mul(*b)],
            Inputs::Butterfly { factors, sides: [_, n, b], .. } => {
                vec![elements(&factors.shape), n.saturating_mul(*b)]
            }
            Inputs::Reflections { sides: [columns, _], .. } => vec![*columns],
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Inputs::Reflections { sides: [_, r], .. } => Some(*r),
            _ => None,
        }
    }

    fn fits(&self, weight: &[usize]) -> bool {
        let [rows, rest @ ..] = weight else { return false };
        let columns: usize = rest.iter().product();
        !rest.is_empty()
            && match self {
                Inputs::Blocks { triangles, b, .. } if triangles.shape[0] == 1 => columns.is_multiple_of(*b),
                Inputs::Butterfly { .. } => self.shape() == [*rows, columns],
                _ => self.shape() == [columns],
            }
    }

    fn apply(&self, tensors: &TensorFile, factor: f64, weight: &mut Weight<'_>) -> Result<(), LoraError> {
        match self {
            Inputs::Blocks { triangles, b, cayley } => {
                let rotations = rotations(&tensors.read_f32(&triangles.key)?, *b, *cayley);
                for (i, start) in (0..weight.columns()).step_by(*b).enumerate() {
                    let places: Vec<usize> = (start..start + b).collect();
                    turn(&partly(&rotations[i % rotations.len()], factor), &places, weight);
                }
                Ok(())
            }
            Inputs::Butterfly { blocks, factors, sides } => {
                let values = tensors.read_f32(&blocks.key)?;
                stages(&values, *sides, factor, weight);
                let (factors, columns) = (tensors.read_f32(&factors.key)?, weight.columns());
                for (row, own) in weight.values.chunks_mut(columns).zip(factors) {
                    let own = (factor * f64::from(own) + 1.0 - factor) as f32;
                    row.iter_mut().for_each(|value| *value *= own);
                }
                Ok(())
            }
            Inputs::Reflections { vectors, orthogonal, sides } => {
                mirror(&tensors.read_f32(&vectors.key)?, *sides, *orthogonal, factor, weight);
                Ok(())
            }
        }
    }
}

/// `factor` of a rotation and the rest of doing nothing.
fn partly(rotation: &Array2<f64>, factor: f64) -> Array2<f64> {
    rotation * factor + Array2::<f64>::eye(rotation.nrows()) * (1.0 - factor)
}

/// A rotation for each row of elements above a diagonal.
fn rotations(triangles: &[f32], b: usize, cayley: Cayley) -> Vec<Array2<f64>> {
    let n = b * (b - 1) / 2;
    let n_blocks = (triangles.len() / n) as f64;
    let rotation = |triangle: &[f32]| {
        let mut q = skew(triangle, b);
        let length = q.iter().map(|q| q * q).sum::<f64>().sqrt();
        if let Some(bound) = cayley.bound.map(|bound| bound / n_blocks.sqrt()).filter(|bound| length > *bound) {
            q *= bound / length;
        }
        // peft's quotient is that of the opposite matrix.
        cayley.terms.map_or_else(|| self::cayley(&-&q), |terms| series(&q, terms))
    };
    triangles.chunks_exact(n).map(rotation).collect()
}

fn skew(triangle: &[f32], b: usize) -> Array2<f64> {
    let mut q = Array2::zeros((b, b));
    let above = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
    for ((i, j), value) in above.zip(triangle) {
        q[[i, j]] = f64::from(*value);
        q[[j, i]] = -f64::from(*value);
    }
    q
}

/// `1 + 2 Q + 2 Q^2 + ... + Q^(n - 1)`, in which peft takes a power once where it is the last, and the third where
/// there are three terms.
fn series(q: &Array2<f64>, terms: u32) -> Array2<f64> {
    let mut sum = Array2::eye(q.nrows());
    if terms > 1 {
        sum.scaled_add(2.0, q);
    }
    if terms > 2 {
        let mut power = q.dot(q);
        sum.scaled_add(2.0, &power);
        for _ in 3..terms - 1 {
            power = power.dot(q);
            sum.scaled_add(2.0, &power);
        }
        sum += &power.dot(q);
    }
    sum
}

/// The stages of BOFT; of the units of half a block in a span, a block takes one of either half.
fn stages(values: &[f32], [n_stages, n, b]: [usize; 3], factor: f64, weight: &mut Weight<'_>) {
    for (stage, blocks) in values.chunks(values.len() / n_stages).enumerate() {
        let (span, half) = (b << stage, b / 2);
        for (i, block) in blocks.chunks(b * b).enumerate().take(n) {
            let (start, unit) = (i * b / span * span, i % (1 << stage));
            let of_half = |k: usize| (0..half).map(move |at| start + (k * (1 << stage) + unit) * half + at);
            let places: Vec<usize> = match stage {
                0 => (i * b..(i + 1) * b).collect(),
                _ => of_half(0).chain(of_half(1)).collect(),
            };
            let q = Array2::from_shape_fn((b, b), |(i, j)| {
                (f64::from(block[i * b + j]) - f64::from(block[j * b + i])) / 2.0
            });
            turn(&partly(&cayley(&-q), factor), &places, weight);
        }
    }
}

/// `row @ rotation^T` in each row, of the columns at the given places.
fn turn(rotation: &Array2<f64>, places: &[usize], weight: &mut Weight<'_>) {
    let columns = weight.columns();
    for row in weight.values.chunks_mut(columns) {
        let old: Vec<f64> = places.iter().map(|place| f64::from(row[*place])).collect();
        for (place, factors) in places.iter().zip(rotation.rows()) {
            row[*place] = factors.dot(&ArrayView1::from(&old)) as f32;
        }
    }
}

/// `W H`, where `H` is the product of reflections `1 - 2 u u^T` along vectors of length 1.
fn mirror(values: &[f32], [n, r]: [usize; 2], orthogonal: bool, factor: f64, weight: &mut Weight<'_>) {
    let Ok(vectors) = ArrayView2::from_shape((n, r), values) else { return };
    let mut vectors: Array2<f64> = vectors.mapv(f64::from);
    for i in 0..r {
        for j in (0..i).filter(|_| orthogonal) {
            let before = vectors.index_axis(Axis(1), j).to_owned();
            let mut own = vectors.index_axis_mut(Axis(1), i);
            let share = before.dot(&own);
            own.scaled_add(-share, &before);
        }
        let mut own = vectors.index_axis_mut(Axis(1), i);
        let length = own.dot(&own).sqrt();
        own /= length;
    }
    let columns = weight.columns();
    for row in weight.values.chunks_mut(columns) {
        let mut mirrored: ndarray::Array1<f64> = row.iter().map(|value| f64::from(*value)).collect();
        for u in vectors.columns() {
            let share = mirrored.dot(&u);
            mirrored.scaled_add(-2.0 * share, &u);
        }
        for (value, mirrored) in row.iter_mut().zip(mirrored) {
            *value = (factor * mirrored + (1.0 - factor) * f64::from(*value)) as f32;
        }
    }
}
