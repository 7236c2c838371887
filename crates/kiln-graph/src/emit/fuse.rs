//! What is known only when all nodes are there: which of them are one.

use std::collections::{HashMap, HashSet};

use super::ModelPort;
use super::builder::Value;
use crate::proto::NodeProto;

/// The attribute of ONNX Runtime's `GroupNorm` that is 1 where a SiLU follows.
pub(super) const ACTIVATION: &str = "activation";

/// Lets the producer of an output write it under the output's name.
pub(super) fn drop_identities(nodes: &mut Vec<NodeProto>) {
    let producers: HashSet<Value> = nodes.iter().map(|node| node.output[0].clone()).collect();
    let mut renamed: HashMap<Value, Value> = HashMap::new();
    let is_renaming = |node: &NodeProto| node.op_type == "Identity";
    for node in nodes.iter().filter(|node| is_renaming(node)) {
        if producers.contains(&node.input[0]) && !renamed.contains_key(&node.input[0]) {
            renamed.insert(node.input[0].clone(), node.output[0].clone());
        }
    }
    nodes.retain(|node| !(is_renaming(node) && renamed.get(&node.input[0]) == Some(&node.output[0])));
    for value in nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if let Some(name) = renamed.get(value) {
            value.clone_from(name);
        }
    }
}

/// Makes a `GroupNorm`, the `Transpose` after it and a SiLU that alone reads it one `GroupNorm` and a `Transpose`.
pub(super) fn activate_group_norms(nodes: &mut Vec<NodeProto>, outputs: &[ModelPort]) {
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        node.input.iter().for_each(|input| readers.entry(input).or_default().push(i));
    }
    let is_made = |value: &str| outputs.iter().any(|port| port.name == value);
    let only_reader = |i: usize| {
        let value = nodes[i].output[0].as_str();
        match readers.get(value).map(Vec::as_slice) {
            Some([reader]) if !is_made(value) => Some(*reader),
            _ => None,
        }
    };
    let followed: Vec<[usize; 3]> = (0..nodes.len())
        .filter(|&i| nodes[i].op_type == "GroupNorm")
        .filter_map(|norm| {
            let transpose = only_reader(norm)?;
            let silu = only_reader(transpose)?;
            is_silu(&nodes[silu]).then_some([norm, transpose, silu])
        })
        .collect();
    for [norm, transpose, silu] in &followed {
        if let Some(activation) = nodes[*norm].attribute.iter_mut().find(|a| a.name == ACTIVATION) {
            activation.i = Some(1);
        }
        nodes[*transpose].output = nodes[*silu].output.clone();
    }
    let silus: HashSet<usize> = followed.into_iter().map(|[_, _, silu]| silu).collect();
    let mut i = 0;
    nodes.retain(|_| {
        i += 1;
        !silus.contains(&(i - 1))
    });
}

/// Quick GELU with a factor of 1 is SiLU.
fn is_silu(node: &NodeProto) -> bool {
    let alpha = node.attribute.iter().find(|attribute| attribute.name == "alpha");
    node.op_type == "QuickGelu" && alpha.is_some_and(|alpha| alpha.f == Some(1.0))
}
