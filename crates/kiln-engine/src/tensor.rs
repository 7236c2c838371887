use std::fmt;

use ndarray::{ArrayD, ArrayViewD};

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 64-bit integer.
    I64,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElementType::F32 => "f32",
            ElementType::I64 => "i64",
        })
    }
}

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
pub enum TensorView<'a> {
    /// 32-bit floats.
    F32(ArrayViewD<'a, f32>),
    /// 64-bit integers.
    I64(ArrayViewD<'a, i64>),
}

impl TensorView<'_> {
    /// Element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            TensorView::F32(_) => ElementType::F32,
            TensorView::I64(_) => ElementType::I64,
        }
    }

    /// Bytes of its elements.
    pub fn n_bytes(&self) -> u64 {
        let size = match self {
            TensorView::F32(_) => 4,
            TensorView::I64(_) => 8,
        };
        size * self.shape().iter().map(|&n| n as u64).product::<u64>()
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            TensorView::F32(array) => array.shape(),
            TensorView::I64(array) => array.shape(),
        }
    }
}

/// A tensor in host memory that an engine made.
#[derive(Debug)]
pub enum HostTensor {
    /// 32-bit floats.
    F32(ArrayD<f32>),
    /// 64-bit integers.
    I64(ArrayD<i64>),
    /// In memory that its backend manages.
    Foreign(Box<dyn ForeignTensor>),
}

/// A tensor in memory that a backend manages.
pub trait ForeignTensor: Send {
    /// Its elements.
    fn view(&self) -> TensorView<'_>;
}

impl fmt::Debug for dyn ForeignTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

impl HostTensor {
    /// The tensor as an engine's input.
    pub fn view(&self) -> TensorView<'_> {
        match self {
            HostTensor::F32(array) => TensorView::F32(array.view()),
            HostTensor::I64(array) => TensorView::I64(array.view()),
            HostTensor::Foreign(tensor) => tensor.view(),
        }
    }

    /// The floats, if that is what it holds.
    pub fn into_f32(self) -> Option<ArrayD<f32>> {
        match self {
            HostTensor::F32(array) => Some(array),
            other => other.f32().map(|view| view.to_owned()),
        }
    }

    /// A view of the floats, if that is what it holds.
    pub fn f32(&self) -> Option<ArrayViewD<'_, f32>> {
        match self.view() {
            TensorView::F32(view) => Some(view),
            TensorView::I64(_) => None,
        }
    }
}

impl From<ArrayD<f32>> for HostTensor {
    fn from(array: ArrayD<f32>) -> HostTensor {
        HostTensor::F32(array)
    }
}

impl From<ArrayD<i64>> for HostTensor {
    fn from(array: ArrayD<i64>) -> HostTensor {
        HostTensor::I64(array)
    }
}
