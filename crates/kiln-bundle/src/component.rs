//! Engines as the manifest lists them: segments, ports, sizes.

use std::collections::BTreeSet;
use std::fmt;

use kiln_types::{ComponentName, ElementType, Precision};
use serde::{Deserialize, Serialize};

/// One engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// What it does.
    pub stage: Stage,
    /// The component whose weights it reads, where that is not itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_weights_with: Option<ComponentName>,
    /// Its model files, in the order in which they run.
    pub segments: Vec<Segment>,
    /// The file with its weights, where they are not in the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// The checkpoint's weights on which no output depends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread_weights: Vec<String>,
    /// What it computes in, as [`Precision`] names it.
    pub precision: String,
    /// What it reads.
    pub inputs: Vec<PortInfo>,
    /// What it makes.
    pub outputs: Vec<PortInfo>,
}

impl Component {
    /// What it computes in; none for a name that a later version may know.
    pub fn precision(&self) -> Option<Precision> {
        self.precision.parse().ok()
    }

    /// Whether its products' weights are stored in bf16.
    pub fn stores_bf16(&self) -> bool {
        self.precision().is_some_and(|precision| precision.stored() == ElementType::Bf16)
    }
}

/// What a component does in a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Token ids to what the denoiser attends to.
    TextEncoder,
    /// Noisy latents to predictions: a UNet or a transformer.
    Denoiser,
    /// A control picture and noisy latents to residuals of a denoiser: a ControlNet.
    Control,
    /// Pictures to latents.
    ImageEncoder,
    /// Latents to pictures.
    ImageDecoder,
}

impl Stage {
    /// Whether it is a half of the autoencoder.
    pub fn is_autoencoder(self) -> bool {
        matches!(self, Stage::ImageEncoder | Stage::ImageDecoder)
    }

    /// Whether it runs in every step of the denoising loop.
    pub fn is_in_loop(self) -> bool {
        matches!(self, Stage::Denoiser | Stage::Control)
    }
}

/// One model file of an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The model file.
    pub engine: String,
    /// The weights that it reads, where they are not in the model file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<String>,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Number of its operators, or of its layers before the builder fuses them.
    pub operators: u64,
    /// How its attentions run.
    pub attention: AttentionFacts,
    /// Names of what it reads: inputs of the engine, and what segments before it made.
    pub reads: Vec<String>,
    /// Names of what it makes.
    pub makes: Vec<String>,
}

impl Component {
    /// Number of operators of all segments.
    pub fn operators(&self) -> u64 {
        self.segments.iter().map(|segment| segment.operators).sum()
    }

    /// How the attentions of all segments run.
    pub fn attention(&self) -> AttentionFacts {
        self.segments.iter().fold(AttentionFacts::default(), |sum, Segment { attention, .. }| AttentionFacts {
            fused: sum.fused + attention.fused,
            decomposed: sum.decomposed + attention.decomposed,
        })
    }

    /// Names of all its files.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.segments.iter().map(|segment| &segment.engine).chain(&self.weights)
    }

    /// Whether what a segment made is still needed when segment `i` has run.
    pub fn is_read_after(&self, name: &str, i: usize) -> bool {
        let later = self.segments.iter().skip(i + 1);
        self.outputs.iter().any(|port| port.name == name)
            || later.flat_map(|segment| &segment.reads).any(|read| read == name)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let mut known: BTreeSet<&str> = self.inputs.iter().map(|port| port.name.as_str()).collect();
        for segment in &self.segments {
            if let Some(name) = segment.reads.iter().find(|name| !known.contains(name.as_str())) {
                return Err(format!("engine '{}' reads '{name}', which nothing makes", segment.engine));
            }
            known.extend(segment.makes.iter().map(String::as_str));
        }
        match self.outputs.iter().find(|port| !known.contains(port.name.as_str())) {
            None => Ok(()),
            Some(port) => Err(format!("output '{}' is made by no engine", port.name)),
        }
    }
}

/// How the attentions of an engine run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionFacts {
    /// How many are one fused operator, which never holds the matrix of all scores.
    pub fused: u64,
    /// How many are, or may become, several operators with that matrix between them.
    pub decomposed: u64,
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
    pub shape: Vec<AxisSize>,
}

/// One axis of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AxisSize {
    /// Fixed when the engine was built.
    Fixed(u64),
    /// Decided at run time, in terms of `batch`, `height` and `width` (in latents).
    Dynamic(String),
}

impl AxisSize {
    /// The size where each symbol, such as `batch`, has the given value; `None` for a symbol without one.
    pub fn at(&self, value: impl Fn(&str) -> Option<u64>) -> Option<u64> {
        let factor = |text: &str| match text.strip_prefix("ceil(").and_then(|rest| rest.strip_suffix(')')) {
            Some(quotient) => {
                let (symbol, divisor) = quotient.split_once('/')?;
                Some(value(symbol)?.div_ceil(divisor.parse().ok().filter(|n| *n > 0)?))
            }
            None => text.parse().ok().or_else(|| value(text)),
        };
        match self {
            AxisSize::Fixed(n) => Some(*n),
            AxisSize::Dynamic(text) => text.split('*').try_fold(1_u64, |n, part| n.checked_mul(factor(part)?)),
        }
    }
}

impl fmt::Display for AxisSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AxisSize::Fixed(n) => write!(f, "{n}"),
            AxisSize::Dynamic(name) => f.write_str(name),
        }
    }
}
