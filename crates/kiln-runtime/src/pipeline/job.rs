//! What a request comes to with a model: the only place where defaults are filled in and values refused.

use kiln_types::Size;
use serde_json::Value;

use super::facts::Facts;
use crate::architecture::{Defaults, Model, PassSchedule, SamplingRequest, Task, Texts};
use crate::error::refuse;
use crate::request::check_side;
use crate::{Error, Guidance, MemoryOptions, Request};

/// A request with nothing left open, ready to run, to plan or to be told of.
#[derive(Debug)]
#[non_exhaustive]
pub struct Job<'r> {
    /// What was asked for.
    pub request: &'r Request,
    /// What it starts from.
    pub task: Task,
    /// How predictions are guided.
    pub guidance: Guidance,
    /// How much of the initial picture is changed, where there is one.
    pub strength: Option<f64>,
    /// Factors on the residuals of the ControlNets.
    pub control_scales: Vec<f32>,
    /// The texts, in the order of their rows.
    pub texts: Texts<'r>,
    /// Blocks of tokens of the longest text.
    pub n_blocks: u64,
    /// The only or first pass.
    pub first: Pass,
    /// A second pass at a larger size.
    pub second: Option<Pass>,
    /// What else the picture depends on, by name, as the architecture reports it.
    pub settings: Vec<(&'static str, Value)>,
}

/// One way through the denoising loop.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pass {
    /// Size of the pictures.
    pub size: Size,
    /// Denoising steps of a whole run.
    pub steps: usize,
    /// The sampler, and where the pass begins in its run.
    pub schedule: PassSchedule,
}

impl Job<'_> {
    /// Size of the pictures in the end.
    pub fn picture_size(&self) -> Size {
        self.second.as_ref().unwrap_or(&self.first).size
    }

    /// Number of pictures.
    pub fn batch(&self) -> usize {
        self.request.prompts.len()
    }

    /// The scheduler, as the request names it, or the class of the model's own.
    pub fn scheduler(&self) -> &str {
        self.request.scheduler.as_deref().unwrap_or_else(|| self.first.schedule.sampler.name())
    }

    /// Evaluations of the denoiser in all passes.
    pub fn n_evaluations(&self) -> usize {
        let passes = [Some(&self.first), self.second.as_ref()];
        passes.into_iter().flatten().map(|pass| pass.schedule.n_evaluations()).sum()
    }
}

/// What resolves requests.
pub(super) struct Resolver<'a> {
    pub(super) facts: &'a Facts,
    pub(super) model: &'a Model,
    pub(super) n_controlnets: usize,
    pub(super) memory: MemoryOptions,
}

impl Resolver<'_> {
    pub(super) fn resolve<'r>(&self, request: &'r Request) -> Result<Job<'r>, Error> {
        request.validate()?;
        let task = Task::of(request);
        let defaults = self.model.sampling.defaults(task);
        let guidance = Guidance {
            scale: request.guidance_scale.unwrap_or(defaults.guidance_scale),
            rescale: request.guidance_rescale,
            is_embedded: self.model.denoiser.embeds_guidance(),
        };
        let size = self.first_size(request);
        self.check_size(request, size, guidance)?;
        self.model.denoiser.check(request)?;
        self.check_task(request)?;

        let strength = request.init.as_ref().map(|init| init.strength.unwrap_or(defaults.strength));
        let steps = request.steps.unwrap_or(defaults.steps);
        let first = self.pass(request, size, steps, strength.map(|strength| ("strength", strength)))?;
        let texts = Texts::of(request, guidance.is_guided());
        self.model.conditioner.check(&texts)?;
        let n_blocks = self.model.conditioner.n_blocks(&texts)?;
        if let Some(fixed) = &self.facts.fixed {
            fixed.check_blocks(n_blocks)?;
        }
        Ok(Job {
            request,
            task,
            guidance,
            strength,
            control_scales: control_scales(request, &defaults),
            texts,
            n_blocks,
            second: self.second_pass(request, size, steps)?,
            first,
            settings: self.model.denoiser.settings(request, size),
        })
    }

    /// Of the initial picture or the first control picture, unless a mask is alone with it; else the model's own.
    fn first_size(&self, request: &Request) -> Size {
        let picture = match (&request.init, request.controls.first()) {
            (Some(init), control) if !request.is_masked() || control.is_some() => Some(&init.image),
            (None, Some(control)) => Some(&control.image),
            _ => None,
        };
        let factor = self.facts.latents.scale_factor;
        let default =
            picture.map_or(self.facts.size, |picture| picture.size().map(|side| side - side % factor));
        Size { width: request.width.unwrap_or(default.width), height: request.height.unwrap_or(default.height) }
    }

    fn check_size(&self, request: &Request, size: Size, guidance: Guidance) -> Result<(), Error> {
        let (facts, tiling) = (self.facts, self.memory.vae_tiling);
        check_side("height", Some(size.height), facts.latents.scale_factor)?;
        check_side("width", Some(size.width), facts.latents.scale_factor)?;
        if let Some(fixed) = &facts.fixed {
            fixed.check(request.prompts.len(), size, guidance)?;
            if guidance.is_guided() && !request.approximations.guides([0.0, 1.0]) {
                let reason = "an engine that was built for a fixed batch is guided in every step";
                return refuse("guidance start", reason.into());
            }
        }
        facts.decoding_tiles(tiling, &facts.latent_shape(1, size))?;
        facts.encoding_tiles(tiling, &[1, 3, size.height as usize, size.width as usize])?;
        Ok(())
    }

    fn check_task(&self, request: &Request) -> Result<(), Error> {
        let inpaints = self.model.denoiser.reads_masked_picture();
        match &request.init {
            None if inpaints => {
                return refuse("init image", "missing: this model was trained to inpaint".into());
            }
            Some(init) if inpaints && init.mask.is_none() => {
                return refuse("mask", "missing: this model was trained to inpaint".into());
            }
            Some(_) => drop(self.facts.image_encoder()?),
            None => {}
        }
        match (request.controls.len(), self.n_controlnets) {
            (0, _) => Ok(()),
            (found, n) if found == n => Ok(()),
            (found, n) => refuse("control image", format!("{found} of them for {n} ControlNets")),
        }
    }

    fn second_pass(&self, request: &Request, size: Size, steps: usize) -> Result<Option<Pass>, Error> {
        let Some(hires) = &request.hires else { return Ok(None) };
        let size = self.facts.hires_size(size, hires)?;
        if let Some(fixed) = &self.facts.fixed {
            fixed.check_hires(size, hires)?;
        }
        let steps = hires.steps.unwrap_or(steps);
        self.pass(request, size, steps, Some(("hires strength", hires.strength))).map(Some)
    }

    fn pass(
        &self,
        request: &Request,
        size: Size,
        steps: usize,
        strength: Option<(&'static str, f64)>,
    ) -> Result<Pass, Error> {
        let schedule = self.model.sampling.schedule(&SamplingRequest {
            task: Task::of(request),
            scheduler: request.scheduler.as_deref(),
            steps,
            eta: request.eta,
            strength,
        })?;
        Ok(Pass { size, steps, schedule })
    }
}

fn control_scales(request: &Request, defaults: &Defaults) -> Vec<f32> {
    request.controls.iter().map(|control| control.scale.unwrap_or(defaults.control_scale)).collect()
}
