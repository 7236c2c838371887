//! How memory is spent, and what a request will take.

use kiln_runtime::{MemoryChoice, MemoryOptions, Offload, Placement, VaeTiling};

use crate::boundary::{Versioned, read};
use crate::error::kiln_error;

/// All engines that were needed stay loaded.
pub const KILN_OFFLOAD_NONE: u32 = 0;
/// One component is loaded at a time.
pub const KILN_OFFLOAD_MODEL: u32 = 1;
/// One segment of one component is loaded at a time.
pub const KILN_OFFLOAD_SEQUENTIAL: u32 = 2;

/// Weights are packed where they are few and stay, else mapped.
pub const KILN_WEIGHTS_AUTO: u32 = 0;
/// Weights are rearranged for the processor when they are loaded.
pub const KILN_WEIGHTS_PACKED: u32 = 1;
/// Weights stay in their file, which is mapped.
pub const KILN_WEIGHTS_MAPPED: u32 = 2;

/// How memory is spent. All zeros but the size are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_memory {
    /// `sizeof(kiln_memory)`.
    pub size: usize,
    /// `KILN_OFFLOAD_*`.
    pub offload: u32,
    /// `KILN_WEIGHTS_*`.
    pub weights: u32,
    /// Bytes of the denoiser's weights that stay loaded from step to step under sequential offload.
    pub keep_bytes: u64,
    /// 1 to decode and encode large pictures in overlapping tiles.
    pub vae_tiling: u32,
    /// Height and width of a tile in pixels; 0 for the model's own size.
    pub vae_tile: u32,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers.
unsafe impl Versioned for kiln_memory {
    const NAME: &'static str = "kiln_memory";
}

/// What a request is predicted to take.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_plan {
    /// `sizeof(kiln_plan)`.
    pub size: usize,
    /// Most bytes that the process will hold.
    pub peak_bytes: u64,
    /// Most bytes that it will hold while the denoiser runs.
    pub denoiser_bytes: u64,
    /// Seconds, where everything is loaded that may stay.
    pub seconds: f64,
    /// How memory is spent for that: `KILN_OFFLOAD_*`.
    pub offload: u32,
    /// 1 where large pictures are decoded in tiles.
    pub vae_tiling: u32,
    /// Height and width of a tile in pixels; 0 for the model's own size.
    pub vae_tile: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes of the denoiser's weights that stay loaded from step to step.
    pub keep_bytes: u64,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers.
unsafe impl Versioned for kiln_plan {
    const NAME: &'static str = "kiln_plan";
}

/// The library's options; none for `NULL`.
///
/// # Safety
/// The pointer is `NULL` or a struct as its size says.
pub(crate) unsafe fn memory_of(memory: *const kiln_memory) -> Result<Option<MemoryOptions>, kiln_error> {
    // SAFETY: the caller's promise.
    let Some(memory) = (unsafe { read(memory)? }) else { return Ok(None) };
    let offload = match memory.offload {
        KILN_OFFLOAD_NONE => Offload::None,
        KILN_OFFLOAD_MODEL => Offload::Model,
        KILN_OFFLOAD_SEQUENTIAL => Offload::Sequential,
        other => return Err(kiln_error::request(format!("offload: {other} is not KILN_OFFLOAD_*"))),
    };
    let placement = match memory.weights {
        KILN_WEIGHTS_AUTO => None,
        KILN_WEIGHTS_PACKED => Some(Placement::Packed),
        KILN_WEIGHTS_MAPPED => Some(Placement::Mapped),
        other => return Err(kiln_error::request(format!("weights: {other} is not KILN_WEIGHTS_*"))),
    };
    let tiling = match (memory.vae_tiling, memory.vae_tile) {
        (0, 0) => None,
        (0, tile) => return Err(kiln_error::request(format!("vae_tile: {tile}, but vae_tiling is 0"))),
        (_, 0) => Some(VaeTiling::default()),
        (_, tile) => Some(VaeTiling::of(tile)),
    };
    let options = MemoryOptions::new().offload(offload).placement(placement).vae_tiling(tiling);
    let options = options.keep_bytes(memory.keep_bytes);
    options.validate()?;
    Ok(Some(options))
}

impl From<&MemoryChoice> for kiln_plan {
    fn from(choice: &MemoryChoice) -> kiln_plan {
        let of = &choice.memory;
        let &MemoryChoice { peak_bytes, denoiser_bytes, seconds, .. } = choice;
        kiln_plan {
            size: size_of::<kiln_plan>(),
            peak_bytes,
            denoiser_bytes,
            seconds,
            offload: match of.offload {
                Offload::None => KILN_OFFLOAD_NONE,
                Offload::Model => KILN_OFFLOAD_MODEL,
                Offload::Sequential => KILN_OFFLOAD_SEQUENTIAL,
            },
            vae_tiling: of.vae_tiling.is_some().into(),
            vae_tile: of.vae_tiling.and_then(|tiling| tiling.tile).unwrap_or(0),
            reserved: 0,
            keep_bytes: of.keep_bytes,
        }
    }
}
