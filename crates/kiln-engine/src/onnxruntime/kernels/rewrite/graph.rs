//! A model's graph: its nodes, and what is known of its tensors (`onnx/onnx.proto3`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::super::wire::{Field, Value, fields, put, put_bytes};
use super::super::{DOMAIN, Stored};

/// Numbers of fields.
pub(super) mod number {
    pub(in super::super) const MODEL_GRAPH: u32 = 7;
    pub(in super::super) const MODEL_OPSET: u32 = 8;
    pub(in super::super) const MODEL_METADATA: u32 = 14;
    pub(in super::super) const OPSET_DOMAIN: u32 = 1;
    pub(in super::super) const OPSET_VERSION: u32 = 2;
    pub(in super::super) const ENTRY_KEY: u32 = 1;
    pub(in super::super) const ENTRY_VALUE: u32 = 2;
    pub(in super::super) const GRAPH_NODE: u32 = 1;
    pub(in super::super) const GRAPH_INITIALIZER: u32 = 5;
    pub(in super::super) const GRAPH_OUTPUT: u32 = 12;
    pub(in super::super) const VALUE_NAME: u32 = 1;
    pub(in super::super) const NODE_INPUT: u32 = 1;
    pub(in super::super) const NODE_OUTPUT: u32 = 2;
    pub(in super::super) const NODE_OPERATOR: u32 = 4;
    pub(in super::super) const NODE_ATTRIBUTE: u32 = 5;
    pub(in super::super) const NODE_DOMAIN: u32 = 7;
    pub(in super::super) const ATTRIBUTE_NAME: u32 = 1;
    pub(in super::super) const ATTRIBUTE_FLOAT: u32 = 2;
    pub(in super::super) const ATTRIBUTE_INT: u32 = 3;
    pub(in super::super) const ATTRIBUTE_TEXT: u32 = 4;
    pub(in super::super) const ATTRIBUTE_INTS: u32 = 8;
    pub(in super::super) const ATTRIBUTE_TYPE: u32 = 20;
    pub(in super::super) const TENSOR_DIMS: u32 = 1;
    pub(in super::super) const TENSOR_TYPE: u32 = 2;
    pub(in super::super) const TENSOR_NAME: u32 = 8;
    pub(in super::super) const TENSOR_RAW: u32 = 9;
}

/// Values of `TensorProto.DataType`.
const FLOAT: i64 = 1;
const INT64: i64 = 7;
const BFLOAT16: i64 = 16;

/// `AttributeProto.AttributeType.INT`.
const INT_ATTRIBUTE: u64 = 2;

/// A tensor of the model's, with its numbers where they lie in the model.
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    kind: i64,
    pub(super) dims: Vec<i64>,
    raw: Option<&'a [u8]>,
}

impl<'a> Tensor<'a> {
    fn new(bytes: &'a [u8]) -> Option<Tensor<'a>> {
        let fields = fields(bytes)?;
        let first = |number| fields.iter().find(move |field| field.number == number);
        let dims = fields.iter().filter(|field| field.number == number::TENSOR_DIMS);
        Some(Tensor {
            name: first(number::TENSOR_NAME)?.text()?,
            kind: first(number::TENSOR_TYPE)?.number()?,
            dims: dims.map(Field::number).collect::<Option<_>>()?,
            raw: first(number::TENSOR_RAW).and_then(Field::bytes),
        })
    }

    /// The type that it is stored in, if weights of products may be.
    fn stored(&self) -> Option<Stored> {
        match self.kind {
            FLOAT => Some(Stored::F32),
            BFLOAT16 => Some(Stored::Bf16),
            _ => None,
        }
    }
}

/// A weight of a product: the tensor that a node reads, perhaps by way of a cast.
#[derive(Clone, Copy)]
pub(super) struct Weight<'g, 'a> {
    pub(super) tensor: &'g Tensor<'a>,
    pub(super) stored: Stored,
}

/// An attribute of a number, a text or numbers.
#[derive(Clone)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'a str,
    pub(super) number: Option<i64>,
    pub(super) float: Option<f32>,
    pub(super) text: Option<&'a str>,
    pub(super) numbers: Vec<i64>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Attribute<'a> {
    fn read(bytes: &'a [u8]) -> Option<Attribute<'a>> {
        let fields = fields(bytes)?;
        let all = |number| fields.iter().filter(move |field| field.number == number);
        let float = |field: &Field<'_>| match field.value {
            Value::Fixed(bytes) => Some(f32::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        };
        Some(Attribute {
            name: all(number::ATTRIBUTE_NAME).next()?.text()?,
            number: all(number::ATTRIBUTE_INT).next().and_then(Field::number),
            float: all(number::ATTRIBUTE_FLOAT).next().and_then(float),
            text: all(number::ATTRIBUTE_TEXT).next().and_then(Field::text),
            numbers: all(number::ATTRIBUTE_INTS).map(Field::number).collect::<Option<_>>()?,
            bytes: bytes.into(),
        })
    }

    /// One of kiln's.
    pub(super) fn new(name: &'a str, number: u64) -> Attribute<'a> {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, number::ATTRIBUTE_NAME, name.as_bytes());
        put(&mut bytes, number::ATTRIBUTE_INT, number);
        put(&mut bytes, number::ATTRIBUTE_TYPE, INT_ATTRIBUTE);
        Attribute {
            name,
            number: Some(number as i64),
            float: None,
            text: None,
            numbers: Vec::new(),
            bytes: bytes.into(),
        }
    }
}

/// A node.
#[derive(Clone)]
pub(super) struct Node<'a> {
    /// Empty for `ai.onnx`.
    domain: &'a str,
    operator: &'a str,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    pub(super) attributes: Vec<Attribute<'a>>,
    /// As the file has it, until it is changed.
    raw: Option<&'a [u8]>,
}

impl<'a> Node<'a> {
    fn read(field: &Field<'a>) -> Option<Node<'a>> {
        let fields = fields(field.bytes()?)?;
        let all = |number| fields.iter().filter(move |field| field.number == number);
        let texts = |number| all(number).map(Field::text).collect::<Option<Vec<_>>>();
        Some(Node {
            domain: all(number::NODE_DOMAIN).next().map_or(Some(""), Field::text)?,
            operator: all(number::NODE_OPERATOR).next()?.text()?,
            inputs: texts(number::NODE_INPUT)?,
            outputs: texts(number::NODE_OUTPUT)?,
            attributes: all(number::NODE_ATTRIBUTE)
                .map(|field| Attribute::read(field.bytes()?))
                .collect::<Option<_>>()?,
            raw: Some(field.raw),
        })
    }

    /// One of kiln's operators.
    pub(super) fn new(
        operator: &'a str,
        inputs: Vec<&'a str>,
        output: &'a str,
        attributes: Vec<Attribute<'a>>,
    ) -> Node<'a> {
        Node { domain: DOMAIN, operator, inputs, outputs: vec![output], attributes, raw: None }
    }

    /// Whether it is an operator of `ai.onnx`.
    pub(super) fn is(&self, operator: &str) -> bool {
        self.is_of("", operator)
    }

    pub(super) fn is_of(&self, domain: &str, operator: &str) -> bool {
        self.domain == domain && self.operator == operator
    }

    /// The operator's name.
    pub(super) fn operator(&self) -> &'a str {
        self.operator
    }

    pub(super) fn input(&self, at: usize) -> Option<&'a str> {
        self.inputs.get(at).copied().filter(|name| !name.is_empty())
    }

    pub(super) fn output(&self) -> Option<&'a str> {
        self.outputs.first().copied()
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute<'a>> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// Makes it one of kiln's operators.
    pub(super) fn become_kilns(&mut self, operator: &'a str) {
        (self.domain, self.operator, self.raw) = (DOMAIN, operator, None);
    }

    /// Changes the name of its output.
    pub(super) fn rename(&mut self, output: &'a str) {
        (self.outputs, self.raw) = (vec![output], None);
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(raw) = self.raw {
            return out.extend_from_slice(raw);
        }
        let mut node = Vec::new();
        self.inputs.iter().for_each(|name| put_bytes(&mut node, number::NODE_INPUT, name.as_bytes()));
        self.outputs.iter().for_each(|name| put_bytes(&mut node, number::NODE_OUTPUT, name.as_bytes()));
        let attributes = self.attributes.iter();
        attributes.for_each(|attribute| put_bytes(&mut node, number::NODE_ATTRIBUTE, &attribute.bytes));
        put_bytes(&mut node, number::NODE_OPERATOR, self.operator.as_bytes());
        put_bytes(&mut node, number::NODE_DOMAIN, self.domain.as_bytes());
        put_bytes(out, number::GRAPH_NODE, &node);
    }
}

/// A graph; nodes are at the places of their fields, in the order in which they run.
pub(super) struct Graph<'a> {
    fields: Vec<Field<'a>>,
    pub(super) nodes: Vec<Option<Node<'a>>>,
    tensors: HashMap<&'a str, Tensor<'a>>,
    outputs: HashSet<&'a str>,
    /// What nodes or callers read of the file's graph.
    was_read: HashSet<&'a str>,
}

impl<'a> Graph<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Graph<'a>> {
        let fields = fields(bytes)?;
        let of = |number| fields.iter().filter(move |field| field.number == number);
        let nodes: Vec<Option<Node<'_>>> = fields
            .iter()
            .map(|field| match field.number {
                number::GRAPH_NODE => Node::read(field).map(Some),
                _ => Some(None),
            })
            .collect::<Option<_>>()?;
        let tensors = of(number::GRAPH_INITIALIZER).filter_map(|field| Tensor::new(field.bytes()?));
        let name = |output: &Field<'a>| {
            let parts = super::super::wire::fields(output.bytes()?)?;
            parts.iter().find(|part| part.number == number::VALUE_NAME)?.text()
        };
        let mut graph = Graph {
            tensors: tensors.map(|tensor| (tensor.name, tensor)).collect(),
            outputs: of(number::GRAPH_OUTPUT).filter_map(name).collect(),
            nodes,
            fields,
            was_read: HashSet::new(),
        };
        let inputs = graph.nodes.iter().flatten().flat_map(|node| node.inputs.iter().copied());
        graph.was_read = inputs.chain(graph.outputs.iter().copied()).collect();
        Some(graph)
    }

    pub(super) fn node(&self, at: usize) -> Option<&Node<'a>> {
        self.nodes.get(at)?.as_ref()
    }

    /// Places of nodes.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.nodes.len()
    }

    /// Whether a node is not as the file has it.
    pub(super) fn is_changed(&self) -> bool {
        self.nodes.iter().flatten().any(|node| node.raw.is_none())
    }

    /// Whether callers read it.
    pub(super) fn is_output(&self, name: &str) -> bool {
        self.outputs.contains(name)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.get(name)
    }

    /// The weight that nodes read in f32 by this name.
    pub(super) fn weight(&self, name: &str, links: &Links<'a>) -> Option<Weight<'_, 'a>> {
        if let Some(tensor) = self.tensor(name) {
            return (tensor.stored()? == Stored::F32).then_some(Weight { tensor, stored: Stored::F32 });
        }
        let cast = links.made_by(self, name, "Cast")?;
        let tensor = self.tensor(cast.input(0)?)?;
        let is_to_f32 = cast.attribute("to")?.number == Some(FLOAT);
        (is_to_f32 && tensor.stored()? == Stored::Bf16).then_some(Weight { tensor, stored: Stored::Bf16 })
    }

    /// Numbers of a tensor of integers.
    pub(super) fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let tensor = self.tensor(name).filter(|tensor| tensor.kind == INT64)?;
        Some(tensor.raw?.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    /// Numbers of a tensor of f32.
    pub(super) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.tensor(name).filter(|tensor| tensor.kind == FLOAT)?;
        Some(tensor.raw?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Removes nodes whose outputs nobody reads any more.
    pub(super) fn prune(&mut self) {
        let mut readers: HashMap<&str, usize> = self.outputs.iter().map(|name| (*name, 1)).collect();
        for name in self.nodes.iter().flatten().flat_map(|node| &node.inputs) {
            *readers.entry(name).or_default() += 1;
        }
        for node in self.nodes.iter_mut().rev() {
            let is_left =
                |name: &&str| self.was_read.contains(name) && readers.get(name).is_none_or(|n| *n == 0);
            if let Some(unread) = node.take_if(|node| node.outputs.iter().all(is_left)) {
                unread.inputs.iter().for_each(|name| *readers.entry(name).or_default() -= 1);
            }
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, node) in self.fields.iter().zip(&self.nodes) {
            match (field.number, node) {
                (number::GRAPH_NODE, Some(node)) => node.write(&mut out),
                (number::GRAPH_NODE, None) => {}
                _ => out.extend_from_slice(field.raw),
            }
        }
        out
    }
}

/// Who makes and who reads values.
pub(super) struct Links<'a> {
    producers: HashMap<&'a str, usize>,
    readers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Links<'a> {
    pub(super) fn new(graph: &Graph<'a>) -> Links<'a> {
        let mut links = Links { producers: HashMap::new(), readers: HashMap::new() };
        for at in graph.places() {
            let Some(node) = graph.node(at) else { continue };
            links.producers.extend(node.outputs.iter().map(|name| (*name, at)));
            node.inputs.iter().for_each(|name| links.readers.entry(name).or_default().push(at));
        }
        links
    }

    /// The place of the node that makes it; none for what the graph is given.
    pub(super) fn producer(&self, name: &str) -> Option<usize> {
        self.producers.get(name).copied()
    }

    /// The node that makes it, if that is such an operator of `ai.onnx`.
    pub(super) fn made_by<'g>(&self, graph: &'g Graph<'a>, name: &str, operator: &str) -> Option<&'g Node<'a>> {
        graph.node(self.producer(name)?).filter(|node| node.is(operator))
    }

    pub(super) fn readers(&self, name: &str) -> &[usize] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }

    /// The node that alone reads the output of another.
    pub(super) fn only_reader(&self, graph: &Graph<'a>, at: usize) -> Option<usize> {
        let output = graph.node(at)?.output()?;
        match self.readers(output) {
            [reader] if !graph.is_output(output) => Some(*reader),
            _ => None,
        }
    }

    /// The same, if that is such an operator of `ai.onnx`.
    pub(super) fn followed_by(&self, graph: &Graph<'a>, at: usize, operator: &str) -> Option<usize> {
        self.only_reader(graph, at).filter(|&at| graph.node(at).is_some_and(|node| node.is(operator)))
    }
}
