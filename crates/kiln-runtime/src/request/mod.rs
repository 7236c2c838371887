//! What a caller asks for.

mod check;
mod setters;

use kiln_types::Size;

use crate::generator::GeneratorKind;
use crate::picture::Picture;
pub(crate) use check::check_side;

/// What to generate. What is left open becomes what diffusers' pipeline of the task takes by default; see
/// [`Pipeline::resolve`](crate::Pipeline::resolve).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Request {
    /// One prompt per picture.
    pub prompts: Vec<String>,
    /// What to steer away from: none, one for all, or one per prompt.
    pub negative_prompts: Vec<String>,
    /// How prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// Layers of the text encoder to skip, from the last (diffusers' `clip_skip`).
    pub clip_skip: usize,
    /// One seed, from which the random numbers of the whole batch are drawn, or one seed per prompt.
    pub seeds: Vec<u64>,
    /// Which of torch's generators draws.
    pub generator: GeneratorKind,
    /// Mixes in the noise of other seeds.
    pub variation: Option<Variation>,
    /// Scheduler to use instead of the model's own, as [`SchedulerConfig::with_scheduler`] reads it.
    ///
    /// [`SchedulerConfig::with_scheduler`]: crate::scheduler::SchedulerConfig::with_scheduler
    pub scheduler: Option<String>,
    /// Denoising steps; 50 by default, 4 for latent consistency models.
    pub steps: Option<usize>,
    /// Weight of the prompt; guidance is off up to 1. By default 7.5, 5 for SDXL, 8.5 for latent consistency models.
    pub guidance_scale: Option<f32>,
    /// How far the guided prediction's spread is drawn back to that of the prompt's (Lin et al. 2023, section 3.4).
    pub guidance_rescale: f32,
    /// Noise of DDIM: 0 for none, 1 for as much as DDPM adds. Other schedulers ignore it.
    pub eta: f32,
    /// Height in pixels; that of the initial or control picture, else the model's own by default.
    pub height: Option<u32>,
    /// Width in pixels, like the height.
    pub width: Option<u32>,
    /// A picture to start from.
    pub init: Option<Init>,
    /// Pictures that steer the UNet, one per ControlNet of the pipeline.
    pub controls: Vec<Control>,
    /// A second pass at a larger size.
    pub hires: Option<Hires>,
    /// What SDXL is told of the picture.
    pub micro_conditioning: MicroConditioning,
    /// What may be left out of the denoiser's work.
    pub approximations: Approximations,
}

/// What may be left out of the denoiser's work; all of it changes the picture, and nothing is left out by default.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Approximations {
    /// Evaluations of the denoiser from one that is full to the next. Those between run the layers at its ends alone, with
    /// what the deep ones made last (DeepCache, Ma et al. 2023); 1 for full ones alone. The model must have
    /// [segments](crate::bundle::Component::segments).
    pub deep_every: usize,
    /// Share of the evaluations after which guidance starts (Kynkäänniemi et al. 2024).
    pub guidance_start: f64,
    /// Share of the evaluations after which guidance ends; those without it are for the prompt alone.
    pub guidance_end: f64,
}

impl Default for Approximations {
    fn default() -> Approximations {
        Approximations { deep_every: 1, guidance_start: 0.0, guidance_end: 1.0 }
    }
}

impl Approximations {
    /// Whether a step is guided that lies between these shares of all, as far as this is concerned.
    pub(crate) fn guides(&self, [from, to]: [f64; 2]) -> bool {
        from >= self.guidance_start && to <= self.guidance_end
    }
}

/// How prompts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum PromptSyntax {
    /// `(word)`, `(word:1.2)` and `[word]` weigh words, a backslash makes a bracket a bracket, `BREAK` starts a new block
    /// of 75 tokens, and a prompt may have several such blocks.
    #[default]
    Weighted,
    /// As diffusers reads them: no syntax, and what does not fit into 75 tokens is cut off.
    Plain,
}

/// The picture that img2img and inpainting start from.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Init {
    /// The picture; resized to the request's size.
    pub image: Picture,
    /// How much of the way from pure noise is gone, from 0 to 1. By default 0.8, or 0.3 for SDXL; with a mask 1, or 0.9999
    /// for SDXL.
    pub strength: Option<f64>,
    /// Where to paint: what is lighter than half is painted anew, the rest is kept.
    pub mask: Option<Picture>,
    /// What lies there before noise is added.
    #[cfg_attr(feature = "serde", serde(default))]
    pub fill: MaskFill,
}

/// What lies where a mask says to paint, before noise is added. With a strength of 1, which leaves noise alone, it is all the
/// same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum MaskFill {
    /// The initial picture's latents.
    #[default]
    Picture,
    /// The noise of the seed, the same that is added after.
    Noise,
    /// Latents of zeros.
    Zeros,
}

/// One ControlNet's share of a request.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Control {
    /// The picture that it reads; resized to the request's size.
    pub image: Picture,
    /// Factor on its residuals. By default 1; beside an initial picture 0.8; with a mask 0.5, or 1 for SDXL.
    pub scale: Option<f32>,
    /// Share of the steps after which it starts.
    pub start: f64,
    /// Share of the steps after which it ends.
    pub end: f64,
}

impl Control {
    /// A picture with the default scale for all steps.
    pub fn new(image: impl Into<Picture>) -> Control {
        Control { image: image.into(), scale: None, start: 0.0, end: 1.0 }
    }
}

/// Noise of other seeds, mixed into that of the request's by spherical interpolation.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Variation {
    /// The other seeds, like [`Request::seeds`].
    pub seeds: Vec<u64>,
    /// 0 for the request's noise, 1 for the other seeds'.
    pub strength: f32,
}

/// A second pass: the first pass's pictures are enlarged and refined as img2img does.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Hires {
    /// Factor on height and width.
    pub scale: f32,
    /// How much of the way is gone again, from 0 to 1.
    pub strength: f64,
    /// Denoising steps of the second pass, before `strength`; those of the first by default.
    pub steps: Option<usize>,
    /// What is enlarged.
    pub upscaler: Upscaler,
}

/// What a second pass enlarges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Upscaler {
    /// The latents, bilinearly.
    #[default]
    Latents,
    /// The decoded pictures, by Lanczos' filter.
    Pixels,
}

/// SDXL's size, crop and aesthetics conditions (Podell et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct MicroConditioning {
    /// Size before cropping; the picture's by default.
    pub original_size: Option<Size>,
    /// Columns of pixels that were cropped at the left.
    pub crop_left: u32,
    /// Rows of pixels that were cropped at the top.
    pub crop_top: u32,
    /// Size after cropping; the picture's by default.
    pub target_size: Option<Size>,
    /// For refiners, instead of the target size.
    pub aesthetic_score: f32,
    /// For refiners, beside the negative prompt.
    pub negative_aesthetic_score: f32,
}

impl Default for MicroConditioning {
    fn default() -> MicroConditioning {
        MicroConditioning {
            original_size: None,
            crop_left: 0,
            crop_top: 0,
            target_size: None,
            aesthetic_score: 6.0,
            negative_aesthetic_score: 2.5,
        }
    }
}

impl Default for Request {
    fn default() -> Request {
        Request::new("")
    }
}

impl Request {
    /// One picture with default settings and seed 0.
    pub fn new(prompt: impl Into<String>) -> Request {
        Request {
            prompts: vec![prompt.into()],
            negative_prompts: Vec::new(),
            prompt_syntax: PromptSyntax::default(),
            clip_skip: 0,
            seeds: vec![0],
            generator: GeneratorKind::default(),
            variation: None,
            scheduler: None,
            steps: None,
            guidance_scale: None,
            guidance_rescale: 0.0,
            eta: 0.0,
            height: None,
            width: None,
            init: None,
            controls: Vec::new(),
            hires: None,
            micro_conditioning: MicroConditioning::default(),
            approximations: Approximations::default(),
        }
    }

    /// Whether a mask says where to paint.
    pub(crate) fn is_masked(&self) -> bool {
        self.init.as_ref().is_some_and(|init| init.mask.is_some())
    }
}
