//! Tensors that stay on a device.

use std::path::Path;
use std::sync::Arc;

use kiln_cuda::{CudaError, CudaErrorKind, Device, DeviceMemory};
use ndarray::{ArrayD, ArrayViewD, IxDyn};

use crate::error::EngineErrorKind;
use crate::{ElementType, EngineError};

/// A tensor on a device, contiguous; cheap to clone.
#[derive(Clone, Debug)]
pub struct DeviceTensor {
    memory: Arc<DeviceMemory>,
    element_type: ElementType,
    shape: Vec<usize>,
}

impl DeviceTensor {
    /// Room for a tensor, of which the content is anything.
    pub fn new(
        device: &Arc<Device>,
        element_type: ElementType,
        shape: &[usize],
    ) -> Result<DeviceTensor, CudaError> {
        let n_bytes = n_bytes(element_type, shape)?;
        let memory = Arc::new(device.allocate(n_bytes)?);
        Ok(DeviceTensor { memory, element_type, shape: shape.into() })
    }

    /// Copies 32-bit floats to a device.
    pub fn upload(device: &Arc<Device>, values: ArrayViewD<'_, f32>) -> Result<DeviceTensor, CudaError> {
        let memory = device.upload(&le_bytes(values.iter().map(|x| x.to_le_bytes())))?;
        Ok(DeviceTensor {
            memory: Arc::new(memory),
            element_type: ElementType::F32,
            shape: values.shape().into(),
        })
    }

    /// Copies elements, as they lie in memory, to it.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), CudaError> {
        self.device().write(&self.memory, bytes)
    }

    /// Copies a tensor of the same type and shape to it.
    pub(crate) fn copy_from(&self, other: &DeviceTensor) -> Result<(), CudaError> {
        self.device().copy((&other.memory, 0), (&self.memory, 0), self.n_bytes())
    }

    /// A copy in memory of its own.
    pub(crate) fn duplicate(&self) -> Result<DeviceTensor, CudaError> {
        let own = DeviceTensor::new(self.device(), self.element_type, &self.shape)?;
        own.copy_from(self)?;
        Ok(own)
    }

    /// Copies 32-bit floats from the device, when all work on it is done.
    pub fn download(&self) -> Result<ArrayD<f32>, CudaError> {
        let refuse = |reason: String| CudaError::new(CudaErrorKind::Other, reason);
        if self.element_type != ElementType::F32 {
            return Err(refuse(format!(
                "a tensor of {} where floats of 32 bits are expected",
                self.element_type
            )));
        }
        let mut bytes = vec![0; n_bytes(self.element_type, &self.shape)?];
        self.device().read(&self.memory, &mut bytes)?;
        let (floats, _) = bytes.as_chunks();
        let values = floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ArrayD::from_shape_vec(IxDyn(&self.shape), values).map_err(|e| refuse(e.to_string()))
    }

    /// Where it is.
    pub fn device(&self) -> &Arc<Device> {
        self.memory.device()
    }

    /// The memory that it begins.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Element type.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of its elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of its elements.
    pub(crate) fn n_bytes(&self) -> usize {
        self.element_type.n_bytes() * self.n_elements()
    }
}

/// Bytes of a tensor; an error where they are more than can be counted.
fn n_bytes(element_type: ElementType, shape: &[usize]) -> Result<usize, CudaError> {
    let product = shape.iter().try_fold(element_type.n_bytes(), |n, &side| n.checked_mul(side));
    product.ok_or_else(|| CudaError::new(CudaErrorKind::Other, format!("a tensor of {shape:?} is too large")))
}

/// Elements as they lie in memory.
pub(crate) fn le_bytes<const N: usize>(elements: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    elements.flatten().collect()
}

impl From<CudaError> for EngineError {
    fn from(error: CudaError) -> EngineError {
        let kind = match error.kind() {
            CudaErrorKind::NoDriver | CudaErrorKind::DriverTooOld | CudaErrorKind::NoDevice => {
                EngineErrorKind::Device
            }
            CudaErrorKind::OutOfMemory => EngineErrorKind::OutOfMemory,
            CudaErrorKind::Lost => EngineErrorKind::Lost,
            _ => EngineErrorKind::Run,
        };
        EngineError::unlocated(kind, error)
    }
}

/// What libraries say where memory of the device is full; they have no codes for it.
const OUT_OF_MEMORY: [&str; 6] = [
    "out of memory",
    "OutOfMemory",
    "cudaErrorMemoryAllocation",
    "insufficient device memory",
    "Failed to allocate memory",
    "ALLOC_FAILED",
];

/// What a library says of a model on a device: an error of the kind, unless memory is full or the device is gone.
pub(crate) fn failure(kind: EngineErrorKind, model: &Path, device: &Device, text: &str) -> EngineError {
    let left = match device.memory() {
        Err(error) if error.kind() == CudaErrorKind::Lost => return error.into(),
        Err(error) => error.to_string(),
        Ok(memory) => memory.to_string(),
    };
    if OUT_OF_MEMORY.iter().any(|words| text.contains(words)) {
        let reason = format!("cuda:{} has not enough memory left: {left}", device.info().ordinal);
        return EngineError::new(EngineErrorKind::OutOfMemory, model, reason);
    }
    EngineError::new(kind, model, text)
}
