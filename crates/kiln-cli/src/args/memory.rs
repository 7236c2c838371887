use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_compile::Bytes;
use kiln_runtime::{MemoryOptions, Offload, Placement, VaeTiling};
use serde::{Deserialize, Serialize};

use super::{CacheArgs, CheckpointArgs, ExecutionArgs, SchedulerArgs, help};

/// How memory is spent.
#[derive(Args, Clone)]
#[command(next_help_heading = "Memory")]
pub(crate) struct MemoryArgs {
    /// Choose the fastest way that fits into this much memory, such as 2GiB; auto takes 90% of what is free.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["offload", "keep", "weights", "vae_tile"])]
    pub(crate) memory_budget: Option<Budget>,
    /// Which engines are loaded at the same time.
    #[arg(long, value_enum, default_value_t = OffloadChoice::None)]
    pub(crate) offload: OffloadChoice,
    /// UNet weights to keep loaded between steps under --offload sequential, such as 1GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) keep: Option<Bytes>,
    /// Where the weights of loaded engines are [default: packed for small models that stay loaded, else mapped].
    #[arg(long, value_enum)]
    pub(crate) weights: Option<PlacementChoice>,
    /// Decode and encode large pictures in blended tiles of this side; auto for the model's default size.
    #[arg(long, value_name = "PIXELS")]
    pub(crate) vae_tile: Option<Tile>,
    /// Share of a tile that it has in common with the next one.
    #[arg(long, value_name = "X", default_value_t = 0.25, requires = "vae_tile")]
    pub(crate) vae_tile_overlap: f64,
    /// Write resident memory over time, with what began when, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) memory_trace: Option<PathBuf>,
    /// Segments to read ahead under --offload sequential; 0 turns read-ahead off, also under --offload model.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) prefetch: usize,
}

/// A number of bytes, or what is free.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    Auto,
    Bytes(u64),
}

impl std::str::FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        match text {
            "auto" => Ok(Budget::Auto),
            text => Ok(Budget::Bytes(text.parse::<Bytes>()?.0)),
        }
    }
}

/// The side of a tile, or the model's default size.
#[derive(Clone, Copy)]
pub(crate) struct Tile(Option<u32>);

impl std::str::FromStr for Tile {
    type Err = String;

    fn from_str(text: &str) -> Result<Tile, String> {
        match text {
            "auto" => Ok(Tile(None)),
            text => {
                text.parse().map(|n| Tile(Some(n))).map_err(|_| "expected a number of pixels or auto".into())
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum OffloadChoice {
    /// All that were needed so far.
    None,
    /// One component at a time; the UNet stays for all steps.
    Model,
    /// One segment of one component at a time.
    Sequential,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlacementChoice {
    /// In the page cache, mapped from their file.
    Mapped,
    /// In memory, rearranged for the processor.
    Packed,
}

impl From<OffloadChoice> for Offload {
    fn from(choice: OffloadChoice) -> Offload {
        match choice {
            OffloadChoice::None => Offload::None,
            OffloadChoice::Model => Offload::Model,
            OffloadChoice::Sequential => Offload::Sequential,
        }
    }
}

impl From<Offload> for OffloadChoice {
    fn from(offload: Offload) -> OffloadChoice {
        match offload {
            Offload::None => OffloadChoice::None,
            Offload::Model => OffloadChoice::Model,
            Offload::Sequential => OffloadChoice::Sequential,
        }
    }
}

impl MemoryArgs {
    /// The options, where no budget decides.
    pub(crate) fn options(&self) -> MemoryOptions {
        let tiling = |Tile(tile): Tile| {
            let overlap = self.vae_tile_overlap;
            tile.map_or_else(VaeTiling::default, VaeTiling::of).overlap(overlap)
        };
        MemoryOptions::new()
            .offload(self.offload.into())
            .placement(self.weights.map(|choice| match choice {
                PlacementChoice::Mapped => Placement::Mapped,
                PlacementChoice::Packed => Placement::Packed,
            }))
            .keep_bytes(self.keep.map_or(0, |bytes| bytes.0))
            .vae_tiling(self.vae_tile.map(tiling))
            .prefetch(self.prefetch)
    }
}

#[derive(Args)]
#[command(after_help = help::schedulers())]
pub(crate) struct PlanArgs {
    /// Checkpoint folder, single-file checkpoint or bundle [default: the small model, models/shapes of a checkout or package].
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Say what would be taken for this much memory, such as 2GiB; auto for what is free.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<Budget>,
    #[command(flatten)]
    pub(crate) pixels: PixelArgs,
    /// Pictures at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch_size: usize,
    /// Denoising steps [default: 50; 4 for latent consistency models].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Weight of the prompt; guidance, which doubles the work, is off up to 1 [default: the model's].
    #[arg(long, value_name = "X")]
    pub(crate) guidance_scale: Option<f32>,
    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct MeasureArgs {
    /// Bundle folder.
    pub(crate) bundle: PathBuf,
    /// Print the figures, and leave those of the bundle as they are.
    #[arg(long)]
    pub(crate) no_store: bool,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Speed, from everything off to everything on, a step at a time, and then memory: the figures of diffusers' "Memory and speed".
    Ladder(BenchLadderArgs),
    /// Memory and time of every kind of offload and VAE tile: a table as Markdown and JSON, a chart as SVG, the pictures.
    Memory(BenchMemoryArgs),
    /// Operators on the processor: which take a picture's time, and how many operations a second they do.
    Operators(BenchOperatorsArgs),
}

/// The size of pictures.
#[derive(Args)]
pub(crate) struct PixelArgs {
    /// Width in pixels [default: the model's].
    #[arg(long, value_name = "PIXELS")]
    pub(crate) width: Option<u32>,
    /// Height in pixels, like the width.
    #[arg(long, value_name = "PIXELS")]
    pub(crate) height: Option<u32>,
}

#[derive(Args)]
pub(crate) struct BenchOperatorsArgs {
    /// Bundle folder, for the processor.
    pub(crate) bundle: PathBuf,
    /// Denoising steps that are measured, after as many that are not.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) pixels: PixelArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    /// Print one JSON object instead of the tables, with every operator and shape.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = help::schedulers())]
pub(crate) struct BenchLadderArgs {
    /// Checkpoint folder or single-file checkpoint [default: the small model, models/shapes of a checkout or package].
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Denoising steps of each run.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) steps: usize,
    /// How often everything is run, in turn; the fastest run counts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) rounds: usize,
    /// Leave memory out.
    #[arg(long)]
    pub(crate) speed_only: bool,
    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object instead of the tables.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = help::schedulers())]
pub(crate) struct BenchMemoryArgs {
    /// Bundle folders.
    #[arg(required = true)]
    pub(crate) bundles: Vec<PathBuf>,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Denoising steps of each run.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) steps: usize,
    /// How often everything is run, in turn.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) rounds: usize,
    #[command(flatten)]
    pub(crate) pixels: PixelArgs,
    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}
