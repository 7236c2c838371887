//! What the denoising loop starts from: noise, a picture, or a picture and a mask.

use kiln_engine::{Tensor, TensorView};
use kiln_types::Size;
use ndarray::{Array4, ArrayD, Axis, Slice, Zip};

use super::controlnet::repeated;
use super::job::{Job, Pass};
use super::noise::{Noise, initial_noise};
use super::run::Run;
use super::state::{Blend, Inpainting, Start, joined};
use crate::scheduler::Sampler;
use crate::{Error, Event, Init, MaskFill, Picture};

impl Run<'_, '_> {
    /// Latents of a job's first pass, drawing random numbers in the order in which diffusers' pipelines do.
    pub(super) fn start(&mut self, job: &Job<'_>, noise: &mut Noise) -> Result<Start, Error> {
        let Pass { size, schedule, .. } = &job.first;
        let (sampler, begin) = (&schedule.sampler, schedule.begin);
        let shape = self.facts.latent_shape(job.batch(), *size);
        let Some(init) = &job.request.init else {
            let latents = initial_noise(job.request, noise, &shape)? * sampler.init_noise_sigma();
            return Ok(Start { latents, begin: 0, inpainting: None });
        };
        if let Some(mask) = &init.mask {
            return self.start_inpainting(job, init, mask, noise);
        }
        let kept = self.encode_picture(signed(&init.image, *size)?, shape[0], noise)?;
        let noise = initial_noise(job.request, noise, &shape)?;
        Ok(Start { latents: sampler.add_noise(begin, &kept, &noise)?, begin, inpainting: None })
    }

    fn start_inpainting(
        &mut self,
        job: &Job<'_>,
        init: &Init,
        mask: &Picture,
        noise: &mut Noise,
    ) -> Result<Start, Error> {
        let Pass { size, schedule, .. } = &job.first;
        let (sampler, begin) = (&schedule.sampler, schedule.begin);
        let shape = self.facts.latent_shape(job.batch(), *size);
        let batch = shape[0];
        let from_pure_noise = job.strength.is_none_or(|strength| strength >= 1.0);
        let reads_masked_picture = self.model.denoiser.reads_masked_picture();
        let picture = signed(&init.image, *size)?;
        let drops_alpha = mask.drops_alpha();
        let mask = mask.mask("mask", *size)?;

        let kept = match !reads_masked_picture || !from_pure_noise {
            true => Some(self.encode_once(picture.clone(), batch, noise)?),
            false => None,
        };
        let fresh = initial_noise(job.request, noise, &shape)?;
        let latent_mask = nearest(&mask, shape[2], shape[3]);
        let kept = kept.map(|kept| filled(kept, init.fill, &latent_mask, &fresh));
        let latents = start_from(sampler, begin, kept.as_ref().filter(|_| !from_pure_noise), &fresh)?;
        let masked = Zip::from(&picture)
            .and_broadcast(&mask)
            .map_collect(|&x, &mask| if mask < 0.5 { x } else { x * 0.0 });
        let masked = self.encode_once(masked, batch, noise)?;
        if let Some(paints) = uniform(&latent_mask) {
            self.progress.tell(Event::UniformMask { paints, drops_alpha })?;
        }
        let mask = repeated(latent_mask, batch)?;
        let channels = match reads_masked_picture {
            true => Some(joined(Axis(1), &[&mask, &masked])?),
            false => None,
        };
        let blend = kept.filter(|_| !reads_masked_picture).map(|kept| Blend { kept, noise: fresh });
        Ok(Start { latents, begin, inpainting: Some(Inpainting { mask, channels, blend }) })
    }

    /// A picture `[1, 3, H, W]` in `[-1, 1]` as latents for the whole batch: drawn once, or by each picture's generator.
    pub(super) fn encode_picture(
        &mut self,
        picture: Array4<f32>,
        batch: usize,
        noise: &mut Noise,
    ) -> Result<ArrayD<f32>, Error> {
        match noise.is_per_picture() {
            true => {
                let posterior = self.posterior(picture.into_dyn())?;
                self.sampled(&posterior.repeated(batch)?, noise)
            }
            false => self.encode_once(picture, batch, noise),
        }
    }

    /// Like [`Pipeline::encode_picture`], but one draw serves all pictures.
    fn encode_once(
        &mut self,
        picture: Array4<f32>,
        batch: usize,
        noise: &mut Noise,
    ) -> Result<ArrayD<f32>, Error> {
        let posterior = self.posterior(picture.into_dyn())?;
        let latents = self.sampled(&posterior, noise)?;
        joined(Axis(0), &vec![&latents; batch])
    }

    /// Pictures `[B, 3, H, W]` in `[-1, 1]` as scaled latents, each encoded by itself.
    pub(super) fn encode_pictures(
        &mut self,
        pictures: &ArrayD<f32>,
        noise: &mut Noise,
    ) -> Result<ArrayD<f32>, Error> {
        let mut posteriors = Vec::new();
        for i in 0..pictures.shape()[0] {
            let one = pictures.slice_axis(Axis(0), Slice::from(i..=i)).to_owned();
            posteriors.push(self.posterior(one)?);
        }
        let posterior = Posterior::joined(&posteriors)?;
        self.sampled(&posterior, noise)
    }

    fn posterior(&mut self, picture: ArrayD<f32>) -> Result<Posterior, Error> {
        let name = self.facts.image_encoder()?;
        self.load(name)?;
        let tiles = self.facts.encoding_tiles(self.engines.memory().vae_tiling, picture.shape())?;
        let mut chain = self.engines.chain(name)?;
        let mut encode = |tile: &ArrayD<f32>| -> Result<Vec<ArrayD<f32>>, Error> {
            let outputs = chain.run(&[("sample", TensorView::F32(tile.view()))])?;
            Ok(outputs.into_iter().filter_map(Tensor::into_f32).collect())
        };
        let outputs = match tiles {
            Some(tiles) => tiles.map(&picture, encode)?,
            None => encode(&picture)?,
        };
        let mut outputs = outputs.into_iter();
        let refuse = || Error::Component { component: name, reason: "has no output of floats".into() };
        Ok(Posterior { mean: outputs.next().ok_or_else(refuse)?, logvar: outputs.next() })
    }

    fn sampled(&self, posterior: &Posterior, noise: &mut Noise) -> Result<ArrayD<f32>, Error> {
        let (scale, shift) = (self.facts.latents.scaling as f32, self.facts.latents.shift as f32);
        Ok(match &posterior.logvar {
            None => posterior.mean.mapv(|x| scale * (x - shift)),
            Some(logvar) => {
                let drawn = noise.randn(posterior.mean.shape());
                Zip::from(&posterior.mean).and(logvar).and(&drawn).map_collect(|mean, logvar, drawn| {
                    scale * (mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * drawn - shift)
                })
            }
        })
    }
}

/// What the autoencoder says of pictures: unscaled latents and, where it is variational, their log variance.
struct Posterior {
    mean: ArrayD<f32>,
    logvar: Option<ArrayD<f32>>,
}

impl Posterior {
    fn repeated(&self, n: usize) -> Result<Posterior, Error> {
        let copies: Vec<&Posterior> = std::iter::repeat_n(self, n).collect();
        Posterior::join(&copies)
    }

    fn joined(parts: &[Posterior]) -> Result<Posterior, Error> {
        Posterior::join(&parts.iter().collect::<Vec<_>>())
    }

    fn join(parts: &[&Posterior]) -> Result<Posterior, Error> {
        let means: Vec<&ArrayD<f32>> = parts.iter().map(|part| &part.mean).collect();
        let logvars: Option<Vec<&ArrayD<f32>>> = parts.iter().map(|part| part.logvar.as_ref()).collect();
        let logvar = logvars.map(|logvars| joined(Axis(0), &logvars)).transpose()?;
        Ok(Posterior { mean: joined(Axis(0), &means)?, logvar })
    }
}

/// Latents that a pass starts from: those of a picture with noise, or noise alone.
fn start_from(
    sampler: &Sampler,
    begin: usize,
    kept: Option<&ArrayD<f32>>,
    noise: &ArrayD<f32>,
) -> Result<ArrayD<f32>, Error> {
    match kept {
        Some(kept) => Ok(sampler.add_noise(begin, kept, noise)?),
        None => Ok(noise * sampler.init_noise_sigma()),
    }
}

/// A picture's latents `[B, C, H, W]` with something else where a mask `[1, 1, H, W]` is 1.
fn filled(mut kept: ArrayD<f32>, fill: MaskFill, mask: &Array4<f32>, noise: &ArrayD<f32>) -> ArrayD<f32> {
    let value = |kept: f32, noise: f32| match fill {
        MaskFill::Picture => kept,
        MaskFill::Noise => noise,
        MaskFill::Zeros => 0.0,
    };
    let mask = mask.view().into_dyn();
    Zip::from(&mut kept).and(noise).and_broadcast(&mask).for_each(|kept, &noise, &mask| {
        if mask > 0.5 {
            *kept = value(*kept, noise);
        }
    });
    kept
}

/// The initial picture `[1, 3, H, W]` in `[-1, 1]`.
fn signed(image: &Picture, size: Size) -> Result<Array4<f32>, Error> {
    Ok(image.planes("init image", size)?.mapv(|x| 2.0 * x - 1.0))
}

/// Whether a mask of 0 and 1 that is the same all over is 1.
fn uniform(mask: &Array4<f32>) -> Option<bool> {
    let first = *mask.first()?;
    mask.iter().all(|value| *value == first).then_some(first > 0.5)
}

/// `torch.nn.functional.interpolate` with mode nearest.
fn nearest(mask: &Array4<f32>, height: usize, width: usize) -> Array4<f32> {
    let (_, _, from_height, from_width) = mask.dim();
    let source = |i: usize, from: usize, to: usize| {
        ((i as f32 * (from as f32 / to as f32)).floor() as usize).min(from - 1)
    };
    Array4::from_shape_fn((1, 1, height, width), |(_, _, y, x)| {
        mask[[0, 0, source(y, from_height, height), source(x, from_width, width)]]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mask_keeps_is_the_pictures_whatever_fills_the_rest() {
        let kept = ArrayD::from_shape_fn(vec![2, 2, 1, 2], |at| 1.0 + at[0] as f32);
        let noise = ArrayD::from_elem(vec![2, 2, 1, 2], 7.0);
        let mask = Array4::from_shape_vec((1, 1, 1, 2), vec![0.0, 1.0]).expect("a mask");
        for (fill, expected) in
            [(MaskFill::Picture, [1.0, 2.0]), (MaskFill::Noise, [7.0; 2]), (MaskFill::Zeros, [0.0; 2])]
        {
            let found = filled(kept.clone(), fill, &mask, &noise);
            for (i, value) in found.indexed_iter() {
                assert_eq!(*value, if i[3] == 0 { 1.0 + i[0] as f32 } else { expected[i[0]] }, "{fill:?}");
            }
        }
    }
}
