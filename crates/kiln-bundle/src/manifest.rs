use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BundleError;

/// The layout of bundles that this version reads and writes.
const FORMAT: u32 = 1;

/// Largest manifest that is read.
const MAX_BYTES: u64 = 16 << 20;

/// `bundle.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// What the checkpoint is called.
    pub name: String,
    /// What its engines were built for.
    pub target: Target,
    /// What the pipeline needs to know besides its engines.
    pub pipeline: PipelineInfo,
    /// The engines.
    pub components: BTreeMap<Role, Component>,
    /// Every file of the bundle but the manifest, relative to it.
    pub files: BTreeMap<String, FileEntry>,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// What engines are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// ONNX for a CPU.
    Cpu,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Cpu => "cpu",
        })
    }
}

/// What a component does in the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Token ids to hidden states.
    TextEncoder,
    /// Noisy latents to predictions.
    Unet,
    /// Pictures to latents.
    VaeEncoder,
    /// Latents to pictures.
    VaeDecoder,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::TextEncoder => "text_encoder",
            Role::Unet => "unet",
            Role::VaeEncoder => "vae_encoder",
            Role::VaeDecoder => "vae_decoder",
        })
    }
}

/// The pipeline's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineInfo {
    /// diffusers' class.
    pub class: String,
    /// Default height in pixels.
    pub height: u32,
    /// Default width in pixels.
    pub width: u32,
    /// Pixels per latent along each axis.
    pub vae_scale_factor: u32,
    /// Channels of the latents.
    pub latent_channels: u32,
    /// Factor from the autoencoder's latents to the UNet's.
    pub scaling_factor: f64,
    /// Token positions of the text encoder.
    pub text_positions: u32,
    /// Folder of the tokenizer.
    pub tokenizer: String,
    /// The scheduler's configuration.
    pub scheduler: String,
}

/// One engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// The model file.
    pub engine: String,
    /// The file with its weights.
    pub weights: String,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Number of its operators.
    pub operators: u64,
    /// Type that it computes in.
    pub precision: String,
    /// What it reads.
    pub inputs: Vec<PortInfo>,
    /// What it makes.
    pub outputs: Vec<PortInfo>,
}

/// One input or output of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: ElementType,
    /// Shape.
    pub shape: Vec<Size>,
}

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit integer.
    I64,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElementType::F32 => "f32",
            ElementType::F16 => "f16",
            ElementType::Bf16 => "bf16",
            ElementType::I64 => "i64",
        })
    }
}

/// One axis of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Fixed when the engine was built.
    Fixed(u64),
    /// Decided at run time, in terms of `batch`, `height` and `width` (in latents).
    Dynamic(String),
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Fixed(n) => write!(f, "{n}"),
            Size::Dynamic(name) => f.write_str(name),
        }
    }
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of kiln that made it.
    pub kiln: String,
    /// Key of the bundle in the engine cache.
    pub key: String,
    /// Emission options, by name.
    pub options: BTreeMap<String, String>,
    /// Digests of the checkpoint's files, by name.
    pub checkpoint: BTreeMap<String, String>,
}

impl Manifest {
    /// A manifest without files.
    pub fn new(name: String, target: Target, pipeline: PipelineInfo, provenance: Provenance) -> Manifest {
        Manifest {
            format: FORMAT,
            name,
            target,
            pipeline,
            components: BTreeMap::new(),
            files: BTreeMap::new(),
            provenance,
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Manifest, BundleError> {
        let refuse = |reason: String| BundleError::Manifest { path: path.into(), reason };
        let size = std::fs::metadata(path).map_err(|e| BundleError::io(path, &e))?.len();
        if size > MAX_BYTES {
            return Err(refuse(format!("has {size} bytes, more than any manifest")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| BundleError::io(path, &e))?;
        let manifest: Manifest = serde_yaml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        manifest.check().map_err(refuse)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} is not supported; this kiln reads format {FORMAT}", self.format));
        }
        let mut names = self.files.keys();
        if let Some(name) = names.find(|name| !stays_inside(name)) {
            return Err(format!("file '{name}' lies outside the bundle"));
        }
        let named =
            self.components.values().flat_map(|c| [&c.engine, &c.weights]).chain([&self.pipeline.scheduler]);
        if let Some(name) = named.into_iter().find(|name| !self.files.contains_key(*name)) {
            return Err(format!("file '{name}' is used but not listed"));
        }
        if !stays_inside(&self.pipeline.tokenizer) {
            return Err(format!("folder '{}' lies outside the bundle", self.pipeline.tokenizer));
        }
        let p = &self.pipeline;
        for (key, value, max) in [
            ("height", p.height, 1 << 16),
            ("width", p.width, 1 << 16),
            ("vae_scale_factor", p.vae_scale_factor, 1 << 8),
            ("latent_channels", p.latent_channels, 1 << 10),
            ("text_positions", p.text_positions, 1 << 12),
        ] {
            if value == 0 || value > max {
                return Err(format!("{key}: {value} is not a number from 1 to {max}"));
            }
        }
        match p.scaling_factor.is_finite() && p.scaling_factor != 0.0 {
            true => Ok(()),
            false => Err(format!("scaling_factor: {} is no factor", p.scaling_factor)),
        }
    }

    /// The manifest as YAML.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).unwrap_or_default()
    }
}

fn stays_inside(name: &str) -> bool {
    use std::path::Component as Part;
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Part::Normal(_)))
}
