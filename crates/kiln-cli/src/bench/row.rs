use serde::Serialize;

use crate::memtrace::Recording;

/// One way to spend memory, measured.
#[derive(Serialize)]
pub(super) struct Row {
    /// The bundle's name, and the type that its weights are stored in.
    pub(super) model: String,
    pub(super) offload: String,
    pub(super) vae_tile: Option<u32>,
    /// Most resident memory of the process in any round.
    pub(super) peak_bytes: u64,
    pub(super) predicted_bytes: u64,
    /// Seconds of a step in the fastest round.
    pub(super) step_seconds: f64,
    pub(super) decode_seconds: f64,
    pub(super) total_seconds: f64,
    /// Seconds of a step over those of the first row, each in the same round; the median of all rounds.
    pub(super) step_ratio: f64,
    /// Peak signal to noise ratio of the picture beside that of the bundle's first row, in decibels; none where all is equal.
    pub(super) psnr: Option<f64>,
    #[serde(skip)]
    pub(super) recording: Recording,
}
