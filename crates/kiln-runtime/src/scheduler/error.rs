/// Why a scheduler could not be made or run.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum SchedulerError {
    /// A value in `scheduler_config.json`, or the name of a scheduler, is not supported.
    #[error("{key}: {reason}")]
    Config {
        /// The key.
        key: String,
        /// The offending value and what is accepted.
        reason: String,
    },
    /// A class that does not run here.
    #[error("{key}: '{name}' {why}; supported: {supported}")]
    Class {
        /// Where it is named.
        key: &'static str,
        /// The class.
        name: String,
        /// What it is for, or that it is not supported.
        why: String,
        /// What runs.
        supported: String,
    },
    /// The number of steps does not fit the schedule.
    #[error("steps: {steps} is not a number from {min} to {max}")]
    Steps {
        /// Steps that were asked for.
        steps: usize,
        /// Fewest steps.
        min: usize,
        /// Most steps: those that the model was trained with.
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
    /// Calls of the model in a different order than the sampler's.
    #[error("model call {found} of {calls}: call {expected} is due")]
    Turn {
        /// Index of the call that was made.
        found: usize,
        /// Index of the call that is due; `calls` after the last.
        expected: usize,
        /// Calls of a whole run.
        calls: usize,
    },
    /// The configuration divides by zero somewhere on the way.
    #[error(
        "{scheduler} leaves the range of numbers at timestep {timestep} of {steps} steps with this configuration"
    )]
    NotFinite {
        /// The scheduler.
        scheduler: String,
        /// The timestep.
        timestep: f32,
        /// Steps that were asked for.
        steps: usize,
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
    /// An option of the run is out of range.
    #[error("{key}: {value} is not a number {range}")]
    Option {
        /// The option.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What is accepted.
        range: &'static str,
    },
}

impl SchedulerError {
    pub(super) fn config(key: &str, reason: impl Into<String>) -> SchedulerError {
        SchedulerError::Config { key: key.into(), reason: reason.into() }
    }
}
