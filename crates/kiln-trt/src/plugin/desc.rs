//! What TensorRT tells a plugin of tensors.

use crate::DataType;
use crate::sys::Dims;

/// How elements lie in memory, `TensorFormat` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorFormat {
    /// One after the other.
    Linear,
    /// Channels in pairs.
    Chw2,
    /// Channels last, padded to 8.
    Hwc8,
    /// Channels in fours.
    Chw4,
    /// Channels in sixteens.
    Chw16,
    /// Channels in thirty-twos.
    Chw32,
    /// Channels last of three dimensions, padded to 8.
    Dhwc8,
    /// Channels of three dimensions in thirty-twos.
    Cdhw32,
    /// Channels last.
    Hwc,
    /// A DLA's planar format.
    DlaLinear,
    /// A DLA's image format.
    DlaHwc4,
    /// Channels last, padded to 16.
    Hwc16,
    /// Channels last of three dimensions.
    Dhwc,
    /// Any other, by TensorRT's number.
    Other(i32),
}

/// TensorRT's numbers count them.
const FORMATS: [TensorFormat; 13] = [
    TensorFormat::Linear,
    TensorFormat::Chw2,
    TensorFormat::Hwc8,
    TensorFormat::Chw4,
    TensorFormat::Chw16,
    TensorFormat::Chw32,
    TensorFormat::Dhwc8,
    TensorFormat::Cdhw32,
    TensorFormat::Hwc,
    TensorFormat::DlaLinear,
    TensorFormat::DlaHwc4,
    TensorFormat::Hwc16,
    TensorFormat::Dhwc,
];

/// A tensor of a run, `PluginTensorDesc` of `NvInferRuntimePlugin.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TensorDesc {
    dims: Dims,
    dtype: i32,
    format: i32,
    scale: f32,
}

impl TensorDesc {
    /// Sizes; -1 where one is open.
    pub fn sizes(&self) -> &[i64] {
        self.dims.as_slice()
    }

    /// Element type.
    pub fn dtype(&self) -> DataType {
        DataType::from_number(self.dtype)
    }

    /// How elements lie in memory.
    pub fn format(&self) -> TensorFormat {
        let known = usize::try_from(self.format).ok().and_then(|index| FORMATS.get(index));
        known.copied().unwrap_or(TensorFormat::Other(self.format))
    }
}

/// A tensor of a build, `DynamicPluginTensorDesc` of `NvInferRuntime.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DynamicTensorDesc {
    desc: TensorDesc,
    min: Dims,
    max: Dims,
    opt: Dims,
}

impl DynamicTensorDesc {
    /// The tensor, with sizes as in the network.
    pub fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// Least sizes of the profile.
    pub fn min(&self) -> &[i64] {
        self.min.as_slice()
    }

    /// Sizes that the profile optimises for.
    pub fn opt(&self) -> &[i64] {
        self.opt.as_slice()
    }

    /// Most sizes of the profile.
    pub fn max(&self) -> &[i64] {
        self.max.as_slice()
    }
}
