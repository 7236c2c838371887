//! Requests, put together value by value.

use kiln_types::Size;

use super::{Control, Hires, Init, MaskFill, MicroConditioning, PromptSyntax, Request, Upscaler, Variation};
use crate::generator::GeneratorKind;
use crate::picture::Picture;

impl Request {
    /// Sets one prompt per picture.
    #[must_use]
    pub fn prompts(self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Request {
        Request { prompts: prompts.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets what all pictures are steered away from.
    #[must_use]
    pub fn negative_prompt(self, prompt: impl Into<String>) -> Request {
        Request { negative_prompts: vec![prompt.into()], ..self }
    }

    /// Sets what is steered away from: nothing, one text for all pictures, or one for each.
    #[must_use]
    pub fn negative_prompts(self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Request {
        Request { negative_prompts: prompts.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets how prompts are read.
    #[must_use]
    pub fn prompt_syntax(self, prompt_syntax: PromptSyntax) -> Request {
        Request { prompt_syntax, ..self }
    }

    /// Sets the layers of the text encoder to skip.
    #[must_use]
    pub fn clip_skip(self, clip_skip: usize) -> Request {
        Request { clip_skip, ..self }
    }

    /// Sets one seed for the whole batch.
    #[must_use]
    pub fn seed(self, seed: u64) -> Request {
        Request { seeds: vec![seed], ..self }
    }

    /// Sets one seed per picture.
    #[must_use]
    pub fn seeds(self, seeds: impl Into<Vec<u64>>) -> Request {
        Request { seeds: seeds.into(), ..self }
    }

    /// Sets which of torch's generators draws.
    #[must_use]
    pub fn generator(self, generator: GeneratorKind) -> Request {
        Request { generator, ..self }
    }

    /// Mixes in the noise of other seeds.
    #[must_use]
    pub fn variation(self, variation: impl Into<Option<Variation>>) -> Request {
        Request { variation: variation.into(), ..self }
    }

    /// Sets the scheduler by name.
    #[must_use]
    pub fn scheduler(self, name: impl Into<String>) -> Request {
        Request { scheduler: Some(name.into()), ..self }
    }

    /// Sets the denoising steps.
    #[must_use]
    pub fn steps(self, steps: impl Into<Option<usize>>) -> Request {
        Request { steps: steps.into(), ..self }
    }

    /// Sets the weight of the prompt.
    #[must_use]
    pub fn guidance_scale(self, scale: impl Into<Option<f32>>) -> Request {
        Request { guidance_scale: scale.into(), ..self }
    }

    /// Sets how far the guided prediction's spread is drawn back.
    #[must_use]
    pub fn guidance_rescale(self, guidance_rescale: f32) -> Request {
        Request { guidance_rescale, ..self }
    }

    /// Sets how many evaluations of the denoiser lie from one that is full to the next.
    #[must_use]
    pub fn deep_every(mut self, evaluations: usize) -> Request {
        self.approximations.deep_every = evaluations;
        self
    }

    /// Sets the shares of the steps between which guidance applies.
    #[must_use]
    pub fn guidance_interval(mut self, start: f64, end: f64) -> Request {
        (self.approximations.guidance_start, self.approximations.guidance_end) = (start, end);
        self
    }

    /// Sets DDIM's noise.
    #[must_use]
    pub fn eta(self, eta: f32) -> Request {
        Request { eta, ..self }
    }

    /// Sets the height of the pictures in pixels.
    #[must_use]
    pub fn height(self, height: impl Into<Option<u32>>) -> Request {
        Request { height: height.into(), ..self }
    }

    /// Sets the width of the pictures in pixels.
    #[must_use]
    pub fn width(self, width: impl Into<Option<u32>>) -> Request {
        Request { width: width.into(), ..self }
    }

    /// Sets the size of the pictures.
    #[must_use]
    pub fn size(self, size: Size) -> Request {
        Request { height: Some(size.height), width: Some(size.width), ..self }
    }

    /// Starts from a picture.
    #[must_use]
    pub fn init(self, init: impl Into<Option<Init>>) -> Request {
        Request { init: init.into(), ..self }
    }

    /// Sets the pictures that steer the denoiser, one per ControlNet.
    #[must_use]
    pub fn controls(self, controls: impl Into<Vec<Control>>) -> Request {
        Request { controls: controls.into(), ..self }
    }

    /// Adds a second pass at a larger size.
    #[must_use]
    pub fn hires(self, hires: impl Into<Option<Hires>>) -> Request {
        Request { hires: hires.into(), ..self }
    }

    /// Sets what SDXL is told of the picture.
    #[must_use]
    pub fn micro_conditioning(self, micro_conditioning: MicroConditioning) -> Request {
        Request { micro_conditioning, ..self }
    }
}

impl Init {
    /// A picture to change, with the default strength.
    pub fn new(image: impl Into<Picture>) -> Init {
        Init { image: image.into(), strength: None, mask: None, fill: MaskFill::default() }
    }

    /// Sets how much of the way from pure noise is gone, from 0 to 1.
    #[must_use]
    pub fn strength(self, strength: impl Into<Option<f64>>) -> Init {
        Init { strength: strength.into(), ..self }
    }

    /// Sets where to paint.
    #[must_use]
    pub fn mask(self, mask: impl Into<Picture>) -> Init {
        Init { mask: Some(mask.into()), ..self }
    }

    /// Sets what lies where the mask says to paint.
    #[must_use]
    pub fn fill(self, fill: MaskFill) -> Init {
        Init { fill, ..self }
    }
}

impl Control {
    /// Sets the factor on its residuals.
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Control {
        Control { scale: scale.into(), ..self }
    }

    /// Sets the shares of the steps after which it starts and ends.
    #[must_use]
    pub fn between(self, start: f64, end: f64) -> Control {
        Control { start, end, ..self }
    }
}

impl Hires {
    /// A second pass that enlarges the latents by `scale` and goes 0.7 of the way again.
    pub fn new(scale: f32) -> Hires {
        Hires { scale, strength: 0.7, steps: None, upscaler: Upscaler::default() }
    }

    /// Sets how much of the way is gone again, from 0 to 1.
    #[must_use]
    pub fn strength(self, strength: f64) -> Hires {
        Hires { strength, ..self }
    }

    /// Sets the denoising steps of the second pass.
    #[must_use]
    pub fn steps(self, steps: impl Into<Option<usize>>) -> Hires {
        Hires { steps: steps.into(), ..self }
    }

    /// Sets what is enlarged.
    #[must_use]
    pub fn upscaler(self, upscaler: Upscaler) -> Hires {
        Hires { upscaler, ..self }
    }
}
