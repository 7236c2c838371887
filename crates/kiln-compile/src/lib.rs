//! The compile stage: a checkpoint, a diffusers folder or a single file, becomes ONNX files ([`trace`]) or a bundle in
//! the engine cache ([`EngineCache::compile`]).
//!
//! A checkpoint's weights are never loaded: tracing reads the headers of its safetensors files, and writing copies each
//! weight once, from file to file, converting where the emission policy stores another type.

mod cache;
mod checkpoint;
mod digests;
mod error;
mod family;
mod inspect;
mod original;
mod synth;
mod trace;
mod weights;

pub use cache::{Compiled, EngineCache};
pub use checkpoint::{Checkpoint, ControlNetCheckpoint, TokenizerFolder};
pub use error::CompileError;
pub use family::Family;
pub use inspect::{ComponentSummary, ModelSummary, inspect_checkpoint, inspect_onnx, inspect_original};
pub use original::{Original, PredictionType, WeightView};
pub use synth::{Architecture, synthesize};
pub use trace::{Progress, TraceOptions, TracedModel, trace, trace_controlnet};
