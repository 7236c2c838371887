//! Element types.

/// Element types, `DataType` of `NvInferRuntimeBase.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 8-bit integer.
    I8,
    /// 32-bit integer.
    I32,
    /// Truth value of a byte.
    Bool,
    /// 8-bit integer without sign.
    U8,
    /// 8-bit float, E4M3.
    F8,
    /// bfloat16.
    BF16,
    /// 64-bit integer.
    I64,
    /// 4-bit integer, two to a byte.
    I4,
    /// 4-bit float, E2M1, two to a byte.
    F4,
    /// 8-bit exponent.
    E8M0,
    /// Any other, by TensorRT's number.
    Other(i32),
}

/// TensorRT's numbers count them.
const ORDER: [DataType; 12] = [
    DataType::F32,
    DataType::F16,
    DataType::I8,
    DataType::I32,
    DataType::Bool,
    DataType::U8,
    DataType::F8,
    DataType::BF16,
    DataType::I64,
    DataType::I4,
    DataType::F4,
    DataType::E8M0,
];

impl DataType {
    pub(crate) fn from_number(number: i32) -> DataType {
        let known = usize::try_from(number).ok().and_then(|index| ORDER.get(index));
        known.copied().unwrap_or(DataType::Other(number))
    }

    pub(crate) fn to_number(self) -> i32 {
        match self {
            DataType::Other(number) => number,
            known => ORDER.iter().position(|dtype| *dtype == known).map_or(-1, |index| index as i32),
        }
    }

    /// Bytes of an element; none where elements are smaller than a byte, or of a type that is not known.
    pub fn size(self) -> Option<usize> {
        match self {
            DataType::I64 => Some(8),
            DataType::F32 | DataType::I32 => Some(4),
            DataType::F16 | DataType::BF16 => Some(2),
            DataType::I8 | DataType::U8 | DataType::Bool | DataType::F8 | DataType::E8M0 => Some(1),
            DataType::I4 | DataType::F4 | DataType::Other(_) => None,
        }
    }
}
