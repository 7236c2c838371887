//! ONNX models with operators of kiln's domain in place of those that its kernels compute.
//!
//! Messages are copied field by field, so that what is not exchanged stays as it is (`onnx/onnx.proto3`).

mod fusions;
mod graph;
mod products;
#[cfg(test)]
mod tests;

use super::DOMAIN;
use super::wire::{Field, fields, put, put_bytes};
use graph::{Graph, number};

/// Key of the model's metadata whose value is the type that products' factors are rounded to; those of int8 are linear
/// layers, and bf16 elsewhere.
const PRODUCTS_KEY: &str = "kiln.products";
/// The same for scores of attention, where they are an exception.
const SCORES_KEY: &str = "kiln.scores";

/// What kernels are faster at than ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gains {
    /// Products of bf16 are faster than those of f32.
    pub(super) bf16: bool,
    /// Those of int8 are faster than both.
    pub(super) int8: bool,
    /// Linear layers of f32 are, because ONNX Runtime packs their weights anew in each run.
    pub(super) linear_f32: bool,
}

/// What is wanted of a model, and faster.
#[derive(Clone, Copy)]
struct Wanted {
    /// Whether the model asks for products of bf16.
    bf16: bool,
    /// Whether it asks for linear layers of int8, and bf16 elsewhere.
    int8: bool,
    /// Whether it asks for attention of f32 all the same.
    exact_scores: bool,
    gains: Gains,
}

impl Wanted {
    fn multiplies_scores_in_bf16(self) -> bool {
        self.bf16 && self.gains.bf16 && !self.exact_scores
    }
}

/// The model with what kernels compute exchanged; none where there is nothing of that kind.
pub(super) fn model(bytes: &[u8], gains: Gains) -> Option<Vec<u8>> {
    let (fields, mut out) = (fields(bytes)?, Vec::with_capacity(bytes.len()));
    let says = |key: &str, value: &str| {
        let mut entries = fields.iter().filter(|field| field.number == number::MODEL_METADATA);
        entries.any(|entry| is_entry(entry, key, value) == Some(true))
    };
    let int8 = says(PRODUCTS_KEY, "int8");
    let bf16 = int8 || says(PRODUCTS_KEY, "bf16");
    let wanted = Wanted { bf16, int8, exact_scores: says(SCORES_KEY, "f32"), gains };
    fields.iter().find(|field| field.number == number::MODEL_GRAPH)?;
    for field in &fields {
        match field.number {
            number::MODEL_GRAPH => {
                put_bytes(&mut out, number::MODEL_GRAPH, &rewritten(field.bytes()?, wanted)?);
            }
            _ => out.extend_from_slice(field.raw),
        }
    }
    let mut opset = Vec::new();
    put_bytes(&mut opset, number::OPSET_DOMAIN, DOMAIN.as_bytes());
    put(&mut opset, number::OPSET_VERSION, 1);
    put_bytes(&mut out, number::MODEL_OPSET, &opset);
    Some(out)
}

/// Whether an entry of the metadata has this key and value.
fn is_entry(entry: &Field<'_>, key: &str, value: &str) -> Option<bool> {
    let fields = fields(entry.bytes()?)?;
    let text = |number| fields.iter().find(|field| field.number == number)?.text();
    Some(text(number::ENTRY_KEY)? == key && text(number::ENTRY_VALUE)? == value)
}

/// The graph with operators of kiln's, if there are any.
fn rewritten(graph: &[u8], wanted: Wanted) -> Option<Vec<u8>> {
    let mut graph = Graph::read(graph)?;
    products::exchange(&mut graph, wanted);
    fusions::fuse(&mut graph);
    if !graph.is_changed() {
        return None;
    }
    graph.prune();
    Some(graph.write())
}
