use std::path::PathBuf;

use clap::Args;
use kiln_bundle::{ElementType, Target};
use kiln_compile::{Bytes, CheckpointOptions, Components, ComputeCapability};
use kiln_graph::AttentionPolicy;

use super::choices::{PrecisionChoice, float, precision};
use super::group::Group;
use super::{CacheArgs, ExecutionArgs, PredictionChoice};

#[derive(Args)]
pub(crate) struct CompileArgs {
    /// Specification (.yaml), checkpoint folder, single-file checkpoint, or a bundle made with --target onnx.
    pub(crate) source: PathBuf,
    /// Refuse anything but a bundle made with --target onnx.
    #[arg(long)]
    pub(crate) from_onnx: bool,
    /// Target to build for: cpu, tensorrt-rtx, cuda, tensorrt or onnx; repeatable [default: those of the specification, or cpu].
    #[arg(long = "target", value_name = "TARGET")]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) networks: Group<NetworkArgs>,
    #[command(flatten)]
    pub(crate) engines: Group<EngineArgs>,
    /// Number of parts to build at once; each part of a GPU engine takes gigabytes of memory.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) jobs: usize,
    /// Keep the engine cache under this size, such as 20GiB, by removing the least recently used.
    #[arg(long, value_name = "SIZE", env = "KILN_ENGINE_CACHE_LIMIT", hide_env = true)]
    pub(crate) cache_limit: Option<Bytes>,
    /// Show what would be built, and build nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show what changed since the most similar part in the cache.
    #[arg(long)]
    pub(crate) why: bool,
    /// Leave out the reference that `kiln verify` compares with.
    #[arg(long)]
    pub(crate) no_reference: bool,
    /// Do not measure the engines; kiln plan predicts from the measurement.
    #[arg(long)]
    pub(crate) no_figures: bool,
    /// Do not measure how far reduced precision on the CPU is from f32.
    #[arg(long)]
    pub(crate) no_accuracy: bool,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) traced: Group<TracedArgs>,
    /// Print one JSON object instead of the bundles' paths.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a pipeline's networks become.
#[derive(Args)]
pub(crate) struct NetworkArgs {
    /// Type that networks compute in [default: f32 for cpu, f16 for GPUs].
    #[arg(long, value_name = "TYPE", value_parser = precision())]
    pub(crate) precision: Option<PrecisionChoice>,
    /// Type to store weights in [default: the type they are used in].
    #[arg(long, value_name = "TYPE", value_parser = float())]
    pub(crate) storage: Option<ElementType>,
    /// Largest segment, in bytes of weights; sequential offload loads one at a time, autoencoders get four times as much [default: 16MiB for cpu, whole engines for GPUs].
    #[arg(long, value_name = "SIZE")]
    pub(crate) segment_size: Option<Bytes>,
    /// LoRA that becomes part of the weights, as FILE or FILE:WEIGHT; may be given several times [default weight: 1].
    #[arg(long, value_name = "FILE[:WEIGHT]", allow_hyphen_values = true)]
    pub(crate) lora: Vec<String>,
    #[command(flatten)]
    pub(crate) sizes: SizeArgs,
}

/// How GPU engines are built.
#[derive(Args)]
pub(crate) struct EngineArgs {
    /// Compute capability to build GPU engines for, such as 8.9; repeatable [default: the toolkit's choice].
    #[arg(long = "compute-capability", value_name = "X.Y")]
    pub(crate) compute_capabilities: Vec<ComputeCapability>,
    /// Accept GPU engines that split an attention into several kernels.
    #[arg(long)]
    pub(crate) allow_slow_attention: bool,
}

/// How a checkpoint is read and traced.
#[derive(Args)]
pub(crate) struct TracedArgs {
    /// Read the checkpoint's weights even where their files look unchanged.
    #[arg(long)]
    pub(crate) rehash: bool,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
}

/// Fixed sizes; without them, engines take every size.
#[derive(Args)]
pub(crate) struct SizeArgs {
    /// Fix the height in pixels.
    #[arg(long, value_name = "PIXELS", requires = "width")]
    pub(crate) height: Option<u32>,
    /// Fix the width in pixels.
    #[arg(long, value_name = "PIXELS", requires = "height")]
    pub(crate) width: Option<u32>,
    /// Fix the number of pictures.
    #[arg(long, value_name = "N", requires = "height")]
    pub(crate) batch_size: Option<u32>,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Checkpoints")]
pub(crate) struct CheckpointArgs {
    /// Prefer weight files of this variant, such as fp16.
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// What a single-file checkpoint's UNet predicts [default: what the file or its family says].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) prediction_type: Option<PredictionChoice>,
    #[command(flatten)]
    pub(crate) components: ComponentArgs,
    /// How attention is computed: fused, plain, or sliced:N heads at a time, where auto is half and max one [default: fused].
    #[arg(long, value_name = "POLICY")]
    pub(crate) attention: Option<AttentionPolicy>,
}

impl CheckpointArgs {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let CheckpointArgs { variant, prediction_type, components, attention } = self;
        let given = [
            ("--variant", variant.is_some()),
            ("--prediction-type", prediction_type.is_some()),
            ("--attention", attention.is_some()),
        ];
        let given = given.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option);
        given.or(components.given())
    }

    pub(crate) fn attention(&self) -> AttentionPolicy {
        self.attention.unwrap_or_default()
    }

    pub(crate) fn options(&self) -> CheckpointOptions {
        CheckpointOptions {
            variant: self.variant.clone(),
            prediction_type: self.prediction_type.map(PredictionChoice::prediction_type),
            components: self.components.components(),
        }
    }
}

/// Components from elsewhere: each a folder, a pipeline's folder or a single file.
#[derive(Args, Clone)]
#[command(next_help_heading = "Checkpoints")]
pub(crate) struct ComponentArgs {
    /// UNet from elsewhere: a folder, a pipeline's folder or a single file.
    #[arg(long, value_name = "PATH")]
    pub(crate) unet: Option<PathBuf>,
    /// Autoencoder from elsewhere, likewise.
    #[arg(long, value_name = "PATH")]
    pub(crate) vae: Option<PathBuf>,
    /// Text encoder from elsewhere, likewise; the tokenizer stays the checkpoint's.
    #[arg(long, value_name = "PATH")]
    pub(crate) text_encoder: Option<PathBuf>,
    /// Second text encoder from elsewhere, likewise.
    #[arg(long = "text-encoder-2", value_name = "PATH")]
    pub(crate) text_encoder_2: Option<PathBuf>,
}

impl ComponentArgs {
    pub(crate) fn components(&self) -> Components {
        let ComponentArgs { unet, vae, text_encoder, text_encoder_2 } = self.clone();
        Components { unet, vae, text_encoder, text_encoder_2 }
    }

    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let components = self.components();
        let (name, _) = components.iter().next()?;
        Some(match name {
            "unet" => "--unet",
            "vae" => "--vae",
            "text_encoder" => "--text-encoder",
            _ => "--text-encoder-2",
        })
    }
}
