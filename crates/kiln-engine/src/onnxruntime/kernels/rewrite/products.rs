//! Convolutions, linear layers and attention, each an operator of kiln's.

use kiln_kernels::Factors;

use super::super::linear::Form;
use super::super::{Stored, attention, conv};
use super::Wanted;
use super::graph::{Attribute, Graph, Links, Node, Weight};

impl Attribute<'_> {
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

/// Exchanges what kernels compute faster than ONNX Runtime.
pub(super) fn exchange(graph: &mut Graph<'_>, wanted: Wanted) {
    let links = Links::new(graph);
    for at in graph.places() {
        let Some(node) = graph.node(at) else { continue };
        if is_attention(node) {
            let factors = if wanted.multiplies_scores_in_bf16() { Stored::Bf16 } else { Stored::F32 };
            if let Some(node) = &mut graph.nodes[at] {
                node.become_kilns(attention::Attention::name_of(factors));
            }
            continue;
        }
        let Some(weight) = node.input(1).and_then(|name| graph.weight(name, &links)) else { continue };
        let name = match node {
            _ if weight.stored == Stored::Bf16 && !wanted.bf16 => continue,
            _ if node.is("Conv") && is_conv(node, weight, wanted) => conv::Conv::name_of(weight.stored),
            _ if node.is("Gemm") => match linear(graph, &links, node, weight, wanted) {
                Some(form) => form.name(),
                None => continue,
            },
            _ => continue,
        };
        let weight = weight.tensor.name;
        if let Some(node) = &mut graph.nodes[at] {
            if node.is("Gemm") {
                node.attributes.clear();
            }
            node.inputs[1] = weight;
            node.become_kilns(name);
        }
    }
}

/// Whether it is attention of query, key and value alone, with a scale.
fn is_attention(node: &Node<'_>) -> bool {
    let is_known = |attribute: &Attribute<'_>| match attribute.name {
        "num_heads" | "unidirectional" => attribute.number.is_some(),
        name => name == "scale" && attribute.float.is_some(),
    };
    node.is_of("com.microsoft", "MultiHeadAttention")
        && node.inputs.len() == 3
        && (0..3).all(|at| node.input(at).is_some())
        && node.attributes.iter().all(is_known)
        && ["num_heads", "scale"].iter().all(|name| node.attribute(name).is_some())
}

fn is_conv(node: &Node<'_>, weight: Weight<'_, '_>, wanted: Wanted) -> bool {
    let &[_, _, height, width] = weight.tensor.dims.as_slice() else { return false };
    let is_winograds = [height, width] == [3; 2] && node.attributes.iter().all(Attribute::fits_winograd);
    let is_faster = weight.stored == Stored::Bf16 && wanted.gains.bf16;
    is_winograds || (is_faster && node.attributes.iter().all(Attribute::fits_conv))
}

/// The form of a `Gemm` that is a linear layer, as checkpoints store its weights, where kernels are faster.
fn linear(
    graph: &Graph<'_>,
    links: &Links<'_>,
    gemm: &Node<'_>,
    weight: Weight<'_, '_>,
    wanted: Wanted,
) -> Option<Form> {
    let &[n, k] = weight.tensor.dims.as_slice() else { return None };
    let has_bias = |name: &str| graph.tensor(name).is_some_and(|bias| bias.dims == [n]);
    // A row for each position. Layers of a row for each image, as of timesteps, have too few rows to gain from it.
    let has_positions = || gemm.input(0).is_some_and(|x| links.made_by(graph, x, "Reshape").is_some());
    let fits_int8 = || usize::try_from(k).is_ok_and(|k| k <= Factors::MAX_INT8_FEATURES) && has_positions();
    let form = match weight.stored {
        Stored::Bf16 if wanted.int8 && wanted.gains.int8 && fits_int8() => Form::Int8,
        Stored::Bf16 if wanted.gains.bf16 => Form::Bf16,
        Stored::F32 if wanted.gains.linear_f32 => Form::F32,
        _ => return None,
    };
    let is_layer = gemm.attributes.len() == 1
        && gemm.attribute("transB").is_some_and(|attribute| attribute.number == Some(1))
        && gemm.input(2).is_none_or(has_bias);
    is_layer.then_some(form)
}
