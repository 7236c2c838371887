//! Runs as sums of what goes into them.

use ndarray::{ArrayD, IxDyn};

use super::{Sampler, SchedulerError};

/// A run in which all latents are sums, with factors, of the tensors that go into it: the latents that it starts from and,
/// for each call of the model in turn, the prediction and the noise that is drawn after it.
///
/// Such a run needs no sampler where the tensors are, which may be a device.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearRun {
    /// For each call, the factors in the model's input of all tensors so far.
    pub inputs: Vec<Vec<f32>>,
    /// How often noise is drawn after each call.
    pub n_draws: Vec<usize>,
    /// The factors of all tensors in the final latents.
    pub latents: Vec<f32>,
}

/// Most that latents and the sums that lead to them may come to: a float of 32 bits has seven digits.
const LARGEST: f32 = 300.0;

impl Sampler {
    /// The run from a call on, as [`Sampler::start_at`] names it.
    ///
    /// None where latents are clipped, or where the model predicts a variance, so that they are not such sums; and where
    /// factors are so large that sums of 32-bit floats would lose digits.
    ///
    /// The sampler is run with unit vectors for tensors, and starts anew afterwards.
    pub fn linear_run(&mut self, start: usize) -> Result<Option<LinearRun>, SchedulerError> {
        if !self.is_linear() {
            return Ok(None);
        }
        // How often noise is drawn shows in a first run, how many tensors there are follows from it.
        let n_draws = self.unit_run(start, 1)?.n_draws;
        let run = self.unit_run(start, 1 + n_draws.len() + n_draws.iter().sum::<usize>())?;
        self.start_at(start)?;
        let size = |factors: &Vec<f32>| factors.iter().map(|factor| factor.abs()).sum::<f32>();
        let is_small = run.inputs.iter().chain([&run.latents]).all(|factors| size(factors) <= LARGEST);
        Ok((is_small && self.init_noise_sigma() <= LARGEST).then_some(run))
    }

    fn unit_run(&mut self, start: usize, n_tensors: usize) -> Result<LinearRun, SchedulerError> {
        self.start_at(start)?;
        let mut latents = unit(n_tensors, 0);
        let mut next = 1;
        let (mut inputs, mut n_draws) = (Vec::new(), Vec::new());
        for call in start..self.timesteps().len() {
            let input = self.scale_model_input(call, &latents);
            inputs.push(input.iter().take(next).copied().collect());
            let output = unit(n_tensors, next);
            let mut drawn = 0;
            self.step(call, &output, &mut latents, &mut |_| {
                drawn += 1;
                unit(n_tensors, next + drawn)
            })?;
            next += 1 + drawn;
            n_draws.push(drawn);
        }
        Ok(LinearRun { inputs, n_draws, latents: latents.into_iter().collect() })
    }
}

/// 1 at the index of a tensor, 0 elsewhere.
fn unit(n_tensors: usize, index: usize) -> ArrayD<f32> {
    ArrayD::from_shape_fn(IxDyn(&[1, n_tensors]), |at| f32::from(at[1] == index))
}
