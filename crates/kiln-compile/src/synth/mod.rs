//! Checkpoints with random weights, for benchmarks and tests.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use kiln_bundle::OutputFolder;
use kiln_bundle::fs::create_folder;
use kiln_graph::{ElementType, StoredWeight, TraceError, WeightCatalog, Weights};
use kiln_nets::{
    AutoencoderKl, AutoencoderKlConfig, ClipTextConfig, ClipTextModel, UNet2DConditionConfig,
    UNet2DConditionModel,
};
use serde_json::{Value, json};

use crate::CompileError;
use crate::weights::{encode, header_and_layout};

/// Values made at a time.
const CHUNK: u64 = 1 << 18;

/// The shape of a synthetic checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Stable Diffusion 1.5: 1.07 billion parameters.
    Sd15,
    /// The same structure with two levels of 32 and 64 channels.
    Tiny,
}

struct Configs {
    text_encoder: &'static str,
    unet: &'static str,
    vae: &'static str,
}

impl Architecture {
    fn configs(self) -> Configs {
        match self {
            Architecture::Sd15 => Configs {
                text_encoder: include_str!("sd15/text_encoder.json"),
                unet: include_str!("sd15/unet.json"),
                vae: include_str!("sd15/vae.json"),
            },
            Architecture::Tiny => Configs {
                text_encoder: include_str!("tiny/text_encoder.json"),
                unet: include_str!("tiny/unet.json"),
                vae: include_str!("tiny/vae.json"),
            },
        }
    }
}

/// Writes a checkpoint with random weights in the diffusers folder layout; equal seeds give equal files.
///
/// Weights are scaled by their fan-in, norms are the identity and biases zero, so that activations stay in range.
/// `progress` is told the bytes written and the bytes in all. An existing folder is refused unless it is empty.
pub fn synthesize(
    architecture: Architecture,
    dtype: ElementType,
    seed: u64,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, CompileError> {
    let output = OutputFolder::open(folder)?;
    let configs = architecture.configs();
    let components = [
        ("text_encoder", "model", configs.text_encoder, invent(configs.text_encoder, clip, dtype)?),
        ("unet", "diffusion_pytorch_model", configs.unet, invent(configs.unet, unet, dtype)?),
        ("vae", "diffusion_pytorch_model", configs.vae, invent(configs.vae, vae, dtype)?),
    ];
    let total = components.iter().flat_map(|(.., weights)| weights).map(StoredWeight::n_bytes).sum();
    let mut done = 0;

    let root = output.path();
    for (name, base, config, weights) in &components {
        create_folder(&root.join(name))?;
        write(&root.join(name).join("config.json"), config.as_bytes())?;
        let path = root.join(name).join(format!("{base}.safetensors"));
        write_weights(&path, weights, seed, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    for (name, text) in [
        ("model_index.json", model_index()),
        ("scheduler/scheduler_config.json", scheduler()),
        ("tokenizer/vocab.json", vocabulary()),
        ("tokenizer/merges.txt", "#version: 0.2\n".into()),
        ("tokenizer/tokenizer_config.json", tokenizer()),
    ] {
        let path = root.join(name);
        create_folder(path.parent().unwrap_or(root))?;
        write(&path, text.as_bytes())?;
    }
    Ok(output.publish()?)
}

type Constructor = fn(&Value, Weights<'_>) -> Result<(), TraceError>;

fn clip(config: &Value, w: Weights<'_>) -> Result<(), TraceError> {
    ClipTextModel::new(w, &ClipTextConfig::from_json("config.json", config)?).map(drop)
}

fn unet(config: &Value, w: Weights<'_>) -> Result<(), TraceError> {
    UNet2DConditionModel::new(w, &UNet2DConditionConfig::from_json("config.json", config)?).map(drop)
}

fn vae(config: &Value, w: Weights<'_>) -> Result<(), TraceError> {
    AutoencoderKl::new(w, &AutoencoderKlConfig::from_json("config.json", config)?).map(drop)
}

fn invent(config: &str, construct: Constructor, dtype: ElementType) -> Result<Vec<StoredWeight>, CompileError> {
    let config: Value = serde_json::from_str(config)
        .map_err(|e| CompileError::checkpoint(Path::new("config.json"), e.to_string()))?;
    let catalog = WeightCatalog::inventing(dtype);
    construct(&config, catalog.root())?;
    let stored =
        |(name, info): (String, kiln_graph::WeightInfo)| StoredWeight { name, dtype, dims: info.shape };
    Ok(catalog.into_entries().into_iter().map(stored).collect())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    std::fs::write(path, bytes).map_err(|e| CompileError::io(path, &e))
}

fn write_weights(
    path: &Path,
    weights: &[StoredWeight],
    seed: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CompileError> {
    let weights: Vec<&StoredWeight> = weights.iter().collect();
    let (header, _) = header_and_layout(path, &weights);
    let write = || -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        out.write_all(&header)?;
        for weight in weights {
            write_weight(&mut out, weight, seed)?;
            progress(weight.n_bytes());
        }
        out.flush()
    };
    write().map_err(|e| CompileError::io(path, &e))
}

fn write_weight(out: &mut impl Write, weight: &StoredWeight, seed: u64) -> io::Result<()> {
    let is_embedding = weight.name.contains("embedding.weight");
    let (mean, spread) = match (weight.dims.as_slice(), weight.name.ends_with(".bias")) {
        ([_], true) => (0.0, 0.0),
        ([_], false) => (1.0, 0.0),
        _ if is_embedding => (0.0, 0.02),
        ([_, fan_in @ ..], _) => (0.0, (fan_in.iter().product::<u64>() as f32).powf(-0.5)),
        ([], _) => (0.0, 1.0),
    };
    let mut random = SplitMix(seed ^ hash(&weight.name));
    let mut remaining: u64 = weight.dims.iter().product();
    let mut floats = Vec::new();
    while remaining > 0 {
        let n = remaining.min(CHUNK);
        floats.clear();
        floats.extend((0..n).map(|_| mean + spread * 3f32.sqrt() * random.symmetric()));
        let bytes = encode(&floats, weight.dtype).map_err(|_| io::ErrorKind::InvalidData)?;
        out.write_all(&bytes)?;
        remaining -= n;
    }
    Ok(())
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    /// Uniform in `[-1, 1)`.
    fn symmetric(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn model_index() -> String {
    pretty(&json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }))
}

fn scheduler() -> String {
    pretty(&json!({
        "_class_name": "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": false,
        "steps_offset": 1,
    }))
}

fn tokenizer() -> String {
    pretty(&json!({
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }))
}

/// CLIP's byte symbols without any merges; its special tokens keep their ids.
fn vocabulary() -> String {
    let printable: Vec<u32> = (33..127).chain(161..173).chain(174..256).collect();
    let n_hidden = 256 - printable.len() as u32;
    let symbols = printable.into_iter().chain((0..n_hidden).map(|i| 256 + i)).filter_map(char::from_u32);
    let mut map = serde_json::Map::new();
    for symbol in symbols.clone().map(String::from).chain(symbols.map(|c| format!("{c}</w>"))) {
        map.insert(symbol, map.len().into());
    }
    map.insert("<|startoftext|>".into(), 49406.into());
    map.insert("<|endoftext|>".into(), 49407.into());
    Value::Object(map).to_string()
}
