use std::collections::HashMap;

use prost::Message;
use prost::encoding::encode_varint;

use crate::proto::{EXTERNAL, StringStringEntryProto, TensorProto, data_type};
use crate::{EmittedModel, StoredWeight, TraceError};

/// Where the bytes of one weight lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalData {
    /// File, relative to the model file.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Where the bytes of every weight lie, by name.
#[derive(Clone, Debug, Default)]
pub struct WeightLayout(HashMap<String, ExternalData>);

impl WeightLayout {
    /// A layout in which each of the model's weights lies at the start of a file without a name: enough to compare
    /// models by their bytes.
    pub fn anywhere(model: &EmittedModel) -> WeightLayout {
        let nowhere = ExternalData { location: String::new(), offset: 0, length: 0 };
        WeightLayout(model.weights.iter().map(|weight| (weight.name.clone(), nowhere.clone())).collect())
    }

    /// Places a weight.
    pub fn insert(&mut self, name: impl Into<String>, place: ExternalData) {
        self.0.insert(name.into(), place);
    }
}

impl EmittedModel {
    /// The model as ONNX, with its weights referring into `layout`.
    pub fn to_onnx(&self, layout: &WeightLayout) -> Result<Vec<u8>, TraceError> {
        let mut model = self.proto.clone();
        let graph = model.graph.get_or_insert_default();
        for weight in &self.weights {
            let place =
                layout.0.get(&weight.name).ok_or_else(|| TraceError::NotInLayout(weight.name.clone()))?;
            graph.initializer.push(TensorProto {
                data_location: EXTERNAL,
                external_data: vec![
                    entry("location", &place.location),
                    entry("offset", &place.offset.to_string()),
                    entry("length", &place.length.to_string()),
                ],
                ..initializer(weight)
            });
        }
        Ok(model.encode_to_vec())
    }

    /// The model as ONNX that holds its weights, but for their bytes.
    pub fn to_onnx_around_weights(&self) -> AroundWeights {
        let mut model = self.proto.clone();
        let graph = model.graph.take().unwrap_or_default();
        let weights: Vec<Vec<u8>> = self.weights.iter().map(before_bytes).collect();
        let n_initializers =
            self.weights.iter().zip(&weights).map(|(weight, before)| before.len() as u64 + weight.n_bytes());
        let n_graph = graph.encoded_len() as u64 + n_initializers.sum::<u64>();
        let mut head = model.encode_to_vec();
        put_field(&mut head, GRAPH, n_graph);
        let n_bytes = head.len() as u64 + n_graph;
        head.extend(graph.encode_to_vec());
        AroundWeights { head, weights, n_bytes }
    }
}

/// A file that holds its weights, without their bytes.
#[derive(Clone, Debug)]
pub struct AroundWeights {
    /// What it begins with.
    pub head: Vec<u8>,
    /// What stands before the bytes of each weight, in the order of [`EmittedModel::weights`].
    pub weights: Vec<Vec<u8>>,
    /// Size of the whole file.
    pub n_bytes: u64,
}

/// Number of `ModelProto.graph`.
const GRAPH: u32 = 7;

/// Number of `GraphProto.initializer`.
const INITIALIZER: u32 = 5;

/// Number of `TensorProto.raw_data`.
const RAW_DATA: u32 = 9;

fn initializer(weight: &StoredWeight) -> TensorProto {
    TensorProto {
        dims: weight.dims.iter().map(|&n| n as i64).collect(),
        data_type: data_type(weight.dtype),
        name: weight.name.clone(),
        ..Default::default()
    }
}

/// An initializer up to where its bytes begin.
fn before_bytes(weight: &StoredWeight) -> Vec<u8> {
    let mut tensor = initializer(weight).encode_to_vec();
    put_field(&mut tensor, RAW_DATA, weight.n_bytes());
    let mut field = Vec::new();
    put_field(&mut field, INITIALIZER, tensor.len() as u64 + weight.n_bytes());
    [field, tensor].concat()
}

/// The head of a field of bytes: its number and their length (protobuf's wire type 2).
fn put_field(out: &mut Vec<u8>, number: u32, length: u64) {
    encode_varint(u64::from(number << 3 | 2), out);
    encode_varint(length, out);
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into() }
}
