//! Specifications: what is built of a checkpoint, as a YAML file says it.
//!
//! ```yaml
//! checkpoint: shapes                # a folder or file, relative to the specification
//! components: {vae: vae-ft-mse.safetensors}
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

mod keys;
mod options;
mod sizes;
mod target;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::{Target, read};
use kiln_lora::{Lora, LoraFile};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

pub use sizes::{FixedSizes, OpenRange, ProfileSpec, Profiles, RangeSpec};
pub use target::{CpuSpec, CudaSpec, EngineSpec, NetworkSpec, OnnxSpec, RtxSpec, TargetSpec};
pub use values::{AttentionSpec, Bytes, ComputeCapability, OptimizationLevel, PrecisionSpec};

use crate::{CompileError, Components};

/// Largest specification that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What is built of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Specification {
    /// The checkpoint: a folder in diffusers' layout, or one file.
    pub checkpoint: PathBuf,
    /// Preferred variant of weight files, such as `fp16`.
    #[serde(default)]
    pub variant: Option<String>,
    /// Components that come from elsewhere.
    #[serde(default)]
    pub components: Components,
    /// LoRAs that are added to the weights.
    #[serde(default)]
    pub loras: Vec<LoraSpec>,
    /// What is built.
    #[serde(default, deserialize_with = "targets")]
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

impl Specification {
    /// Reads and checks a specification; its paths are relative to its folder.
    pub fn read(path: &Path) -> Result<Specification, CompileError> {
        let refuse = |reason: String| CompileError::Specification { path: path.into(), reason };
        let text = read::text(path, MAX_BYTES, "specification");
        let text = text.map_err(|e| e.map(|e| CompileError::io(path, e), refuse))?;
        let mut spec: Specification = read::yaml(&text).map_err(refuse)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        spec.checkpoint = folder.join(&spec.checkpoint);
        spec.components = spec.components.below(folder);
        for lora in &mut spec.loras {
            lora.file = folder.join(&lora.file);
        }
        Ok(spec)
    }

    /// The LoRAs, opened.
    pub fn open_loras(&self) -> Result<Vec<Lora>, CompileError> {
        self.loras
            .iter()
            .map(|lora| Ok(Lora { file: Arc::new(LoraFile::open(&lora.file)?), weight: lora.weight }))
            .collect()
    }
}

/// Reads every target's specification as what that target takes.
fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Target, TargetSpec>, D::Error> {
    struct Targets;

    impl<'de> Visitor<'de> for Targets {
        type Value = BTreeMap<Target, TargetSpec>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a mapping of targets")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut specs = BTreeMap::new();
            while let Some(target) = map.next_key::<Target>()? {
                if specs.contains_key(&target) {
                    return Err(A::Error::custom(format!("'{target}' stands twice")));
                }
                let spec = match target {
                    Target::Cpu => TargetSpec::Cpu(map.next_value()?),
                    Target::Cuda => TargetSpec::Cuda(map.next_value()?),
                    Target::TensorrtRtx => TargetSpec::TensorrtRtx(map.next_value()?),
                    Target::Tensorrt => TargetSpec::Tensorrt(map.next_value()?),
                    Target::Onnx => TargetSpec::Onnx(map.next_value()?),
                };
                specs.insert(target, spec);
            }
            Ok(specs)
        }
    }

    deserializer.deserialize_map(Targets)
}
