//! The compile stage: specifications, what is built again and why, a cache that can be trusted, packed bundles, engines
//! for GPUs.

mod cache;
mod engines;
mod pack;
mod recipes;
mod spec;

use std::path::PathBuf;
use std::sync::Arc;

use kiln_bundle::Target;
use kiln_compile::{EngineOptions, InProcess, Profile, Range};

/// Options of a toolkit that nothing is built with.
fn rtx() -> EngineOptions {
    let size = Range { min: 8, opt: 16, max: 32 };
    EngineOptions {
        target: Target::TensorrtRtx,
        library: PathBuf::from("libtensorrt_rtx.so"),
        release: "TensorRT-RTX 1.7.1".into(),
        compute_capabilities: vec![[8, 9]],
        profiles: vec![Profile { batch: Range::fixed(1), height: size, width: size, tokens: Range::fixed(77) }],
        workspace: None,
        optimization_level: None,
        tf32: true,
        allow_slow_attention: false,
        builder: Arc::new(InProcess),
    }
}
