use std::fmt;
use std::str::FromStr;

use crate::{ElementType, Precision};

/// How an attention becomes operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum AttentionPolicy {
    /// One operator that never materialises the score matrix: `com.microsoft.MultiHeadAttention` for ONNX Runtime,
    /// `Attention` (opset 23) elsewhere.
    #[default]
    Fused,
    /// MatMul, Softmax, MatMul with the query scaled beforehand; the score matrix of all heads exists at once.
    Plain,
    /// Like `Plain`, but at most this many heads at a time (diffusers' `enable_attention_slicing` with a number, and with
    /// `max` for 1).
    Sliced(u64),
    /// Like `Plain`, but half of the heads at a time (diffusers' `enable_attention_slicing` with `auto`).
    Halved,
}

impl FromStr for AttentionPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<AttentionPolicy, String> {
        let policy = match text.split_once(':') {
            None if text == "fused" => Some(AttentionPolicy::Fused),
            None if text == "plain" => Some(AttentionPolicy::Plain),
            Some(("sliced", "auto")) => Some(AttentionPolicy::Halved),
            Some(("sliced", "max")) => Some(AttentionPolicy::Sliced(1)),
            Some(("sliced", n)) => n.parse().ok().filter(|n| *n > 0).map(AttentionPolicy::Sliced),
            _ => None,
        };
        policy.ok_or_else(|| format!("'{text}' is not fused, plain, sliced:auto, sliced:max or sliced:N heads"))
    }
}

impl fmt::Display for AttentionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttentionPolicy::Fused => f.write_str("fused"),
            AttentionPolicy::Plain => f.write_str("plain"),
            AttentionPolicy::Sliced(n_heads) => write!(f, "sliced:{n_heads}"),
            AttentionPolicy::Halved => f.write_str("sliced:auto"),
        }
    }
}

/// Whose dialect of ONNX is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Flavor {
    /// Operators of the `ai.onnx` domain alone.
    Standard,
    /// Contrib operators of ONNX Runtime where they are faster; rten reads them too.
    #[default]
    OnnxRuntime,
    /// Also those that ONNX Runtime's CUDA provider alone has: convolutions and group norms of channels that lie last, and
    /// the norms' activations with them.
    OnnxRuntimeCuda,
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavor::Standard => "standard",
            Flavor::OnnxRuntime => "onnxruntime",
            Flavor::OnnxRuntimeCuda => "onnxruntime-cuda",
        })
    }
}

impl Flavor {
    /// Whether there are contrib operators of ONNX Runtime.
    pub(crate) fn has_contrib(self) -> bool {
        self != Flavor::Standard
    }
}

/// Which type each part of the network computes in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrecisionPolicy {
    /// Type where no rule below says otherwise.
    pub compute: ElementType,
    /// Type of GroupNorm and LayerNorm.
    pub norms: ElementType,
    /// Type of the softmax in attention that is not fused.
    pub softmax: ElementType,
    /// Scope prefixes (`mid_block.attentions`) with the type that holds inside; the longest prefix wins.
    pub scopes: Vec<(String, ElementType)>,
    /// Type that weights are stored in; `None` stores each in the type of its first use.
    pub storage: Option<ElementType>,
    /// What factors of convolutions and linear layers are rounded to, while sums and all else are computed as above.
    /// Their weights are stored in its type, outside of [`scopes`](Self::scopes), and all others in the type of their first
    /// use, whatever [`storage`](Self::storage) says. The model asks for it in its metadata: a runtime that does not know
    /// how computes as above.
    pub products: Option<Precision>,
}

impl PrecisionPolicy {
    /// Everything computed in `dtype`, except that half precision keeps norms and softmax in f32.
    pub fn uniform(dtype: ElementType) -> PrecisionPolicy {
        PrecisionPolicy {
            compute: dtype,
            norms: ElementType::F32,
            softmax: ElementType::F32,
            scopes: Vec::new(),
            storage: None,
            products: None,
        }
    }

    /// Everything computed in f32 but products, whose factors are rounded.
    pub fn with_products(precision: Precision) -> PrecisionPolicy {
        PrecisionPolicy { products: Some(precision), ..PrecisionPolicy::default() }
    }

    /// The name of what is computed in.
    pub fn name(&self) -> &'static str {
        self.products.map_or(self.compute.name(), Precision::name)
    }

    /// Type that a weight in `scope` is stored in, where its first use is in `used`; whether it is a factor of a product.
    pub(crate) fn stored(&self, scope: &str, is_factor: bool, used: ElementType) -> ElementType {
        let is_kept = || self.scopes.iter().any(|(prefix, _)| is_inside(scope, prefix));
        match self.products {
            Some(products) if is_factor && !is_kept() => products.stored(),
            Some(_) => used,
            None => self.storage.unwrap_or(used),
        }
    }

    pub(crate) fn in_scope(&self, scope: &str) -> ElementType {
        self.scopes
            .iter()
            .filter(|(prefix, _)| is_inside(scope, prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(self.compute, |(_, dtype)| *dtype)
    }
}

/// Whether `scope` is `outer` or lies inside of it.
pub fn is_inside(scope: &str, outer: &str) -> bool {
    scope.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl Default for PrecisionPolicy {
    fn default() -> PrecisionPolicy {
        PrecisionPolicy::uniform(ElementType::F32)
    }
}

/// All that is decided about a network after it was traced.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct EmitPolicy {
    /// How attention is computed.
    pub attention: AttentionPolicy,
    /// Types of computation and storage.
    pub precision: PrecisionPolicy,
    /// Dialect of the ONNX that is written.
    pub flavor: Flavor,
    /// Where the network is split into segments.
    pub cuts: Cuts,
    /// Inputs in which the halves of a guided batch differ. What reads none of them is a segment of its own up to the last cut
    /// point, so that one half computes it for both.
    pub prompts: Vec<String>,
    /// The `ai.onnx` opset to write, from 17 to 24; by default the least that tools are sure to read.
    pub opset: Option<i64>,
    /// Whether causal masks hold [`LEAST_SCORE`] instead of minus infinity, which spoils the ranges that quantizers measure.
    pub finite_masks: bool,
}

/// Added to attention scores that are masked out, where it has to be a number that scores' own range is not lost beside: it
/// leaves exp(-64) of a weight, far below what 32-bit floats hold of one.
pub const LEAST_SCORE: f32 = -64.0;

/// Where a network is split into segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Cuts {
    /// Nowhere: one model.
    #[default]
    None,
    /// At the cut points of these names.
    At(Vec<String>),
    /// At as few cut points as possible, so that no segment has more bytes of weights than this, if its blocks allow.
    Every(u64),
}

impl EmitPolicy {
    /// The `ai.onnx` opset that is written: unless it is given, 23 where `Attention` is needed, else 18.
    pub fn opset(&self) -> i64 {
        self.opset.unwrap_or(if self.has_attention_operator() { 23 } else { 18 })
    }

    /// Why there is no such ONNX, where there is none.
    pub(crate) fn refusal(&self) -> Option<String> {
        let opset = self.opset();
        match opset {
            17..=22 if self.has_attention_operator() => {
                Some(format!("opset {opset} has no Attention, which fused attention needs"))
            }
            17..=24 => None,
            _ => Some(format!("opset {opset} is not one from 17 to 24")),
        }
    }

    fn has_attention_operator(&self) -> bool {
        (self.flavor, self.attention) == (Flavor::Standard, AttentionPolicy::Fused)
    }
}
