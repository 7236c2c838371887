//! Stable Diffusion 1.x and 2.x, SDXL and latent consistency models (diffusers `pipelines/stable_diffusion`,
//! `stable_diffusion_xl`, `latent_consistency_models`): CLIP's text encoders and a UNet.

mod conditioner;
mod sampling;
mod unet;

use kiln_bundle::Bundle;
use kiln_bundle::stable_diffusion::{LATENT_CONSISTENCY, STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Settings};

use crate::architecture::{Architecture, Model};
use crate::companions::{ModelScheduler, NamedClass};
use crate::{BundleError, Error};
use conditioner::ClipConditioner;
use sampling::StableDiffusionSampling;
use unet::UNet;

/// Stable Diffusion and its kin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StableDiffusion;

/// Generation of a model, as far as diffusers' pipelines differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    /// Stable Diffusion 1.x and 2.x.
    First,
    Xl,
    LatentConsistency,
}

impl Generation {
    fn named(name: &str) -> Option<Generation> {
        match name {
            STABLE_DIFFUSION => Some(Generation::First),
            STABLE_DIFFUSION_XL => Some(Generation::Xl),
            LATENT_CONSISTENCY => Some(Generation::LatentConsistency),
            _ => None,
        }
    }
}

impl Architecture for StableDiffusion {
    fn is(&self, name: &str) -> bool {
        Generation::named(name).is_some()
    }

    fn open(&self, bundle: &Bundle) -> Result<Model, Error> {
        let info = bundle.pipeline()?;
        let refuse = |reason: String| BundleError::Manifest { path: bundle.manifest_path(), reason };
        let unknown = || refuse(format!("architecture: '{}' is not a Stable Diffusion", info.architecture));
        let generation = Generation::named(&info.architecture).ok_or_else(unknown)?;
        let settings = Settings::of(info).map_err(refuse)?;
        let manifest = bundle.manifest_path();
        let class = info.scheduler_class.as_deref();
        let class = class.map(|class| NamedClass { file: &manifest, key: "scheduler_class", class });
        let scheduler = ModelScheduler::open(&bundle.path(&info.scheduler), class)?;
        Ok(Model {
            conditioner: Box::new(ClipConditioner::open(bundle, settings.force_zeros_for_empty_prompt)?),
            denoiser: Box::new(UNet::new(settings)),
            sampling: Box::new(StableDiffusionSampling { generation, scheduler }),
        })
    }
}
