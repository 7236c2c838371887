//! Sizes in pixels that engines run at.

use std::ops::Deref;

use kiln_bundle::Size;
use kiln_nets::Sizes;
use kiln_types::limits::{MAX_BATCH, MAX_SIDE};
use serde::Deserialize;

use crate::targets::{Profile, Range};
use crate::{Checkpoint, CompileError};

/// Sizes in pixels that an engine runs at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// Number of pictures.
    #[serde(default)]
    pub batch: Option<RangeSpec>,
    /// Height in pixels.
    pub height: RangeSpec,
    /// Width in pixels.
    pub width: RangeSpec,
}

/// Profiles whose sizes are ascending and within the limits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<ProfileSpec>")]
pub struct Profiles(Vec<ProfileSpec>);

/// One size, or the least, best and most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a number, or {min, opt, max}")]
pub enum RangeSpec {
    /// One size alone.
    Fixed(u64),
    /// Least, best and most.
    Open(OpenRange),
}

/// Least, best and most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRange {
    /// Least.
    pub min: u64,
    /// What the engine is tuned for.
    pub opt: u64,
    /// Most.
    pub max: u64,
}

/// The sizes that networks are traced with where there are no engines for GPUs: one of each, or every size. Written as a
/// list of profiles, which has one entry or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<ProfileSpec>")]
pub struct FixedSizes(Option<Fixed>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed {
    batch: u64,
    height: u64,
    width: u64,
}

impl TryFrom<Vec<ProfileSpec>> for Profiles {
    type Error = String;

    fn try_from(profiles: Vec<ProfileSpec>) -> Result<Profiles, String> {
        for (i, profile) in profiles.iter().enumerate() {
            profile.check().map_err(|reason| format!("profiles[{i}].{reason}"))?;
        }
        Ok(Profiles(profiles))
    }
}

impl Profiles {
    /// One number of pictures of one size.
    pub fn one(batch: u64, size: Size) -> Profiles {
        let fixed = |n: u32| RangeSpec::Fixed(n.into());
        let batch = Some(RangeSpec::Fixed(batch));
        Profiles(vec![ProfileSpec { batch, height: fixed(size.height), width: fixed(size.width) }])
    }
}

impl Deref for Profiles {
    type Target = [ProfileSpec];

    fn deref(&self) -> &[ProfileSpec] {
        &self.0
    }
}

impl TryFrom<Vec<ProfileSpec>> for FixedSizes {
    type Error = String;

    fn try_from(profiles: Vec<ProfileSpec>) -> Result<FixedSizes, String> {
        match &*Profiles::try_from(profiles)? {
            [] => Ok(FixedSizes(None)),
            [one] if one.fixed().is_some() => Ok(FixedSizes(one.fixed())),
            _ => Err("profiles: without engines for GPUs, one with fixed sizes, or none and every size".into()),
        }
    }
}

impl FixedSizes {
    /// One number of pictures of one size.
    pub fn new(batch: u64, size: Size) -> FixedSizes {
        FixedSizes(Some(Fixed { batch, height: size.height.into(), width: size.width.into() }))
    }

    pub(super) fn sizes(self, checkpoint: &Checkpoint) -> Result<Sizes, CompileError> {
        self.0.map_or(Ok(Sizes::Dynamic), |fixed| fixed.sizes(checkpoint))
    }
}

impl Fixed {
    fn sizes(self, checkpoint: &Checkpoint) -> Result<Sizes, CompileError> {
        Ok(Sizes::Static {
            batch: self.batch,
            height: latents(checkpoint, "height", self.height)?,
            width: latents(checkpoint, "width", self.width)?,
        })
    }
}

impl ProfileSpec {
    fn check(&self) -> Result<(), String> {
        let (most, side) = (MAX_BATCH as u64, u64::from(MAX_SIDE));
        let batch = self.batch.unwrap_or(RangeSpec::Fixed(1));
        for (key, range, most) in
            [("batch", batch, most), ("height", self.height, side), ("width", self.width, side)]
        {
            let Range { min, opt, max } = range.range();
            if !(1 <= min && min <= opt && opt <= max && max <= most) {
                return Err(format!("{key}: {min}, {opt}, {max} are not ascending from 1 to {most}"));
            }
        }
        Ok(())
    }

    fn fixed(&self) -> Option<Fixed> {
        let fixed = |range: RangeSpec| {
            let Range { min, max, .. } = range.range();
            (min == max).then_some(min)
        };
        let batch = self.batch.map_or(Some(1), fixed)?;
        Some(Fixed { batch, height: fixed(self.height)?, width: fixed(self.width)? })
    }
}

/// What networks are traced with for engines of these profiles: the sizes of the only one where they are fixed, or any.
pub(super) fn sizes(profiles: &[ProfileSpec], checkpoint: &Checkpoint) -> Result<Sizes, CompileError> {
    match profiles {
        [one] => one.fixed().map_or(Ok(Sizes::Dynamic), |fixed| fixed.sizes(checkpoint)),
        _ => Ok(Sizes::Dynamic),
    }
}

/// Profiles in latents; without any, one around the model's own size.
pub(super) fn in_latents(
    profiles: &[ProfileSpec],
    checkpoint: &Checkpoint,
) -> Result<Vec<Profile>, CompileError> {
    let [height, width] = checkpoint.default_size().map(|pixels| pixels / checkpoint.scale_factor());
    let around = Profile::around(height, width, checkpoint.text_positions());
    if profiles.is_empty() {
        return Ok(vec![around]);
    }
    let in_latents = |key: &str, range: RangeSpec| {
        let Range { min, opt, max } = range.range();
        let side = |pixels| latents(checkpoint, key, pixels);
        Ok::<Range, CompileError>(Range { min: side(min)?, opt: side(opt)?, max: side(max)? })
    };
    let profile = |profile: &ProfileSpec| {
        Ok(Profile {
            batch: profile.batch.map_or(around.batch, RangeSpec::range),
            height: in_latents("height", profile.height)?,
            width: in_latents("width", profile.width)?,
            tokens: around.tokens,
        })
    };
    profiles.iter().map(profile).collect()
}

fn latents(checkpoint: &Checkpoint, key: &str, pixels: u64) -> Result<u64, CompileError> {
    let factor = checkpoint.scale_factor();
    match pixels.is_multiple_of(factor.max(8)) {
        true => Ok(pixels / factor),
        false => Err(CompileError::Option {
            path: checkpoint.root().into(),
            reason: format!("{key}: {pixels} is not a multiple of {}", factor.max(8)),
            hint: format!("the next one is {}", pixels.next_multiple_of(factor.max(8))),
        }),
    }
}

impl RangeSpec {
    fn range(self) -> Range {
        match self {
            RangeSpec::Fixed(size) => Range::fixed(size),
            RangeSpec::Open(OpenRange { min, opt, max }) => Range { min, opt, max },
        }
    }
}
