//! Noise schedules and samplers (diffusers `schedulers/`).
//!
//! [`SchedulerConfig`] reads a `scheduler_config.json` and makes a [`Sampler`] for one run, which the caller drives without
//! knowing which one it is:
//!
//! ```
//! use kiln_runtime::generator::{Generator, GeneratorKind};
//! use kiln_runtime::scheduler::{SamplerOptions, SchedulerConfig};
//!
//! let config = SchedulerConfig::from_json(r#"{ "_class_name": "EulerDiscreteScheduler" }"#)?;
//! let mut sampler = config.sampler(20, &SamplerOptions::default())?;
//! let mut generator = Generator::new(GeneratorKind::Cpu, 7);
//! let mut latents = generator.randn(&[1, 4, 8, 8]) * sampler.init_noise_sigma();
//! for i in 0..sampler.timesteps().len() {
//!     let input = sampler.scale_model_input(i, &latents);
//!     let output = input.mapv(|x| 0.3 * x); // the UNet at sampler.timesteps()[i]
//!     sampler.step(i, &output, &mut latents, &mut |shape| generator.randn(shape))?;
//! }
//! # Ok::<(), kiln_runtime::scheduler::SchedulerError>(())
//! ```
//!
//! Arithmetic is in the precision of torch and numpy, step by step. Deviations: where the rounding of `numpy.arange` adds a
//! timestep of -1 to trailing spacing (61 of 1000 steps), that one is left out; a run begins with the first sigma even where
//! the first two timesteps are equal.

mod alphas;
mod class;
mod config;
mod ddim;
mod ddim_inverse;
mod ddpm;
mod deis;
mod dpm;
mod dpm_multistep;
mod dpm_singlestep;
mod edm;
mod elsewhere;
mod error;
mod euler;
mod heun;
mod kdpm2;
mod keys;
mod lcm;
mod linear;
mod lms;
mod method;
mod pndm;
mod prediction;
mod sa_solver;
mod sampler;
mod settings;
mod sigmas;
mod tcd;
mod timesteps;
mod unipc;
mod web_ui;

pub use alphas::BetaSchedule;
pub use class::SchedulerClass;
pub use config::SchedulerConfig;
pub use error::SchedulerError;
pub use linear::LinearRun;
pub use method::{Method, Noise, SamplerOptions, Schedule};
pub use prediction::{PredictionType, Thresholding};
pub use sampler::Sampler;
pub use settings::{Correction, SchedulerSettings};
pub use timesteps::TimestepSpacing;
pub use web_ui::{WEB_UI_SAMPLERS, WEB_UI_SCHEDULES, WebUiSampler, WebUiSchedule};
