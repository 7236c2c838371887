//! Several nodes that are one operator of kiln's.

use super::super::{DOMAIN, Stored, conv, linear, norm};
use super::graph::{Attribute, Graph, Links, Node};

/// Makes one operator of group normalisations, gated layers, convolutions of what is upsampled, and sums of a product and
/// something else.
pub(super) fn fuse(graph: &mut Graph<'_>) {
    replace(graph, group_norm);
    replace(graph, upsampled);
    replace(graph, gated);
    add(graph);
}

/// Puts what is found in the place of the last node that it stands for; the others are read by nobody then.
fn replace<'a>(
    graph: &mut Graph<'a>,
    find: impl Fn(&Graph<'a>, &Links<'a>, usize) -> Option<(usize, Node<'a>)>,
) {
    let links = Links::new(graph);
    for at in graph.places() {
        if let Some((last, node)) = find(graph, &links, at) {
            graph.nodes[last] = Some(node);
        }
    }
}

/// `Reshape`, `InstanceNormalization`, `Reshape`, `Mul`, `Add`, and perhaps a SiLU.
fn group_norm<'a>(graph: &Graph<'a>, links: &Links<'a>, at: usize) -> Option<(usize, Node<'a>)> {
    let middle = graph.node(at).filter(|node| node.is("InstanceNormalization"))?;
    let are = |name: &str, x: f32| graph.floats(name).is_some_and(|all| all.iter().all(|y| *y == x));
    if !are(middle.input(1)?, 1.0) || !are(middle.input(2)?, 0.0) {
        return None;
    }
    let split = links.made_by(graph, middle.input(0)?, "Reshape")?;
    let [0, groups, -1] = graph.integers(split.input(1)?)?[..] else { return None };
    let joined = links.followed_by(graph, at, "Reshape")?;
    let scaled = links.followed_by(graph, joined, "Mul")?;
    let shifted = links.followed_by(graph, scaled, "Add")?;
    let of_channels = |at: usize| {
        let mut inputs = graph.node(at)?.inputs.iter().filter_map(|name| graph.tensor(name));
        inputs.find(|tensor| matches!(tensor.dims[..], [n, 1, 1] if n % groups == 0)).map(|tensor| tensor.name)
    };
    let inputs = vec![split.input(0)?, of_channels(scaled)?, of_channels(shifted)?];
    let is_silu = |at: &usize| {
        let node = graph.node(*at).filter(|node| node.is_of("com.microsoft", "QuickGelu"));
        node.is_some_and(|node| node.attribute("alpha").is_some_and(|alpha| alpha.float == Some(1.0)))
    };
    let silu = links.only_reader(graph, shifted).filter(is_silu);
    let last = silu.unwrap_or(shifted);
    let attributes = vec![
        Attribute::new(norm::GROUPS, u64::try_from(groups).ok()?),
        Attribute::new(norm::SILU, silu.is_some().into()),
        middle.attribute(norm::EPSILON)?.clone(),
    ];
    Some((last, Node::new(norm::GroupNorm::NAME, inputs, graph.node(last)?.output()?, attributes)))
}

/// `Resize` to twice the height and width, by the nearest pixel, and a convolution.
fn upsampled<'a>(graph: &Graph<'a>, links: &Links<'a>, at: usize) -> Option<(usize, Node<'a>)> {
    let node = graph.node(at).filter(|node| node.is("Resize") && node.inputs.len() == 3)?;
    let is_nearest = |attribute: &Attribute<'_>| {
        let expected = match attribute.name {
            "mode" => "nearest",
            "coordinate_transformation_mode" => "asymmetric",
            "nearest_mode" => "floor",
            _ => return false,
        };
        attribute.text == Some(expected)
    };
    let is_doubling = node.input(1).is_none()
        && graph.floats(node.input(2)?)? == [1.0, 1.0, 2.0, 2.0]
        && node.attributes.len() == 3
        && node.attributes.iter().all(is_nearest);
    let reader = links.only_reader(graph, at)?;
    let conv = graph.node(reader).filter(|reader| is_conv(reader) && reader.input(0) == node.output())?;
    let mut conv = conv.clone();
    conv.inputs[0] = node.input(0)?;
    conv.attributes.push(Attribute::new(conv::UPSAMPLING, 2));
    is_doubling.then_some((reader, conv))
}

/// A linear layer, two halves of it, the GELU of the second, and their product as rows of a matrix.
fn gated<'a>(graph: &Graph<'a>, links: &Links<'a>, at: usize) -> Option<(usize, Node<'a>)> {
    let gelu = graph.node(at)?;
    let is_gelu = gelu.is_of("com.microsoft", "Gelu") || (gelu.is("Gelu") && gelu.attributes.is_empty());
    if !is_gelu {
        return None;
    }
    let product = links.followed_by(graph, at, "Mul")?;
    let value = graph.node(product)?.inputs.iter().find(|name| Some(**name) != gelu.output())?;
    let slice = |name: &str| links.made_by(graph, name, "Slice");
    let (values, gates) = (slice(value)?, slice(gelu.input(0)?)?);
    let both = values.input(0)?;
    let reshape = links.made_by(graph, both, "Reshape").filter(|node| is_of_rows(graph, links, node))?;
    let of_layer = reshape.input(0)?;
    let layer = graph.node(links.producer(of_layer)?).filter(|node| is_linear(node))?;
    let &[n, _] = graph.tensor(layer.input(1)?)?.dims.as_slice() else { return None };
    // Starts, ends, and the last axis of `[batch][position][feature]`.
    let part = |slice: &Node<'_>| {
        slice.inputs.iter().skip(1).map(|name| graph.integers(name)).collect::<Option<Vec<_>>>()
    };
    let rows = links.followed_by(graph, product, "Reshape")?;
    let is_matrix = graph.integers(graph.node(rows)?.input(1)?)? == [-1, n / 2]
        && graph.node(rows)?.input(0) == graph.node(product)?.output();
    let are_halves = part(values) == Some(vec![vec![0], vec![n / 2], vec![2]])
        && part(gates) == Some(vec![vec![n / 2], vec![n], vec![2]])
        && gates.input(0) == Some(both)
        && [of_layer, both].map(|name| links.readers(name).len()) == [1, 2]
        && ![of_layer, both].iter().any(|name| graph.is_output(name));
    if !is_matrix || !are_halves || n % 2 != 0 || layer.input(3).is_some() {
        return None;
    }
    let attributes = vec![Attribute::new(linear::GATED, 1)];
    let output = graph.node(rows)?.output()?;
    Some((rows, Node::new(layer.operator(), layer.inputs.clone(), output, attributes)))
}

/// A product and what is added to it.
fn add(graph: &mut Graph<'_>) {
    let mut links = Links::new(graph);
    for at in graph.places() {
        if let Some(sum) = sum(graph, &links, at) {
            let Sum { product, last, residual, output } = sum;
            if let Some(node) = &mut graph.nodes[product] {
                node.inputs.resize(3, "");
                node.inputs.push(residual);
            }
            if let Some(node) = &mut graph.nodes[last] {
                node.rename(output);
            }
            graph.nodes[at] = None;
            links = Links::new(graph);
        }
    }
}

/// A product, the node whose output is added to something, and that.
struct Sum<'a> {
    product: usize,
    last: usize,
    residual: &'a str,
    /// The sum's name.
    output: &'a str,
}

fn sum<'a>(graph: &Graph<'a>, links: &Links<'a>, at: usize) -> Option<Sum<'a>> {
    let node = graph.node(at).filter(|node| node.is("Add") && node.inputs.len() == 2)?;
    let place = |name: &str| links.producer(name);
    // What is made last can add what was made before.
    let [last, other] = match [node.inputs[0], node.inputs[1]] {
        [a, b] if place(a) >= place(b) => [a, b],
        [a, b] => [b, a],
    };
    let last = place(last)?;
    if links.only_reader(graph, last) != Some(at) {
        return None;
    }
    let product = match graph.node(last)? {
        conv if is_conv(conv) && is_plane(graph, links, other) => last,
        reshape if reshape.is("Reshape") && is_of_rows(graph, links, reshape) => {
            let layer = place(reshape.input(0)?).filter(|&at| graph.node(at).is_some_and(is_linear))?;
            links.only_reader(graph, layer).map(|_| layer)?
        }
        _ => return None,
    };
    let is_made_before = place(other).is_none_or(|at| at < product);
    let is_free = graph.node(product)?.input(3).is_none();
    let output = node.output()?;
    (is_made_before && is_free).then_some(Sum { product, last, residual: other, output })
}

/// Whether it is kiln's convolution.
fn is_conv(node: &Node<'_>) -> bool {
    [Stored::F32, Stored::Bf16].iter().any(|stored| node.is_of(DOMAIN, conv::Conv::name_of(*stored)))
}

/// Whether it is kiln's linear layer.
fn is_linear(node: &Node<'_>) -> bool {
    linear::Form::ALL.iter().any(|form| node.is_of(DOMAIN, form.name()))
}

/// Whether a value is as large as a convolution's output: it is made by what keeps sizes, not one number a channel.
fn is_plane(graph: &Graph<'_>, links: &Links<'_>, name: &str) -> bool {
    let Some(node) = links.producer(name).and_then(|at| graph.node(at)) else { return false };
    is_conv(node) || node.is("Conv") || node.is("Add")
}

/// Whether it makes `[batch][position][feature]` of a matrix.
fn is_of_rows(graph: &Graph<'_>, links: &Links<'_>, reshape: &Node<'_>) -> bool {
    let Some(shape) = reshape.input(1) else { return false };
    match links.made_by(graph, shape, "Concat") {
        Some(concat) => concat.inputs.len() == 3,
        None => graph.integers(shape).is_some_and(|sizes| sizes.len() == 3),
    }
}
