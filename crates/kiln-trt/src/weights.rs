//! Weights of loaded engines: loading and unloading (TensorRT-RTX 1.7), and streaming from the host's memory.

use std::ffi::c_void;

use crate::callback::{InterfaceInfo, VirtualTable, guard};
use crate::engine::bytes;
use crate::error::TrtErrorKind::{Argument, Engine as EngineKind};
use crate::sys::{Tables, call};
use crate::{CudaStream, Engine, TrtError};

/// Where a [`StreamReader`] goes, `SeekPosition` of `NvInferRuntime.h`, with an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekPosition {
    /// From the start.
    Set(i64),
    /// From where the next read starts.
    Current(i64),
    /// From the end.
    End(i64),
}

/// A serialized engine that TensorRT reads, `IStreamReaderV2` of `NvInferRuntime.h`. It must not call the engine.
///
/// # Safety
///
/// `read` writes at most `n_bytes` at `destination`, in the order of the stream, and says no more than that; what it
/// reads from lives until the stream has done the copies.
pub unsafe trait StreamReader: Send {
    /// Reads the next bytes to `destination`, which is memory of the host or of the device
    /// (`cudaPointerGetAttributes` tells); how many they are, 0 at the end, none for an error.
    fn read(&mut self, destination: *mut c_void, n_bytes: usize, stream: CudaStream) -> Option<usize>;

    /// Whether the next read starts there.
    fn seek(&mut self, position: SeekPosition) -> bool;
}

impl Engine {
    /// Whether the weights are on the device, or on their way (TensorRT-RTX 1.7).
    pub fn are_weights_loaded(&self) -> Result<bool, TrtError> {
        let engine = self.core.alone();
        Ok(call!(engine, VCudaEngine.areWeightsLoaded() -> bool))
    }

    /// Loads the weights of an engine whose loading was deferred, from the bytes that it was deserialized from
    /// (TensorRT-RTX 1.7); contexts stay.
    ///
    /// Errors are of kind [`EngineKind`]: loading was not deferred, the weights are loaded, or the copy fails.
    pub fn load_weights(&self, engine: &[u8]) -> Result<(), TrtError> {
        let object = self.core.alone();
        let is_loaded = call!(
            object,
            VCudaEngine.loadWeights(engine.as_ptr().cast() => *const c_void, engine.len() as i64 => i64) -> bool
        );
        match is_loaded {
            true => Ok(()),
            false => Err(object.library().failure(EngineKind, "cannot load the weights")),
        }
    }

    /// The same on a stream, without waiting for it: runs on the same stream have the weights, runs on others have to
    /// wait for it.
    ///
    /// # Safety
    ///
    /// Runs of the engine that are not on `stream` start when the stream has done the copies.
    pub unsafe fn load_weights_async(
        &self,
        reader: &mut dyn StreamReader,
        stream: CudaStream,
    ) -> Result<(), TrtError> {
        let object = self.core.alone();
        let mut reader = ReaderObject::new(object.library().tables(), reader)?;
        let is_loaded = call!(
            object,
            VCudaEngine.loadWeightsAsync(
                std::ptr::from_mut(&mut reader).cast() => *mut c_void,
                stream.as_raw() => *mut c_void
            ) -> bool
        );
        match is_loaded {
            true => Ok(()),
            false => Err(object.library().failure(EngineKind, "cannot load the weights")),
        }
    }

    /// Frees the device memory of the weights of an engine whose loading was deferred (TensorRT-RTX 1.7); contexts stay.
    ///
    /// Errors are of kind [`EngineKind`]: loading was not deferred, or no weights are loaded.
    pub fn unload_weights(&self) -> Result<(), TrtError> {
        let engine = self.core.alone();
        match call!(engine, VCudaEngine.unloadWeights() -> bool) {
            true => Ok(()),
            false => Err(engine.library().failure(EngineKind, "cannot unload the weights")),
        }
    }

    /// Bytes of weights that can stream from the host's memory; 0 unless the engine was built with
    /// [`BuilderFlag::WeightStreaming`](crate::BuilderFlag::WeightStreaming).
    pub fn streamable_weights_size(&self) -> Result<usize, TrtError> {
        let engine = self.core.alone();
        let size = call!(engine, VCudaEngine.getStreamableWeightsSize() -> i64);
        bytes(&engine, size, "the size of streamable weights is not known")
    }

    /// Bytes of device memory for weights that can stream.
    pub fn weight_streaming_budget(&self) -> Result<usize, TrtError> {
        let engine = self.core.alone();
        let size = call!(engine, VCudaEngine.getWeightStreamingBudgetV2() -> i64);
        bytes(&engine, size, "the engine has no weight streaming budget")
    }

    /// Sets the bytes of device memory for weights that can stream: 0 streams all,
    /// [`Engine::streamable_weights_size`] none. No context may exist.
    ///
    /// Errors are of kind [`EngineKind`].
    pub fn set_weight_streaming_budget(&self, budget: usize) -> Result<(), TrtError> {
        let engine = self.core.alone();
        let size = i64::try_from(budget)
            .map_err(|_| TrtError::new(Argument, format!("a budget of {budget} bytes")))?;
        match call!(engine, VCudaEngine.setWeightStreamingBudgetV2(size => i64) -> bool) {
            true => Ok(()),
            false => Err(engine
                .library()
                .failure(EngineKind, &format!("cannot set a weight streaming budget of {budget} bytes"))),
        }
    }

    /// A budget in bytes that TensorRT finds good for the device's free memory.
    pub fn automatic_weight_streaming_budget(&self) -> Result<usize, TrtError> {
        let engine = self.core.alone();
        let size = call!(engine, VCudaEngine.getWeightStreamingAutomaticBudget() -> i64);
        bytes(&engine, size, "the engine has no weight streaming budget")
    }

    /// Bytes of device memory that each context takes beside, while weights stream.
    pub fn weight_streaming_scratch_size(&self) -> Result<usize, TrtError> {
        let engine = self.core.alone();
        let size = call!(engine, VCudaEngine.getWeightStreamingScratchMemorySize() -> i64);
        bytes(&engine, size, "the size of scratch memory for weight streaming is not known")
    }
}

/// An `IStreamReaderV2` made here: its virtual table comes first, as in C++.
#[repr(C)]
struct ReaderObject<'a> {
    address: *const *const c_void,
    _table: VirtualTable,
    reader: &'a mut dyn StreamReader,
}

impl<'a> ReaderObject<'a> {
    fn new(tables: &Tables, reader: &'a mut dyn StreamReader) -> Result<ReaderObject<'a>, TrtError> {
        let functions = [
            ("getInterfaceInfo", reader_info as *const c_void),
            ("read", read as *const c_void),
            ("seek", seek as *const c_void),
        ];
        let table = VirtualTable::new(tables, "IStreamReaderV2", &functions)?;
        Ok(ReaderObject { address: table.address(), _table: table, reader })
    }
}

extern "C" fn reader_info(_this: *const c_void) -> InterfaceInfo {
    InterfaceInfo::first(c"IStreamReaderV2")
}

extern "C" fn read(
    this: *mut ReaderObject<'_>,
    destination: *mut c_void,
    n_bytes: i64,
    stream: *mut c_void,
) -> i64 {
    const FAILED: i64 = -1;
    // SAFETY: TensorRT reads one piece at a time, from whichever thread, during the call that was given the reader.
    let object = unsafe { &mut *this };
    // SAFETY: TensorRT gives a stream that lives until its work is done.
    let stream = unsafe { CudaStream::from_raw(stream) };
    guard("a stream reader", FAILED, || {
        let n_read = usize::try_from(n_bytes).ok().and_then(|n| object.reader.read(destination, n, stream));
        n_read.and_then(|n| i64::try_from(n).ok()).unwrap_or(FAILED)
    })
}

extern "C" fn seek(this: *mut ReaderObject<'_>, offset: i64, from: i32) -> bool {
    // SAFETY: as in `read`.
    let object = unsafe { &mut *this };
    let position = match from {
        0 => SeekPosition::Set(offset),
        1 => SeekPosition::Current(offset),
        2 => SeekPosition::End(offset),
        _ => return false,
    };
    guard("a stream reader", false, || object.reader.seek(position))
}
