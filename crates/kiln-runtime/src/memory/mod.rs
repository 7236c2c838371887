//! How a pipeline spends memory.

#[cfg(feature = "cuda")]
mod device;
mod meter;
pub mod process;

use kiln_engine::{Backend, Placement};
use kiln_types::limits::MAX_PREFETCH;

use crate::error::{Error, refuse};
pub(crate) use meter::Meter;

/// What stays loaded, and how much is computed at once.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// Which engines are loaded at the same time.
    pub offload: Offload,
    /// Where the weights of loaded engines are; by default packed where they are few and stay, else mapped.
    ///
    /// Both are the same numbers, but their products are summed in another order. With packed weights all rows of a batch
    /// are computed at once, with mapped ones each by itself.
    pub placement: Option<Placement>,
    /// Bytes of the denoiser's weights whose segments stay loaded from step to step under [`Offload::Sequential`].
    pub keep_bytes: u64,
    /// Decodes and encodes large pictures in overlapping tiles (diffusers' `enable_vae_tiling`).
    pub vae_tiling: Option<VaeTiling>,
    /// How many segments ahead the page cache is asked for weights under [`Offload::Sequential`]; under any offload, whether
    /// it is asked for the autoencoder's in the last step. 0 for not at all.
    pub prefetch: usize,
}

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        MemoryOptions { offload: Offload::None, placement: None, keep_bytes: 0, vae_tiling: None, prefetch: 2 }
    }
}

/// Which engines are loaded at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Offload {
    /// All that were needed so far.
    #[default]
    None,
    /// One component; the denoiser and its ControlNets stay for the whole loop (diffusers' `enable_model_cpu_offload`).
    Model,
    /// One segment of one component (diffusers' `enable_sequential_cpu_offload`).
    Sequential,
}

/// Tiles of a picture (diffusers `AutoencoderKL.tiled_decode` and `tiled_encode`).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct VaeTiling {
    /// Height and width of a tile in pixels; the model's default size, as in diffusers, unless it is given.
    pub tile: Option<u32>,
    /// Share of a tile that it has in common with the next one, over which the two are blended.
    pub overlap: f64,
}

impl Default for VaeTiling {
    fn default() -> VaeTiling {
        VaeTiling { tile: None, overlap: 0.25 }
    }
}

impl VaeTiling {
    /// Tiles of so many pixels along each side.
    pub fn of(tile: u32) -> VaeTiling {
        VaeTiling { tile: Some(tile), ..VaeTiling::default() }
    }

    /// Sets the share of a tile that it has in common with the next one.
    #[must_use]
    pub fn overlap(self, overlap: f64) -> VaeTiling {
        VaeTiling { overlap, ..self }
    }
}

impl MemoryOptions {
    /// Everything that was needed so far stays loaded.
    pub fn new() -> MemoryOptions {
        MemoryOptions::default()
    }

    /// Sets which engines are loaded at the same time.
    #[must_use]
    pub fn offload(self, offload: Offload) -> MemoryOptions {
        MemoryOptions { offload, ..self }
    }

    /// Sets where weights are.
    #[must_use]
    pub fn placement(self, placement: impl Into<Option<Placement>>) -> MemoryOptions {
        MemoryOptions { placement: placement.into(), ..self }
    }

    /// Sets how many bytes of the denoiser's weights stay loaded from step to step.
    #[must_use]
    pub fn keep_bytes(self, keep_bytes: u64) -> MemoryOptions {
        MemoryOptions { keep_bytes, ..self }
    }

    /// Sets the tiles in which large pictures are decoded and encoded.
    #[must_use]
    pub fn vae_tiling(self, tiling: impl Into<Option<VaeTiling>>) -> MemoryOptions {
        MemoryOptions { vae_tiling: tiling.into(), ..self }
    }

    /// Sets how many segments ahead weights are asked for.
    #[must_use]
    pub fn prefetch(self, prefetch: usize) -> MemoryOptions {
        MemoryOptions { prefetch, ..self }
    }

    /// Checks all that can be checked without a model.
    pub fn validate(&self) -> Result<(), Error> {
        if self.offload == Offload::Sequential && self.placement == Some(Placement::Packed) {
            return refuse(
                "weights",
                "packed ones take seconds to load, and sequential offload loads them in every step".into(),
            );
        }
        if self.keep_bytes > 0 && self.offload != Offload::Sequential {
            return refuse("keep", "only sequential offload drops segments, of which some can be kept".into());
        }
        if self.prefetch > MAX_PREFETCH {
            return refuse("prefetch", format!("{} is not a number up to {MAX_PREFETCH}", self.prefetch));
        }
        let Some(VaeTiling { tile, overlap }) = self.vae_tiling else { return Ok(()) };
        if tile == Some(0) {
            return refuse("VAE tile", "0 is not a positive number".into());
        }
        match (0.0..0.9).contains(&overlap) {
            true => Ok(()),
            false => refuse("VAE tile overlap", format!("{overlap} is not a number from 0 to under 0.9")),
        }
    }
}

impl dyn Meter {
    /// Reads the memory in which a backend's engines compute; none where nobody tells how much of it is held.
    pub(crate) fn of(backend: &dyn Backend) -> Option<Box<dyn Meter>> {
        #[cfg(feature = "cuda")]
        if let Some(device) = backend.device() {
            return Some(Box::new(device::DeviceMeter::new(device)));
        }
        let is_known =
            !backend.format().is_for_device() && process::resident().is_some() && process::reset_peak();
        is_known.then(|| Box::new(meter::ProcessMeter) as _)
    }
}
