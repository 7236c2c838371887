use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use kiln_types::{ComponentName, Size};

use crate::{Accuracy, BundleError, Component, read, unique};

/// The layout of bundles that this version reads and writes.
const FORMAT: u32 = 5;

/// What stands before the digest of all that comes before it.
const DIGEST: &str = "# blake3 ";

/// Largest manifest that is read.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// `bundle.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// What the checkpoint is called.
    pub name: String,
    /// What its engines were built for.
    pub target: Target,
    /// What it is, and what has to be known besides its engines.
    pub content: Content,
    /// The engines.
    #[serde(deserialize_with = "unique::map")]
    pub components: BTreeMap<ComponentName, Component>,
    /// How its models run, where that is not in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
    /// What it made where it was compiled, to compare with elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What its engines take, as it was measured where it was compiled or runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<String>,
    /// How far it is from the same networks in f32, where it computes otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Every file of the bundle but the manifest, relative to it.
    #[serde(deserialize_with = "unique::map")]
    pub files: BTreeMap<String, FileEntry>,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// How ONNX Runtime's CUDA provider runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: bool,
    /// Whether all of cuDNN's algorithms are tried for each convolution when it first runs.
    pub search: bool,
}

/// What engines are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// ONNX for a CPU.
    Cpu,
    /// ONNX for NVIDIA GPUs, run by ONNX Runtime.
    Cuda,
    /// TensorRT-RTX engines for NVIDIA GPUs.
    TensorrtRtx,
    /// TensorRT engines for the NVIDIA GPU that they were built on.
    Tensorrt,
    /// ONNX of the `ai.onnx` domain, to build engines from on another machine.
    Onnx,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 5] =
        [Target::Cpu, Target::Cuda, Target::TensorrtRtx, Target::Tensorrt, Target::Onnx];

    /// Whether it is made of engines of TensorRT or TensorRT-RTX, which are code.
    pub fn has_engines(self) -> bool {
        matches!(self, Target::TensorrtRtx | Target::Tensorrt)
    }

    /// Whether it runs on GPUs.
    pub fn is_for_gpus(self) -> bool {
        self == Target::Cuda || self.has_engines()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        Target::ALL.into_iter().find(|target| target.to_string() == name).ok_or_else(|| {
            let known = Target::ALL.map(|target| target.to_string()).join(", ");
            format!("'{name}' is not a target; targets: {known}")
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Cpu => "cpu",
            Target::Cuda => "cuda",
            Target::TensorrtRtx => "tensorrt-rtx",
            Target::Tensorrt => "tensorrt",
            Target::Onnx => "onnx",
        })
    }
}

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// All that makes pictures.
    Pipeline(PipelineInfo),
    /// A network that steers the UNet of a pipeline.
    Controlnet(ControlNetInfo),
}

/// The pipeline's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineInfo {
    /// The architecture, which says how the components work together, such as `stable-diffusion`.
    pub architecture: String,
    /// diffusers' class.
    pub class: String,
    /// Default size of its pictures.
    pub size: Size,
    /// What its latents are.
    pub latents: LatentsInfo,
    /// The text encoders, in the order in which the architecture counts them.
    pub text_encoders: Vec<TextEncoderInfo>,
    /// The scheduler's configuration.
    pub scheduler: String,
    /// diffusers' class of the scheduler, where something else than its configuration decides (`model_index.json`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_class: Option<String>,
    /// Folders of the ControlNets that came with the checkpoint, each a bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controlnets: Vec<String>,
    /// What only the architecture knows the meaning of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// What latents are: `[B, channels, height / scale_factor, width / scale_factor]`, and `scaling * (z - shift)` of the
/// autoencoder's `z` (diffusers `AutoencoderKL.config`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentsInfo {
    /// Channels.
    pub channels: u32,
    /// Pixels per latent along each axis.
    pub scale_factor: u32,
    /// Factor from the autoencoder's latents to the denoiser's.
    pub scaling: f64,
    /// What is taken from the autoencoder's latents before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shift: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// A text encoder and its tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderInfo {
    /// The component.
    pub component: ComponentName,
    /// Its tokenizer.
    pub tokenizer: TokenizerInfo,
    /// Number of token positions.
    pub positions: u32,
    /// Width of its hidden states.
    pub width: u32,
    /// Number of tokens that it knows.
    pub vocabulary: u32,
    /// The outputs with hidden states, by the number of layers that are skipped.
    pub states: Vec<String>,
    /// The output with pooled text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled: Option<String>,
}

/// A tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerInfo {
    /// Which one it is, such as `clip`.
    pub kind: String,
    /// Folder of its files, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// A ControlNet's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNetInfo {
    /// Pixels of the control picture per latent along each axis.
    pub scale_factor: u32,
    /// Channels of the latents that it reads.
    pub latent_channels: u32,
    /// Width of the text states that it attends to.
    pub cross_attention_dim: u32,
}

/// Size and content of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// BLAKE3 digest in hexadecimal.
    pub blake3: String,
}

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of kiln that made it.
    pub kiln: String,
    /// Key of the bundle in the engine cache.
    pub key: String,
    /// What built the engines, as in `TensorRT-RTX 1.7.1`; nothing where they are ONNX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolkit: Option<String>,
    /// Options, by name.
    pub options: BTreeMap<String, String>,
    /// Digests of the checkpoint's files, by name.
    pub checkpoint: BTreeMap<String, String>,
    /// The LoRAs that were added to the checkpoint's weights, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<FusedLora>,
}

/// A LoRA that is part of a bundle's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusedLora {
    /// The file's name.
    pub name: String,
    /// BLAKE3 digest of the file, in hexadecimal.
    pub blake3: String,
    /// Factor of its changes.
    pub weight: f32,
}

impl Manifest {
    /// A manifest without files.
    pub fn new(name: String, target: Target, content: Content, provenance: Provenance) -> Manifest {
        Manifest {
            format: FORMAT,
            name,
            target,
            content,
            components: BTreeMap::new(),
            tuning: None,
            reference: None,
            figures: None,
            accuracy: None,
            files: BTreeMap::new(),
            provenance,
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Manifest, BundleError> {
        let refuse = |reason: String| BundleError::Manifest { path: path.into(), reason };
        let text = read::text(path, MAX_BYTES, "manifest");
        let text = text.map_err(|e| e.map(|e| BundleError::io(path, e), refuse))?;
        // The first line tells it, so that what else other versions have is not taken for a mistake.
        let format = text.lines().next().and_then(|line| line.strip_prefix("format: ")?.trim().parse().ok());
        if let Some(found) = format.filter(|format| *format != FORMAT) {
            return Err(BundleError::Format { path: path.into(), found, expected: FORMAT });
        }
        let manifest: Manifest = read::yaml(&text).map_err(refuse)?;
        manifest.check().map_err(refuse)?;
        let (yaml, digest) = text.trim_end_matches('\n').rsplit_once(DIGEST).unwrap_or((&text, ""));
        match digest == blake3::hash(yaml.as_bytes()).to_hex().as_str() {
            true => Ok(manifest),
            false => Err(refuse("does not match the digest in its last line".into())),
        }
    }

    /// The manifest as it lies in its file.
    pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, BundleError> {
        let refuse = |reason: String| BundleError::Manifest { path: path.into(), reason };
        read::bytes(path, MAX_BYTES, "manifest").map_err(|e| e.map(|e| BundleError::io(path, e), refuse))
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format: {} is not {FORMAT}, or not in the first line", self.format));
        }
        let mut names = self.files.keys();
        if let Some(name) = names.find(|name| !stays_inside(name)) {
            return Err(format!("file '{name}' lies outside the bundle"));
        }
        let scheduler = match &self.content {
            Content::Pipeline(info) => {
                info.check()?;
                Some(&info.scheduler)
            }
            Content::Controlnet(info) => {
                in_range("scale_factor", info.scale_factor, 1 << 8)?;
                in_range("latent_channels", info.latent_channels, 1 << 10)?;
                None
            }
        };
        let attached = self.reference.iter().chain(&self.figures);
        let named = self.components.values().flat_map(Component::files).chain(scheduler).chain(attached);
        if let Some(name) = named.into_iter().find(|name| !self.files.contains_key(*name)) {
            return Err(format!("file '{name}' is used but not listed"));
        }
        self.accuracy.as_ref().map_or(Ok(()), Accuracy::check)?;
        let measured = self.accuracy.iter().flat_map(|accuracy| accuracy.components.keys());
        if let Some(name) = measured.into_iter().find(|name| !self.components.contains_key(name)) {
            return Err(format!("accuracy: component '{name}' is missing"));
        }
        for (name, component) in &self.components {
            let refuse = |reason: String| format!("components: {name}: {reason}");
            component.check().map_err(refuse)?;
            if let Some(owner) =
                component.shares_weights_with.filter(|owner| !self.components.contains_key(owner))
            {
                return Err(refuse(format!("shares weights with '{owner}', which is missing")));
            }
        }
        Ok(())
    }

    /// The manifest as YAML, with its own digest in a comment at the end.
    pub fn to_yaml(&self) -> String {
        let yaml = serde_yaml::to_string(self).unwrap_or_default();
        let digest = blake3::hash(yaml.as_bytes()).to_hex();
        format!("{yaml}{DIGEST}{digest}\n")
    }
}

impl PipelineInfo {
    fn check(&self) -> Result<(), String> {
        let tokenizers = self.text_encoders.iter().filter_map(|encoder| encoder.tokenizer.folder.as_ref());
        if let Some(name) = tokenizers.chain(&self.controlnets).find(|name| !stays_inside(name)) {
            return Err(format!("folder '{name}' lies outside the bundle"));
        }
        for encoder in &self.text_encoders {
            in_range("positions", encoder.positions, 1 << 16)?;
            in_range("width", encoder.width, 1 << 20)?;
            in_range("vocabulary", encoder.vocabulary, 1 << 24)?;
            if encoder.states.is_empty() {
                return Err("states: has no entry".into());
            }
        }
        for (key, value, max) in [
            ("size.height", self.size.height, 1 << 16),
            ("size.width", self.size.width, 1 << 16),
            ("latents.scale_factor", self.latents.scale_factor, 1 << 8),
            ("latents.channels", self.latents.channels, 1 << 10),
        ] {
            in_range(key, value, max)?;
        }
        let LatentsInfo { scaling, shift, .. } = self.latents;
        match scaling.is_finite() && scaling != 0.0 && shift.is_finite() {
            true => Ok(()),
            false => Err(format!("latents: scaling {scaling} and shift {shift} are not usable")),
        }
    }
}

fn in_range(key: &str, value: u32, max: u32) -> Result<(), String> {
    match value {
        0 => Err(format!("{key}: 0 is not a number from 1 to {max}")),
        value if value > max => Err(format!("{key}: {value} is not a number from 1 to {max}")),
        _ => Ok(()),
    }
}

pub(crate) fn stays_inside(name: &str) -> bool {
    use std::path::Component as Part;
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Part::Normal(_)))
}
