//! TensorRT and TensorRT-RTX.
#![expect(unsafe_code, reason = "addresses, streams and recorded work are ours to vouch for")]

mod arena;
mod engine;
mod kernels;
mod plan;
mod profiles;

use std::path::Path;
use std::sync::{Arc, Mutex};

use kiln_cuda::{ComputeCapability, Device, Driver};
use kiln_trt::{Library, Product, Runtime, TrtError, TrtErrorKind};

use crate::error::EngineErrorKind;
use crate::{Backend, Engine, EngineError, Format, LoadOptions, device};
use arena::Arena;
use engine::{TrtEngine, Weights};
use kernels::Kernels;
use plan::Plan;

/// TensorRT or TensorRT-RTX on a device.
///
/// Engines compute one after the other and share the memory for what they compute in between. An engine's bytes are
/// code: who loads one vouches for where it comes from.
pub struct TensorRt {
    library: Arc<Library>,
    version: String,
    device: Arc<Device>,
    arena: Arc<Mutex<Arena>>,
    records: bool,
}

impl TensorRt {
    /// The version of CUDA that the driver must support for the libraries of TensorRT-RTX that kiln fetches.
    pub const NEEDED_CUDA: [u32; 2] = [13, 0];

    /// The oldest devices that TensorRT-RTX supports.
    pub const NEEDED_COMPUTE_CAPABILITY: ComputeCapability = ComputeCapability(7, 5);

    /// Opens the library, `libtensorrt_rtx.so*` or `libnvinfer.so*`, for a device.
    pub fn open(library: &Path, driver: &Driver, device: Arc<Device>) -> Result<TensorRt, EngineError> {
        let opened = Library::open(library)
            .map_err(|e| EngineError::unlocated(EngineErrorKind::Library, e.to_string()))?;
        if opened.product() == Product::Rtx {
            driver.check_version(opened.release(), TensorRt::NEEDED_CUDA)?;
        }
        let version = opened.version().map(|n| n.to_string()).join(".");
        let arena = Arc::new(Mutex::new(Arena::new(&device)));
        Ok(TensorRt { library: opened, version, device, arena, records: true })
    }

    /// Whether engines that run again with the same sizes do so as recorded CUDA graphs, which they do unless told.
    #[must_use]
    pub fn with_recording(self, records: bool) -> TensorRt {
        TensorRt { records, ..self }
    }

    fn engine(&self, model: &Path, options: &LoadOptions) -> Result<TrtEngine, EngineError> {
        let refuse = |e: TrtError| failure(model, &self.device, &e);
        self.device.bind()?;
        let mut runtime = Runtime::new(&self.library).map_err(refuse)?;
        let swaps = options.swaps && runtime.set_deferred_weights_loading(true).is_ok();
        let plan = Plan::read(model, swaps.then_some(&self.device))?;
        runtime.check_validity(plan.bytes()?).map_err(refuse)?;
        let engine = runtime.deserialize(plan.bytes()?).map_err(refuse)?;
        let swapped = swaps.then_some(plan);
        let streams = self.stream_weights(&engine, options.streaming).map_err(refuse)?;
        let kernels = Kernels::new(&engine, self.library.product(), options.kernels.clone()).map_err(refuse)?;
        let weights = Weights::new(swapped, streams);
        let engine = TrtEngine::new(model, engine, kernels, weights, self.device.clone(), self.arena.clone())?;
        Ok(engine.with_recording(self.records))
    }

    /// Sets how much of the weights is on the device, before there is a context; whether some are not.
    fn stream_weights(&self, engine: &kiln_trt::Engine, most: Option<u64>) -> Result<bool, TrtError> {
        if self.library.product() == Product::Rtx {
            return Ok(false);
        }
        let streamable = engine.streamable_weights_size()?;
        let most = most.map_or(streamable, |most| usize::try_from(most).unwrap_or(usize::MAX).min(streamable));
        if streamable > 0 {
            engine.set_weight_streaming_budget(most)?;
        }
        Ok(most < streamable)
    }
}

impl Backend for TensorRt {
    fn name(&self) -> &'static str {
        match self.library.product() {
            Product::Rtx => "tensorrt-rtx",
            Product::Enterprise => "tensorrt",
        }
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn format(&self) -> Format {
        match self.library.product() {
            Product::Rtx => Format::TensorRtRtx,
            Product::Enterprise => Format::TensorRt,
        }
    }

    fn device(&self) -> Option<&Arc<Device>> {
        Some(&self.device)
    }

    fn swaps(&self) -> bool {
        true
    }

    fn trim(&self) {
        arena::lock(&self.arena).free();
        // What fails now fails again where it can be told.
        let _ = self.device.trim();
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        match options.overrides {
            None => Ok(Box::new(self.engine(model, options)?)),
            Some(_) => Err(EngineError::new(
                EngineErrorKind::Load,
                model,
                "an engine's weights do not change; LoRAs are fused when it is compiled (kiln compile --lora)",
            )),
        }
    }
}

/// What TensorRT says, by what its words mean: it has no codes.
fn failure(model: &Path, device: &Device, error: &TrtError) -> EngineError {
    let kind = match error.kind() {
        TrtErrorKind::Library => EngineErrorKind::Library,
        TrtErrorKind::Incompatible => EngineErrorKind::Incompatible,
        TrtErrorKind::Engine => EngineErrorKind::Load,
        TrtErrorKind::Argument => EngineErrorKind::Input,
        _ => EngineErrorKind::Run,
    };
    device::failure(kind, model, device, &error.to_string())
}
