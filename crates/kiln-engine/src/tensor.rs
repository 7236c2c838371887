use std::fmt;

use ndarray::{ArrayD, ArrayViewD};

#[cfg(feature = "cuda")]
use crate::device::{DeviceTensor, le_bytes};
use crate::{ElementType, EngineError};

/// One input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Element type.
    pub element_type: ElementType,
    /// Shape; `None` where the size is decided at run time.
    pub shape: Vec<Option<usize>>,
}

impl Port {
    pub(crate) fn accepts(&self, value: &TensorView<'_>) -> bool {
        self.element_type == value.element_type()
            && self.shape.len() == value.shape().len()
            && self.shape.iter().zip(value.shape()).all(|(want, found)| want.is_none_or(|n| n == *found))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> =
            self.shape.iter().map(|n| n.map_or_else(|| "?".into(), |n| n.to_string())).collect();
        write!(f, "'{}' ({} [{}])", self.name, self.element_type, axes.join(", "))
    }
}

/// A tensor lent to an engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TensorView<'a> {
    /// 32-bit floats.
    F32(ArrayViewD<'a, f32>),
    /// 64-bit integers.
    I64(ArrayViewD<'a, i64>),
    /// On a device.
    #[cfg(feature = "cuda")]
    Device(&'a DeviceTensor),
}

impl TensorView<'_> {
    /// Element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            TensorView::F32(_) => ElementType::F32,
            TensorView::I64(_) => ElementType::I64,
            #[cfg(feature = "cuda")]
            TensorView::Device(tensor) => tensor.element_type(),
        }
    }

    /// Bytes of its elements.
    pub fn n_bytes(&self) -> u64 {
        self.element_type().n_bytes() as u64 * self.shape().iter().map(|&n| n as u64).product::<u64>()
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            TensorView::F32(array) => array.shape(),
            TensorView::I64(array) => array.shape(),
            #[cfg(feature = "cuda")]
            TensorView::Device(tensor) => tensor.shape(),
        }
    }

    /// Copies it to a tensor of the same type and shape on a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn copy_to(&self, place: &DeviceTensor) -> Result<(), EngineError> {
        Ok(match self {
            TensorView::F32(array) => place.write(&le_bytes(array.iter().map(|x| x.to_le_bytes()))),
            TensorView::I64(array) => place.write(&le_bytes(array.iter().map(|x| x.to_le_bytes()))),
            TensorView::Device(tensor) => place.copy_from(tensor),
        }?)
    }

    /// The same view, as long as this one is borrowed.
    pub fn reborrow(&self) -> TensorView<'_> {
        match self {
            TensorView::F32(array) => TensorView::F32(array.view()),
            TensorView::I64(array) => TensorView::I64(array.view()),
            #[cfg(feature = "cuda")]
            TensorView::Device(tensor) => TensorView::Device(tensor),
        }
    }
}

/// A tensor that an engine made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Tensor {
    /// 32-bit floats.
    F32(ArrayD<f32>),
    /// 64-bit integers.
    I64(ArrayD<i64>),
    /// In memory of the host that its backend manages.
    Foreign(Box<dyn ForeignTensor>),
    /// On a device.
    #[cfg(feature = "cuda")]
    Device(DeviceTensor),
}

/// A tensor in memory of the host that a backend manages.
pub trait ForeignTensor: Send {
    /// Its elements.
    fn view(&self) -> TensorView<'_>;
}

impl fmt::Debug for dyn ForeignTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

impl Tensor {
    /// The tensor as an engine's input.
    pub fn view(&self) -> TensorView<'_> {
        match self {
            Tensor::F32(array) => TensorView::F32(array.view()),
            Tensor::I64(array) => TensorView::I64(array.view()),
            Tensor::Foreign(tensor) => tensor.view(),
            #[cfg(feature = "cuda")]
            Tensor::Device(tensor) => TensorView::Device(tensor),
        }
    }

    /// The same tensor in memory of the host.
    pub fn into_host(self) -> Result<Tensor, EngineError> {
        match self {
            #[cfg(feature = "cuda")]
            Tensor::Device(tensor) => Ok(Tensor::F32(tensor.download()?)),
            tensor => Ok(tensor),
        }
    }

    /// The floats, if that is what it holds in memory of the host.
    pub fn into_f32(self) -> Option<ArrayD<f32>> {
        match self {
            Tensor::F32(array) => Some(array),
            other => other.f32().map(|view| view.to_owned()),
        }
    }

    /// A view of the floats, if that is what it holds in memory of the host.
    pub fn f32(&self) -> Option<ArrayViewD<'_, f32>> {
        match self.view() {
            TensorView::F32(view) => Some(view),
            _ => None,
        }
    }
}

impl From<ArrayD<f32>> for Tensor {
    fn from(array: ArrayD<f32>) -> Tensor {
        Tensor::F32(array)
    }
}

impl From<ArrayD<i64>> for Tensor {
    fn from(array: ArrayD<i64>) -> Tensor {
        Tensor::I64(array)
    }
}
