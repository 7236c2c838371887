use ndarray::{ArrayD, Axis, Slice, Zip};

use super::alphas::Alphas;
use super::config::VarianceType;
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::timesteps::whole;
use super::{PredictionType, SchedulerConfig, SchedulerError, Thresholding};

/// DDPM (Ho et al. 2020; diffusers `schedulers/scheduling_ddpm.py`).
struct Ddpm {
    alphas: Alphas,
    timesteps: Vec<i64>,
    prediction: PredictionType,
    thresholding: Thresholding,
    variance: VarianceType,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let timesteps = whole(config, n_steps)?;
    let ddpm = Ddpm {
        alphas: Alphas::new(config),
        timesteps: timesteps.iter().map(|&t| t as i64).collect(),
        prediction: config.prediction_type,
        thresholding: config.thresholding,
        variance: config.variance_type,
    };
    Ok((Schedule::plain(timesteps), Box::new(ddpm)))
}

impl Method for Ddpm {
    fn takes_variance(&self) -> bool {
        self.variance.is_learned()
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let timestep = self.timesteps[call];
        let alpha = self.alphas.at(timestep)?;
        let alpha_previous = self.timesteps.get(call + 1).map_or(Ok(1.0), |&t| self.alphas.at(t))?;
        let (beta, beta_previous) = (1.0 - alpha, 1.0 - alpha_previous);
        let current_alpha = alpha / alpha_previous;
        let current_beta = 1.0 - current_alpha;

        let (output, variance) = match self.variance.is_learned() {
            true => halves(output, latents)?,
            false => (output.clone(), ArrayD::zeros(latents.shape())),
        };
        let level = (alpha.sqrt(), beta.sqrt());
        let mut original = combine(&output, latents, |o, l| self.prediction.original(level, o, l));
        self.thresholding.apply(&mut original);
        let original_factor = alpha_previous.sqrt() * current_beta / beta;
        let latent_factor = current_alpha.sqrt() * beta_previous / beta;
        latents.zip_mut_with(&original, |latent, original| {
            *latent = original_factor * original + latent_factor * *latent;
        });
        if timestep > 0 {
            let small = (beta_previous / beta * current_beta).max(1e-20);
            let std = |learned: f32| match self.variance {
                VarianceType::FixedSmall => small.sqrt(),
                VarianceType::FixedSmallLog => (0.5 * small.ln()).exp(),
                VarianceType::FixedLarge => current_beta.sqrt(),
                VarianceType::FixedLargeLog => current_beta.ln().sqrt(),
                VarianceType::Learned => learned.sqrt(),
                VarianceType::LearnedRange => {
                    let part = (learned + 1.0) / 2.0;
                    (0.5 * (part * current_beta.ln() + (1.0 - part) * small.ln())).exp()
                }
            };
            let noise = noise(latents.shape());
            Zip::from(latents).and(&noise).and(&variance).for_each(|latent, &noise, &learned| {
                *latent += std(learned) * noise;
            });
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}

/// Prediction and variance of an output with twice the channels of the latents.
fn halves(output: &ArrayD<f32>, latents: &ArrayD<f32>) -> Result<(ArrayD<f32>, ArrayD<f32>), SchedulerError> {
    let channels = latents.shape().get(1).copied().unwrap_or(0);
    if output.shape().get(1) != Some(&(2 * channels)) {
        let (found, expected) = (output.shape().into(), latents.shape().into());
        return Err(SchedulerError::Shape { what: "model output without a variance", found, expected });
    }
    let half = |slice| output.slice_axis(Axis(1), slice).to_owned();
    Ok((half(Slice::from(..channels)), half(Slice::from(channels..))))
}
