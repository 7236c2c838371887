use crate::Error;
use crate::generator::GeneratorKind;
use crate::scheduler::SchedulerClass;

/// Largest height and width in pixels.
const MAX_SIDE: u32 = 8192;

/// Most pictures at once.
const MAX_BATCH: usize = 256;

/// What to generate; defaults are those of diffusers' `StableDiffusionPipeline`.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// One prompt per picture.
    pub prompts: Vec<String>,
    /// What to steer away from: none, one for all, or one per prompt.
    pub negative_prompts: Vec<String>,
    /// Seed of the generator, which draws the latents of the whole batch at once.
    pub seed: u64,
    /// Which of torch's generators draws.
    pub generator: GeneratorKind,
    /// Scheduler to use instead of the model's own, as [`SchedulerConfig::with_scheduler`] reads it.
    ///
    /// [`SchedulerConfig::with_scheduler`]: crate::scheduler::SchedulerConfig::with_scheduler
    pub scheduler: Option<String>,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the prompt; guidance is off up to 1.
    pub guidance_scale: f32,
    /// Noise of DDIM: 0 for none, 1 for as much as DDPM adds. Other schedulers ignore it.
    pub eta: f32,
    /// Height in pixels; the model's own by default.
    pub height: Option<u32>,
    /// Width in pixels; the model's own by default.
    pub width: Option<u32>,
}

impl Request {
    /// One picture with default settings and seed 0.
    pub fn new(prompt: impl Into<String>) -> Request {
        Request {
            prompts: vec![prompt.into()],
            negative_prompts: Vec::new(),
            seed: 0,
            generator: GeneratorKind::Cpu,
            scheduler: None,
            steps: 50,
            guidance_scale: 7.5,
            eta: 0.0,
            height: None,
            width: None,
        }
    }

    /// Whether the unconditional prediction is needed.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    pub(crate) fn negative_prompt(&self, i: usize) -> &str {
        let index = if self.negative_prompts.len() == 1 { 0 } else { i };
        self.negative_prompts.get(index).map_or("", String::as_str)
    }

    /// Checks all that can be checked without a model.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |key, reason: String| Err(Error::Request { key, reason });
        let n = self.prompts.len();
        if n == 0 || n > MAX_BATCH {
            return refuse("batch size", format!("{n} is not a number from 1 to {MAX_BATCH}"));
        }
        if ![0, 1, n].contains(&self.negative_prompts.len()) {
            let found = self.negative_prompts.len();
            return refuse("negative prompt", format!("{found} of them for {n} prompts"));
        }
        if self.steps == 0 {
            return refuse("steps", "0 is not a positive number".into());
        }
        if !self.guidance_scale.is_finite() {
            return refuse("guidance scale", format!("{} is not a finite number", self.guidance_scale));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return refuse("eta", format!("{} is not a number from 0 to 1", self.eta));
        }
        if let Some(name) = &self.scheduler {
            SchedulerClass::named(name)?;
        }
        check_side("height", self.height, 8)?;
        check_side("width", self.width, 8)
    }

    /// Checks the request against a model of `factor` pixels per latent.
    pub(crate) fn check(&self, height: u32, width: u32, factor: u32) -> Result<(), Error> {
        self.validate()?;
        check_side("height", Some(height), factor)?;
        check_side("width", Some(width), factor)
    }
}

fn check_side(key: &'static str, side: Option<u32>, unit: u32) -> Result<(), Error> {
    match side {
        Some(side) if side == 0 || !side.is_multiple_of(unit) || side > MAX_SIDE => {
            Err(Error::Request { key, reason: format!("{side} is not a multiple of {unit} up to {MAX_SIDE}") })
        }
        _ => Ok(()),
    }
}
