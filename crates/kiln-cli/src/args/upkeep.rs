use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_compile::Bytes;

use super::CacheArgs;

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
pub(crate) enum LibraryChoice {
    /// ONNX Runtime for the CPU.
    Cpu,
    /// ONNX Runtime for NVIDIA GPUs, with the libraries of CUDA and cuDNN that it needs: 1.2 GB.
    Cuda,
    /// TensorRT-RTX and its ONNX parser, which build engines for NVIDIA GPUs.
    TensorrtRtx,
}

#[derive(Args)]
pub(crate) struct CacheCommandArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Print one JSON object.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
pub(crate) enum CacheCommand {
    /// Show what is in the engine cache, what was used last first.
    List,
    /// Show what an item was built from.
    Show {
        /// Its name, or the beginning of it.
        name: String,
    },
    /// Remove what was damaged, what was not used for long, and what is too much.
    Prune {
        /// Keep at most this much, removing what was used longest ago first, as in 20GiB.
        #[arg(long, value_name = "SIZE")]
        max_size: Option<Bytes>,
        /// Remove what was not used for so many days.
        #[arg(long, value_name = "DAYS")]
        older_than: Option<u32>,
        /// Show what would be removed, and remove nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Check every digest and seal; what is damaged is set aside.
    Verify,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    pub(crate) command: ExportCommand,
}

#[derive(Subcommand)]
pub(crate) enum ExportCommand {
    /// Add a bundle to a model repository of Triton Inference Server, which draws with kiln's backend.
    Triton(TritonArgs),
}

#[derive(Args)]
pub(crate) struct TritonArgs {
    /// The bundle.
    pub(crate) bundle: PathBuf,
    /// The repository, a folder of models; the model's own folder in it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What clients call the model: letters, digits, -, _ and . [default: the bundle's folder].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Threads per operator [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Most pictures that are drawn at once [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
    /// Bytes of weights that may be loaded, as 4GiB; what engines compute with comes on top [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<Bytes>,
}

#[derive(Args)]
pub(crate) struct BundleArgs {
    #[command(subcommand)]
    pub(crate) command: BundleCommand,
}

#[derive(Subcommand)]
pub(crate) enum BundleCommand {
    /// Write a bundle as one file, to take it to another machine.
    Pack {
        /// The bundle.
        bundle: PathBuf,
        /// File to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How hard to compress, from 1 to 19; engines and weights hardly shrink.
        #[arg(long, value_name = "LEVEL", default_value_t = 1)]
        level: i32,
    },
    /// Make a bundle from such a file, checking every digest.
    Unpack {
        /// The file.
        file: PathBuf,
        /// Folder to write; it must not exist or be empty.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}
