//! Values that arguments choose among.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// Where engines run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    Auto,
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The number of the GPU, where it is one.
    pub(crate) fn ordinal(self) -> usize {
        match self {
            DeviceChoice::Cuda(ordinal) => ordinal,
            DeviceChoice::Auto | DeviceChoice::Cpu => 0,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let ordinal = |text: &str| text.parse().ok().filter(|n: &usize| *n < 1 << 10);
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            text => text
                .strip_prefix("cuda:")
                .and_then(ordinal)
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// ONNX Runtime, fetched if need be, else the built-in backend; on a GPU, what the engines are for, or TensorRT-RTX.
    Auto,
    /// ONNX Runtime or nothing; on a GPU, its CUDA provider.
    Onnxruntime,
    /// The built-in backend.
    Rten,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GeneratorChoice {
    /// That of the CPU, the same on every machine.
    Cpu,
    /// That of NVIDIA GPUs.
    Cuda,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SyntaxChoice {
    /// Brackets weigh words, and long prompts take several blocks.
    Weighted,
    /// As diffusers: brackets are text, and what does not fit into 75 tokens is cut off.
    Plain,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UpscalerChoice {
    /// The latents, bilinearly.
    Latents,
    /// The decoded picture, by Lanczos' filter.
    Pixels,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlavorChoice {
    /// Operators of ai.onnx alone.
    Standard,
    /// Contrib operators of ONNX Runtime where they are faster.
    Onnxruntime,
    /// Those of ONNX Runtime's CUDA provider.
    OnnxruntimeCuda,
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
