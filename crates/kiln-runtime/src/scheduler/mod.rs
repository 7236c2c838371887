//! Noise schedules and samplers.

mod config;
mod ddim;
mod stopgap;

pub use config::{BetaSchedule, PredictionType, SchedulerConfig, Thresholding, TimestepSpacing};
pub use ddim::Ddim;
pub use stopgap::Sampler;

/// Why a scheduler could not be made or set up.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum SchedulerError {
    /// A value in `scheduler_config.json` is not supported.
    #[error("{key}: {reason}")]
    Config {
        /// The key.
        key: String,
        /// The offending value and what is accepted.
        reason: String,
    },
    /// The number of steps does not fit the schedule.
    #[error("steps: {steps} is not a number from 1 to {max}")]
    Steps {
        /// Steps that were asked for.
        steps: usize,
        /// Steps that the model was trained with.
        max: usize,
    },
    /// The spacing and its offset lead to a timestep that the model was not trained on.
    #[error("steps: {steps} steps with steps_offset {offset} reach timestep {timestep} of {trained}")]
    Timestep {
        /// Steps that were asked for.
        steps: usize,
        /// `steps_offset`.
        offset: i64,
        /// The timestep.
        timestep: i64,
        /// Timesteps that the model was trained with.
        trained: usize,
    },
    /// A timestep that the schedule does not have.
    #[error("timestep: {timestep} is not a number from 0 to {max}")]
    NoTimestep {
        /// The timestep.
        timestep: i64,
        /// The last timestep.
        max: usize,
    },
    /// Two arrays of a step differ in shape.
    #[error("{what}: shape {found:?} is not that of the latents, {expected:?}")]
    Shape {
        /// The array.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the latents.
        expected: Vec<usize>,
    },
    /// The noise parameter is out of range, or noise is missing.
    #[error("eta: {0} is not a number from 0 to 1 with noise for all but 0")]
    Eta(f32),
}
