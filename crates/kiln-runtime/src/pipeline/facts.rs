//! What a bundle says, read once.

use std::fmt;

use kiln_bundle::{AxisSize, Bundle, BundleError, ComponentName, LatentsInfo, Stage};
use kiln_types::Size;

use crate::architecture::{Denoiser, Task};
use crate::error::refuse;
use crate::request::check_side;
use crate::{Error, Guidance, Hires};

/// Least granularity of a picture's sides, in pixels: what UNets halve three times.
const LEAST_UNIT: u32 = 8;

/// What a pipeline knows of its bundle.
#[derive(Debug)]
pub(super) struct Facts {
    /// Default size of pictures.
    pub(super) size: Size,
    pub(super) latents: LatentsInfo,
    /// The text encoders, in order.
    pub(super) text_encoders: Vec<ComponentName>,
    /// Width of what the denoiser attends to.
    pub(super) text_width: u64,
    /// Token positions of a block.
    pub(super) positions: u64,
    pub(super) image_encoder: Option<ComponentName>,
    pub(super) image_decoder: ComponentName,
    pub(super) fixed: Option<FixedSize>,
}

impl Facts {
    pub(super) fn read(bundle: &Bundle, denoiser: &dyn Denoiser) -> Result<Facts, Error> {
        let info = bundle.pipeline()?;
        let components = &bundle.manifest().components;
        let of_stage = |stage| components.iter().find(|(_, c)| c.stage == stage).map(|(name, _)| *name);
        let refuse =
            |reason: &str| BundleError::Manifest { path: bundle.manifest_path(), reason: reason.into() };
        let image_decoder = of_stage(Stage::ImageDecoder)
            .ok_or_else(|| refuse("components: none makes pictures of latents"))?;
        let widths = info.text_encoders.iter().map(|encoder| u64::from(encoder.width));
        Ok(Facts {
            size: info.size,
            latents: info.latents,
            text_encoders: info.text_encoders.iter().map(|encoder| encoder.component).collect(),
            text_width: widths.sum(),
            positions: info.text_encoders.first().map_or(1, |encoder| u64::from(encoder.positions)),
            image_encoder: of_stage(Stage::ImageEncoder),
            image_decoder,
            fixed: FixedSize::of(bundle, denoiser)?,
        })
    }

    /// The component that makes latents of pictures.
    pub(super) fn image_encoder(&self) -> Result<ComponentName, Error> {
        match self.image_encoder {
            Some(name) => Ok(name),
            None => refuse("init image", "this model has no encoder for pictures".into()),
        }
    }

    /// Shape of the latents of a batch of pictures.
    pub(super) fn latent_shape(&self, batch: usize, size: Size) -> [usize; 4] {
        let Size { width, height } = size.map(|side| side / self.latents.scale_factor);
        [batch, self.latents.channels as usize, height as usize, width as usize]
    }

    /// Size of a second pass, rounded to whole latents.
    pub(super) fn hires_size(&self, size: Size, hires: &Hires) -> Result<Size, Error> {
        let unit = self.latents.scale_factor.max(LEAST_UNIT);
        let size = size.map(|side| ((side as f32 * hires.scale / unit as f32).round() as u32).max(1) * unit);
        check_side("hires scale", Some(size.height), unit)?;
        check_side("hires scale", Some(size.width), unit)?;
        Ok(size)
    }
}

/// What engines that were compiled for one size can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FixedSize {
    /// Rows of the denoiser's batch: two per picture under guidance.
    rows: u64,
    /// Pixels.
    width: u64,
    height: u64,
    /// Whether guidance takes a second row per picture.
    guides: bool,
}

impl FixedSize {
    fn of(bundle: &Bundle, denoiser: &dyn Denoiser) -> Result<Option<FixedSize>, Error> {
        let factor = u64::from(bundle.pipeline()?.latents.scale_factor);
        let ports = &bundle.component(denoiser.component(Task::default()))?.inputs;
        let sample = ports.iter().find(|port| port.name == denoiser.latents_input());
        let sample = sample.map(|port| port.shape.as_slice());
        let Some([AxisSize::Fixed(rows), _, AxisSize::Fixed(height), AxisSize::Fixed(width)]) = sample else {
            return Ok(None);
        };
        Ok(Some(FixedSize {
            rows: *rows,
            width: width.saturating_mul(factor),
            height: height.saturating_mul(factor),
            guides: !denoiser.embeds_guidance(),
        }))
    }

    /// Refuses what engines of this size do not run.
    pub(super) fn check(&self, batch: usize, size: Size, guidance: Guidance) -> Result<(), Error> {
        for (key, found, compiled) in [("height", size.height, self.height), ("width", size.width, self.width)]
        {
            if u64::from(found) != compiled {
                return refuse(key, format!("{found} does not fit: {self}"));
            }
        }
        let rows = guidance.rows(batch) as u64;
        match 2 * batch as u64 == self.rows && !guidance.is_guided() {
            _ if rows == self.rows => Ok(()),
            true => refuse("guidance scale", format!("{} turns guidance off: {self}", guidance.scale)),
            false => refuse("batch size", format!("{batch} does not fit: {self}")),
        }
    }

    /// Refuses a second pass of another size.
    pub(super) fn check_hires(&self, size: Size, hires: &Hires) -> Result<(), Error> {
        match (u64::from(size.width), u64::from(size.height)) == (self.width, self.height) {
            true => Ok(()),
            false => refuse("hires scale", format!("{} does not fit: {self}", hires.scale)),
        }
    }

    /// Refuses prompts of several blocks, of which the engines read one.
    pub(super) fn check_blocks(&self, n_blocks: u64) -> Result<(), Error> {
        match n_blocks {
            ..=1 => Ok(()),
            n => refuse("prompt", format!("takes {n} blocks of tokens instead of one: {self}")),
        }
    }
}

impl fmt::Display for FixedSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FixedSize { width, height, rows, guides } = self;
        write!(f, "this bundle was compiled for {width}x{height} pixels and a batch of ")?;
        match guides {
            true if rows.is_multiple_of(2) => write!(f, "{} with guidance or {rows} without", rows / 2),
            true => write!(f, "{rows} without guidance"),
            false => write!(f, "{rows}"),
        }
    }
}
