//! What can be refused without a model.

use std::fmt::Display;

use kiln_types::limits::{MAX_BATCH, MAX_CONTROLS, MAX_SIDE};

use super::{Approximations, Request};
use crate::error::{Error, refuse};

impl Request {
    /// Checks all that can be checked without a model.
    pub fn validate(&self) -> Result<(), Error> {
        let n = self.prompts.len();
        if n == 0 || n > MAX_BATCH {
            return refuse("batch size", format!("{n} is not a number from 1 to {MAX_BATCH}"));
        }
        if ![0, 1, n].contains(&self.negative_prompts.len()) {
            let found = self.negative_prompts.len();
            return refuse("negative prompt", format!("{found} of them for {n} prompts"));
        }
        check_seeds("seed", &self.seeds, n)?;
        if let Some(variation) = &self.variation {
            check_seeds("variation seed", &variation.seeds, n)?;
            check_share("variation strength", variation.strength)?;
        }
        if self.steps == Some(0) {
            return refuse("steps", "0 is not a positive number".into());
        }
        for (key, value) in [
            ("guidance scale", self.guidance_scale.unwrap_or(1.0)),
            ("guidance rescale", self.guidance_rescale),
        ] {
            if !value.is_finite() {
                return refuse(key, format!("{value} is not a finite number"));
            }
        }
        check_share("guidance rescale", self.guidance_rescale)?;
        check_share("eta", self.eta)?;
        let Approximations { deep_every, guidance_start, guidance_end } = self.approximations;
        if deep_every == 0 {
            return refuse("deep every", "0 is not a positive number".into());
        }
        check_share("guidance start", guidance_start)?;
        check_share("guidance end", guidance_end)?;
        if guidance_start >= guidance_end {
            return refuse("guidance start", format!("{guidance_start} is not before the end, {guidance_end}"));
        }
        // What starts from a picture fits any size that the autoencoder can halve, as in diffusers.
        let unit = if self.init.is_some() { 1 } else { 8 };
        check_side("height", self.height, unit)?;
        check_side("width", self.width, unit)?;
        self.check_tasks()
    }

    fn check_tasks(&self) -> Result<(), Error> {
        if let Some(strength) = self.init.as_ref().and_then(|init| init.strength) {
            check_share("strength", strength)?;
        }
        if self.controls.len() > MAX_CONTROLS {
            return refuse(
                "control image",
                format!("{} of them, more than {MAX_CONTROLS}", self.controls.len()),
            );
        }
        for control in &self.controls {
            if let Some(scale) = control.scale.filter(|scale| !scale.is_finite()) {
                return refuse("control scale", format!("{scale} is not a finite number"));
            }
            check_share("control start", control.start)?;
            check_share("control end", control.end)?;
            if control.start >= control.end {
                let reason = format!("{} is not before the end, {}", control.start, control.end);
                return refuse("control start", reason);
            }
        }
        let Some(hires) = &self.hires else { return Ok(()) };
        if !(1.0..=8.0).contains(&hires.scale) {
            return refuse("hires scale", format!("{} is not a number from 1 to 8", hires.scale));
        }
        if hires.steps == Some(0) {
            return refuse("hires steps", "0 is not a positive number".into());
        }
        if self.is_masked() {
            return refuse("hires scale", "cannot be combined with a mask".into());
        }
        check_share("hires strength", hires.strength)
    }
}

fn check_seeds(key: &'static str, seeds: &[u64], n: usize) -> Result<(), Error> {
    match seeds.len() {
        1 => Ok(()),
        found if found == n => Ok(()),
        found => refuse(key, format!("{found} of them for {n} prompts")),
    }
}

fn check_share(key: &'static str, value: impl Into<f64> + Display + Copy) -> Result<(), Error> {
    match (0.0..=1.0).contains(&value.into()) {
        true => Ok(()),
        false => refuse(key, format!("{value} is not a number from 0 to 1")),
    }
}

pub(crate) fn check_side(key: &'static str, side: Option<u32>, unit: u32) -> Result<(), Error> {
    match side {
        Some(side) if side == 0 || !side.is_multiple_of(unit) || side > MAX_SIDE => {
            refuse(key, format!("{side} is not a multiple of {unit} up to {MAX_SIDE}"))
        }
        _ => Ok(()),
    }
}
