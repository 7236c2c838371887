//! The second pass at a larger size.

use ndarray::{Array4, ArrayD, ArrayView2, Axis, Ix4, s};

use super::drawing::NextPass;
use super::noise::Noise;
use super::run::Run;
use super::state::Start;
use crate::{Error, Upscaler};

impl Run<'_, '_> {
    /// Enlarges what the first pass made, to be refined as img2img does, with the same prompt and generators.
    pub(super) fn enlarge(
        &mut self,
        next: &NextPass,
        latents: &ArrayD<f32>,
        noise: &mut Noise,
    ) -> Result<Start, Error> {
        let (size, begin) = (next.size, next.begin);
        let shape = self.facts.latent_shape(latents.shape()[0], size);
        let enlarged = match next.upscaler {
            Upscaler::Latents => bilinear(latents, shape[2], shape[3]),
            Upscaler::Pixels => {
                let images = self.decode(latents)?;
                let mut planes = ArrayD::zeros(vec![shape[0], 3, size.height as usize, size.width as usize]);
                for (mut plane, image) in planes.axis_iter_mut(Axis(0)).zip(images) {
                    plane.assign(&image.resized(size).to_planes().mapv(|x| 2.0 * x - 1.0));
                }
                self.encode_pictures(&planes, noise)?
            }
        };
        let drawn = noise.randn(&shape);
        let latents = next.sampler.add_noise(begin, &enlarged, &drawn)?;
        Ok(Start { latents, begin, inpainting: None })
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
