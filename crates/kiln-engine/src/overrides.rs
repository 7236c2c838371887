use std::fmt::Debug;

use half::{bf16, f16};

/// Weights that take the place of those in a model's weight file, made when an engine is loaded.
pub trait WeightSource: Debug + Send + Sync {
    /// Name of the weight file, which lies beside the model.
    fn file(&self) -> &str;

    /// Names of the weights.
    fn names(&self) -> Vec<String>;

    /// Makes a weight; several threads may ask at once.
    fn weight(&self, name: &str) -> Result<WeightOverride, String>;
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
