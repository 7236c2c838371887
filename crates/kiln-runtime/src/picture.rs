//! Pictures as a request gives them.

use ndarray::{Array3, Array4, Axis};

use kiln_types::Size;

use crate::error::{Error, refuse};
use crate::image::RgbImage;

/// A picture that a pipeline reads.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Picture {
    /// Resized where need be, as diffusers does with PIL's images.
    Rgb(RgbImage),
    /// Channels, height, width of numbers in `[0, 1]`, which must have the right size.
    Planar(Array3<f32>),
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Picture {
        Picture::Rgb(image)
    }
}

impl Picture {
    /// Its size.
    pub fn size(&self) -> Size {
        match self {
            Picture::Rgb(image) => image.size(),
            Picture::Planar(planes) => Size::new(planes.dim().2 as u32, planes.dim().1 as u32),
        }
    }

    /// Whether its file has an alpha channel that varies, which is no part of it.
    pub(crate) fn drops_alpha(&self) -> bool {
        matches!(self, Picture::Rgb(image) if image.drops_alpha())
    }

    /// `[1, 3, H, W]` in `[0, 1]` (diffusers `image_processor.py`).
    pub(crate) fn planes(&self, key: &'static str, size: Size) -> Result<Array4<f32>, Error> {
        match self {
            Picture::Rgb(image) => Ok(image.resized(size).to_planes().insert_axis(Axis(0))),
            Picture::Planar(planes) => own_size(key, planes, size, 3),
        }
    }

    /// `[1, 1, H, W]`, 1 where the picture is lighter than half and 0 elsewhere.
    pub(crate) fn mask(&self, key: &'static str, size: Size) -> Result<Array4<f32>, Error> {
        let mask = match self {
            Picture::Rgb(image) => image.resized(size).to_luma().insert_axis(Axis(0)),
            Picture::Planar(planes) => own_size(key, planes, size, 1)?,
        };
        Ok(mask.mapv(|x| if x < 0.5 { 0.0 } else { 1.0 }))
    }
}

fn own_size(
    key: &'static str,
    planes: &Array3<f32>,
    size: Size,
    channels: usize,
) -> Result<Array4<f32>, Error> {
    let (found, expected) = (planes.dim(), (channels, size.height as usize, size.width as usize));
    if found != expected {
        return refuse(key, format!("has shape {found:?}; expected {expected:?}"));
    }
    if let Some(value) = planes.iter().find(|value| !(0.0..=1.0).contains(*value)) {
        return refuse(key, format!("holds {value}, which is not a number from 0 to 1"));
    }
    Ok(planes.clone().insert_axis(Axis(0)))
}
