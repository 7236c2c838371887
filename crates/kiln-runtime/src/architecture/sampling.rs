use std::fmt;

use crate::scheduler::Sampler;
use crate::{Error, Request};

/// Which steps are taken.
pub trait Sampling: fmt::Debug + Send + Sync {
    /// What diffusers' pipeline of a task takes where a request leaves it open.
    fn defaults(&self, task: Task) -> Defaults;

    /// What is told of the scheduler's settings before pictures are drawn: one line, by default nothing.
    fn note(&self) -> Option<String> {
        None
    }

    /// The sampler of a pass.
    ///
    /// # Errors
    ///
    /// Where the scheduler is unknown, or where it has no such run.
    fn schedule(&self, request: &SamplingRequest<'_>) -> Result<PassSchedule, Error>;
}

/// What a request starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Task {
    /// Whether it starts from a picture.
    pub from_picture: bool,
    /// Whether a mask says where to paint.
    pub masked: bool,
    /// Whether ControlNets steer it.
    pub controlled: bool,
}

impl Task {
    pub(crate) fn of(request: &Request) -> Task {
        Task {
            from_picture: request.init.is_some(),
            masked: request.is_masked(),
            controlled: !request.controls.is_empty(),
        }
    }
}

/// What a request leaves open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the prompt.
    pub guidance_scale: f32,
    /// How much of the way from pure noise is gone where a picture is changed.
    pub strength: f64,
    /// Factor on the residuals of ControlNets.
    pub control_scale: f32,
}

/// What a sampler is asked to do.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SamplingRequest<'a> {
    /// What the pass starts from.
    pub task: Task,
    /// The scheduler, by name; the model's own by default.
    pub scheduler: Option<&'a str>,
    /// Denoising steps of a whole run.
    pub steps: usize,
    /// DDIM's noise.
    pub eta: f32,
    /// The part of the run that is taken, from 0 to 1, and what requests call it; a whole run by default.
    pub strength: Option<(&'static str, f64)>,
}

/// A sampler, and where in its run a pass begins.
#[derive(Debug)]
pub struct PassSchedule {
    /// The sampler.
    pub sampler: Sampler,
    /// The first call of the denoiser.
    pub begin: usize,
}

impl PassSchedule {
    /// Calls of the denoiser.
    pub fn n_evaluations(&self) -> usize {
        self.sampler.timesteps().len() - self.begin
    }
}
