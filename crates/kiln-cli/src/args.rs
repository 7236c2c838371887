//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kiln_graph::AttentionPolicy;

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  an engine failed, or something unexpected happened
  2  the command line or a request's parameter is wrong
  3  a checkpoint, bundle or model file is missing, malformed or not supported
  4  a native library can not be found, fetched or used
  5  a file can not be read or written

Environment:
  KILN_CACHE_DIR     folder for downloads (default: kiln in the platform's cache folder)
  KILN_ENGINE_CACHE  folder for engines (default: engine-cache/ in a checkout, else in KILN_CACHE_DIR)
  KILN_ONNXRUNTIME   ONNX Runtime's shared library, or the folder that holds it
  NO_COLOR           no colours";

/// Turns Stable Diffusion checkpoints into engines and runs them.
#[derive(Parser)]
#[command(name = "kiln", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Draw pictures for a prompt.
    Generate(GenerateArgs),
    /// Write a checkpoint's networks as ONNX files.
    Trace(TraceArgs),
    /// Make a checkpoint's bundle in the engine cache.
    Compile(CompileArgs),
    /// Show what is in a checkpoint, a bundle or an ONNX file.
    Inspect(InspectArgs),
    /// Write a single-file checkpoint as a diffusers folder.
    Convert(ConvertArgs),
    /// Write a checkpoint with random weights.
    Synth(SynthArgs),
    /// Fetch native libraries, or show which ones are found.
    Runtime(RuntimeArgs),
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// What to draw.
    pub(crate) prompt: String,
    /// Checkpoint folder, single-file checkpoint or bundle [default: the small model models/shapes of a checkout].
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// What to steer away from.
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative_prompt: Option<String>,
    /// Seed of the random numbers [default: a new one each time].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Denoising steps.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) steps: usize,
    /// Weight of the prompt; guidance is off up to 1.
    #[arg(long, value_name = "X", default_value_t = 7.5)]
    pub(crate) guidance_scale: f32,
    /// Noise added at each step: 0 for DDIM, 1 for as much as DDPM.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) eta: f32,
    /// Width in pixels [default: the model's].
    #[arg(long, value_name = "PIXELS")]
    pub(crate) width: Option<u32>,
    /// Height in pixels [default: the model's].
    #[arg(long, value_name = "PIXELS")]
    pub(crate) height: Option<u32>,
    /// Pictures at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch_size: usize,
    /// PNG file to write; with several pictures, a number is put before the extension [default: kiln-SEED.png].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What runs the engines.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,
    /// Threads per operator [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object instead of the path.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// Checkpoint folder or single-file checkpoint.
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint_path: PathBuf,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Dialect of ONNX.
    #[arg(long, value_enum, default_value_t = FlavorChoice::Standard)]
    pub(crate) flavor: FlavorChoice,
    /// Type to compute in; norms and softmax stay in f32.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Type to store weights in [default: the type they are used in].
    #[arg(long, value_enum)]
    pub(crate) storage: Option<Precision>,
    /// Scopes that compute in f32 whatever --precision says, such as mid_block.attentions.
    #[arg(long, value_name = "SCOPE")]
    pub(crate) keep_f32: Vec<String>,
    /// Cut point at which a network is split into segments; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) cut: Vec<String>,
    #[command(flatten)]
    pub(crate) sizes: SizeArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CompileArgs {
    /// Checkpoint folder or single-file checkpoint.
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint_path: PathBuf,
    #[command(flatten)]
    pub(crate) sizes: SizeArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object instead of the bundle's path.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// Checkpoint in one .safetensors file, in the layout of LDM and SGM.
    pub(crate) file: PathBuf,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What the UNet predicts [default: what the file or its family says].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) prediction_type: Option<PredictionChoice>,
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

#[derive(Args)]
pub(crate) struct CheckpointArgs {
    /// Prefer weight files of this variant, such as fp16.
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// What a single-file checkpoint's UNet predicts [default: what the file or its family says].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) prediction_type: Option<PredictionChoice>,
    /// How attention is computed: fused, plain, or sliced:N heads at a time.
    #[arg(long, value_name = "POLICY", default_value = "fused", value_parser = attention)]
    pub(crate) attention: AttentionPolicy,
}

#[derive(Args)]
pub(crate) struct CacheArgs {
    /// Folder for engines.
    #[arg(long, value_name = "DIR", env = "KILN_ENGINE_CACHE", hide_env = true)]
    pub(crate) engine_cache: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// Checkpoint folder, single-file checkpoint, bundle folder or ONNX file.
    pub(crate) path: PathBuf,
    /// Check the digest of every file of a bundle.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct SynthArgs {
    /// What to write.
    #[arg(value_enum)]
    pub(crate) architecture: ArchitectureChoice,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Type to store weights in.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) dtype: Precision,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Args)]
pub(crate) struct RuntimeArgs {
    #[command(subcommand)]
    pub(crate) command: RuntimeCommand,
}

#[derive(Subcommand)]
pub(crate) enum RuntimeCommand {
    /// Fetch a native library as its pinned wheel.
    Install {
        /// Which library.
        #[arg(value_enum, default_value_t = LibraryChoice::Cpu)]
        library: LibraryChoice,
    },
    /// Show which native libraries are found, and where.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// ONNX Runtime, fetched if need be, else the built-in backend.
    Auto,
    /// ONNX Runtime or nothing.
    Onnxruntime,
    /// The built-in backend.
    Rten,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlavorChoice {
    /// Operators of ai.onnx alone.
    Standard,
    /// Contrib operators of ONNX Runtime where they are faster.
    Onnxruntime,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum PredictionChoice {
    /// The noise.
    Epsilon,
    /// Velocity, as Stable Diffusion 2.x for 768 pixels.
    VPrediction,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchitectureChoice {
    /// Stable Diffusion 1.5 in full size: 4.3 GB in f32.
    Sd15,
    /// The same structure, 32 and 64 channels wide.
    Tiny,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LibraryChoice {
    /// ONNX Runtime for the CPU.
    Cpu,
}

fn attention(text: &str) -> Result<AttentionPolicy, String> {
    match text.split_once(':') {
        None if text == "fused" => Ok(AttentionPolicy::Fused),
        None if text == "plain" => Ok(AttentionPolicy::Plain),
        Some(("sliced", n)) => match n.parse() {
            Ok(n) if n > 0 => Ok(AttentionPolicy::Sliced(n)),
            _ => Err(format!("'{n}' is not a positive number of heads")),
        },
        _ => Err("expected fused, plain or sliced:N".into()),
    }
}
