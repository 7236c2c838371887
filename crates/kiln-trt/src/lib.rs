//! TensorRT from plain Rust: no C++ compiler, no SDK, nothing linked.
//!
//! TensorRT's C++ interfaces are objects whose virtual tables have a fixed order within a release. [`Library::open`]
//! loads the shared libraries, asks for their version and finds the tables of that release (`vtables.json`, read off
//! NVIDIA's public headers by `vtables.py`); a release whose tables are not known is refused.
//!
//! Three layers, from the ground up:
//!
//! - `sys`: tables, and calls through them;
//! - `object`: owned objects, status values as [`TrtError`];
//! - [`Builder`], [`Network`], [`BuilderConfig`], [`Runtime`], [`Engine`], [`ExecutionContext`], [`Refitter`] and their
//!   kin, which cannot be misused: only what takes memory of the device, or leaves work on a stream, is `unsafe`.
//!
//! What TensorRT calls back goes the other way: [`ProgressMonitor`], [`StreamReader`] and [`plugin`]s are Rust traits whose
//! C++ objects get their virtual tables here, in the order of the release that is loaded. Panics do not reach TensorRT.
//! A method that a release lacks is an error of kind [`TrtErrorKind::Unsupported`] that names it.
//!
//! TensorRT's messages are events of `tracing` with the target `tensorrt`, and a field `node` where they name a node or
//! layer.
//!
//! ```no_run
//! use kiln_trt::{Builder, BuilderFlag, Library};
//!
//! let library = Library::open("/usr/lib/libtensorrt_rtx.so.1".as_ref())?;
//! let builder = Builder::new(&library)?;
//! let network = builder.parse("unet.onnx".as_ref())?;
//! let mut config = builder.config()?;
//! config.set_flag(BuilderFlag::Tf32, false)?;
//! std::fs::write("unet.engine", builder.build(&network, &config)?.as_bytes())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![expect(unsafe_code, reason = "TensorRT is a C++ library, called through its virtual tables")]

mod alias;
mod builder;
mod callback;
mod config;
mod dtype;
mod engine;
mod error;
mod execution;
mod jit;
mod library;
mod logger;
mod network;
mod object;
pub mod plugin;
mod progress;
mod refit;
mod runtime;
mod sys;
mod weights;

pub use builder::{Builder, HostMemory};
pub use config::{BuilderConfig, BuilderFlag, OptimizationProfile, ProfilingVerbosity, TimingCache};
pub use dtype::DataType;
pub use engine::{Engine, EngineFacts, ProfileShape, SerializationFlag, TensorIoMode};
pub use error::{TrtError, TrtErrorKind};
pub use execution::{AllocationStrategy, CudaStream, ExecutionContext};
pub use jit::{RuntimeCache, RuntimeConfig, SpecializationStrategy};
pub use library::{Library, Product};
pub use network::{Attention, Layer, Network, Port};
pub use progress::ProgressMonitor;
pub use refit::{Refitter, Weights, WeightsPrototype};
pub use runtime::Runtime;
pub use weights::{SeekPosition, StreamReader};
