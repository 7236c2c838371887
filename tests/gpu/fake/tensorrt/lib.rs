//! A TensorRT-RTX for tests, or a TensorRT where `FAKE_TENSORRT` is set: its engines are ONNX models that rten runs, on memory of a fake CUDA driver and in the order
//! of its streams.
//!
//! It is strict where the real one is silent or crashes: a run without weights, without its memory or with a tensor that
//! has no address ends the process.
#![expect(clippy::print_stderr, reason = "a fake tells its tests what went wrong before it aborts")]
#![expect(unsafe_code, reason = "a C++ library in all but name")]

mod context;
mod cuda;
mod engine;
mod jit;
mod object;
mod runtime;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a serialized engine begins with; what follows are as many zeros as the model has bytes of weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The ONNX model.
    pub model: PathBuf,
    /// The device that the engine was built for, as 89.
    pub capability: u32,
    /// The release that built it, as `1.7`.
    pub release: String,
    /// Bytes of device memory that a run needs.
    pub arena_bytes: u64,
    /// Largest size of an open axis.
    pub most: i64,
}

const RELEASE: &str = "1.7";

impl Plan {
    /// An engine for the fake driver's default device.
    pub fn new(model: &Path) -> Plan {
        Plan { model: model.into(), capability: 89, release: RELEASE.into(), arena_bytes: 1 << 20, most: 4096 }
    }

    /// The serialized engine.
    pub fn to_bytes(&self, n_weight_bytes: u64) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(0);
        bytes.resize(bytes.len() + n_weight_bytes as usize, 0);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Plan> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        serde_json::from_slice(&bytes[..end]).ok()
    }
}
