use proptest::prelude::*;

use super::super::linear::Form;
use super::super::{Stored, conv};
use super::*;

const ALL: Gains = Gains { bf16: true, int8: true, linear_f32: false };

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
    let found = model(&with(&node("Conv", "", &usual()), &weight), ALL).expect("a model");
    let fields = fields(&found).expect("a message");
    let numbers: Vec<u32> = fields.iter().map(|field| field.number).collect();
    assert_eq!(numbers, [2, number::MODEL_GRAPH, number::MODEL_OPSET]);
    let graph = super::fields(fields[1].bytes().expect("a graph")).expect("a message");
    let node = super::fields(graph[0].bytes().expect("a node")).expect("a message");
    let texts: Vec<&str> = node.iter().filter_map(Field::text).collect();
    assert_eq!((&texts[..3], &texts[texts.len() - 2..]), (&["x", "w", "y"][..], &["Conv", DOMAIN][..]));
    assert_eq!((graph[1].text(), graph[2].bytes()), (Some("name"), Some(weight.as_slice())));
    assert_eq!(model(&found, ALL), None);
}

/// A model that asks for products of bf16, with a layer whose weights are `w`, and what else reads `v` if need be.
fn of_bf16(layer: &[u8], others: &[Vec<u8>], dims: &[u64]) -> Vec<u8> {
    of_products("bf16", layer, others, dims)
}

fn of_products(products: &str, layer: &[u8], others: &[Vec<u8>], dims: &[u64]) -> Vec<u8> {
    let mut cast = message(&[(1, b"w"), (2, b"v"), (number::NODE_OPERATOR, b"Cast")]);
    let mut to = message(&[(number::ATTRIBUTE_NAME, b"to")]);
    put(&mut to, number::ATTRIBUTE_INT, 1);
    put_bytes(&mut cast, number::NODE_ATTRIBUTE, &to);
    let mut graph = message(&[(number::GRAPH_NODE, &cast), (number::GRAPH_NODE, layer)]);
    others.iter().for_each(|node| put_bytes(&mut graph, number::GRAPH_NODE, node));
    put_bytes(&mut graph, number::GRAPH_INITIALIZER, &tensor("w", 16, dims));
    put_bytes(&mut graph, number::GRAPH_INITIALIZER, &tensor("b", 1, &dims[..1]));
    let entry =
        message(&[(number::ENTRY_KEY, PRODUCTS_KEY.as_bytes()), (number::ENTRY_VALUE, products.as_bytes())]);
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
    let found = model(&linear, ALL).expect("a model");
    assert_eq!(nodes(&found), [["x", "w", "b", "y", Form::Bf16.name(), DOMAIN]]);
    let mut strided = message(&[(1, b"x"), (1, b"v"), (2, b"y"), (number::NODE_OPERATOR, b"Conv")]);
    put_bytes(&mut strided, number::NODE_ATTRIBUTE, &ints("strides", &[2, 2]));
    let found = model(&of_bf16(&strided, &[], &[8, 4, 3, 3]), ALL).expect("a model");
    assert_eq!(nodes(&found), [["x", "w", "y", conv::Conv::name_of(Stored::Bf16), DOMAIN]]);
}

#[test]
fn layers_of_int8_are_those_over_positions() {
    let rows = message(&[(1, b"in"), (1, b"s"), (2, b"x"), (number::NODE_OPERATOR, b"Reshape")]);
    let exchanged = |others: &[Vec<u8>], gains| {
        let found = model(&of_products("int8", &gemm(&[trans_b(1)]), others, &[8, 4]), gains).expect("a model");
        nodes(&found).into_iter().find(|node| node.contains(&"w".into())).expect("a layer")[4].clone()
    };
    assert_eq!(exchanged(std::slice::from_ref(&rows), ALL), Form::Int8.name());
    assert_eq!(exchanged(&[], ALL), Form::Bf16.name(), "a layer of each image");
    assert_eq!(
        exchanged(&[rows], Gains { int8: false, ..ALL }),
        Form::Bf16.name(),
        "the processor has no int8"
    );
}

#[test]
fn weights_that_others_read_in_f32_are_made_f32_for_them() {
    let other = message(&[(1, b"v"), (2, b"z"), (number::NODE_OPERATOR, b"Identity")]);
    let found = model(&of_bf16(&gemm(&[trans_b(1)]), &[other], &[8, 4]), ALL).expect("a model");
    assert_eq!(nodes(&found).len(), 3, "{:?}", nodes(&found));
}

#[test]
fn products_stay_of_f32_where_the_model_or_the_processor_wants_it() {
    let whole = of_bf16(&gemm(&[trans_b(1)]), &[], &[8, 4]);
    assert_eq!(model(&whole, Gains { bf16: false, ..ALL }), None, "the processor has no bf16");
    let unsaid = &whole[..whole.len() - 2 - PRODUCTS_KEY.len() - 2 - 6];
    assert_eq!(model(unsaid, ALL), None, "the model does not ask");
    for attributes in [vec![], vec![trans_b(0)], vec![trans_b(1), ints("alpha", &[2])]] {
        assert_eq!(model(&of_bf16(&gemm(&attributes), &[], &[8, 4]), ALL), None);
    }
}

#[test]
fn what_kernels_do_not_compute_stays() {
    assert_eq!(model(&[], ALL), None);
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
        assert_eq!(model(&with(&node, &weight), ALL), None);
    }
    let conv = node("Conv", "", &usual());
    for weight in [
        tensor("w", 10, &[8, 4, 3, 3]),
        tensor("w", 1, &[8, 4, 1, 1]),
        tensor("w", 1, &[8, 4, 3]),
        tensor("v", 1, &[8, 4, 3, 3]),
    ] {
        assert_eq!(model(&with(&conv, &weight), ALL), None);
    }
}

proptest! {
    #[test]
    fn bytes_that_are_no_model_stay(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = model(&bytes, ALL);
    }

    #[test]
    fn a_model_that_is_cut_is_none(end in 0..200usize) {
        let whole = with(&node("Conv", "", &usual()), &tensor("w", 1, &[8, 4, 3, 3]));
        let cut = &whole[..end.min(whole.len() - 1)];
        prop_assert!(model(cut, ALL).is_none());
    }
}

/// A node of any inputs and outputs.
fn wired(operator: &str, domain: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    inputs.iter().for_each(|name| put_bytes(&mut out, number::NODE_INPUT, name.as_bytes()));
    outputs.iter().for_each(|name| put_bytes(&mut out, number::NODE_OUTPUT, name.as_bytes()));
    put_bytes(&mut out, number::NODE_OPERATOR, operator.as_bytes());
    attributes.iter().for_each(|attribute| put_bytes(&mut out, number::NODE_ATTRIBUTE, attribute));
    put_bytes(&mut out, number::NODE_DOMAIN, domain.as_bytes());
    out
}

fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let mut out = tensor(name, 7, &[values.len() as u64]);
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    put_bytes(&mut out, number::TENSOR_RAW, &raw);
    out
}

fn floats(name: &str, values: &[f32]) -> Vec<u8> {
    let mut out = tensor(name, 1, &[values.len() as u64]);
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    put_bytes(&mut out, number::TENSOR_RAW, &raw);
    out
}

fn float(name: &str, value: f32) -> Vec<u8> {
    let mut out = message(&[(number::ATTRIBUTE_NAME, name.as_bytes())]);
    out.push(number::ATTRIBUTE_FLOAT as u8 * 8 + 5);
    out.extend(value.to_le_bytes());
    out
}

fn text(name: &str, value: &str) -> Vec<u8> {
    message(&[(number::ATTRIBUTE_NAME, name.as_bytes()), (number::ATTRIBUTE_TEXT, value.as_bytes())])
}

fn int(name: &str, value: u64) -> Vec<u8> {
    let mut out = message(&[(number::ATTRIBUTE_NAME, name.as_bytes())]);
    put(&mut out, number::ATTRIBUTE_INT, value);
    out
}

/// A model of nodes and tensors whose output is `out`.
fn of(nodes: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut graph = Vec::new();
    nodes.iter().for_each(|node| put_bytes(&mut graph, number::GRAPH_NODE, node));
    tensors.iter().for_each(|tensor| put_bytes(&mut graph, number::GRAPH_INITIALIZER, tensor));
    put_bytes(&mut graph, number::GRAPH_OUTPUT, &message(&[(number::VALUE_NAME, b"out")]));
    message(&[(number::MODEL_GRAPH, &graph)])
}

const MAPPED: Gains = Gains { bf16: true, int8: true, linear_f32: true };

/// Nodes of the model as kernels compute it.
fn exchanged(model: &[u8]) -> Vec<Vec<String>> {
    nodes(&super::model(model, MAPPED).unwrap_or_else(|| model.to_vec()))
}

/// A group normalisation of `x`, with a SiLU.
fn normalised(ones: f32, groups: i64) -> Vec<u8> {
    let nodes = [
        wired("Reshape", "", &["x", "groups"], &["a"], &[]),
        wired("InstanceNormalization", "", &["a", "ones", "zeros"], &["b"], &[float("epsilon", 1e-5)]),
        wired("Shape", "", &["x"], &["sizes"], &[]),
        wired("Reshape", "", &["b", "sizes"], &["c"], &[]),
        wired("Mul", "", &["c", "scale"], &["d"], &[]),
        wired("Add", "", &["d", "shift"], &["e"], &[]),
        wired("QuickGelu", "com.microsoft", &["e"], &["out"], &[float("alpha", 1.0)]),
    ];
    let tensors = [
        integers("groups", &[0, groups, -1]),
        floats("ones", &[ones, 1.0]),
        floats("zeros", &[0.0; 2]),
        tensor("scale", 1, &[8, 1, 1]),
        tensor("shift", 1, &[8, 1, 1]),
    ];
    of(&nodes, &tensors)
}

#[test]
fn a_group_norm_with_silu_is_one_operator() {
    assert_eq!(exchanged(&normalised(1.0, 2)), [["x", "scale", "shift", "out", "GroupNorm", DOMAIN]]);
    // Others are no group norms.
    for model in [normalised(2.0, 2), normalised(1.0, 3), normalised(1.0, -1)] {
        assert_eq!(exchanged(&model).len(), 7);
    }
}

/// A convolution of what is upsampled, and perhaps another reader of that.
fn upsampled(nearest: &str, scales: &[f32], other: Option<Vec<u8>>) -> Vec<u8> {
    let attributes = [
        text("mode", "nearest"),
        text("coordinate_transformation_mode", "asymmetric"),
        text("nearest_mode", nearest),
    ];
    let mut nodes = vec![
        wired("Resize", "", &["x", "", "scales"], &["a"], &attributes),
        wired("Conv", "", &["a", "w", "b"], &["out"], &usual()),
    ];
    nodes.extend(other);
    of(&nodes, &[floats("scales", scales), tensor("w", 1, &[8, 8, 3, 3]), tensor("b", 1, &[8])])
}

#[test]
fn a_convolution_of_what_is_upsampled_to_twice_the_size_is_one_operator() {
    assert_eq!(
        exchanged(&upsampled("floor", &[1.0, 1.0, 2.0, 2.0], None)),
        [["x", "w", "b", "out", "Conv", DOMAIN]]
    );
    let other = wired("Identity", "", &["a"], &["out"], &[]);
    for (nearest, scales, other) in [
        ("ceil", [1.0, 1.0, 2.0, 2.0], None),
        ("floor", [1.0, 1.0, 3.0, 2.0], None),
        ("floor", [1.0, 1.0, 2.0, 2.0], Some(other)),
    ] {
        let found = exchanged(&upsampled(nearest, &scales, other));
        assert!(found.iter().any(|node| node.contains(&"Resize".to_owned())), "{found:?}");
    }
}

/// A layer with gates, from `half` on, whose output is rows of `width`.
fn gated(half: i64, width: i64, axis: i64, other: Option<Vec<u8>>) -> Vec<u8> {
    let mut nodes = vec![
        wired("Gemm", "", &["x", "w", "b"], &["a"], &[trans_b(1)]),
        wired("Reshape", "", &["a", "sizes"], &["c"], &[]),
        wired("Slice", "", &["c", "zero", "half", "axis"], &["d"], &[]),
        wired("Slice", "", &["c", "half", "all", "axis"], &["e"], &[]),
        wired("Gelu", "com.microsoft", &["e"], &["f"], &[]),
        wired("Mul", "", &["d", "f"], &["g"], &[]),
        wired("Reshape", "", &["g", "rows"], &["out"], &[]),
    ];
    nodes.extend(other);
    let tensors = [
        tensor("w", 1, &[8, 4]),
        tensor("b", 1, &[8]),
        integers("sizes", &[0, -1, 8]),
        integers("zero", &[0]),
        integers("half", &[half]),
        integers("all", &[8]),
        integers("axis", &[axis]),
        integers("rows", &[-1, width]),
    ];
    of(&nodes, &tensors)
}

#[test]
fn a_layer_with_gates_is_one_operator() {
    assert_eq!(exchanged(&gated(4, 4, 2, None)), [["x", "w", "b", "out", "Linear", DOMAIN]]);
    let other = wired("Identity", "", &["c"], &["h"], &[]);
    for model in [gated(3, 4, 2, None), gated(4, 8, 2, None), gated(4, 4, 1, None), gated(4, 4, 2, Some(other))]
    {
        assert!(exchanged(&model).len() >= 7);
    }
}

#[test]
fn what_a_product_is_added_to_is_its_residual() {
    let conv = |x: &str, y: &str| wired("Conv", "", &[x, "w", "b"], &[y], &usual());
    let tensors = [tensor("w", 1, &[8, 8, 3, 3]), tensor("b", 1, &[8])];
    let block = [conv("x", "a"), conv("a", "c"), wired("Add", "", &["a", "c"], &["out"], &[])];
    assert_eq!(
        exchanged(&of(&block, &tensors)),
        [vec!["x", "w", "b", "a", "Conv", DOMAIN], vec!["a", "w", "b", "a", "out", "Conv", DOMAIN]]
    );
    // A number a channel is no residual, and what others read is no sum's alone.
    let of_channels = wired("Reshape", "", &["y", "sizes"], &["c"], &[]);
    let broadcast = [of_channels, conv("x", "a"), wired("Add", "", &["a", "c"], &["out"], &[])];
    assert_eq!(exchanged(&of(&broadcast, &tensors)).len(), 3);
    let read = wired("Identity", "", &["c"], &["d"], &[]);
    let shared = [conv("x", "a"), conv("a", "c"), read, wired("Add", "", &["a", "c"], &["out"], &[])];
    assert_eq!(exchanged(&of(&shared, &tensors)).len(), 4);

    let layer = [
        wired("Gemm", "", &["x", "w", "b"], &["a"], &[trans_b(1)]),
        wired("Reshape", "", &["a", "sizes"], &["c"], &[]),
        wired("Add", "", &["c", "y"], &["out"], &[]),
    ];
    let tensors = [tensor("w", 1, &[8, 4]), tensor("b", 1, &[8]), integers("sizes", &[0, -1, 8])];
    assert_eq!(
        exchanged(&of(&layer, &tensors)),
        [vec!["x", "w", "b", "y", "a", "Linear", DOMAIN], vec!["a", "sizes", "out", "Reshape", ""]]
    );
}

#[test]
fn attention_is_exchanged_unless_it_has_more_than_kernels_know() {
    let attributes = [int("num_heads", 2), float("scale", 0.5)];
    let attention = |inputs: &[&str], attributes: &[Vec<u8>]| {
        let node = wired("MultiHeadAttention", "com.microsoft", inputs, &["out"], attributes);
        exchanged(&of(&[node], &[]))[0][inputs.len() + 1].clone()
    };
    assert_eq!(attention(&["q", "k", "v"], &attributes), "Attention");
    let causal = [attributes.as_slice(), &[int("unidirectional", 1)]].concat();
    assert_eq!(attention(&["q", "k", "v"], &causal), "Attention");
    for (inputs, attributes) in [
        (&["q", "k", "v", "bias"][..], attributes.to_vec()),
        (&["q", "k", "v"], attributes[..1].to_vec()),
        (&["q", "k", "v"], [attributes.as_slice(), &[float("mask_filter_value", 0.0)]].concat()),
    ] {
        assert_eq!(attention(inputs, &attributes), "MultiHeadAttention");
    }
}

#[test]
fn attention_of_models_of_bf16_is_of_bf16_unless_they_say_otherwise() {
    let inputs = ["q", "k", "v"];
    let attributes = [int("num_heads", 2), float("scale", 0.5)];
    let node = wired("MultiHeadAttention", "com.microsoft", &inputs, &["out"], &attributes);
    let entry = |key: &str, value: &str| {
        let entry = message(&[(number::ENTRY_KEY, key.as_bytes()), (number::ENTRY_VALUE, value.as_bytes())]);
        message(&[(number::MODEL_METADATA, &entry)])
    };
    let bf16 = [of(&[node], &[]), entry(PRODUCTS_KEY, "bf16")].concat();
    assert_eq!(exchanged(&bf16)[0][4], "AttentionBf16");
    assert_eq!(exchanged(&[bf16, entry(SCORES_KEY, "f32")].concat())[0][4], "Attention");
}
