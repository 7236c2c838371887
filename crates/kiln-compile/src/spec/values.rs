//! Values that are written as text or number: attention, devices, sizes in bytes, levels, types.

use std::collections::BTreeMap;
use std::str::FromStr;

use kiln_bundle::{ComponentName, stable_diffusion};
use kiln_graph::{AttentionPolicy, ElementType, Precision};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Types of computation and storage.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionSpec {
    /// What networks compute in.
    #[serde(default)]
    pub compute: Option<Precision>,
    /// Type that weights are stored in.
    #[serde(default, deserialize_with = "float")]
    pub storage: Option<ElementType>,
    /// What single components compute in.
    #[serde(default, deserialize_with = "of_components")]
    pub components: BTreeMap<ComponentName, Precision>,
    /// Scopes, such as `mid_block.attentions`, that are computed in f32 whatever their component says.
    #[serde(default)]
    pub keep_f32: Vec<String>,
}

/// A type that weights can be stored in.
struct Float(ElementType);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
        match ElementType::deserialize(deserializer)? {
            element if element.is_float() => Ok(Float(element)),
            other => Err(D::Error::custom(format!("{other} holds no fractions; expected f32, f16 or bf16"))),
        }
    }
}

fn float<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ElementType>, D::Error> {
    Ok(Option::<Float>::deserialize(deserializer)?.map(|float| float.0))
}

fn of_components<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<ComponentName, Precision>, D::Error> {
    let precisions = BTreeMap::<Known, Precision>::deserialize(deserializer)?;
    Ok(precisions.into_iter().map(|(name, precision)| (name.0, precision)).collect())
}

/// The name of a component that is compiled here.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Known(ComponentName);

impl<'de> Deserialize<'de> for Known {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Known, D::Error> {
        use stable_diffusion as sd;
        let known = [
            sd::TEXT_ENCODER,
            sd::TEXT_ENCODER_2,
            sd::UNET,
            sd::UNET_CONTROLLED,
            sd::CONTROLNET,
            sd::VAE_ENCODER,
            sd::VAE_DECODER,
        ];
        let name = ComponentName::deserialize(deserializer)?;
        match known.contains(&name) {
            true => Ok(Known(name)),
            false => {
                let known: Vec<&str> = known.iter().map(ComponentName::as_str).collect();
                Err(D::Error::custom(format!(
                    "unknown component '{name}', expected one of {}",
                    known.join(", ")
                )))
            }
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

/// How long a builder searches, from 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub struct OptimizationLevel(u8);

impl OptimizationLevel {
    /// No search.
    pub const NONE: OptimizationLevel = OptimizationLevel(0);

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for OptimizationLevel {
    type Error = String;

    fn try_from(level: u8) -> Result<OptimizationLevel, String> {
        match level {
            0..=5 => Ok(OptimizationLevel(level)),
            _ => Err(format!("optimization_level: {level} is not from 0 to 5")),
        }
    }
}

impl FromStr for AttentionSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<AttentionSpec, String> {
        text.parse().map(AttentionSpec)
    }
}

impl FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<ComputeCapability, String> {
        let parse = |part: &str| part.parse::<u32>().ok().filter(|n| *n < 100);
        let parts = text.split_once('.').and_then(|(major, minor)| Some([parse(major)?, parse(minor)?]));
        parts.map(ComputeCapability).ok_or_else(|| format!("'{text}' is not a compute capability such as 8.9"))
    }
}

impl FromStr for Bytes {
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
            _ => Err(format!("'{text}' is not a size such as 512MiB or 4GiB")),
        }
    }
}

macro_rules! from_text {
    ($($name:ty),*) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        })*
    };
}

from_text!(AttentionSpec, ComputeCapability, Bytes);
