//! Runs Stable Diffusion pipelines from bundles: the library to embed.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use kiln_runtime::{Bundle, Pipeline, Request, cpu_backend};
//!
//! let bundle = Bundle::open("engine-cache/shapes-cpu-0123456789abcdef".as_ref())?;
//! let mut pipeline = Pipeline::new(bundle, cpu_backend()?.backend)?;
//! let output = pipeline.generate(&Request::new("a red circle"), &mut |_| ControlFlow::Continue(()))?;
//! output.images[0].save_png("circle.png".as_ref(), &[])?;
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

mod backend;
mod companions;
mod error;
pub mod generator;
pub mod image;
mod lora;
mod memory;
mod picture;
mod pipeline;
mod plan;
mod prompt;
mod request;
mod residency;
pub mod scheduler;
pub mod tokenizer;
mod verify;

#[cfg(feature = "cuda")]
pub use backend::gpu_backend;
pub use backend::{CpuBackend, cpu_backend};
pub use companions::{open_scheduler, open_tokenizer};
pub use error::Error;
pub use kiln_bundle::{Bundle, ComponentName, Figures};
pub use kiln_engine::{Backend, Placement};
pub use kiln_lora::{LoraError, LoraFile};
pub use memory::process as process_memory;
pub use memory::{MemoryOptions, Offload, VaeTiling};
pub use picture::Picture;
pub use pipeline::{Event, Output, Pipeline, Progress, Timings};
pub use plan::{Choice, Plan};
pub use request::{Control, Hires, Init, MicroConditioning, PromptSyntax, Request, Upscaler, Variation};
pub use verify::{Reference, Verification};
