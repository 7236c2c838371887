//! Values that arguments choose among.

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use kiln_bundle::{ElementType, Precision};
use kiln_runtime::Runner;

/// What runs engines.
pub(super) fn runner() -> impl TypedValueParser<Value = Runner> {
    let help = |runner| match runner {
        Runner::OnnxRuntime => "ONNX Runtime or nothing; on a GPU, its CUDA provider",
        Runner::Rten => "The built-in backend",
        _ => {
            "ONNX Runtime, fetched if need be, else the built-in backend; on a GPU, what the engines are for, or \
             TensorRT-RTX"
        }
    };
    let values = Runner::ALL.map(|runner| PossibleValue::new(runner.name()).help(help(runner)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Runner>())
}

/// Types that networks compute in and weights are stored in.
pub(super) fn float() -> impl TypedValueParser<Value = ElementType> {
    of_types([(ElementType::F32, "32-bit floats"), (ElementType::F16, "16-bit floats")])
}

/// What networks of a bundle compute in.
pub(super) fn precision() -> impl TypedValueParser<Value = PrecisionChoice> {
    let help = |precision| match precision {
        Precision::F32 => "32-bit floats",
        Precision::F16 => "16-bit floats",
        Precision::Bf16 => "floats of 8 bits of precision; on a processor, of products' factors alone",
        Precision::Int8 => {
            "an approximation, on a processor alone: whole numbers of 8 bits in the denoiser's linear layers, bf16 elsewhere"
        }
    };
    let known = Precision::ALL.map(|precision| PossibleValue::new(precision.name()).help(help(precision)));
    let auto = PossibleValue::new(AUTO).help("On a processor, bf16 where this one multiplies it, else f32");
    PossibleValuesParser::new(known.into_iter().chain([auto])).try_map(|name| match name.as_str() {
        AUTO => Ok(PrecisionChoice::Auto),
        name => name.parse().map(PrecisionChoice::Of),
    })
}

const AUTO: &str = "auto";

/// What networks compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrecisionChoice {
    /// This.
    Of(Precision),
    /// What this processor is fast at.
    Auto,
}

fn of_types<const N: usize>(
    types: [(ElementType, &'static str); N],
) -> impl TypedValueParser<Value = ElementType> {
    PossibleValuesParser::new(values(types)).try_map(|name| name.parse::<ElementType>())
}

fn values<const N: usize>(types: [(ElementType, &'static str); N]) -> [PossibleValue; N] {
    types.map(|(element, help)| PossibleValue::new(element.name()).help(help))
}

/// Opsets that models are written in.
pub(super) fn opset() -> impl TypedValueParser<Value = i64> {
    PossibleValuesParser::new(["17", "18", "23", "24"]).try_map(|opset| opset.parse::<i64>())
}

/// A tool that reads ONNX.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsumerChoice {
    /// OpenVINO.
    Openvino,
    /// tract, whose sizes are fixed.
    Tract,
    /// IREE, whose sizes are fixed.
    Iree,
    /// MNN.
    Mnn,
    /// pnnx and ncnn, which are told the sizes themselves.
    Pnnx,
    /// ONNX Runtime in browsers, which opens one file.
    OrtWeb,
    /// ONNX Runtime's quantizers.
    Quantization,
}

/// Work that another process does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Build an engine.
    BuildEngine,
    /// Measure a bundle's engines.
    Measure,
    /// Draw a picture and watch the memory.
    Draw,
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
pub(crate) enum MaskFillChoice {
    /// The picture's latents.
    Picture,
    /// The noise of the seed.
    Noise,
    /// Latents of zeros.
    Zeros,
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
pub(crate) enum WeightsChoice {
    /// In a safetensors file beside the models.
    Beside,
    /// In the models.
    Inside,
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
