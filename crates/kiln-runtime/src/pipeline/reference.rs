//! Whether an engine still makes what it made where it was compiled.

use std::collections::HashMap;
use std::path::Path;

use kiln_bundle::{AxisSize, Bundle, read};
use kiln_types::Size;
use ndarray::{Array3, ArrayD};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::Pipeline;
use crate::image::RgbImage;
use crate::scheduler::SchedulerError;
use crate::watch::Watch;
use crate::{Control, Error, Init, Picture, Request};

/// Side in latents of the reference's picture where the engines take every size.
const SIDE: u32 = 16;

/// Latents and pictures that a pipeline made from fixed random numbers, prompt and pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    settings: Settings,
    latents: ArrayD<f32>,
    pictures: Vec<RgbImage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    prompt: String,
    negative_prompt: String,
    seed: u64,
    steps: usize,
    guidance_scale: f32,
    height: u32,
    width: u32,
    batch: usize,
    /// The scheduler, where the model's own does not run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheduler: Option<String>,
    /// What made the reference.
    backend: String,
}

/// How far a pipeline is from its bundle's reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// Root mean square of the latents' difference over that of the reference.
    pub drift: f64,
    /// Largest difference of a latent.
    pub max_difference: f32,
    /// Least peak signal to noise ratio of a decoded picture, in decibels; none where all are equal.
    pub psnr: Option<f64>,
    /// Whether a decoded picture is of one colour, give or take 2 of 255, as black frames are.
    pub is_flat: bool,
}

impl Pipeline {
    /// Makes the reference of this pipeline's bundle.
    pub fn make_reference(&mut self, watch: Watch<'_>) -> Result<Reference, Error> {
        let fixed = self.fixed_batch()?;
        let size = match fixed {
            Some(_) => self.facts.size,
            None => Size::square(SIDE * self.facts.latents.scale_factor),
        };
        let settings = Settings {
            prompt: "a photograph of an astronaut riding a horse".into(),
            negative_prompt: "blurry".into(),
            seed: 0,
            steps: 3,
            guidance_scale: 7.5,
            height: size.height,
            width: size.width,
            batch: fixed.unwrap_or(1),
            scheduler: None,
            backend: format!("{} {}", self.backend().name(), self.backend().version()),
        };
        let settings = settings.with_scheduler_that_runs(self)?;
        let output = self.generate_with(&settings.request(self), watch)?;
        if output.images.iter().any(|image| image.is_flat(RgbImage::FLAT)) {
            return Err(Error::FlatPicture);
        }
        Ok(Reference { settings, latents: output.latents, pictures: output.images })
    }

    /// Runs the bundle's reference again; latents that are not finite are an error.
    pub fn verify(&mut self, reference: &Reference, watch: Watch<'_>) -> Result<Verification, Error> {
        let output = self.generate_with(&reference.settings.request(self), watch)?;
        if output.latents.shape() != reference.latents.shape() {
            let reason =
                format!("made latents {:?}, not {:?}", output.latents.shape(), reference.latents.shape());
            return Err(Error::Shapes(reason));
        }
        let pictures = output.images.iter().zip(&reference.pictures);
        let compared =
            pictures.map(|(found, expected)| found.compare(expected)).collect::<Result<Vec<_>, _>>()?;
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let pairs = || output.latents.iter().zip(&reference.latents);
        let difference = square(&mut pairs().map(|(found, expected)| f64::from(found - expected)));
        let norm = square(&mut reference.latents.iter().map(|&x| f64::from(x)));
        Ok(Verification {
            drift: (difference / norm.max(f64::MIN_POSITIVE)).sqrt(),
            max_difference: pairs().map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max),
            psnr: compared.iter().filter_map(|comparison| comparison.psnr).min_by(f64::total_cmp),
            is_flat: output.images.iter().any(|image| image.is_flat(RgbImage::FLAT)),
        })
    }

    /// Number of pictures that the engines were built for, where they take one size only.
    fn fixed_batch(&self) -> Result<Option<usize>, Error> {
        let component = self.engines.component(self.facts.image_decoder)?;
        let batch = component.inputs.first().and_then(|port| port.shape.first());
        Ok(match batch {
            Some(AxisSize::Fixed(n)) => Some(*n as usize),
            _ => None,
        })
    }
}

impl Settings {
    /// The settings with DDIM in the place of a scheduler that does not run here.
    fn with_scheduler_that_runs(self, pipeline: &Pipeline) -> Result<Settings, Error> {
        let scheduler = match pipeline.resolve(&self.request(pipeline)) {
            Err(Error::SchedulerFile { source: SchedulerError::Class { .. }, .. }) => Some("ddim".into()),
            resolved => resolved.map(|_| None)?,
        };
        Ok(Settings { scheduler, ..self })
    }

    /// The request, with synthetic pictures where the model needs some.
    fn request(&self, pipeline: &Pipeline) -> Request {
        let (height, width) = (self.height as usize, self.width as usize);
        let gradient = || {
            Picture::Planar(Array3::from_shape_fn((3, height, width), |(c, y, x)| match c {
                0 => x as f32 / width as f32,
                1 => y as f32 / height as f32,
                _ => 0.5,
            }))
        };
        let left_half =
            || {
                Picture::Planar(Array3::from_shape_fn((1, height, width), |(_, _, x)| {
                    if 2 * x < width { 1.0 } else { 0.0 }
                }))
            };
        let controls: Vec<Control> = (0..pipeline.n_controlnets()).map(|_| Control::new(gradient())).collect();
        let mut request = Request::new("")
            .prompts(vec![self.prompt.as_str(); self.batch])
            .negative_prompt(&*self.negative_prompt)
            .seed(self.seed)
            .steps(self.steps)
            .guidance_scale(self.guidance_scale)
            .size(Size::new(self.width, self.height))
            .controls(controls);
        request.scheduler.clone_from(&self.scheduler);
        match pipeline.model.denoiser.reads_masked_picture() {
            true => request.init(Init::new(gradient()).mask(left_half())),
            false => request,
        }
    }
}

/// Largest reference that is read: final latents of a small run.
const MAX_BYTES: u64 = 64 << 20;

impl Reference {
    /// The reference of a bundle, if it has one.
    pub fn of(bundle: &Bundle) -> Result<Option<Reference>, Error> {
        let Some(name) = &bundle.manifest().reference else { return Ok(None) };
        let path = bundle.path(name);
        let refuse = |reason: String| Error::Reference { path: path.clone(), reason };
        let bytes = read::bytes(&path, MAX_BYTES, "reference");
        let bytes = bytes.map_err(|e| e.map(|e| Error::io(&path, e), refuse))?;
        Reference::parse(&path, &bytes).map(Some)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Reference, Error> {
        let refuse = |reason: String| Error::Reference { path: path.into(), reason };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| refuse(e.to_string()))?;
        let settings = header.metadata().as_ref().and_then(|map| map.get(SETTINGS));
        let settings = settings.ok_or_else(|| refuse(format!("has no {SETTINGS}")))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))?;
        let latents = tensors.tensor(LATENTS).map_err(|e| refuse(e.to_string()))?;
        if latents.dtype() != Dtype::F32 {
            return Err(refuse(format!("{LATENTS} are stored as {:?}, not F32", latents.dtype())));
        }
        let settings: Settings =
            serde_json::from_str(settings).map_err(|e| refuse(format!("{SETTINGS}: {e}")))?;
        let pictures = tensors.tensor(PICTURES).map_err(|e| refuse(e.to_string()))?;
        let shape = [settings.batch, settings.height as usize, settings.width as usize, 3];
        if pictures.dtype() != Dtype::U8 || pictures.shape() != shape {
            let (dtype, found) = (pictures.dtype(), pictures.shape());
            return Err(refuse(format!("{PICTURES} are {dtype:?} of shape {found:?}, not U8 of {shape:?}")));
        }
        let picture = |data: &[u8]| RgbImage::from_raw(settings.width, settings.height, data.to_vec());
        let pictures = pictures.data().chunks_exact(shape[1..].iter().product::<usize>().max(1)).map(picture);
        let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
        let values = latents.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(Reference {
            settings,
            pictures,
            latents: ArrayD::from_shape_vec(latents.shape(), values).map_err(|e| refuse(e.to_string()))?,
        })
    }

    /// The reference as the file that a bundle holds.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let refuse = |reason: String| Error::Reference { path: SETTINGS.into(), reason };
        let settings = serde_json::to_string(&self.settings).map_err(|e| refuse(e.to_string()))?;
        let data: Vec<u8> = self.latents.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, self.latents.shape().to_vec(), &data)
            .map_err(|e| refuse(e.to_string()))?;
        let shape = vec![self.pictures.len(), self.settings.height as usize, self.settings.width as usize, 3];
        let pixels: Vec<u8> = self.pictures.iter().flat_map(|picture| picture.data()).copied().collect();
        let pictures = safetensors::tensor::TensorView::new(Dtype::U8, shape, &pixels)
            .map_err(|e| refuse(e.to_string()))?;
        let metadata = HashMap::from([(SETTINGS.to_owned(), settings)]);
        safetensors::serialize([(LATENTS, view), (PICTURES, pictures)], Some(metadata))
            .map_err(|e| refuse(e.to_string()))
    }

    /// Name and version of the backend that made it.
    pub fn backend(&self) -> &str {
        &self.settings.backend
    }
}

const SETTINGS: &str = "settings";
const LATENTS: &str = "latents";
const PICTURES: &str = "pictures";
