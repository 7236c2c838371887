//! Which node belongs to which segment, and what crosses the borders.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::{Graph, ModelPort};
use crate::tensor::Op;
use crate::{Cuts, Dim, ElementType, EmitPolicy, Kind, Tensor, TraceError};

/// The nodes of a graph in execution order, split at the policy's cut points.
pub(super) struct Plan {
    segments: Vec<Segment>,
    factors: HashSet<u64>,
}

#[derive(Default)]
struct Segment {
    nodes: Vec<Tensor>,
    inputs: Vec<(Tensor, ModelPort)>,
    spare_inputs: Vec<(Tensor, ModelPort)>,
    outputs: Vec<(Tensor, String, ElementType)>,
}

impl Plan {
    pub(super) fn new(graph: &Graph, policy: &EmitPolicy) -> Result<Plan, TraceError> {
        let order = post_order(graph.outputs.iter().map(|(_, t)| t));
        let cuts = with_prefix(&order, cut_points(&order, policy)?, policy);
        let segment_of = assign(&order, &cuts);
        let mut segments: Vec<Segment> = (0..=cuts.len()).map(|_| Segment::default()).collect();

        for tensor in &graph.inputs {
            let Op::Input { name } = &tensor.0.op else { continue };
            let port = port(name, tensor);
            let read_in: HashSet<usize> = order
                .iter()
                .filter(|node| node.0.inputs.iter().any(|t| t.0.id == tensor.0.id))
                .map(|node| segment_of[&node.0.id])
                .collect();
            for (s, segment) in segments.iter_mut().enumerate() {
                let list = match read_in.contains(&s) || cuts.is_empty() {
                    true => &mut segment.inputs,
                    false => &mut segment.spare_inputs,
                };
                list.push((tensor.clone(), port.clone()));
            }
        }

        let index: HashMap<u64, usize> = order.iter().enumerate().map(|(i, t)| (t.0.id, i)).collect();
        let mut live: HashSet<(u64, usize)> = HashSet::new();
        let mut exported: HashSet<u64> = HashSet::new();
        for node in &order {
            let here = segment_of[&node.0.id];
            if node.is_leaf() || matches!(node.0.op, Op::Cut { .. }) {
                continue;
            }
            segments[here].nodes.push(node.clone());
            for input in node.0.inputs.iter().map(Tensor::resolved) {
                let from = segment_of[&input.0.id];
                if input.is_leaf() || from == here {
                    continue;
                }
                let dtype = input.dtype(&policy.precision);
                let name = format!("live.{}", index[&input.0.id]);
                if exported.insert(input.0.id) {
                    segments[from].outputs.push((input.clone(), name.clone(), dtype));
                }
                if live.insert((input.0.id, here)) {
                    let port = ModelPort { name, dtype, shape: input.shape().to_vec() };
                    segments[here].inputs.push((input.clone(), port));
                }
            }
        }
        for (name, tensor) in &graph.outputs {
            let tensor = tensor.resolved();
            let segment = segment_of.get(&tensor.0.id).copied().unwrap_or(0);
            segments[segment].outputs.push((tensor.clone(), name.clone(), port_dtype(&tensor)));
        }
        Ok(Plan { segments, factors: factors(&order) })
    }

    /// Weights of convolutions and linear layers, by their node.
    pub(super) fn factors(&self) -> &HashSet<u64> {
        &self.factors
    }

    pub(super) fn n_segments(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn nodes(&self, segment: usize) -> &[Tensor] {
        &self.segments[segment].nodes
    }

    pub(super) fn inputs(&self, segment: usize) -> &[(Tensor, ModelPort)] {
        &self.segments[segment].inputs
    }

    /// The network's inputs that a segment does not read.
    pub(super) fn spare_inputs(&self, segment: usize) -> Vec<(Tensor, ModelPort)> {
        self.segments[segment].spare_inputs.clone()
    }

    pub(super) fn outputs(&self, segment: usize) -> &[(Tensor, String, ElementType)] {
        &self.segments[segment].outputs
    }
}

pub(super) fn port(name: &str, tensor: &Tensor) -> ModelPort {
    ModelPort { name: name.into(), dtype: port_dtype(tensor), shape: tensor.shape().to_vec() }
}

/// The network's own ports are f32 or i64 whatever it computes in.
fn port_dtype(tensor: &Tensor) -> ElementType {
    match tensor.kind() {
        Kind::Float => ElementType::F32,
        Kind::Int => ElementType::I64,
    }
}

pub(super) fn post_order<'a>(outputs: impl Iterator<Item = &'a Tensor>) -> Vec<Tensor> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut stack: Vec<(Tensor, usize)> = Vec::new();
    for output in outputs {
        if seen.insert(output.0.id) {
            stack.push((output.clone(), 0));
        }
        while let Some((node, next)) = stack.last_mut() {
            match node.0.inputs.get(*next).cloned() {
                Some(input) => {
                    *next += 1;
                    if seen.insert(input.0.id) {
                        stack.push((input, 0));
                    }
                }
                None => order.extend(stack.pop().map(|(node, _)| node)),
            }
        }
    }
    order
}

pub(super) fn cut_names(order: &[Tensor]) -> Vec<String> {
    order.iter().filter_map(cut_name).map(str::to_owned).collect()
}

fn cut_name(tensor: &Tensor) -> Option<&str> {
    match &tensor.0.op {
        Op::Cut { name } => Some(name),
        _ => None,
    }
}

fn cut_points(order: &[Tensor], policy: &EmitPolicy) -> Result<Vec<Tensor>, TraceError> {
    let all: Vec<Tensor> = order.iter().filter(|t| cut_name(t).is_some()).cloned().collect();
    let names = match &policy.cuts {
        Cuts::None => return Ok(Vec::new()),
        Cuts::Every(bytes) => return Ok(spaced(order, distinct(all), *bytes, policy)),
        Cuts::At(names) => names,
    };
    if let Some(wanted) = names.iter().find(|wanted| !all.iter().any(|t| cut_name(t) == Some(wanted))) {
        let reason = format!("no cut point of this name; the network has {}", cut_names(order).join(", "));
        return Err(TraceError::Unsupported { node: wanted.clone(), reason });
    }
    let is_chosen = |t: &Tensor| cut_name(t).is_some_and(|name| names.iter().any(|cut| cut == name));
    Ok(distinct(all.into_iter().filter(is_chosen).collect()))
}

/// The cut points, and among them the last one before the network reads what [`EmitPolicy::prompts`] names.
fn with_prefix(order: &[Tensor], mut cuts: Vec<Tensor>, policy: &EmitPolicy) -> Vec<Tensor> {
    let is_prompt = |tensor: &Tensor| match &tensor.0.op {
        Op::Input { name } => policy.prompts.contains(name),
        _ => false,
    };
    let mut of_prompt: HashSet<u64> = HashSet::new();
    for node in order {
        if is_prompt(node) || node.0.inputs.iter().any(|input| of_prompt.contains(&input.0.id)) {
            of_prompt.insert(node.0.id);
        }
    }
    let all = distinct(order.iter().filter(|node| cut_name(node).is_some()).cloned().collect());
    let is_before = |cut: &&Tensor| !of_prompt.contains(&cut.0.id);
    let Some(end) = all.iter().filter(|_| !of_prompt.is_empty()).take_while(is_before).last() else {
        return cuts;
    };
    let place = |cut: &Tensor| order.iter().position(|node| node.0.id == cut.resolved().0.id);
    let at = cuts.partition_point(|cut| place(cut) < place(end));
    if cuts.get(at).is_none_or(|cut| place(cut) != place(end)) {
        cuts.insert(at, end.clone());
    }
    cuts
}

/// One cut point of each place in the network.
fn distinct(mut cuts: Vec<Tensor>) -> Vec<Tensor> {
    let mut places = HashSet::new();
    cuts.retain(|cut| !cut.resolved().is_leaf() && places.insert(cut.resolved().0.id));
    cuts
}

/// Weights of convolutions and linear layers.
fn factors(order: &[Tensor]) -> HashSet<u64> {
    let products = order.iter().filter(|node| matches!(node.0.op, Op::Conv2d { .. } | Op::Linear));
    products.map(|node| node.0.inputs[1].resolved().0.id).collect()
}

/// The cut points between which lie weights of up to so many bytes.
fn spaced(order: &[Tensor], cuts: Vec<Tensor>, bytes: u64, policy: &EmitPolicy) -> Vec<Tensor> {
    let segment_of = assign(order, &cuts);
    let mut sizes = vec![0_u64; cuts.len() + 1];
    let factors = factors(order);
    for weight in order.iter().filter(|t| matches!(t.0.op, Op::Weight { .. })) {
        let precision = &policy.precision;
        let dtype = precision.stored(&weight.0.scope, factors.contains(&weight.0.id), weight.dtype(precision));
        let n: u64 = weight.shape().iter().filter_map(Dim::fixed).product();
        sizes[segment_of[&weight.0.id]] += n * dtype.n_bytes() as u64;
    }
    let mut chosen = Vec::new();
    let mut held = sizes[0];
    for (cut, size) in cuts.into_iter().zip(&sizes[1..]) {
        match held > 0 && held + size > bytes {
            true => {
                chosen.push(cut);
                held = *size;
            }
            false => held += size,
        }
    }
    chosen
}

/// A node runs in the segment of the first cut point that needs it.
fn assign(order: &[Tensor], cuts: &[Tensor]) -> HashMap<u64, usize> {
    let mut segment_of = HashMap::with_capacity(order.len());
    for (segment, cut) in cuts.iter().enumerate() {
        let mut pending = vec![cut.clone()];
        while let Some(node) = pending.pop() {
            if let Entry::Vacant(entry) = segment_of.entry(node.0.id) {
                entry.insert(segment);
                pending.extend(node.0.inputs.iter().cloned());
            }
        }
    }
    for node in order {
        segment_of.entry(node.0.id).or_insert(cuts.len());
    }
    segment_of
}
