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
//! - [`Builder`], [`Network`], [`BuilderConfig`], [`Runtime`], [`Engine`] and their kin, which can not be misused.
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

mod builder;
mod config;
mod error;
mod library;
mod logger;
mod network;
mod object;
mod runtime;
mod sys;

pub use builder::{Builder, HostMemory};
pub use config::{BuilderConfig, BuilderFlag, OptimizationProfile, ProfilingVerbosity, TimingCache};
pub use error::{TrtError, TrtErrorKind};
pub use library::{Library, Product};
pub use network::{Attention, DataType, Layer, Network, Port};
pub use runtime::{Engine, EngineFacts, Runtime};
