//! What engines that were compiled for one size can do.

use kiln_bundle::stable_diffusion::UNET;
use std::fmt;

use kiln_bundle::AxisSize;

use super::Pipeline;
use crate::request::refuse;
use crate::{Error, Request};

/// The one size of a pipeline's engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FixedSize {
    /// Samples of the UNet's batch: two per picture under guidance.
    rows: u64,
    /// Height and width in pixels.
    pixels: [u64; 2],
    /// Whether guidance takes a second sample per picture.
    guides: bool,
}

impl fmt::Display for FixedSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([height, width], rows) = (self.pixels, self.rows);
        write!(f, "this bundle was compiled for {width}x{height} pixels and a batch of ")?;
        match self.guides {
            true if rows.is_multiple_of(2) => write!(f, "{} with guidance or {rows} without", rows / 2),
            true => write!(f, "{rows} without guidance"),
            false => write!(f, "{rows}"),
        }
    }
}

impl Pipeline {
    fn fixed_size(&self) -> Result<Option<FixedSize>, Error> {
        let info = self.bundle.pipeline()?;
        let ports = &self.bundle.component(UNET)?.inputs;
        let sample = ports.iter().find(|port| port.name == "sample").map(|port| port.shape.as_slice());
        let Some([AxisSize::Fixed(rows), _, AxisSize::Fixed(height), AxisSize::Fixed(width)]) = sample else {
            return Ok(None);
        };
        let factor = u64::from(info.latents.scale_factor);
        Ok(Some(FixedSize {
            rows: *rows,
            pixels: [height, width].map(|latents| latents.saturating_mul(factor)),
            guides: self.settings.guidance_embedding.is_none(),
        }))
    }

    pub(super) fn is_fixed(&self) -> Result<bool, Error> {
        Ok(self.fixed_size()?.is_some())
    }

    /// Refuses a request that engines of one size can not run.
    pub(super) fn check_fixed(&self, request: &Request, [height, width]: [u32; 2]) -> Result<(), Error> {
        let Some(fixed) = self.fixed_size()? else { return Ok(()) };
        for (key, found, compiled) in [("height", height, fixed.pixels[0]), ("width", width, fixed.pixels[1])] {
            if u64::from(found) != compiled {
                return refuse(key, format!("{found} does not fit: {fixed}"));
            }
        }
        if let Some(hires) = &request.hires
            && self.hires_size([height, width], hires)? != [height, width]
        {
            return refuse("hires scale", format!("{} does not fit: {fixed}", hires.scale));
        }
        let (batch, guidance) = (request.prompts.len() as u64, self.guidance(request)?);
        let rows = if guidance.is_guided() { 2 * batch } else { batch };
        if rows == fixed.rows {
            return Ok(());
        }
        match 2 * batch == fixed.rows && !guidance.is_guided() {
            true => refuse("guidance scale", format!("{} turns guidance off: {fixed}", guidance.scale)),
            false => refuse("batch size", format!("{batch} does not fit: {fixed}")),
        }
    }

    /// Refuses prompts of several blocks where the engines read one.
    pub(super) fn check_blocks(&self, n_blocks: usize) -> Result<(), Error> {
        match self.fixed_size()? {
            Some(fixed) if n_blocks > 1 => {
                refuse("prompt", format!("takes {n_blocks} blocks of tokens instead of one: {fixed}"))
            }
            _ => Ok(()),
        }
    }
}
