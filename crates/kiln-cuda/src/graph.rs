//! Work that is recorded once and repeated with one call.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, result};

use crate::{CudaError, CudaErrorKind, Device};

/// Recorded work of a device.
pub struct Graph {
    graph: CudaGraph,
    device: Arc<Device>,
}

// SAFETY: a graph may be used by one thread at a time, whichever it is; its methods take it mutably.
unsafe impl Send for Graph {}

impl Device {
    /// Records what `work` puts onto the stream that it is given, `cudaStream_t`, which is not done now.
    ///
    /// Allocating, reading and waiting cannot be recorded.
    pub fn record<E: From<CudaError>>(
        self: &Arc<Device>,
        work: impl FnOnce(*mut c_void) -> Result<(), E>,
    ) -> Result<Graph, E> {
        let refuse = |e| self.error("recording its work", e);
        let stream = self.side();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(refuse)?;
        let done = work(stream.cu_stream().cast());
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        done?;
        match graph.map_err(refuse)? {
            Some(graph) => Ok(Graph { graph, device: self.clone() }),
            None => Err(CudaError::new(CudaErrorKind::Other, "no work was recorded").into()),
        }
    }
}

impl Graph {
    /// Does the recorded work again, in the order of the device's work.
    ///
    /// # Safety
    ///
    /// All memory that the work uses is where it was when it was recorded.
    pub unsafe fn launch(&mut self) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: graph and stream are of the same device; the rest is the caller's.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), self.device.stream().cu_stream()) }
            .map_err(|e| self.device.error("repeating recorded work", e))
    }
}
