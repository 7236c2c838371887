//! The second pass at a larger size.

use ndarray::{Array4, ArrayD, ArrayView2, Axis, Ix4, s};

use super::noise::Noise;
use super::start::Start;
use super::{Pass, Pipeline, Run};
use crate::request::check_side;
use crate::{Error, Hires, Request, Upscaler};

impl Pipeline {
    /// Evaluations of the UNet that the second pass adds.
    pub(super) fn hires_steps(&self, request: &Request, steps: usize) -> Result<usize, Error> {
        let Some(hires) = &request.hires else { return Ok(0) };
        let steps = hires.steps.unwrap_or(steps);
        let (sampler, begin) = self.sampler(request, steps, Some(("hires strength", hires.strength)))?;
        Ok(sampler.timesteps().len() - begin)
    }

    /// Enlarges what the first pass made and refines it as img2img does, with the same prompt and generators.
    pub(super) fn refine(
        &mut self,
        hires: &Hires,
        pass: &Pass<'_>,
        latents: &ArrayD<f32>,
        steps: usize,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let size = self.hires_size(pass.size, hires)?;
        let steps = hires.steps.unwrap_or(steps);
        let (mut sampler, begin) =
            self.sampler(pass.request, steps, Some(("hires strength", hires.strength)))?;
        let shape = self.latent_shape(pass.request.prompts.len(), size)?;
        let enlarged = match hires.upscaler {
            Upscaler::Latents => bilinear(latents, shape[2], shape[3]),
            Upscaler::Pixels => {
                let images = self.decode(latents, run)?;
                let mut planes = ArrayD::zeros(vec![shape[0], 3, size[0] as usize, size[1] as usize]);
                for (mut plane, image) in planes.axis_iter_mut(Axis(0)).zip(images) {
                    plane.assign(&image.resized(size[1], size[0]).to_planes().mapv(|x| 2.0 * x - 1.0));
                }
                self.encode_pictures(&planes, noise, run)?
            }
        };
        let drawn = noise.randn(&shape);
        let latents = sampler.add_noise(begin, &enlarged, &drawn)?;
        let start = Start { latents, begin, inpainting: None };
        self.denoise(&Pass { size, ..*pass }, &mut sampler, start, noise, run)
    }

    /// Height and width of the second pass, rounded to whole latents.
    pub(super) fn hires_size(&self, size: [u32; 2], hires: &Hires) -> Result<[u32; 2], Error> {
        let unit = self.bundle.pipeline()?.latents.scale_factor.max(8);
        let size = size.map(|side| ((side as f32 * hires.scale / unit as f32).round() as u32).max(1) * unit);
        check_side("hires scale", Some(size[0]), unit)?;
        check_side("hires scale", Some(size[1]), unit)?;
        Ok(size)
    }
}

/// `torch.nn.functional.interpolate` with mode bilinear over `[B, C, H, W]`.
fn bilinear(latents: &ArrayD<f32>, height: usize, width: usize) -> ArrayD<f32> {
    let planes = latents.view().into_dimensionality::<Ix4>().expect("latents have four axes");
    let (batch, channels, ..) = planes.dim();
    let out = Array4::from_shape_fn((batch, channels, height, width), |(b, c, y, x)| {
        sample(planes.slice(s![b, c, .., ..]), [y, x], [height, width])
    });
    out.into_dyn()
}

fn sample(plane: ArrayView2<'_, f32>, at: [usize; 2], size: [usize; 2]) -> f32 {
    let axis = |i: usize| {
        let from = plane.shape()[i];
        let position = ((at[i] as f32 + 0.5) * (from as f32 / size[i] as f32) - 0.5).max(0.0);
        let low = (position as usize).min(from - 1);
        (low, (low + 1).min(from - 1), position - low as f32)
    };
    let ((top, bottom, down), (left, right, across)) = (axis(0), axis(1));
    let row = |y: usize| plane[[y, left]] * (1.0 - across) + plane[[y, right]] * across;
    row(top) * (1.0 - down) + row(bottom) * down
}
