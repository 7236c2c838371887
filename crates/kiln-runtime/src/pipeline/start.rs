//! What the denoising loop starts from: noise, a picture, or a picture and a mask.

use kiln_bundle::stable_diffusion::VAE_ENCODER;
use kiln_engine::{Tensor, TensorView};
use ndarray::{Array4, ArrayD, Axis, Slice, Zip, concatenate};

use super::control::repeated;
use super::noise::{Noise, initial_noise};
use super::{Pipeline, Run};
use crate::request::refuse;
use crate::scheduler::Sampler;
use crate::{Error, Init, Picture, Request};

/// The state before the first step.
pub(super) struct Start {
    /// `[B, C, H, W]`.
    pub(super) latents: ArrayD<f32>,
    /// The sampler's first step to take.
    pub(super) begin: usize,
    pub(super) inpainting: Option<Inpainting>,
}

/// What to paint anew and what to keep.
pub(super) struct Inpainting {
    /// `[B, 1, H, W]`, 1 where to paint.
    pub(super) mask: ArrayD<f32>,
    /// Mask and masked picture `[B, 1 + C, H, W]` for a UNet that was trained to inpaint.
    pub(super) channels: Option<ArrayD<f32>>,
    /// For any other UNet: what is put back after each step.
    pub(super) blend: Option<Blend>,
}

pub(super) struct Blend {
    /// The picture's latents `[B, C, H, W]`.
    pub(super) kept: ArrayD<f32>,
    /// The noise that they get.
    pub(super) noise: ArrayD<f32>,
}

/// A picture with a mask.
struct Painted<'a> {
    init: &'a Init,
    mask: &'a Picture,
    /// Height and width in pixels.
    size: [u32; 2],
    /// Whether the way starts from pure noise.
    whole: bool,
}

impl Pipeline {
    /// Latents of the request's task, drawing random numbers in the order in which diffusers' pipelines do.
    pub(super) fn start(
        &mut self,
        request: &Request,
        size: [u32; 2],
        sampler: &Sampler,
        begin: usize,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<Start, Error> {
        let shape = self.latent_shape(request.prompts.len(), size)?;
        let inpaints = self.inpaints()?;
        let Some(init) = &request.init else {
            if inpaints {
                return refuse("init image", "missing: this model was trained to inpaint".into());
            }
            let latents = initial_noise(request, noise, &shape)? * sampler.init_noise_sigma();
            return Ok(Start { latents, begin: 0, inpainting: None });
        };
        match &init.mask {
            Some(mask) => {
                let whole = self.strength(request)?.is_none_or(|strength| strength >= 1.0);
                let painted = Painted { init, mask, size, whole };
                self.start_inpainting(request, &painted, sampler, begin, noise, run)
            }
            None if inpaints => refuse("mask", "missing: this model was trained to inpaint".into()),
            None => {
                let picture = init.image.planes("init image", size)?.mapv(|x| 2.0 * x - 1.0);
                let kept = self.encode_picture(picture, shape[0], noise, run)?;
                let noise = initial_noise(request, noise, &shape)?;
                let latents = sampler.add_noise(begin, &kept, &noise)?;
                Ok(Start { latents, begin, inpainting: None })
            }
        }
    }

    fn start_inpainting(
        &mut self,
        request: &Request,
        &Painted { init, mask, size, whole }: &Painted<'_>,
        sampler: &Sampler,
        begin: usize,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<Start, Error> {
        let shape = self.latent_shape(request.prompts.len(), size)?;
        let (batch, inpaints) = (shape[0], self.inpaints()?);
        let picture = init.image.planes("init image", size)?.mapv(|x| 2.0 * x - 1.0);
        let mask = mask.mask("mask", size)?;

        let needs_picture = !inpaints || !whole;
        let kept = match needs_picture {
            true => Some(self.encode_once(picture.clone(), batch, noise, run)?),
            false => None,
        };
        let fresh = initial_noise(request, noise, &shape)?;
        let latents = match &kept {
            Some(kept) if !whole => sampler.add_noise(begin, kept, &fresh)?,
            _ => &fresh * sampler.init_noise_sigma(),
        };
        let masked = Zip::from(&picture)
            .and_broadcast(&mask)
            .map_collect(|&x, &mask| if mask < 0.5 { x } else { x * 0.0 });
        let masked = self.encode_once(masked, batch, noise, run)?;
        let mask = repeated(nearest(&mask, shape[2], shape[3]), batch)?;
        let channels = match inpaints {
            true => Some(
                concatenate(Axis(1), &[mask.view(), masked.view()])
                    .map_err(|e| Error::Component { component: VAE_ENCODER, reason: e.to_string() })?,
            ),
            false => None,
        };
        let blend = kept.filter(|_| !inpaints).map(|kept| Blend { kept, noise: fresh });
        Ok(Start { latents, begin, inpainting: Some(Inpainting { mask, channels, blend }) })
    }

    /// Whether the UNet reads a mask and a masked picture.
    fn inpaints(&self) -> Result<bool, Error> {
        Ok(self.settings.inpainting)
    }

    /// A picture `[1, 3, H, W]` in `[-1, 1]` as latents for the whole batch: drawn once, or by each picture's generator.
    pub(super) fn encode_picture(
        &mut self,
        picture: Array4<f32>,
        batch: usize,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        match noise.is_per_picture() {
            true => {
                let posterior = self.posterior(picture.into_dyn(), run)?;
                self.draw(&posterior.repeated(batch)?, noise)
            }
            false => self.encode_once(picture, batch, noise, run),
        }
    }

    /// Like [`Pipeline::encode_picture`], but one draw serves all pictures.
    fn encode_once(
        &mut self,
        picture: Array4<f32>,
        batch: usize,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let posterior = self.posterior(picture.into_dyn(), run)?;
        let latents = self.draw(&posterior, noise)?;
        let views = vec![latents.view(); batch];
        concatenate(Axis(0), &views)
            .map_err(|e| Error::Component { component: VAE_ENCODER, reason: e.to_string() })
    }

    /// Pictures `[B, 3, H, W]` in `[-1, 1]` as scaled latents, each encoded by itself.
    pub(super) fn encode_pictures(
        &mut self,
        pictures: &ArrayD<f32>,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let mut posteriors = Vec::new();
        for i in 0..pictures.shape()[0] {
            let one = pictures.slice_axis(Axis(0), Slice::from(i..=i)).to_owned();
            posteriors.push(self.posterior(one, run)?);
        }
        let posterior = Posterior::joined(&posteriors)?;
        self.draw(&posterior, noise)
    }

    fn posterior(&mut self, picture: ArrayD<f32>, run: &mut Run<'_, '_>) -> Result<Posterior, Error> {
        let role = self.load(VAE_ENCODER, run)?;
        let tiles = self.encoding_tiles(self.memory().vae_tiling, picture.shape())?;
        let mut network = self.engines.network(&self.bundle, role)?;
        let mut encode = |tile: &ArrayD<f32>| -> Result<Vec<ArrayD<f32>>, Error> {
            let outputs = network.run(&[("sample", TensorView::F32(tile.view()))])?;
            Ok(outputs.into_iter().filter_map(Tensor::into_f32).collect())
        };
        let outputs = match tiles {
            Some(tiles) => tiles.map(&picture, encode)?,
            None => encode(&picture)?,
        };
        let mut outputs = outputs.into_iter();
        let refuse = || Error::Component { component: role, reason: "has no output of floats".into() };
        Ok(Posterior { mean: outputs.next().ok_or_else(refuse)?, logvar: outputs.next() })
    }

    fn draw(&self, posterior: &Posterior, noise: &mut Noise) -> Result<ArrayD<f32>, Error> {
        let scale = self.bundle.pipeline()?.latents.scaling as f32;
        Ok(match &posterior.logvar {
            None => posterior.mean.mapv(|x| scale * x),
            Some(logvar) => {
                let drawn = noise.randn(posterior.mean.shape());
                Zip::from(&posterior.mean).and(logvar).and(&drawn).map_collect(|mean, logvar, drawn| {
                    scale * (mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * drawn)
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
        let stack = |arrays: Vec<&ArrayD<f32>>| {
            let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
            concatenate(Axis(0), &views)
                .map_err(|e| Error::Component { component: VAE_ENCODER, reason: e.to_string() })
        };
        let logvars: Option<Vec<&ArrayD<f32>>> = parts.iter().map(|part| part.logvar.as_ref()).collect();
        Ok(Posterior {
            mean: stack(parts.iter().map(|part| &part.mean).collect())?,
            logvar: logvars.map(stack).transpose()?,
        })
    }
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
