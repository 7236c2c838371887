//! ONNX models with operators of kiln's domain in place of those that its kernels compute.
//!
//! Messages are copied field by field, so that what is not exchanged stays as it is (`onnx/onnx.proto3`).

use std::collections::HashMap;

use super::wire::{Field, fields, put, put_bytes};
use super::{DOMAIN, conv};

/// Numbers of fields.
mod number {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const MODEL_OPSET: u32 = 8;
    pub(super) const OPSET_DOMAIN: u32 = 1;
    pub(super) const OPSET_VERSION: u32 = 2;
    pub(super) const GRAPH_NODE: u32 = 1;
    pub(super) const GRAPH_INITIALIZER: u32 = 5;
    pub(super) const NODE_INPUT: u32 = 1;
    pub(super) const NODE_OPERATOR: u32 = 4;
    pub(super) const NODE_ATTRIBUTE: u32 = 5;
    pub(super) const NODE_DOMAIN: u32 = 7;
    pub(super) const ATTRIBUTE_NAME: u32 = 1;
    pub(super) const ATTRIBUTE_INTS: u32 = 8;
    pub(super) const TENSOR_DIMS: u32 = 1;
    pub(super) const TENSOR_TYPE: u32 = 2;
    pub(super) const TENSOR_NAME: u32 = 8;
}

/// `TensorProto.DataType.FLOAT`.
const FLOAT: i64 = 1;

/// The shapes of weights in f32, by name.
type Weights<'a> = HashMap<&'a str, Vec<i64>>;

/// The model with what kernels compute exchanged; none where there is nothing of that kind.
pub(super) fn model(bytes: &[u8]) -> Option<Vec<u8>> {
    let (fields, mut out) = (fields(bytes)?, Vec::with_capacity(bytes.len()));
    fields.iter().find(|field| field.number == number::MODEL_GRAPH)?;
    for field in fields {
        match field.number {
            number::MODEL_GRAPH => put_bytes(&mut out, number::MODEL_GRAPH, &graph(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
    }
    let mut opset = Vec::new();
    put_bytes(&mut opset, number::OPSET_DOMAIN, DOMAIN.as_bytes());
    put(&mut opset, number::OPSET_VERSION, 1);
    put_bytes(&mut out, number::MODEL_OPSET, &opset);
    Some(out)
}

fn graph(bytes: &[u8]) -> Option<Vec<u8>> {
    let fields = fields(bytes)?;
    let tensors = fields.iter().filter(|field| field.number == number::GRAPH_INITIALIZER);
    let weights: Weights<'_> = tensors.filter_map(|field| weight(field.bytes()?)).collect();
    let (mut out, mut n_exchanged) = (Vec::with_capacity(bytes.len()), 0);
    for field in &fields {
        match field
            .bytes()
            .filter(|_| field.number == number::GRAPH_NODE)
            .and_then(|node| exchanged(node, &weights))
        {
            Some(node) => {
                n_exchanged += 1;
                put_bytes(&mut out, number::GRAPH_NODE, &node);
            }
            None => out.extend_from_slice(field.raw),
        }
    }
    (n_exchanged > 0).then_some(out)
}

fn weight(tensor: &[u8]) -> Option<(&str, Vec<i64>)> {
    let fields = fields(tensor)?;
    let first = |number| fields.iter().find(move |field| field.number == number);
    let dims = fields.iter().filter(|field| field.number == number::TENSOR_DIMS);
    let is_float = first(number::TENSOR_TYPE)?.number() == Some(FLOAT);
    let name = first(number::TENSOR_NAME)?.text().filter(|_| is_float)?;
    Some((name, dims.map(Field::number).collect::<Option<_>>()?))
}

/// The node as one of kiln's, where a kernel computes it.
fn exchanged(node: &[u8], weights: &Weights<'_>) -> Option<Vec<u8>> {
    let fields = fields(node)?;
    let all = |number| fields.iter().filter(move |field| field.number == number);
    let is_standard = all(number::NODE_DOMAIN).all(|domain| domain.bytes().is_some_and(<[u8]>::is_empty));
    if !is_standard || all(number::NODE_OPERATOR).next()?.text() != Some("Conv") {
        return None;
    }
    let weight = weights.get(all(number::NODE_INPUT).nth(1)?.text()?)?;
    let is_fit = all(number::NODE_ATTRIBUTE).all(|field| field.bytes().is_some_and(is_winograds));
    if weight.len() != 4 || weight[2..] != [3, 3] || !is_fit {
        return None;
    }
    let kept =
        fields.iter().filter(|field| ![number::NODE_OPERATOR, number::NODE_DOMAIN].contains(&field.number));
    let mut out: Vec<u8> = kept.flat_map(|field| field.raw).copied().collect();
    put_bytes(&mut out, number::NODE_OPERATOR, conv::Conv::NAME.as_bytes());
    put_bytes(&mut out, number::NODE_DOMAIN, DOMAIN.as_bytes());
    Some(out)
}

/// Whether an attribute is one that Winograd's algorithm knows, with a value that it computes.
fn is_winograds(attribute: &[u8]) -> bool {
    let Some(fields) = fields(attribute) else { return false };
    let name = fields.iter().find(|field| field.number == number::ATTRIBUTE_NAME).and_then(Field::text);
    let numbers = || fields.iter().filter(|field| field.number == number::ATTRIBUTE_INTS).map(Field::number);
    match name {
        Some("kernel_shape") => numbers().eq([Some(3); 2]),
        Some("strides" | "dilations") => numbers().eq([Some(1); 2]),
        Some("pads") => numbers().count() == 4 && numbers().all(|n| n.is_some_and(|n| n >= 0)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message of one field after the other.
    fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        fields.iter().for_each(|(number, bytes)| put_bytes(&mut out, *number, bytes));
        out
    }

    fn ints(name: &str, values: &[u64]) -> Vec<u8> {
        let mut out = message(&[(number::ATTRIBUTE_NAME, name.as_bytes())]);
        values.iter().for_each(|value| put(&mut out, number::ATTRIBUTE_INTS, *value));
        out
    }

    fn tensor(name: &str, kind: u64, dims: &[u64]) -> Vec<u8> {
        let mut out = message(&[(number::TENSOR_NAME, name.as_bytes())]);
        put(&mut out, number::TENSOR_TYPE, kind);
        dims.iter().for_each(|dim| put(&mut out, number::TENSOR_DIMS, *dim));
        out
    }

    fn node(operator: &str, domain: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = message(&[(1, b"x"), (1, b"w"), (2, b"y"), (number::NODE_OPERATOR, operator.as_bytes())]);
        attributes.iter().for_each(|attribute| put_bytes(&mut out, number::NODE_ATTRIBUTE, attribute));
        put_bytes(&mut out, number::NODE_DOMAIN, domain.as_bytes());
        out
    }

    fn with(node: &[u8], weight: &[u8]) -> Vec<u8> {
        let graph = message(&[(number::GRAPH_NODE, node), (2, b"name"), (number::GRAPH_INITIALIZER, weight)]);
        message(&[(2, b"kiln"), (number::MODEL_GRAPH, &graph)])
    }

    fn usual() -> Vec<Vec<u8>> {
        vec![ints("kernel_shape", &[3, 3]), ints("strides", &[1, 1]), ints("pads", &[1, 1, 1, 1])]
    }

    #[test]
    fn a_convolution_of_3x3_is_exchanged_and_the_rest_stays() {
        let weight = tensor("w", 1, &[8, 4, 3, 3]);
        let found = model(&with(&node("Conv", "", &usual()), &weight)).expect("a model");
        let fields = fields(&found).expect("a message");
        let numbers: Vec<u32> = fields.iter().map(|field| field.number).collect();
        assert_eq!(numbers, [2, number::MODEL_GRAPH, number::MODEL_OPSET]);
        let graph = super::fields(fields[1].bytes().expect("a graph")).expect("a message");
        let node = super::fields(graph[0].bytes().expect("a node")).expect("a message");
        let texts: Vec<&str> = node.iter().filter_map(Field::text).collect();
        assert_eq!((&texts[..3], &texts[texts.len() - 2..]), (&["x", "w", "y"][..], &["Conv", DOMAIN][..]));
        assert_eq!((graph[1].text(), graph[2].bytes()), (Some("name"), Some(weight.as_slice())));
        assert_eq!(model(&found), None);
    }

    #[test]
    fn what_kernels_do_not_compute_stays() {
        assert_eq!(model(&[]), None);
        let weight = tensor("w", 1, &[8, 4, 3, 3]);
        let other = |attribute: Vec<u8>| node("Conv", "", &[usual(), vec![attribute]].concat());
        for node in [
            node("Conv", "com.microsoft", &usual()),
            node("Gemm", "", &usual()),
            other(ints("strides", &[2, 2])),
            other(ints("dilations", &[2, 1])),
            other(ints("pads", &[u64::MAX, 0, 0, 0])),
            other(message(&[(number::ATTRIBUTE_NAME, b"group")])),
            other(message(&[(number::ATTRIBUTE_NAME, b"auto_pad")])),
        ] {
            assert_eq!(model(&with(&node, &weight)), None);
        }
        let conv = node("Conv", "", &usual());
        for weight in [
            tensor("w", 10, &[8, 4, 3, 3]),
            tensor("w", 1, &[8, 4, 1, 1]),
            tensor("w", 1, &[8, 4, 3]),
            tensor("v", 1, &[8, 4, 3, 3]),
        ] {
            assert_eq!(model(&with(&conv, &weight)), None);
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_model_stay(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = model(&bytes);
        }

        #[test]
        fn a_model_that_is_cut_is_none(end in 0..200usize) {
            let whole = with(&node("Conv", "", &usual()), &tensor("w", 1, &[8, 4, 3, 3]));
            let cut = &whole[..end.min(whole.len() - 1)];
            prop_assert!(model(cut).is_none());
        }
    }
}
