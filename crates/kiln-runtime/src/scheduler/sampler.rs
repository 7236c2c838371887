use std::borrow::Cow;
use std::fmt;

use ndarray::{ArrayD, IxDyn, Zip};

use super::alphas::Alphas;
use super::method::{Method, Noise, SamplerOptions, Schedule};
use super::prediction::combine;
use super::{PredictionType, SchedulerClass, SchedulerConfig, SchedulerError, Thresholding};
use super::{ddim, ddim_inverse, ddpm, deis, dpm_multistep, dpm_singlestep, edm};
use super::{euler, heun, kdpm2, lcm, lms, pndm, sa_solver, tcd, unipc};

/// One run of a scheduler: its schedule, and what multistep methods remember between calls of the model.
///
/// For each `i` from [`Sampler::start_at`] to the last timestep: the model gets
/// [`scale_model_input`](Sampler::scale_model_input) and `timesteps()[i]`, and [`step`](Sampler::step) takes its output.
pub struct Sampler {
    name: Cow<'static, str>,
    web_ui_sampler: Option<String>,
    web_ui_schedule: Option<&'static str>,
    steps: usize,
    schedule: Schedule,
    method: Box<dyn Method>,
    clips: bool,
    prediction: Option<PredictionType>,
    /// The call that is due, once the run has started.
    next: Option<usize>,
}

impl SchedulerConfig {
    /// A run of `n_steps` steps; refuses numbers of steps that the schedule does not have.
    pub fn sampler(&self, n_steps: usize, options: &SamplerOptions) -> Result<Sampler, SchedulerError> {
        let (schedule, method) = match self.class() {
            SchedulerClass::DdimInverse => ddim_inverse::plan(self, n_steps),
            SchedulerClass::DpmMultistepInverse => dpm_multistep::plan_inverse(self, n_steps),
            SchedulerClass::Deis => deis::plan(self, n_steps),
            SchedulerClass::SaSolver => sa_solver::plan(self, n_steps),
            SchedulerClass::Tcd => tcd::plan(self, n_steps, options),
            SchedulerClass::EdmEuler => edm::plan(self, n_steps),
            SchedulerClass::EdmDpmMultistep => dpm_multistep::plan_edm(self, n_steps),
            SchedulerClass::Ddim | SchedulerClass::DdimParallel => ddim::plan(self, n_steps, options),
            SchedulerClass::Ddpm | SchedulerClass::DdpmParallel => ddpm::plan(self, n_steps),
            SchedulerClass::Pndm => pndm::plan(self, n_steps),
            SchedulerClass::Euler => euler::plan(self, n_steps),
            SchedulerClass::EulerAncestral => euler::plan_ancestral(self, n_steps),
            SchedulerClass::Heun => heun::plan(self, n_steps),
            SchedulerClass::Lms => lms::plan(self, n_steps),
            SchedulerClass::Kdpm2 => kdpm2::plan(self, n_steps),
            SchedulerClass::Kdpm2Ancestral => kdpm2::plan_ancestral(self, n_steps),
            SchedulerClass::DpmMultistep => dpm_multistep::plan(self, n_steps),
            SchedulerClass::DpmSinglestep => dpm_singlestep::plan(self, n_steps),
            SchedulerClass::UniPc => unipc::plan(self, n_steps),
            SchedulerClass::Lcm => lcm::plan(self, n_steps, options),
        }?;
        let sampler = Sampler::new(self.class().name(), n_steps, schedule, method);
        let clips = self.thresholding != Thresholding::None;
        // What EDM's networks predict is not told from the noise level alone.
        let prediction = Some(self.prediction_type).filter(|_| !self.class().is_edm());
        let (web_ui_sampler, web_ui_schedule) = (Some(self.web_ui_sampler()), self.web_ui_schedule());
        Ok(Sampler { clips, prediction, web_ui_sampler, web_ui_schedule, ..sampler })
    }

    /// `alphas_cumprod`: the part of the signal's variance that is left at each timestep that the model was trained with.
    pub fn alphas_cumprod(&self) -> Vec<f32> {
        Alphas::new(self).cumprod
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Sampler");
        f.field("name", &self.name)
            .field("steps", &self.steps)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

impl Sampler {
    /// A run of `n_steps` steps by a method, which a program may bring along.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        n_steps: usize,
        schedule: Schedule,
        method: Box<dyn Method>,
    ) -> Sampler {
        Sampler {
            name: name.into(),
            web_ui_sampler: None,
            web_ui_schedule: None,
            steps: n_steps,
            schedule,
            method,
            clips: false,
            prediction: None,
            next: None,
        }
    }

    /// The scheduler's name, for those of diffusers that of the class.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What Stable Diffusion's web UIs call it, such as `DPM++ 2M`; its name where they lack it.
    pub fn web_ui_sampler(&self) -> &str {
        self.web_ui_sampler.as_deref().unwrap_or(&self.name)
    }

    /// What they call the choice of its sigmas, such as `Karras`, where it has one.
    pub fn web_ui_schedule(&self) -> Option<&'static str> {
        self.web_ui_schedule
    }

    /// The timestep of each call of the model, noisiest first; not always whole numbers, and more than one per step where
    /// [`Sampler::order`] is above 1.
    pub fn timesteps(&self) -> &[f32] {
        &self.schedule.timesteps
    }

    /// Calls of the model per step.
    pub fn order(&self) -> usize {
        self.schedule.order
    }

    /// Standard deviation of the latents that a whole run starts from.
    pub fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    /// Whether the model's output has more channels than the latents: behind the prediction comes a learned variance.
    pub fn takes_variance(&self) -> bool {
        self.method.takes_variance()
    }

    /// Whether all latents of a run are sums of the tensors that go into it.
    pub(super) fn is_linear(&self) -> bool {
        !self.clips && !self.takes_variance()
    }

    /// The call that img2img starts at, where `strength` is the part of the steps that is run, from 0 to 1 (`get_timesteps`
    /// of diffusers' pipelines).
    pub fn img2img_start(&self, strength: f64) -> usize {
        let run = ((self.steps as f64 * strength) as usize).min(self.steps);
        (self.steps - run) * self.schedule.order
    }

    /// Makes `call`, the first of a step, the first of the run, and forgets all earlier ones. Without it a run starts at 0.
    ///
    /// Refuses a run on which this configuration would divide by zero, before a model runs.
    pub fn start_at(&mut self, call: usize) -> Result<(), SchedulerError> {
        self.next = None;
        self.method.reset();
        if call >= self.timesteps().len() || !call.is_multiple_of(self.order()) {
            return Err(self.out_of_turn(call));
        }
        let rehearsed = self.rehearse(call);
        self.method.reset();
        self.next = rehearsed.is_ok().then_some(call);
        rehearsed
    }

    fn out_of_turn(&self, found: usize) -> SchedulerError {
        SchedulerError::Turn { found, expected: self.next.unwrap_or(0), calls: self.timesteps().len() }
    }

    /// The input of the model at `call`, the one that is due.
    pub fn scale_model_input<'a>(&self, call: usize, latents: &'a ArrayD<f32>) -> Cow<'a, ArrayD<f32>> {
        match self.method.input_divisor(call.min(self.timesteps().len() - 1)) {
            None => Cow::Borrowed(latents),
            Some(divisor) => Cow::Owned(latents.mapv(|x| x / divisor)),
        }
    }

    /// Takes latents from one call of the model to the next.
    ///
    /// `output` is the model's guided prediction at `call`, of the shape of `latents`, `[B, C, H, W]`; for a learned
    /// variance it has more channels. `noise` is drawn from as often as diffusers draws, not at all by deterministic samplers.
    /// Latents keep their value where an argument is refused.
    pub fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        if call != self.next.unwrap_or(0) || call >= self.timesteps().len() {
            return Err(self.out_of_turn(call));
        }
        if self.next.is_none() {
            self.start_at(0)?;
        }
        self.advance(call, output, latents, noise)?;
        self.next = Some(call + 1);
        Ok(())
    }

    fn advance(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        self.check_output(output, latents)?;
        let mut wrong = None;
        let mut checked = |shape: &[usize]| {
            let drawn = noise(shape);
            match drawn.shape() == shape {
                true => drawn,
                false => {
                    wrong = Some(drawn.shape().to_vec());
                    ArrayD::zeros(shape)
                }
            }
        };
        let mut stepped = latents.clone();
        self.method.step(call, output, &mut stepped, &mut checked)?;
        if let Some(found) = wrong {
            return Err(SchedulerError::Shape { what: "noise", found, expected: latents.shape().into() });
        }
        *latents = stepped;
        Ok(())
    }

    fn check_output(&self, output: &ArrayD<f32>, latents: &ArrayD<f32>) -> Result<(), SchedulerError> {
        let (found, expected) = (output.shape(), latents.shape());
        let fits = match self.method.takes_variance() && found.len() == expected.len() && found.len() > 1 {
            true => (0..found.len()).all(|axis| axis == 1 || found[axis] == expected[axis]),
            false => found == expected,
        };
        match fits {
            true => Ok(()),
            false => Err(SchedulerError::Shape {
                what: "model output",
                found: found.into(),
                expected: expected.into(),
            }),
        }
    }

    /// `original` with as much of `noise`, of the same shape, as the latents that `call` starts from have.
    pub fn add_noise(
        &self,
        call: usize,
        original: &ArrayD<f32>,
        noise: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        if call >= self.timesteps().len() {
            return Err(self.out_of_turn(call));
        }
        if noise.shape() != original.shape() {
            let (found, expected) = (noise.shape().into(), original.shape().into());
            return Err(SchedulerError::Shape { what: "noise", found, expected });
        }
        let (signal, spread) = self.method.level(call)?;
        Ok(Zip::from(original).and(noise).map_collect(|original, noise| signal * original + spread * noise))
    }

    /// The clean latents that a model's output at `call` stands for, where it is known what the model predicts.
    pub fn estimate(&self, call: usize, output: &ArrayD<f32>, latents: &ArrayD<f32>) -> Option<ArrayD<f32>> {
        let (prediction, (signal, spread)) = (self.prediction?, self.method.level(call).ok()?);
        let norm = signal.hypot(spread);
        let level = (signal / norm, spread / norm);
        let fits = output.shape() == latents.shape();
        fits.then(|| {
            combine(output, latents, |output, latent| prediction.original(level, output, latent / norm))
        })
    }

    /// Runs with three numbers for latents.
    fn rehearse(&mut self, start: usize) -> Result<(), SchedulerError> {
        let constant = |channels: usize, value| ArrayD::from_elem(IxDyn(&[1, channels]), value);
        let mut latents = constant(3, 1.0);
        let output = constant(if self.method.takes_variance() { 6 } else { 3 }, 0.1);
        for call in start..self.timesteps().len() {
            let is_finite = self.scale_model_input(call, &latents).iter().all(|x| x.is_finite());
            self.advance(call, &output, &mut latents, &mut |shape| ArrayD::from_elem(shape, 0.1))?;
            if !is_finite || !latents.iter().all(|x| x.is_finite()) {
                let timestep = self.timesteps()[call];
                return Err(SchedulerError::NotFinite {
                    scheduler: self.name.to_string(),
                    timestep,
                    steps: self.steps,
                });
            }
        }
        Ok(())
    }
}
