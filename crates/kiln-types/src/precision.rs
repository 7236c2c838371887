use std::fmt;
use std::str::FromStr;

use crate::ElementType;

/// What a network computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16; on a processor, of products' factors alone.
    Bf16,
    /// On a processor alone: factors of linear layers over positions are whole numbers of 8 bits times a scale, those of
    /// other products bfloat16, and all else is of 32 bits.
    Int8,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];

    /// Its name: `f32`, `f16`, `bf16` or `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Int8 => "int8",
            _ => self.stored().name(),
        }
    }

    /// Type that weights of products are stored in.
    pub const fn stored(self) -> ElementType {
        match self {
            Precision::F32 => ElementType::F32,
            Precision::F16 => ElementType::F16,
            Precision::Bf16 | Precision::Int8 => ElementType::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Precision, String> {
        let found = Precision::ALL.into_iter().find(|precision| precision.name() == text);
        found.ok_or_else(|| format!("'{text}' is not a precision; expected f32, f16, bf16 or int8"))
    }
}
