//! ONNX models with operators of kiln's domain in place of those that its kernels compute.
//!
//! Messages are copied field by field, so that what is not exchanged stays as it is (`onnx/onnx.proto3`).

use std::collections::{HashMap, HashSet};

use super::wire::{Field, fields, put, put_bytes};
use super::{DOMAIN, Stored, conv, linear};

/// Numbers of fields.
mod number {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const MODEL_OPSET: u32 = 8;
    pub(super) const MODEL_METADATA: u32 = 14;
    pub(super) const OPSET_DOMAIN: u32 = 1;
    pub(super) const OPSET_VERSION: u32 = 2;
    pub(super) const ENTRY_KEY: u32 = 1;
    pub(super) const ENTRY_VALUE: u32 = 2;
    pub(super) const GRAPH_NODE: u32 = 1;
    pub(super) const GRAPH_INITIALIZER: u32 = 5;
    pub(super) const GRAPH_OUTPUT: u32 = 12;
    pub(super) const VALUE_NAME: u32 = 1;
    pub(super) const NODE_INPUT: u32 = 1;
    pub(super) const NODE_OUTPUT: u32 = 2;
    pub(super) const NODE_OPERATOR: u32 = 4;
    pub(super) const NODE_ATTRIBUTE: u32 = 5;
    pub(super) const NODE_DOMAIN: u32 = 7;
    pub(super) const ATTRIBUTE_NAME: u32 = 1;
    pub(super) const ATTRIBUTE_INT: u32 = 3;
    pub(super) const ATTRIBUTE_INTS: u32 = 8;
    pub(super) const TENSOR_DIMS: u32 = 1;
    pub(super) const TENSOR_TYPE: u32 = 2;
    pub(super) const TENSOR_NAME: u32 = 8;
}

/// Key of the model's metadata whose value is the type that products' factors are rounded to.
const PRODUCTS_KEY: &str = "kiln.products";

/// Values of `TensorProto.DataType`.
const FLOAT: i64 = 1;
const BFLOAT16: i64 = 16;

/// A weight.
struct Weight<'a> {
    name: &'a str,
    stored: Stored,
    dims: Vec<i64>,
}

/// What is known of a graph.
struct Known<'a> {
    /// Weights by the name under which nodes read them in f32.
    weights: HashMap<&'a str, Weight<'a>>,
    /// Whether products are to be of bf16.
    wants_bf16: bool,
    /// Whether the processor multiplies bf16 faster than f32.
    cpu_has_bf16: bool,
}

/// A node.
struct Node<'a> {
    fields: Vec<Field<'a>>,
}

impl<'a> Node<'a> {
    fn new(bytes: &'a [u8]) -> Option<Node<'a>> {
        Some(Node { fields: fields(bytes)? })
    }

    fn all(&self, number: u32) -> impl Iterator<Item = &Field<'a>> {
        self.fields.iter().filter(move |field| field.number == number)
    }

    /// The operator's name, if it is one of `ai.onnx`.
    fn operator(&self) -> Option<&'a str> {
        let is_standard =
            self.all(number::NODE_DOMAIN).all(|domain| domain.bytes().is_some_and(<[u8]>::is_empty));
        self.all(number::NODE_OPERATOR).next()?.text().filter(|_| is_standard)
    }

    fn input(&self, at: usize) -> Option<&'a str> {
        self.all(number::NODE_INPUT).nth(at)?.text()
    }

    fn output(&self) -> Option<&'a str> {
        self.all(number::NODE_OUTPUT).next()?.text()
    }

    fn has(&self, is_fit: impl Fn(&Attribute<'_>) -> bool) -> bool {
        self.all(number::NODE_ATTRIBUTE)
            .all(|field| field.bytes().and_then(Attribute::new).is_some_and(|attribute| is_fit(&attribute)))
    }
}

/// An attribute of numbers.
struct Attribute<'a> {
    name: &'a str,
    number: Option<i64>,
    numbers: Vec<i64>,
}

impl<'a> Attribute<'a> {
    fn new(bytes: &'a [u8]) -> Option<Attribute<'a>> {
        let fields = fields(bytes)?;
        let all = |number| fields.iter().filter(move |field| field.number == number);
        Some(Attribute {
            name: all(number::ATTRIBUTE_NAME).next()?.text()?,
            number: all(number::ATTRIBUTE_INT).next().and_then(Field::number),
            numbers: all(number::ATTRIBUTE_INTS).map(Field::number).collect::<Option<_>>()?,
        })
    }

    /// Whether it is of a convolution that kernels compute.
    fn fits_conv(&self) -> bool {
        match self.name {
            "kernel_shape" | "strides" | "dilations" => {
                self.numbers.len() == 2 && self.numbers.iter().all(|n| *n > 0)
            }
            "pads" => self.numbers.len() == 4 && self.numbers.iter().all(|n| *n >= 0),
            _ => false,
        }
    }

    /// Whether it is of a convolution that Winograd's algorithm computes.
    fn fits_winograd(&self) -> bool {
        match self.name {
            "kernel_shape" => self.numbers == [3; 2],
            "strides" | "dilations" => self.numbers == [1; 2],
            _ => self.fits_conv(),
        }
    }
}

/// The model with what kernels compute exchanged; none where there is nothing of that kind. `cpu_has_bf16` says that the
/// processor multiplies bf16 faster than f32.
pub(super) fn model(bytes: &[u8], cpu_has_bf16: bool) -> Option<Vec<u8>> {
    let (fields, mut out) = (fields(bytes)?, Vec::with_capacity(bytes.len()));
    fields.iter().find(|field| field.number == number::MODEL_GRAPH)?;
    let wants_bf16 =
        fields.iter().any(|field| field.number == number::MODEL_METADATA && says_bf16(field).is_some());
    for field in fields {
        match field.number {
            number::MODEL_GRAPH => {
                put_bytes(&mut out, number::MODEL_GRAPH, &graph(field.bytes()?, wants_bf16, cpu_has_bf16)?);
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

/// Whether an entry of the metadata asks for products of bf16.
fn says_bf16(entry: &Field<'_>) -> Option<()> {
    let fields = fields(entry.bytes()?)?;
    let text = |number| fields.iter().find(|field| field.number == number)?.text();
    (text(number::ENTRY_KEY)? == PRODUCTS_KEY && text(number::ENTRY_VALUE)? == "bf16").then_some(())
}

fn graph(bytes: &[u8], wants_bf16: bool, cpu_has_bf16: bool) -> Option<Vec<u8>> {
    let fields = fields(bytes)?;
    let nodes: Vec<Option<Node<'_>>> = fields
        .iter()
        .map(|field| field.bytes().filter(|_| field.number == number::GRAPH_NODE).and_then(Node::new))
        .collect();
    let known = Known { weights: weights(&fields, &nodes), wants_bf16, cpu_has_bf16 };
    let exchanged: Vec<Option<Vec<u8>>> =
        nodes.iter().map(|node| node.as_ref().and_then(|node| known.exchanged(node))).collect();
    if exchanged.iter().all(Option::is_none) {
        return None;
    }
    let unread = unread(&fields, &nodes, &exchanged, &known);
    let mut out = Vec::with_capacity(bytes.len());
    for ((field, node), exchanged) in fields.iter().zip(&nodes).zip(exchanged) {
        match exchanged {
            Some(bytes) => put_bytes(&mut out, number::GRAPH_NODE, &bytes),
            None if node.as_ref().and_then(Node::output).is_some_and(|name| unread.contains(name)) => {}
            None => out.extend_from_slice(field.raw),
        }
    }
    Some(out)
}

/// Weights in f32, and those in bf16 under the name of what makes them f32.
fn weights<'a>(fields: &[Field<'a>], nodes: &[Option<Node<'a>>]) -> HashMap<&'a str, Weight<'a>> {
    let tensors = fields.iter().filter(|field| field.number == number::GRAPH_INITIALIZER);
    let (mut found, mut rounded) = (HashMap::new(), HashMap::new());
    for weight in tensors.filter_map(|field| weight(field.bytes()?)) {
        match weight.stored {
            Stored::F32 => found.insert(weight.name, weight),
            Stored::Bf16 => rounded.insert(weight.name, weight),
        };
    }
    let casts = nodes.iter().flatten().filter(|node| {
        node.operator() == Some("Cast") && node.has(|cast| cast.name != "to" || cast.number == Some(FLOAT))
    });
    for cast in casts {
        if let (Some(name), Some(weight)) = (cast.output(), cast.input(0).and_then(|name| rounded.get(name))) {
            found.insert(name, Weight { name: weight.name, stored: weight.stored, dims: weight.dims.clone() });
        }
    }
    found
}

fn weight(tensor: &[u8]) -> Option<Weight<'_>> {
    let fields = fields(tensor)?;
    let first = |number| fields.iter().find(move |field| field.number == number);
    let dims = fields.iter().filter(|field| field.number == number::TENSOR_DIMS);
    let stored = match first(number::TENSOR_TYPE)?.number()? {
        FLOAT => Stored::F32,
        BFLOAT16 => Stored::Bf16,
        _ => return None,
    };
    let dims = dims.map(Field::number).collect::<Option<_>>()?;
    Some(Weight { name: first(number::TENSOR_NAME)?.text()?, stored, dims })
}

/// Weights in f32 that no node makes use of any more, because those that did read them in bf16.
fn unread<'a>(
    fields: &[Field<'a>],
    nodes: &[Option<Node<'a>>],
    exchanged: &[Option<Vec<u8>>],
    known: &Known<'a>,
) -> HashSet<&'a str> {
    let is_bf16 = |(_, weight): &(&&str, &Weight<'_>)| weight.stored == Stored::Bf16;
    let mut unread: HashSet<&str> = known.weights.iter().filter(is_bf16).map(|(name, _)| *name).collect();
    for (node, exchanged) in nodes.iter().zip(exchanged) {
        let inputs = node.iter().flat_map(|node| node.all(number::NODE_INPUT).filter_map(Field::text));
        // Of an exchanged node, all but its weight, which is the second.
        let read = inputs.enumerate().filter(|(at, _)| exchanged.is_none() || *at != 1);
        read.for_each(|(_, name)| {
            unread.remove(name);
        });
    }
    for output in fields.iter().filter(|field| field.number == number::GRAPH_OUTPUT) {
        let parts = output.bytes().and_then(super::wire::fields).unwrap_or_default();
        if let Some(name) = parts.iter().find(|part| part.number == number::VALUE_NAME).and_then(Field::text) {
            unread.remove(name);
        }
    }
    unread
}

impl Known<'_> {
    /// The node as one of kiln's, where a kernel computes it.
    fn exchanged(&self, node: &Node<'_>) -> Option<Vec<u8>> {
        let operator = node.operator()?;
        let weight = self.weights.get(node.input(1)?)?;
        let is_bf16_weight = weight.stored == Stored::Bf16;
        if is_bf16_weight && !self.wants_bf16 {
            return None;
        }
        let name = match (operator, weight.dims.as_slice()) {
            ("Conv", [_, _, 3, 3]) if node.has(|attribute| attribute.fits_winograd()) => {
                conv::Conv::name_of(weight.stored)
            }
            ("Conv", [_, _, _, _])
                if is_bf16_weight && self.cpu_has_bf16 && node.has(|attribute| attribute.fits_conv()) =>
            {
                conv::Conv::name_of(weight.stored)
            }
            ("Gemm", [n, _]) if is_bf16_weight && self.cpu_has_bf16 && self.is_linear(node, *n) => {
                linear::Linear::NAME
            }
            _ => return None,
        };
        let mut out = Vec::new();
        let mut n_inputs = 0;
        for field in &node.fields {
            match field.number {
                number::NODE_OPERATOR | number::NODE_DOMAIN | number::NODE_ATTRIBUTE
                    if name == linear::Linear::NAME || field.number != number::NODE_ATTRIBUTE => {}
                number::NODE_INPUT => {
                    let is_weight = n_inputs == 1;
                    n_inputs += 1;
                    match is_weight {
                        true => put_bytes(&mut out, number::NODE_INPUT, weight.name.as_bytes()),
                        false => out.extend_from_slice(field.raw),
                    }
                }
                _ => out.extend_from_slice(field.raw),
            }
        }
        put_bytes(&mut out, number::NODE_OPERATOR, name.as_bytes());
        put_bytes(&mut out, number::NODE_DOMAIN, DOMAIN.as_bytes());
        Some(out)
    }

    /// Whether a `Gemm` is a linear layer of `n` features, as checkpoints store its weights.
    fn is_linear(&self, gemm: &Node<'_>, n: i64) -> bool {
        let is_transposed = gemm.all(number::NODE_ATTRIBUTE).count() == 1
            && gemm.has(|attribute| attribute.name == "transB" && attribute.number == Some(1));
        let has_bias = |name: &str| self.weights.get(name).is_some_and(|bias| bias.dims == [n]);
        is_transposed && gemm.input(2).is_none_or(|name| name.is_empty() || has_bias(name))
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
        let found = model(&with(&node("Conv", "", &usual()), &weight), true).expect("a model");
        let fields = fields(&found).expect("a message");
        let numbers: Vec<u32> = fields.iter().map(|field| field.number).collect();
        assert_eq!(numbers, [2, number::MODEL_GRAPH, number::MODEL_OPSET]);
        let graph = super::fields(fields[1].bytes().expect("a graph")).expect("a message");
        let node = super::fields(graph[0].bytes().expect("a node")).expect("a message");
        let texts: Vec<&str> = node.iter().filter_map(Field::text).collect();
        assert_eq!((&texts[..3], &texts[texts.len() - 2..]), (&["x", "w", "y"][..], &["Conv", DOMAIN][..]));
        assert_eq!((graph[1].text(), graph[2].bytes()), (Some("name"), Some(weight.as_slice())));
        assert_eq!(model(&found, true), None);
    }

    /// A model that asks for products of bf16, with a layer whose weights are `w`, and what else reads `v` if need be.
    fn of_bf16(layer: &[u8], others: &[Vec<u8>], dims: &[u64]) -> Vec<u8> {
        let mut cast = message(&[(1, b"w"), (2, b"v"), (number::NODE_OPERATOR, b"Cast")]);
        let mut to = message(&[(number::ATTRIBUTE_NAME, b"to")]);
        put(&mut to, number::ATTRIBUTE_INT, 1);
        put_bytes(&mut cast, number::NODE_ATTRIBUTE, &to);
        let mut graph = message(&[(number::GRAPH_NODE, &cast), (number::GRAPH_NODE, layer)]);
        others.iter().for_each(|node| put_bytes(&mut graph, number::GRAPH_NODE, node));
        put_bytes(&mut graph, number::GRAPH_INITIALIZER, &tensor("w", 16, dims));
        put_bytes(&mut graph, number::GRAPH_INITIALIZER, &tensor("b", 1, &dims[..1]));
        let entry = message(&[(number::ENTRY_KEY, PRODUCTS_KEY.as_bytes()), (number::ENTRY_VALUE, b"bf16")]);
        message(&[(number::MODEL_GRAPH, &graph), (number::MODEL_METADATA, &entry)])
    }

    fn gemm(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = message(&[(1, b"x"), (1, b"v"), (1, b"b"), (2, b"y"), (number::NODE_OPERATOR, b"Gemm")]);
        attributes.iter().for_each(|attribute| put_bytes(&mut out, number::NODE_ATTRIBUTE, attribute));
        out
    }

    fn trans_b(value: u64) -> Vec<u8> {
        let mut out = message(&[(number::ATTRIBUTE_NAME, b"transB")]);
        put(&mut out, number::ATTRIBUTE_INT, value);
        out
    }

    /// Texts of the nodes of a model.
    fn nodes(model: &[u8]) -> Vec<Vec<String>> {
        let fields = fields(model).expect("a message");
        let graph = fields.iter().find(|field| field.number == number::MODEL_GRAPH).expect("a graph");
        let parts = super::fields(graph.bytes().expect("bytes")).expect("a message");
        let nodes = parts.iter().filter(|part| part.number == number::GRAPH_NODE);
        let texts = |node: &Field<'_>| {
            let fields = super::fields(node.bytes().expect("bytes")).expect("a message");
            let kept = fields.iter().filter(|field| field.number != number::NODE_ATTRIBUTE);
            kept.filter_map(|field| field.text().map(str::to_owned)).collect()
        };
        nodes.map(texts).collect()
    }

    #[test]
    fn layers_with_weights_in_bf16_read_them_as_they_lie() {
        let linear = of_bf16(&gemm(&[trans_b(1)]), &[], &[8, 4]);
        let found = model(&linear, true).expect("a model");
        assert_eq!(nodes(&found), [["x", "w", "b", "y", linear::Linear::NAME, DOMAIN]]);
        let mut strided = message(&[(1, b"x"), (1, b"v"), (2, b"y"), (number::NODE_OPERATOR, b"Conv")]);
        put_bytes(&mut strided, number::NODE_ATTRIBUTE, &ints("strides", &[2, 2]));
        let found = model(&of_bf16(&strided, &[], &[8, 4, 3, 3]), true).expect("a model");
        assert_eq!(nodes(&found), [["x", "w", "y", conv::Conv::name_of(Stored::Bf16), DOMAIN]]);
    }

    #[test]
    fn weights_that_others_read_in_f32_are_made_f32_for_them() {
        let other = message(&[(1, b"v"), (2, b"z"), (number::NODE_OPERATOR, b"Identity")]);
        let found = model(&of_bf16(&gemm(&[trans_b(1)]), &[other], &[8, 4]), true).expect("a model");
        assert_eq!(nodes(&found).len(), 3, "{:?}", nodes(&found));
    }

    #[test]
    fn products_stay_of_f32_where_the_model_or_the_processor_wants_it() {
        let whole = of_bf16(&gemm(&[trans_b(1)]), &[], &[8, 4]);
        assert_eq!(model(&whole, false), None, "the processor has no bf16");
        let unsaid = &whole[..whole.len() - 2 - PRODUCTS_KEY.len() - 2 - 6];
        assert_eq!(model(unsaid, true), None, "the model does not ask");
        for attributes in [vec![], vec![trans_b(0)], vec![trans_b(1), ints("alpha", &[2])]] {
            assert_eq!(model(&of_bf16(&gemm(&attributes), &[], &[8, 4]), true), None);
        }
    }

    #[test]
    fn what_kernels_do_not_compute_stays() {
        assert_eq!(model(&[], true), None);
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
            assert_eq!(model(&with(&node, &weight), true), None);
        }
        let conv = node("Conv", "", &usual());
        for weight in [
            tensor("w", 10, &[8, 4, 3, 3]),
            tensor("w", 1, &[8, 4, 1, 1]),
            tensor("w", 1, &[8, 4, 3]),
            tensor("v", 1, &[8, 4, 3, 3]),
        ] {
            assert_eq!(model(&with(&conv, &weight), true), None);
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_model_stay(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = model(&bytes, true);
        }

        #[test]
        fn a_model_that_is_cut_is_none(end in 0..200usize) {
            let whole = with(&node("Conv", "", &usual()), &tensor("w", 1, &[8, 4, 3, 3]));
            let cut = &whole[..end.min(whole.len() - 1)];
            prop_assert!(model(cut, true).is_none());
        }
    }
}
