use std::borrow::Cow;
use std::fmt;

use kiln_bundle::ComponentName;
use kiln_types::Size;
use ndarray::ArrayD;

use super::{Conditioning, Task};
use crate::{Error, Guidance, Request};

/// How the network of the denoising loop is called: `(latents, timestep, conditions) -> prediction`.
pub trait Denoiser: fmt::Debug + Send + Sync {
    /// The component that runs for a task.
    fn component(&self, task: Task) -> ComponentName;

    /// Refuses what this architecture does not know of a request.
    fn check(&self, _request: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Whether the network is told the guidance scale, so that one prediction is enough (LCM).
    fn embeds_guidance(&self) -> bool {
        false
    }

    /// Whether the network reads a mask and a masked picture `[B, 1 + C, H, W]` behind the latents' channels.
    fn reads_masked_picture(&self) -> bool {
        false
    }

    /// Whether its last layers read what its first ones made (skip connections), so that those between may be left out in
    /// some evaluations.
    fn has_skip_connections(&self) -> bool {
        false
    }

    /// Name of the input for latents.
    fn latents_input(&self) -> &str {
        "sample"
    }

    /// Name of the input for the timestep, `[rows]`, or `[1]` where one serves all rows.
    fn timestep_input(&self) -> &str {
        "timestep"
    }

    /// A sampler's timestep as the network reads it.
    fn timestep(&self, timestep: f32) -> f32 {
        timestep
    }

    /// Inputs that stay the same from step to step, `[rows, ..]`.
    fn conditions(&self, pass: &PassInfo<'_>, conditioning: &Conditioning) -> Vec<(String, ArrayD<f32>)>;

    /// How latents `[B, C, H, W]` are packed for the network; none where they are not.
    fn packing(&self) -> Option<&dyn Packing> {
        None
    }

    /// What else the picture depends on, by the names under which it is reported.
    fn settings(&self, _request: &Request, _size: Size) -> Vec<(&'static str, serde_json::Value)> {
        Vec::new()
    }
}

/// Another form of latents, such as a transformer's row of patches.
pub trait Packing {
    /// Latents `[B, C, H, W]` as the network reads them.
    fn pack<'a>(&self, latents: &'a ArrayD<f32>) -> Result<Cow<'a, ArrayD<f32>>, Error>;

    /// A prediction in the form of latents `[B, C, H, W]`.
    fn unpack(&self, prediction: ArrayD<f32>, latents: &[usize]) -> Result<ArrayD<f32>, Error>;
}

/// What is known of a pass through the denoising loop before its first step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PassInfo<'a> {
    /// The request.
    pub request: &'a Request,
    /// Size of the pictures.
    pub size: Size,
    /// How predictions are guided.
    pub guidance: Guidance,
    /// Rows of the batch, those without the prompt first.
    pub rows: usize,
}
