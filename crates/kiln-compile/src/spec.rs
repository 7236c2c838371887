//! Specifications: what is built of a checkpoint, as a YAML file says it.
//!
//! ```yaml
//! checkpoint: shapes                # a folder or file, relative to the specification
//! loras:
//!   - {file: style.safetensors, weight: 0.8}
//! targets:
//!   cpu: {}
//!   tensorrt-rtx:
//!     compute_capabilities: ["8.9", "12.0"]
//!     precision: {compute: f16, components: {vae_decoder: f32}}
//!     profiles:
//!       - {batch: {min: 1, opt: 1, max: 4}, height: {min: 256, opt: 512, max: 768}, width: 512}
//! ```

use kiln_bundle::stable_diffusion::{VAE_DECODER, VAE_ENCODER};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::{ComponentName, Target, Tuning};
use kiln_graph::{AttentionPolicy, Cuts, ElementType, EmitPolicy, Flavor, PrecisionPolicy};
use kiln_lora::{Lora, LoraFile};
use kiln_nets::Sizes;
use serde::{Deserialize, Deserializer};

use crate::targets::{Profile, Range};
use crate::{Checkpoint, CompileError, SEGMENT_BYTES, TraceOptions};

/// Largest specification that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Largest picture side in pixels.
const MAX_SIDE: u64 = 8192;
/// Most pictures at once.
const MAX_BATCH: u64 = 256;

/// What is built of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Specification {
    /// The checkpoint: a folder in diffusers' layout, or one file.
    pub checkpoint: PathBuf,
    /// Preferred variant of weight files, such as `fp16`.
    #[serde(default)]
    pub variant: Option<String>,
    /// LoRAs that are added to the weights.
    #[serde(default)]
    pub loras: Vec<LoraSpec>,
    /// What is built.
    #[serde(default)]
    pub targets: BTreeMap<Target, TargetSpec>,
}

/// A LoRA to add.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    /// Its file.
    pub file: PathBuf,
    /// Factor of its changes.
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}

/// How one target is built; what is left out has a default that suits the target.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// `fused`, `plain`, or `sliced:N` heads at a time, where N may be `auto` for half of them and `max` for one.
    #[serde(default)]
    pub attention: Option<AttentionSpec>,
    /// Types of computation and storage.
    #[serde(default)]
    pub precision: PrecisionSpec,
    /// Sizes that engines run at; every size on the CPU, and around the model's own on others.
    #[serde(default)]
    pub profiles: Vec<ProfileSpec>,
    /// Most bytes of weights in a segment, as `16MiB`; engines for GPUs are whole without it.
    #[serde(default)]
    pub segments: Option<Bytes>,
    /// Whether there is a second UNet, which adds the residuals of ControlNets.
    #[serde(default)]
    pub controlnet: Option<bool>,
    /// The devices that engines are for, as `"8.9"`.
    #[serde(default)]
    pub compute_capabilities: Vec<ComputeCapability>,
    /// Most bytes of device memory that a layer may take while it runs, as `4GiB`.
    #[serde(default)]
    pub workspace: Option<Bytes>,
    /// How long tactics are searched for, from 0 to 5; for cuda, 0 tries none and all else each.
    #[serde(default)]
    pub optimization_level: Option<u8>,
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    #[serde(default)]
    pub tf32: Option<bool>,
    /// Whether convolutions and group norms run over channels that lie last (cuda).
    #[serde(default)]
    pub channels_last: Option<bool>,
    /// Whether an attention may become several kernels.
    #[serde(default)]
    pub allow_slow_attention: bool,
}

/// Types of computation and storage.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionSpec {
    /// Type that networks compute in.
    #[serde(default)]
    pub compute: Option<Type>,
    /// Type that weights are stored in.
    #[serde(default)]
    pub storage: Option<Type>,
    /// Types of single components.
    #[serde(default)]
    pub components: BTreeMap<ComponentName, Type>,
    /// Scopes, such as `mid_block.attentions`, that are computed in f32 whatever their component says.
    #[serde(default)]
    pub keep_f32: Vec<String>,
}

/// Sizes in pixels that an engine runs at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// Number of pictures.
    #[serde(default)]
    pub batch: Option<RangeSpec>,
    /// Height in pixels.
    pub height: RangeSpec,
    /// Width in pixels.
    pub width: RangeSpec,
}

/// One size, or the least, best and most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a number, or {min, opt, max}")]
pub enum RangeSpec {
    /// One size alone.
    Fixed(u64),
    /// Least, best and most.
    Open(OpenRange),
}

/// Least, best and most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRange {
    /// Least.
    pub min: u64,
    /// What the engine is tuned for.
    pub opt: u64,
    /// Most.
    pub max: u64,
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
}

impl Type {
    fn dtype(self) -> ElementType {
        match self {
            Type::F32 => ElementType::F32,
            Type::F16 => ElementType::F16,
            Type::Bf16 => ElementType::Bf16,
        }
    }
}

/// An attention policy, from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSpec(pub AttentionPolicy);

/// A compute capability, from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeCapability(pub [u32; 2]);

/// A number of bytes, from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::str::FromStr for AttentionSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<AttentionSpec, String> {
        text.parse().map(AttentionSpec)
    }
}

impl std::str::FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<ComputeCapability, String> {
        let parse = |part: &str| part.parse::<u32>().ok().filter(|n| *n < 100);
        let parts = text.split_once('.').and_then(|(major, minor)| Some([parse(major)?, parse(minor)?]));
        parts.map(ComputeCapability).ok_or_else(|| format!("'{text}' is no compute capability such as 8.9"))
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "B" => Some(1),
            "kB" => Some(1_000),
            "MB" => Some(1_000_000),
            "GB" => Some(1_000_000_000),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1_u64 << 30),
            "TB" => Some(1_000_000_000_000),
            "TiB" => Some(1_u64 << 40),
            _ => None,
        };
        let number: Option<f64> = digits.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
        match (number, unit) {
            (Some(number), Some(unit)) => Ok(Bytes((number * unit as f64) as u64)),
            _ => Err(format!("'{text}' is no size such as 512MiB or 4GiB")),
        }
    }
}

macro_rules! from_text {
    ($($name:ty),*) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        })*
    };
}

from_text!(AttentionSpec, ComputeCapability, Bytes);

impl Specification {
    /// Reads and checks a specification; its paths are relative to its folder.
    pub fn read(path: &Path) -> Result<Specification, CompileError> {
        let refuse = |reason: String| CompileError::Specification { path: path.into(), reason };
        let size = fs::metadata(path).map_err(|e| CompileError::io(path, &e))?.len();
        if size > MAX_BYTES {
            return Err(refuse(format!("has {size} bytes, more than any specification")));
        }
        let text = fs::read_to_string(path).map_err(|e| CompileError::io(path, &e))?;
        let mut spec: Specification = serde_yaml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        spec.checkpoint = folder.join(&spec.checkpoint);
        for lora in &mut spec.loras {
            lora.file = folder.join(&lora.file);
        }
        spec.check().map_err(refuse)?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        for (target, spec) in &self.targets {
            spec.check(*target).map_err(|e| format!("targets.{target}.{e}"))?;
        }
        Ok(())
    }

    /// The LoRAs, opened.
    pub fn open_loras(&self) -> Result<Vec<Lora>, CompileError> {
        self.loras
            .iter()
            .map(|lora| Ok(Lora { file: Arc::new(LoraFile::open(&lora.file)?), weight: lora.weight }))
            .collect()
    }
}

impl TargetSpec {
    fn check(&self, target: Target) -> Result<(), String> {
        if self.optimization_level.is_some_and(|level| level > 5) {
            return Err("optimization_level: is not from 0 to 5".into());
        }
        for (i, profile) in self.profiles.iter().enumerate() {
            profile.check().map_err(|e| format!("profiles[{i}].{e}"))?;
        }
        if target == Target::Onnx && self.segments.is_some() {
            return Err("segments: engines are built from whole models".into());
        }
        let gpus = [Target::Cuda, Target::TensorrtRtx, Target::Tensorrt];
        let (cuda, engines) = gpus.split_at(1);
        let keys = [
            ("compute_capabilities", !self.compute_capabilities.is_empty(), &engines[..1]),
            ("workspace", self.workspace.is_some(), engines),
            ("optimization_level", self.optimization_level.is_some(), &gpus),
            ("tf32", self.tf32.is_some(), &gpus),
            ("channels_last", self.channels_last.is_some(), cuda),
            ("allow_slow_attention", self.allow_slow_attention, engines),
        ];
        let is_foreign =
            |(_, is_given, targets): &(_, bool, &[Target])| *is_given && !targets.contains(&target);
        if let Some((key, _, targets)) = keys.into_iter().find(is_foreign) {
            let targets: Vec<String> = targets.iter().map(Target::to_string).collect();
            return Err(format!("{key}: has a meaning for {} alone", targets.join(" and ")));
        }
        match self.profiles.as_slice() {
            _ if target.has_engines() => Ok(()),
            [] => Ok(()),
            [one] if one.fixed().is_some() => Ok(()),
            _ => Err("profiles: without engines for GPUs, one with fixed sizes, or none and every size".into()),
        }
    }

    /// How the networks are traced for this target.
    pub fn trace_options(
        &self,
        target: Target,
        checkpoint: &Checkpoint,
        loras: Vec<Lora>,
    ) -> Result<TraceOptions, CompileError> {
        let default = match target {
            Target::Cpu => ElementType::F32,
            Target::Cuda | Target::Onnx | Target::TensorrtRtx | Target::Tensorrt => ElementType::F16,
        };
        let keep: Vec<(String, ElementType)> =
            self.precision.keep_f32.iter().map(|s| (s.clone(), ElementType::F32)).collect();
        let of = |compute: ElementType| PrecisionPolicy {
            // Its kernels sum in f32 whatever they read.
            norms: if target == Target::Cuda { compute } else { ElementType::F32 },
            scopes: keep.clone(),
            storage: self.precision.storage.map(Type::dtype),
            ..PrecisionPolicy::uniform(compute)
        };
        let policy = EmitPolicy {
            attention: self.attention.map(|attention| attention.0).unwrap_or_default(),
            precision: of(self.precision.compute.map_or(default, Type::dtype)),
            flavor: match target {
                Target::Cpu => Flavor::OnnxRuntime,
                Target::Cuda if self.channels_last == Some(false) => Flavor::OnnxRuntime,
                Target::Cuda => Flavor::OnnxRuntimeCuda,
                Target::Onnx | Target::TensorrtRtx | Target::Tensorrt => Flavor::Standard,
            },
            cuts: match target {
                Target::Cpu => Cuts::Every(self.segments.map_or(SEGMENT_BYTES, |bytes| bytes.0)),
                Target::Cuda | Target::TensorrtRtx | Target::Tensorrt => {
                    self.segments.map_or(Cuts::None, |bytes| Cuts::Every(bytes.0))
                }
                Target::Onnx => Cuts::None,
            },
        };
        let mut components: BTreeMap<ComponentName, Type> = BTreeMap::new();
        if self.precision.compute.is_none() && target != Target::Cpu && checkpoint.vae_overflows() {
            components.extend([(VAE_ENCODER, Type::F32), (VAE_DECODER, Type::F32)]);
        }
        components.extend(&self.precision.components);
        let precisions = components.into_iter().map(|(name, dtype)| (name, of(dtype.dtype())));
        Ok(TraceOptions {
            precisions: precisions.collect(),
            controlled: self.controlnet.unwrap_or(target == Target::Cpu),
            loras,
            ..TraceOptions::for_bundle(policy, self.sizes(checkpoint)?)
        })
    }

    /// How ONNX Runtime's CUDA provider runs the models: as fast as it can, unless told.
    pub fn tuning(&self) -> Tuning {
        Tuning { tf32: self.tf32.unwrap_or(true), search: self.optimization_level != Some(0) }
    }

    /// The sizes that the networks are traced with: those of the one profile whose sizes are fixed, or any.
    fn sizes(&self, checkpoint: &Checkpoint) -> Result<Sizes, CompileError> {
        let [profile] = self.profiles.as_slice() else { return Ok(Sizes::Dynamic) };
        let Some([batch, height, width]) = profile.fixed() else { return Ok(Sizes::Dynamic) };
        Ok(Sizes::Static {
            batch,
            height: latents(checkpoint, "height", height)?,
            width: latents(checkpoint, "width", width)?,
        })
    }

    /// The profiles in latents; without any, one around the model's own size.
    pub fn profiles(&self, checkpoint: &Checkpoint) -> Result<Vec<Profile>, CompileError> {
        let positions = checkpoint.text_positions();
        let [height, width] = checkpoint.default_size().map(|pixels| pixels / checkpoint.scale_factor());
        let around = Profile::around(height, width, positions);
        if self.profiles.is_empty() {
            return Ok(vec![around]);
        }
        let in_latents = |key: &str, range: RangeSpec| {
            let Range { min, opt, max } = range.range();
            let side = |pixels| latents(checkpoint, key, pixels);
            Ok::<Range, CompileError>(Range { min: side(min)?, opt: side(opt)?, max: side(max)? })
        };
        self.profiles
            .iter()
            .map(|profile| {
                Ok(Profile {
                    batch: profile.batch.map_or(around.batch, RangeSpec::range),
                    height: in_latents("height", profile.height)?,
                    width: in_latents("width", profile.width)?,
                    tokens: around.tokens,
                })
            })
            .collect()
    }
}

fn latents(checkpoint: &Checkpoint, key: &str, pixels: u64) -> Result<u64, CompileError> {
    let factor = checkpoint.scale_factor();
    match pixels.is_multiple_of(factor.max(8)) {
        true => Ok(pixels / factor),
        false => Err(CompileError::Option {
            path: checkpoint.root().into(),
            reason: format!("{key}: {pixels} is not a multiple of {}", factor.max(8)),
            hint: format!("the next one is {}", pixels.next_multiple_of(factor.max(8))),
        }),
    }
}

impl ProfileSpec {
    fn check(&self) -> Result<(), String> {
        let batch = self.batch.unwrap_or(RangeSpec::Fixed(1));
        for (key, range, most) in
            [("batch", batch, MAX_BATCH), ("height", self.height, MAX_SIDE), ("width", self.width, MAX_SIDE)]
        {
            let Range { min, opt, max } = range.range();
            if !(1 <= min && min <= opt && opt <= max && max <= most) {
                return Err(format!("{key}: {min}, {opt}, {max} are not ascending from 1 to {most}"));
            }
        }
        Ok(())
    }

    fn fixed(&self) -> Option<[u64; 3]> {
        let fixed = |range: RangeSpec| {
            let Range { min, max, .. } = range.range();
            (min == max).then_some(min)
        };
        Some([fixed(self.batch.unwrap_or(RangeSpec::Fixed(1)))?, fixed(self.height)?, fixed(self.width)?])
    }
}

impl RangeSpec {
    fn range(self) -> Range {
        match self {
            RangeSpec::Fixed(size) => Range::fixed(size),
            RangeSpec::Open(OpenRange { min, opt, max }) => Range { min, opt, max },
        }
    }
}
