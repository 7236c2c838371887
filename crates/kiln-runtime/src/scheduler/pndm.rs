use ndarray::ArrayD;

use super::alphas::Alphas;
use super::method::{Method, Noise, Planned, Schedule};
use super::timesteps::{check_steps, whole};
use super::{PredictionType, SchedulerConfig, SchedulerError};

/// Steps of the Runge-Kutta start, four calls each but for the first and last.
const ORDER: usize = 4;

/// PNDM (Liu et al. 2022; diffusers `schedulers/scheduling_pndm.py`): linear multistep, with a Runge-Kutta start or, where
/// `skip_prk_steps` is set, with a second look at the second timestep.
struct Pndm {
    alphas: Alphas,
    timesteps: Vec<i64>,
    /// How many of the timesteps are those of the Runge-Kutta start.
    n_prk: usize,
    /// Timesteps between two steps.
    stride: i64,
    prediction: PredictionType,
    /// Calls so far, which decide the formula wherever the run started.
    counter: usize,
    /// Outputs, newest last.
    outputs: Vec<ArrayD<f32>>,
    /// The latents that a step over several calls starts from.
    start: Option<ArrayD<f32>>,
    /// The weighted sum of outputs of a Runge-Kutta step.
    sum: Option<ArrayD<f32>>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    check_steps(config, n_steps, if config.skip_prk_steps { 1 } else { ORDER })?;
    let spaced: Vec<i64> = whole(config, n_steps)?.iter().map(|&t| t as i64).collect();
    let stride = (config.num_train_timesteps / n_steps) as i64;
    let (timesteps, n_prk) = match config.skip_prk_steps {
        true => {
            let again = spaced.get(1).copied();
            (spaced[..1].iter().copied().chain(again).chain(spaced[1..].iter().copied()).collect(), 0)
        }
        false => {
            let halves = spaced[..ORDER].iter().flat_map(|&t| [t + stride / 2, t]);
            let repeated: Vec<i64> = halves.skip(1).flat_map(|t| [t, t]).collect();
            let prk = &repeated[1..repeated.len() - 1];
            ([prk, &spaced[ORDER - 1..]].concat(), prk.len())
        }
    };
    if let Some(&timestep) = timesteps.iter().find(|&&t| t >= config.num_train_timesteps as i64) {
        let (offset, trained) = (config.steps_offset, config.num_train_timesteps);
        return Err(SchedulerError::Timestep { steps: n_steps, offset, timestep, trained });
    }
    let schedule = Schedule::plain(timesteps.iter().map(|&t| t as f64));
    let pndm = Pndm {
        alphas: Alphas::new(config),
        timesteps,
        n_prk,
        stride,
        prediction: config.prediction_type,
        counter: 0,
        outputs: Vec::new(),
        start: None,
        sum: None,
    };
    Ok((schedule, Box::new(pndm)))
}

impl Pndm {
    /// A call of the Runge-Kutta start: from which timestep to which, and with which output.
    fn prk(&mut self, timestep: i64, output: &ArrayD<f32>, latents: &ArrayD<f32>) -> (i64, i64, ArrayD<f32>) {
        let to = if self.counter % 2 == 1 { timestep } else { timestep - self.stride / 2 };
        let from = self.timesteps[self.counter / 4 * 4];
        let weighted = |weight: f32, sum: &Option<ArrayD<f32>>| match sum {
            Some(sum) => sum + &(output * weight),
            None => output * weight,
        };
        let output = match self.counter % 4 {
            0 => {
                self.sum = Some(weighted((1.0f64 / 6.0) as f32, &self.sum));
                self.outputs.push(output.clone());
                self.start = Some(latents.clone());
                output.clone()
            }
            1 | 2 => {
                self.sum = Some(weighted((1.0f64 / 3.0) as f32, &self.sum));
                output.clone()
            }
            _ => weighted((1.0f64 / 6.0) as f32, &self.sum.take()),
        };
        (from, to, output)
    }

    /// A call of the multistep method.
    fn plms(&mut self, timestep: i64, output: &ArrayD<f32>, latents: &ArrayD<f32>) -> (i64, i64, ArrayD<f32>) {
        if self.counter == 1 {
            // The second look at the second timestep corrects the first step, which is taken again.
            let mean = self.outputs.last().map_or_else(|| output.clone(), |last| (output + last) / 2.0);
            return (timestep + self.stride, timestep, mean);
        }
        let surplus = self.outputs.len().saturating_sub(3);
        self.outputs.drain(..surplus);
        self.outputs.push(output.clone());
        let output = match self.outputs.as_slice() {
            [a] => {
                if self.counter == 0 {
                    self.start = Some(latents.clone());
                }
                a.clone()
            }
            [b, a] => (a * 3.0 - b) / 2.0,
            [c, b, a] => (a * 23.0 - b * 16.0 + c * 5.0) / 12.0,
            [d, c, b, a] => (a * 55.0 - b * 59.0 + c * 37.0 - d * 9.0) * (1.0f64 / 24.0) as f32,
            _ => output.clone(),
        };
        (timestep, timestep - self.stride, output)
    }

    /// Formula 9 of the paper.
    fn transfer(
        &self,
        (from, to): (i64, i64),
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
    ) -> Result<(), SchedulerError> {
        let (alpha, alpha_to) = (self.alphas.at(from)?, self.alphas.at(to)?);
        let (beta, beta_to) = (1.0 - alpha, 1.0 - alpha_to);
        let factor = (alpha_to / alpha).sqrt();
        let denominator = alpha * beta_to.sqrt() + (alpha * beta * alpha_to).sqrt();
        let level = (alpha.sqrt(), beta.sqrt());
        latents.zip_mut_with(output, |latent, &output| {
            let epsilon = self.prediction.epsilon(level, output, *latent);
            *latent = factor * *latent - (alpha_to - alpha) * epsilon / denominator;
        });
        Ok(())
    }
}

impl Method for Pndm {
    fn reset(&mut self) {
        self.counter = 0;
        self.outputs.clear();
        self.start = None;
        self.sum = None;
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let timestep = self.timesteps[call];
        let is_prk = self.counter < self.n_prk;
        let (from, to, output) = match is_prk {
            true => self.prk(timestep, output, latents),
            false => self.plms(timestep, output, latents),
        };
        let mut next = match &self.start {
            Some(start) if is_prk || self.counter == 1 => start.clone(),
            _ => latents.clone(),
        };
        self.transfer((from, to), &output, &mut next)?;
        *latents = next;
        self.counter += 1;
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}
