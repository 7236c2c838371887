//! Runs Stable Diffusion pipelines from bundles: the library to embed.
//!
//! ```no_run
//! use kiln_runtime::{Bundle, Libraries, Pipeline, Request};
//!
//! let bundle = Bundle::open("engine-cache/shapes-cpu-0123456789abcdef")?;
//! let libraries = Libraries::new().from_environment();
//! let mut pipeline = Pipeline::builder(bundle).libraries(libraries).build()?;
//! let output = pipeline.generate(&Request::new("a red circle").seed(7))?;
//! output.images[0].save_png("circle.png", &[])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What a request takes is predicted from figures in the bundle, and spent as the pipeline is told:
//!
//! ```no_run
//! # use kiln_runtime::{Pipeline, Request};
//! # fn within_2_gib(pipeline: &mut Pipeline, request: &Request) -> Result<(), kiln_runtime::Error> {
//! if let Some(figures) = pipeline.bundle().figures()? {
//!     let plan = pipeline.plan(request, &figures)?;
//!     pipeline.set_memory(plan.within(2 << 30)?.memory)?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Numbers mean what they mean in diffusers: the same checkpoint, prompt, seed and settings give the same picture.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/embed.md")]
struct Embedding;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/tutorial-programs.md")]
struct FirstProgram;

pub mod architecture;
mod backends;
mod companions;
mod error;
pub mod generator;
mod guidance;
pub mod image;
pub mod infotext;
mod lora;
mod memory;
mod picture;
mod pipeline;
mod plan;
mod prompt;
mod request;
mod residency;
pub mod scheduler;
mod stable_diffusion;
pub mod tokenizer;
mod watch;

/// Arrays, which latents and planes of pictures are.
pub use ndarray;

/// Bundles: manifests, components, files.
pub mod bundle {
    pub use kiln_bundle::*;
}

/// Engines and the backends that load them.
pub mod engine {
    pub use kiln_engine::*;
}

#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
pub use backends::DeviceCheck;
pub use backends::{
    Backends, Device, DeviceReport, Found, Gpu, Libraries, Library, Notice, Opened, Origin, Place, Runner,
    TargetReport, library,
};
pub use companions::{ModelScheduler, NamedClass, open_tokenizer};
pub use error::{Error, ErrorKind};
pub use guidance::Guidance;
pub use kiln_bundle::{Bundle, BundleError, ComponentName, Figures, SealKey, Target};
pub use kiln_engine::{Backend, EngineError, EngineErrorKind, Placement};
pub use kiln_lora::{LearnedTable, LearnedWord, LoraError, LoraFile};
pub use kiln_native::Error as NativeError;
pub use kiln_types::{Size, limits};
pub use memory::process as process_memory;
pub use memory::{MemoryOptions, Offload, VaeTiling};
pub use picture::Picture;
pub use pipeline::{
    Drawing, Held, Job, Output, Pass, Pipeline, PipelineBuilder, Reference, Session, SharedPipeline, Timings,
    Verification,
};
pub use plan::{MemoryChoice, MemoryPlan};
pub use request::{
    Approximations, Control, Hires, Init, MaskFill, MicroConditioning, PromptSyntax, Request, Upscaler,
    Variation,
};
pub use residency::Pool;
pub use watch::{CancelToken, Event, OnEvent, Watch};
