//! The command line.

mod choices;
mod compile;
mod file;
mod fleet;
mod group;
mod help;
mod memory;
mod numbers;
mod serve;
mod text;
mod upkeep;
mod variables;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use kiln_bundle::{ElementType, Size};
use kiln_runtime::scheduler::SchedulerClass;
use kiln_runtime::{Device, Runner};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

pub(crate) use choices::{
    ArchitectureChoice, ConsumerChoice, FlavorChoice, GeneratorChoice, MaskFillChoice, PrecisionChoice,
    PredictionChoice, SyntaxChoice, UpscalerChoice, WeightsChoice, Work,
};
pub(crate) use compile::{
    CheckpointArgs, CompileArgs, ComponentArgs, EngineArgs, NetworkArgs, SizeArgs, TracedArgs,
};
pub(crate) use file::{is_models_file, models};
pub(crate) use fleet::{AskArgs, FLEET, FleetArgs, FleetCommand, InitArgs, NatsArgs, WORKER, WorkerArgs};
pub(crate) use memory::{
    BenchArgs, BenchCommand, BenchLadderArgs, BenchMemoryArgs, BenchOperatorsArgs, Budget, MeasureArgs,
    MemoryArgs, OffloadChoice, PixelArgs, PlanArgs,
};
use numbers::{number, point, share};
pub(crate) use serve::{ACTIONS, DrawingArgs, LogFormat, SERVE, ServeArgs, is_plain};
pub(crate) use upkeep::{
    BundleArgs, BundleCommand, CacheCommand, CacheCommandArgs, ExportArgs, ExportCommand, LibraryChoice,
    RuntimeArgs, RuntimeCommand, TritonArgs,
};
pub(crate) use variables::{command, matches, unknown};

/// Turns Stable Diffusion checkpoints into engines and runs them.
#[derive(Parser)]
#[command(name = "kiln", version, after_long_help = help::after(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Draw pictures for a prompt.
    Generate(Box<GenerateArgs>),
    /// Write a checkpoint's networks as ONNX files.
    Trace(TraceArgs),
    /// Make a checkpoint's bundle in the engine cache.
    Compile(Box<CompileArgs>),
    /// Do one piece of work, as another process of kiln asks for on standard input.
    #[command(hide = true)]
    Work {
        /// What to do.
        #[arg(value_enum)]
        work: Work,
    },
    /// Show what is in a checkpoint, a bundle or an ONNX file.
    Inspect(InspectArgs),
    /// Write a single-file checkpoint as a diffusers folder.
    Convert(ConvertArgs),
    /// Run a bundle's reference again and tell how far the result has drifted.
    Verify(VerifyArgs),
    /// Predict what a request takes under each way to spend memory.
    Plan(PlanArgs),
    /// Measure what a bundle's engines take on this machine, for `kiln plan` and --memory-budget.
    Measure(MeasureArgs),
    /// Measure what each step to faster pictures brings, and what every way to spend memory takes.
    Bench(BenchArgs),
    /// Serve models over HTTP.
    Serve(Box<ServeArgs>),
    /// Draw what servers queue that were started with --nats, on as many machines as you like.
    Worker(Box<WorkerArgs>),
    /// See and steer servers and workers that share a queue.
    Fleet(FleetArgs),
    /// Tell how close two pictures are.
    Compare(CompareArgs),
    /// Write a checkpoint with random weights.
    Synth(SynthArgs),
    /// See and clean the engine cache.
    Cache(CacheCommandArgs),
    /// Pack bundles into single files and unpack them.
    Bundle(BundleArgs),
    /// Write a bundle as the model of another server.
    Export(ExportArgs),
    /// Show what the machine has to run engines on, and what runs where.
    Devices(DevicesArgs),
    /// Fetch native libraries, or show which ones are found.
    Runtime(RuntimeArgs),
    /// Write what completes kiln's commands in a shell to standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the pages of the manual, one per command.
    Man {
        /// Folder for the pages.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Show a guide, or the help of a command.
    Help {
        /// A topic or a command; without it, all of them are listed.
        #[arg(value_name = "TOPIC")]
        words: Vec<String>,
    },
}

/// A seed, or none where a new one is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(pub(crate) Option<u64>);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Seed, String> {
        match text {
            "-1" => Ok(Seed(None)),
            text => text
                .parse()
                .map(|seed| Seed(Some(seed)))
                .map_err(|_| format!("is not a number from 0 to {}, nor -1 for a new seed", u64::MAX)),
        }
    }
}

#[derive(Args)]
#[command(after_help = help::schedulers())]
pub(crate) struct GenerateArgs {
    /// What to draw; (word:1.2) and [word] weigh words, BREAK starts a new block of 75 tokens.
    pub(crate) prompt: String,
    /// Checkpoint folder, single-file checkpoint or bundle [default: the small model, models/shapes of a checkout or package].
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// What to steer away from.
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative_prompt: Option<String>,
    /// How prompts are read.
    #[arg(long, value_enum, default_value_t = SyntaxChoice::Weighted)]
    pub(crate) prompt_syntax: SyntaxChoice,
    /// Layers of the text encoder to skip, from the last.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) clip_skip: usize,
    /// Seed of the random numbers, or one for each picture, as in 1,2,3; -1 is a new one each time, as by default.
    #[arg(long, value_name = "N", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) seed: Vec<Seed>,
    /// Which of torch's random number generators to follow.
    #[arg(long, value_enum, default_value_t = GeneratorChoice::Cpu)]
    pub(crate) generator: GeneratorChoice,
    /// Seed of another noise that is mixed into the first.
    #[arg(long, value_name = "N", requires = "variation_strength")]
    pub(crate) variation_seed: Option<u64>,
    /// Share of that noise, from 0 to 1.
    #[arg(long, value_name = "X", requires = "variation_seed", allow_negative_numbers = true)]
    pub(crate) variation_strength: Option<f32>,
    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    /// Denoising steps [default: 50; 4 for latent consistency models].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) steps: Option<usize>,
    /// Weight of the prompt; guidance is off up to 1 [default: 7.5; 5 for SDXL; 8.5 for latent consistency models].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) guidance_scale: Option<f32>,
    /// How far to rescale the guided prediction to the spread of the prompt's, from 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) guidance_rescale: f32,
    /// Share of the evaluations after which guidance starts; an approximation, which saves half of each before.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) guidance_start: f64,
    /// Share of the evaluations after which guidance ends, likewise.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) guidance_end: f64,
    /// Run the denoiser's deep layers in every Nth evaluation alone; an approximation (DeepCache).
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) deep_every: usize,
    /// Noise that DDIM and TCD add at each step: 0 for none, 1 for as much as DDPM.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) eta: f32,
    /// Width in pixels [default: that of the initial or control picture, else the model's].
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub(crate) width: Option<u32>,
    /// Height in pixels, like the width.
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub(crate) height: Option<u32>,
    /// Pictures at once.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) batch_size: Option<usize>,
    /// Draw this many steps first and discard them, so that times are those of a warm process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) warm_up: Option<u32>,
    #[command(flatten)]
    pub(crate) tasks: TaskArgs,
    /// PNG file to write; with several pictures, a number is put before the extension [default: kiln-SEED.png].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Print one JSON object instead of the path.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What takes latents from step to step.
#[derive(Args, Clone)]
pub(crate) struct SchedulerArgs {
    /// Scheduler, by a name of those below, such as dpm++2m:karras [default: the model's].
    #[arg(long = "scheduler", value_name = "NAME")]
    name: Option<String>,
}

impl SchedulerArgs {
    /// The name that was given, if there is such a scheduler.
    pub(crate) fn name(&self) -> Result<Option<&str>, Failure> {
        let name = self.name.as_deref();
        name.map(SchedulerClass::named).transpose().map_err(kiln_runtime::Error::from)?;
        Ok(name)
    }
}

/// What runs the engines.
#[derive(Args, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ExecutionArgs {
    /// What runs the engines.
    #[arg(long, default_value_t = Runner::Auto, value_parser = choices::runner())]
    #[serde(with = "text")]
    pub(crate) backend: Runner,
    /// Threads per operator [default: all cores].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,
    /// Device to run on: cpu, cuda, cuda:N or auto. auto is what a bundle was built for; for a checkpoint, a usable GPU, else cpu.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    #[serde(with = "text")]
    pub(crate) device: Device,
}

#[derive(Args)]
pub(crate) struct DevicesArgs {
    /// Copy and compute on each GPU, and compare with the processor; exit code 1 where one computes wrong.
    #[arg(long)]
    pub(crate) check: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What pictures are made from besides prompts.
#[derive(Args)]
#[command(next_help_heading = "Tasks")]
pub(crate) struct TaskArgs {
    /// Picture to start from.
    #[arg(long, value_name = "FILE")]
    pub(crate) init_image: Option<PathBuf>,
    /// How much to change the picture, from 0 (not at all) to 1 (completely) [default: 0.8; 0.3 for SDXL; with a mask 1].
    #[arg(long, value_name = "X", requires = "init_image", allow_negative_numbers = true)]
    pub(crate) strength: Option<f64>,
    /// Mask picture: light areas are repainted, dark areas are kept.
    #[arg(long, value_name = "FILE", requires = "init_image")]
    pub(crate) mask: Option<PathBuf>,
    /// What lies in light areas before noise is added; with a strength of 1 it is all the same.
    #[arg(long, value_enum, default_value_t = MaskFillChoice::Picture, requires = "mask")]
    pub(crate) mask_fill: MaskFillChoice,
    /// ControlNet's folder, single file or bundle, besides those of the model; may be given several times.
    #[arg(long, value_name = "PATH", requires = "control_image")]
    pub(crate) controlnet: Vec<PathBuf>,
    /// Picture that a ControlNet reads; one for each, in order.
    #[arg(long, value_name = "FILE")]
    pub(crate) control_image: Vec<PathBuf>,
    /// Weight of a ControlNet; one for all or one for each [default: 1; with --init-image 0.8; with --mask 0.5, SDXL 1].
    #[arg(long, value_name = "X", requires = "control_image", allow_negative_numbers = true)]
    pub(crate) control_scale: Vec<f32>,
    /// Fraction of the steps after which a ControlNet starts; one for all, or one each [default: 0].
    #[arg(long, value_name = "X", requires = "control_image", allow_negative_numbers = true)]
    pub(crate) control_start: Vec<f64>,
    /// Fraction of the steps after which a ControlNet ends; one for all, or one each [default: 1].
    #[arg(long, value_name = "X", requires = "control_image", allow_negative_numbers = true)]
    pub(crate) control_end: Vec<f64>,
    /// Textual inversion file, as FILE or FILE:WORD; repeatable.
    #[arg(long, value_name = "FILE[:WORD]")]
    pub(crate) embedding: Vec<String>,
    /// LoRA that changes the model's weights, as FILE or FILE:WEIGHT; may be given several times [default weight: 1].
    #[arg(long, value_name = "FILE[:WEIGHT]", allow_hyphen_values = true)]
    pub(crate) lora: Vec<String>,
    /// Enlarge the picture by this factor and refine it in a second pass.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub(crate) hires: Option<f32>,
    /// How much the second pass changes the picture, from 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.7, requires = "hires", allow_negative_numbers = true)]
    pub(crate) hires_strength: f64,
    /// Denoising steps of the second pass [default: those of the first].
    #[arg(long, value_name = "N", requires = "hires")]
    pub(crate) hires_steps: Option<usize>,
    /// What is enlarged.
    #[arg(long, value_enum, default_value_t = UpscalerChoice::Latents, requires = "hires")]
    pub(crate) hires_upscaler: UpscalerChoice,
    /// SDXL: size before cropping to condition on, as WIDTHxHEIGHT.
    #[arg(long, value_name = "WxH")]
    pub(crate) original_size: Option<Size>,
    /// SDXL: where the crop began, as LEFT,TOP.
    #[arg(long, value_name = "X,Y", value_parser = point)]
    pub(crate) crop: Option<[u32; 2]>,
    /// SDXL: size after cropping to condition on, as WIDTHxHEIGHT.
    #[arg(long, value_name = "WxH")]
    pub(crate) target_size: Option<Size>,
    /// SDXL refiner: aesthetic score.
    #[arg(long, value_name = "X", default_value_t = 6.0)]
    pub(crate) aesthetic_score: f32,
    /// SDXL refiner: aesthetic score beside the negative prompt.
    #[arg(long, value_name = "X", default_value_t = 2.5)]
    pub(crate) negative_aesthetic_score: f32,
}

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// Checkpoint folder or single-file checkpoint.
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint_path: PathBuf,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write what a tool takes: attention, opset, sizes and place of the weights; what contradicts it is refused.
    #[arg(long = "for", value_enum, value_name = "TOOL")]
    pub(crate) consumer: Option<ConsumerChoice>,
    /// Dialect of ONNX.
    #[arg(long, value_enum, default_value_t = FlavorChoice::Standard)]
    pub(crate) flavor: FlavorChoice,
    /// Opset of ai.onnx: 17, 18, 23 or 24; fused attention of the standard dialect is in 23 and 24 [default: 23 for it, else 18].
    #[arg(long, value_name = "N", value_parser = choices::opset())]
    pub(crate) opset: Option<i64>,
    /// Where weights lie: beside the models, or inside, which makes one file of each up to 2 GB [default: beside].
    #[arg(long, value_enum, value_name = "PLACE")]
    pub(crate) weights: Option<WeightsChoice>,
    /// Type to compute in; norms and softmax stay in f32.
    #[arg(long, default_value_t = ElementType::F32, value_parser = choices::float())]
    pub(crate) precision: ElementType,
    /// Type to store weights in [default: the type they are used in].
    #[arg(long, value_parser = choices::float())]
    pub(crate) storage: Option<ElementType>,
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
pub(crate) struct ConvertArgs {
    /// Checkpoint in one .safetensors file, in the layout of LDM and SGM.
    pub(crate) file: PathBuf,
    /// Folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What the UNet predicts [default: what the file or its family says].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) prediction_type: Option<PredictionChoice>,
    #[command(flatten)]
    pub(crate) components: ComponentArgs,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Checkpoints")]
pub(crate) struct CacheArgs {
    /// Folder for engines.
    #[arg(long, value_name = "DIR", env = "KILN_ENGINE_CACHE", hide_env = true)]
    pub(crate) engine_cache: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// Checkpoint folder, single-file checkpoint, bundle folder, LoRA or ONNX file.
    pub(crate) path: PathBuf,
    /// Check the digest of every file of a bundle.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Bundle folder.
    pub(crate) bundle: PathBuf,
    /// Make the reference anew instead, on this machine and backend.
    #[arg(long)]
    pub(crate) record: bool,
    /// Compare each component with that of another bundle of the same model instead, which may be for another device.
    #[arg(long, value_name = "BUNDLE", conflicts_with = "record")]
    pub(crate) against: Option<PathBuf>,
    /// Drift that is still allowed: root mean square of the difference over that of the reference [default: 1e-3, for bf16 0.02, for int8 0.1].
    #[arg(long, value_name = "X", value_parser = number)]
    pub(crate) max_drift: Option<f64>,
    /// Least peak signal to noise ratio that a decoded picture must have, in decibels.
    #[arg(long, value_name = "DB", default_value_t = 40.0, value_parser = number)]
    pub(crate) min_psnr: f64,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CompareArgs {
    /// PNG, JPEG or WebP file.
    pub(crate) a: PathBuf,
    /// Another one of the same size.
    pub(crate) b: PathBuf,
    /// Write the differences as a picture, amplified to be seen.
    #[arg(long, value_name = "FILE")]
    pub(crate) diff: Option<PathBuf>,
    /// Fail where a channel of a pixel differs by more, from 0 to 255.
    #[arg(long, value_name = "N")]
    pub(crate) max_difference: Option<u8>,
    /// Fail where the peak signal to noise ratio is lower, in decibels.
    #[arg(long, value_name = "DB", value_parser = number)]
    pub(crate) min_psnr: Option<f64>,
    /// Fail where the structural similarity is lower, up to 1.
    #[arg(long, value_name = "X", value_parser = share)]
    pub(crate) min_ssim: Option<f64>,
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
    #[arg(long, default_value_t = ElementType::F32, value_parser = choices::float())]
    pub(crate) dtype: ElementType,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}
