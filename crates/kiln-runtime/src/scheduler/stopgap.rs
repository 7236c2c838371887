//! stopgap until the samplers land
#![allow(missing_docs)]
use ndarray::ArrayD;

use super::{Ddim, SchedulerConfig, SchedulerError};

pub trait Sampler: Send {
    fn timesteps(&self) -> &[f32];
    fn order(&self) -> usize {
        1
    }
    fn init_noise_sigma(&self) -> f32;
    fn scale_model_input(&self, i: usize, latents: &ArrayD<f32>) -> Result<ArrayD<f32>, SchedulerError>;
    fn start_at(&mut self, i: usize);
    fn step(
        &mut self,
        i: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut dyn FnMut(&[usize]) -> ArrayD<f32>,
    ) -> Result<(), SchedulerError>;
    fn add_noise(
        &self,
        i: usize,
        original: &ArrayD<f32>,
        noise: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError>;
}

struct S {
    d: Ddim,
    t: Vec<f32>,
    n: usize,
    eta: f32,
}

impl SchedulerConfig {
    pub fn sampler(&self, n: usize, eta: f32) -> Result<Box<dyn Sampler>, SchedulerError> {
        let d = Ddim::new(self);
        let t = d.timesteps(n)?.into_iter().map(|t| t as f32).collect();
        Ok(Box::new(S { d, t, n, eta }))
    }
}

impl Sampler for S {
    fn timesteps(&self) -> &[f32] {
        &self.t
    }
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }
    fn scale_model_input(&self, _: usize, latents: &ArrayD<f32>) -> Result<ArrayD<f32>, SchedulerError> {
        Ok(latents.clone())
    }
    fn start_at(&mut self, _: usize) {}
    fn step(
        &mut self,
        i: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut dyn FnMut(&[usize]) -> ArrayD<f32>,
    ) -> Result<(), SchedulerError> {
        let noise = (self.eta > 0.0).then(|| noise(output.shape()));
        self.d.step(output, self.t[i] as i64, self.n, latents, self.eta, noise.as_ref())
    }
    fn add_noise(
        &self,
        i: usize,
        original: &ArrayD<f32>,
        noise: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        self.d.add_noise(original, noise, self.t[i] as i64)
    }
}
