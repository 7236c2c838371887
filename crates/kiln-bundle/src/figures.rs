//! What the engines of a bundle take, as it was measured on some machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use kiln_types::ComponentName;

/// What a process that runs the bundle's engines takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Name of the backend.
    pub backend: String,
    /// Version of the library behind it.
    pub version: String,
    /// Bytes that the process holds without any engine.
    pub base_bytes: u64,
    /// The components.
    pub components: BTreeMap<ComponentName, ComponentFigures>,
}

/// What a component takes, in runs of which the last and largest may have several rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentFigures {
    /// With all segments loaded.
    pub whole: Vec<Sample>,
    /// With one segment loaded at a time.
    pub segments: Vec<Sample>,
}

/// One run of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Rows of the batch.
    pub rows: u64,
    /// Height in latents.
    pub height: u64,
    /// Width in latents.
    pub width: u64,
    /// Most bytes that it took, its weights among them.
    pub peak_bytes: u64,
    /// Bytes of these for intermediate results of kiln's kernels, which stay the same where the size is larger.
    #[serde(default)]
    pub scratch_bytes: u64,
    /// Bytes that it held afterwards, as long as it was loaded.
    pub held_bytes: u64,
    /// Seconds to load it; where segments come and go, they are among `seconds`.
    pub load_seconds: f64,
    /// Seconds to run it.
    pub seconds: f64,
}

impl Figures {
    pub(crate) fn check(&self) -> Result<(), String> {
        for (role, component) in &self.components {
            for samples in [&component.whole, &component.segments] {
                check(samples).map_err(|reason| format!("components: {role}: {reason}"))?;
            }
        }
        Ok(())
    }
}

fn check(samples: &[Sample]) -> Result<(), &'static str> {
    let sane = |sample: &Sample| {
        let seconds = [sample.load_seconds, sample.seconds];
        (1..=1 << 10).contains(&sample.rows)
            && [sample.height, sample.width].iter().all(|side| (1..=1 << 16).contains(side))
            && [sample.peak_bytes, sample.scratch_bytes, sample.held_bytes]
                .iter()
                .all(|bytes| *bytes <= 1 << 48)
            && seconds.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0)
    };
    match samples {
        [] => Err("has no sample"),
        [first, ..] if first.rows != 1 => Err("its first sample is not of one row"),
        samples if !samples.iter().all(sane) => Err("a number is out of range"),
        samples if !samples.is_sorted_by_key(|s| (s.rows, s.height * s.width)) => {
            Err("its samples are not in order")
        }
        _ => Ok(()),
    }
}
