//! ONNX Runtime's CUDA provider, which works on the device's own stream and memory.
#![expect(unsafe_code, reason = "addresses and streams of the device are ours to vouch for")]

mod engine;

use std::path::Path;
use std::sync::Arc;

use kiln_cuda::{ComputeCapability, Device, Driver};
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::{HostOptions, Kernels, OnnxRuntime};
use crate::device::failure;
use crate::error::EngineErrorKind::{Library, Load};
use crate::{Backend, CudaTuning, Engine, EngineError, Format, LoadOptions};
use engine::CudaEngine;

/// ONNX Runtime with its CUDA provider on a device.
///
/// Each engine has memory of its own to compute in. All run on a stream beside the device's others, one after the other:
/// what a run puts there can be recorded without what other threads ask for.
pub struct OnnxRuntimeCuda {
    runtime: OnnxRuntime,
    device: Arc<Device>,
    records: bool,
}

impl OnnxRuntimeCuda {
    /// The version of CUDA that the driver must support for the libraries that kiln fetches.
    pub const NEEDED_CUDA: [u32; 2] = [13, 0];

    /// The oldest devices that the provider has kernels for.
    pub const NEEDED_COMPUTE_CAPABILITY: ComputeCapability = ComputeCapability(7, 5);

    /// CUDA's and cuDNN's libraries that the provider opens, in an order in which each finds those it needs.
    pub const NEEDED_LIBRARIES: [&str; 14] = [
        "libcudart.so.13",
        "libnvrtc.so.13",
        "libnvJitLink.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcudnn_graph.so.9",
        "libcudnn_ops.so.9",
        "libcudnn_engines_runtime_compiled.so.9",
        "libcudnn_engines_precompiled.so.9",
        "libcudnn_heuristic.so.9",
        "libcudnn_cnn.so.9",
        "libcudnn_adv.so.9",
        "libcudnn.so.9",
    ];

    /// Opens the library, with its provider beside it, for a device.
    ///
    /// CUDA's libraries are taken from the same folder, and those that are not there from where the system finds them.
    pub fn open(library: &Path, driver: &Driver, device: Arc<Device>) -> Result<OnnxRuntimeCuda, EngineError> {
        driver.check_version("ONNX Runtime's CUDA provider", OnnxRuntimeCuda::NEEDED_CUDA)?;
        device.bind()?;
        let refuse = |reason: &str| EngineError::new(Library, library, reason);
        for name in OnnxRuntimeCuda::NEEDED_LIBRARIES {
            let beside = library.with_file_name(name);
            if beside.is_file() {
                ort::util::preload_dylib(&beside).map_err(|e| EngineError::new(Library, &beside, e))?;
            }
        }
        let options = HostOptions { kernels: Kernels::OFF, ..HostOptions::default() };
        let backend = OnnxRuntimeCuda { runtime: OnnxRuntime::open(library, options)?, device, records: true };
        // What the provider lacks is told now, not when the first engine is loaded.
        backend.builder(CudaTuning::default(), false).map_err(|e| refuse(in_short(&e.to_string())))?;
        Ok(backend)
    }

    /// Whether engines that run again with the same sizes do so as recorded CUDA graphs, which they do unless told.
    #[must_use]
    pub fn with_recording(self, records: bool) -> OnnxRuntimeCuda {
        OnnxRuntimeCuda { records, ..self }
    }

    /// Options of a session, which does not open where its runs shall be recorded and cannot be.
    fn builder(&self, tuning: CudaTuning, records: bool) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.runtime.environment)?
            .with_log_level(LogLevel::Fatal)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_config_entry("session.use_device_allocator_for_initializers", "1")?;
        let search = match tuning.search {
            true => ConvAlgorithmSearch::Exhaustive,
            false => ConvAlgorithmSearch::Heuristic,
        };
        let provider = CUDA::default()
            .with_device_id(i32::try_from(self.device.info().ordinal).unwrap_or(i32::MAX))
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            .with_conv_algorithm_search(search)
            .with_conv_max_workspace(tuning.search)
            .with_tf32(tuning.tf32)
            // Models say it themselves: what the provider rearranges computes sizes on the device, and cannot be recorded.
            .with_prefer_nhwc(false)
            .with_cuda_graph(records);
        // SAFETY: the stream is the device's, which every engine keeps.
        let provider = unsafe { provider.with_compute_stream(self.device.side_stream().cast()) };
        provider.register(&mut builder)?;
        Ok(builder)
    }

    /// A session, and whether its runs can be recorded; those of models with operators that only the processor has cannot.
    fn session(&self, model: &Path, options: &LoadOptions) -> Result<(Session, bool), EngineError> {
        // A session goes when its weights do, and what it found by searching goes with it.
        let tuning = CudaTuning { search: options.tuning.search && !options.swaps, ..options.tuning };
        let open = |records: bool| {
            let builder = self.builder(tuning, records).map_err(|e| e.to_string())?;
            let mut builder = self.runtime.overriding(builder, options.overrides.as_deref())?;
            builder.commit_from_file(model).map_err(|e| e.to_string())
        };
        let recorded = if self.records { open(true).ok() } else { None };
        match recorded {
            Some(session) => Ok((session, true)),
            None => {
                let session = open(false);
                Ok((session.map_err(|said| failure(Load, model, &self.device, in_short(&said)))?, false))
            }
        }
    }
}

impl Backend for OnnxRuntimeCuda {
    fn name(&self) -> &'static str {
        "onnxruntime-cuda"
    }

    fn version(&self) -> &str {
        self.runtime.version()
    }

    fn format(&self) -> Format {
        Format::OnnxForCuda
    }

    fn device(&self) -> Option<&Arc<Device>> {
        Some(&self.device)
    }

    fn trim(&self) {
        // What fails now fails again where it can be told.
        let _ = self.device.trim();
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        self.device.bind()?;
        let (session, records) = self.session(model, options)?;
        Ok(Box::new(CudaEngine::new(model, session, self.device.clone(), records)?))
    }
}

/// What ONNX Runtime says without where in its source it says so, and on which host.
fn in_short(said: &str) -> &str {
    let said = match said.rsplit_once("[ONNXRuntimeError] : ") {
        Some((_, coded)) => coded.splitn(3, " : ").last().unwrap_or(coded),
        None => said,
    };
    let failed = ["CUDA failure", "CUDNN failure", "CUBLAS failure"].iter().find_map(|what| said.find(what));
    let said = &said[failed.unwrap_or(0)..];
    said.split_once(" ; GPU=").map_or(said, |(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::in_short;

    #[test]
    fn failures_are_told_without_where_they_happened() {
        let missing = "/src/provider_bridge_ort.cc:2043 Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library a.so \
                       with error: b.so: cannot open shared object file";
        let short = "Failed to load library a.so with error: b.so: cannot open shared object file";
        assert_eq!(in_short(missing), short);
        let failed = "Exception: /src/cuda_call.cc:154 CudaCall [with T = int] CUDA failure 2: out of memory ; GPU=0 ; \
                      hostname=h ; expr=cudaMalloc(&p, n);";
        assert_eq!(in_short(failed), "CUDA failure 2: out of memory");
        assert_eq!(in_short("no such model"), "no such model");
    }
}
