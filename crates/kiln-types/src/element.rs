use std::fmt;
use std::str::FromStr;

/// Element type of a tensor, stored or computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum ElementType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 64-bit integer.
    I64,
}

impl ElementType {
    const ALL: [ElementType; 4] = [ElementType::F32, ElementType::F16, ElementType::Bf16, ElementType::I64];

    /// Bytes per element.
    pub const fn n_bytes(self) -> usize {
        match self {
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::F32 => 4,
            ElementType::I64 => 8,
        }
    }

    /// Whether it holds floating-point numbers.
    pub const fn is_float(self) -> bool {
        !matches!(self, ElementType::I64)
    }

    /// Its name: `f32`, `f16`, `bf16` or `i64`.
    pub const fn name(self) -> &'static str {
        match self {
            ElementType::F32 => "f32",
            ElementType::F16 => "f16",
            ElementType::Bf16 => "bf16",
            ElementType::I64 => "i64",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ElementType {
    type Err = String;

    fn from_str(text: &str) -> Result<ElementType, String> {
        let found = ElementType::ALL.into_iter().find(|element| element.name() == text);
        found.ok_or_else(|| format!("'{text}' is not an element type; expected f32, f16, bf16 or i64"))
    }
}
