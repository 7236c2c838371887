//! Arguments about tasks as parts of a request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_lora::{Lora, LoraFile};
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Control, Hires, Init, MaskFill, MicroConditioning, Picture, Upscaler};

use crate::args::{MaskFillChoice, TaskArgs, UpscalerChoice};
use crate::failure::Failure;

impl TaskArgs {
    pub(crate) fn init(&self) -> Result<Option<Init>, Failure> {
        let Some(image) = &self.init_image else { return Ok(None) };
        let init = Init::new(picture(image)?).strength(self.strength);
        Ok(Some(match &self.mask {
            Some(mask) => init.mask(picture(mask)?).fill(match self.mask_fill {
                MaskFillChoice::Picture => MaskFill::Picture,
                MaskFillChoice::Noise => MaskFill::Noise,
                MaskFillChoice::Zeros => MaskFill::Zeros,
            }),
            None => init,
        }))
    }

    pub(crate) fn controls(&self) -> Result<Vec<Control>, Failure> {
        let n = self.control_image.len();
        let scales: Vec<Option<f32>> = self.control_scale.iter().copied().map(Some).collect();
        let scales = one_each("control scale", &scales, None, n)?;
        let starts = one_each("control start", &self.control_start, 0.0, n)?;
        let ends = one_each("control end", &self.control_end, 1.0, n)?;
        let images = self.control_image.iter().zip(scales).zip(starts.into_iter().zip(ends));
        images
            .map(|((image, scale), (start, end))| {
                Ok(Control::new(picture(image)?).scale(scale).between(start, end))
            })
            .collect()
    }

    pub(crate) fn hires(&self) -> Option<Hires> {
        self.hires.map(|scale| {
            Hires::new(scale).strength(self.hires_strength).steps(self.hires_steps).upscaler(
                match self.hires_upscaler {
                    UpscalerChoice::Latents => Upscaler::Latents,
                    UpscalerChoice::Pixels => Upscaler::Pixels,
                },
            )
        })
    }

    pub(crate) fn micro_conditioning(&self) -> MicroConditioning {
        let mut micro = MicroConditioning::default();
        micro.original_size = self.original_size;
        micro.target_size = self.target_size;
        [micro.crop_top, micro.crop_left] = self.crop.unwrap_or([0, 0]);
        micro.aesthetic_score = self.aesthetic_score;
        micro.negative_aesthetic_score = self.negative_aesthetic_score;
        micro
    }
}

fn picture(path: impl AsRef<Path>) -> Result<Picture, Failure> {
    Ok(RgbImage::open(path.as_ref()).map_err(kiln_runtime::Error::from)?.into())
}

/// One value for all, or one for each of `n`.
fn one_each<T: Copy>(key: &str, values: &[T], default: T, n: usize) -> Result<Vec<T>, Failure> {
    match values {
        [] => Ok(vec![default; n]),
        [value] => Ok(vec![*value; n]),
        values if values.len() == n => Ok(values.to_vec()),
        values => Err(Failure::usage(format!("{key}: {} of them for {n} control images", values.len()))),
    }
}

/// `FILE:SUFFIX` in its parts; a colon inside the name of a file that exists is part of the name.
pub(crate) fn file_and_suffix(text: &str) -> (PathBuf, Option<&str>) {
    match text.rsplit_once(':') {
        Some((file, suffix)) if !Path::new(text).exists() && !suffix.contains(['/', '\\']) => {
            (PathBuf::from(file), Some(suffix))
        }
        _ => (PathBuf::from(text), None),
    }
}

/// `FILE` or `FILE:WEIGHT`; what follows a colon and is not a number is part of the name.
pub(crate) fn file_and_weight(text: &str) -> (PathBuf, f32) {
    match file_and_suffix(text) {
        (file, Some(suffix)) => match suffix.parse() {
            Ok(weight) => (file, weight),
            Err(_) => (PathBuf::from(text), 1.0),
        },
        (file, None) => (file, 1.0),
    }
}

/// Refuses what follows a file's name as its weight and is not a number.
fn check_weight(text: &str) -> Result<(), Failure> {
    match file_and_suffix(text) {
        (file, Some(suffix)) if file.exists() && suffix.parse::<f32>().is_err() => {
            Err(Failure::usage(format!("lora: '{suffix}' behind {} is not a number", file.display())))
        }
        _ => Ok(()),
    }
}

/// The LoRAs of arguments, opened.
pub(crate) fn loras(arguments: &[String]) -> Result<Vec<Lora>, Failure> {
    arguments
        .iter()
        .map(|text| {
            check_weight(text)?;
            let (file, weight) = file_and_weight(text);
            if !weight.is_finite() {
                return Err(Failure::usage(format!(
                    "lora: weight {weight} of {} is not finite",
                    file.display()
                )));
            }
            Ok(Lora { file: Arc::new(LoraFile::open(&file)?), weight })
        })
        .collect()
}
