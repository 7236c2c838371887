//! The compile stage: a checkpoint, a diffusers folder or a single file, becomes ONNX files ([`trace`]) or a bundle in
//! the engine cache ([`EngineCache::compile`]).
//!
//! A checkpoint's weights are never loaded: tracing reads the headers of its safetensors files, and writing copies each
//! weight once, from file to file, converting where the emission policy stores another type.

mod bundle;
mod cache;
mod canonical;
mod checkpoint;
mod error;
mod family;
mod files;
mod hub;
mod inspect;
mod json;
mod options;
mod original;
mod spec;
mod stored;
mod synth;
mod targets;
mod trace;
mod weights;

pub use bundle::{BuildOptions, Plan, Step};
pub use cache::{
    CacheItem, Checked, Compiled, Difference, EngineCache, Entry, ItemKind, Pruned, Recipe, Record,
};
pub use checkpoint::{Checkpoint, ControlNetCheckpoint, TokenizerFolder, file_name};
pub use error::CompileError;
pub use family::Family;
pub use inspect::{
    ComponentSummary, ModelSummary, inspect_checkpoint, inspect_controlnet, inspect_onnx, inspect_original,
};
pub use options::{CheckpointOptions, Components, PredictionType};
pub use original::{Original, WeightView};
pub use spec::{
    AttentionSpec, Bytes, ComputeCapability, CpuSpec, CudaSpec, EngineSpec, FixedSizes, LoraSpec, NetworkSpec,
    OnnxSpec, OpenRange, OptimizationLevel, PrecisionSpec, ProfileSpec, Profiles, RangeSpec, RtxSpec,
    Specification, TargetSpec,
};
pub use synth::{Architecture, synthesize};
pub use targets::{
    AttentionRule, BuiltEngine, EngineBuilder, EngineJob, EngineOptions, InProcess, JobFailure, Profile, Range,
    TargetOptions, Toolkit,
};
pub use trace::{
    AUTOENCODER_SEGMENTS, Progress, SEGMENT_BYTES, TraceOptions, TracedModel, trace, trace_controlnet,
    trace_inside,
};
