use std::fmt;

/// Which line of models a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x: OpenAI's CLIP.
    Sd1,
    /// Stable Diffusion 2.x: OpenCLIP.
    Sd2,
    /// Stable Diffusion XL: both.
    SdxlBase,
    /// Stable Diffusion XL's refiner: OpenCLIP alone, conditioned on an aesthetic score.
    SdxlRefiner,
    /// A ControlNet by itself.
    ControlNet,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Sd1 => "Stable Diffusion 1.x",
            Family::Sd2 => "Stable Diffusion 2.x",
            Family::SdxlBase => "Stable Diffusion XL base",
            Family::SdxlRefiner => "Stable Diffusion XL refiner",
            Family::ControlNet => "ControlNet",
        })
    }
}
