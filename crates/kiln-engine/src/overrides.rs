use std::collections::BTreeMap;

use half::{bf16, f16};

/// Weights that take the place of those in a model's weight file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightOverrides {
    /// Name of the weight file, which lies beside the model.
    pub file: String,
    /// The weights by name.
    pub weights: BTreeMap<String, WeightOverride>,
}

/// A weight that takes the place of another of the same type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightOverride {
    /// First byte in the weight file.
    pub offset: u64,
    /// Shape of the initializer.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub elements: Elements,
}

/// Elements of a weight in the type that it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
}

impl Elements {
    /// The elements as they lie in a file, with the least significant byte first.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Elements::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Elements::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Elements::BF16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}
