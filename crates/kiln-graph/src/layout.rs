use std::collections::HashMap;

use crate::proto::{EXTERNAL, StringStringEntryProto, TensorProto, data_type};
use crate::{EmittedModel, TraceError};

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
                dims: weight.dims.iter().map(|&n| n as i64).collect(),
                data_type: data_type(weight.dtype),
                name: weight.name.clone(),
                data_location: EXTERNAL,
                external_data: vec![
                    entry("location", &place.location),
                    entry("offset", &place.offset.to_string()),
                    entry("length", &place.length.to_string()),
                ],
                ..Default::default()
            });
        }
        Ok(prost::Message::encode_to_vec(&model))
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into() }
}
