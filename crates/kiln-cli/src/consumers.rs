//! What other tools take of the ONNX that kiln writes, found by running them (docs/consumers.md).

use clap::ValueEnum;
use kiln_graph::{AttentionPolicy, ElementType};

use crate::args::{ConsumerChoice, FlavorChoice, TraceArgs, WeightsChoice};
use crate::failure::Failure;

/// What a consumer takes.
pub(crate) struct Form {
    /// How attention is computed where nothing is asked for.
    pub(crate) attention: AttentionPolicy,
    /// Whether the operator of fused attention is read.
    fused: bool,
    /// Largest opset.
    opset: i64,
    /// Whether ONNX Runtime's operators are read.
    contrib: bool,
    /// Sizes that are fixed, or are not.
    pub(crate) fixed: Option<bool>,
    /// Whether weights have to be inside.
    pub(crate) inside: bool,
    /// Whether half precision is computed.
    half: bool,
    /// Whether masks have to be finite.
    pub(crate) finite_masks: bool,
}

/// Static, in plain operators, with either place of weights: what the least of them take.
const PLAIN: Form = Form {
    attention: AttentionPolicy::Plain,
    fused: false,
    opset: 18,
    contrib: false,
    fixed: None,
    inside: false,
    half: false,
    finite_masks: false,
};

const FUSED: Form = Form { attention: AttentionPolicy::Fused, fused: true, opset: 24, ..PLAIN };

impl ConsumerChoice {
    pub(crate) fn form(self) -> Form {
        match self {
            ConsumerChoice::Openvino => Form { contrib: true, half: true, ..FUSED },
            ConsumerChoice::Tract => Form { opset: 23, fixed: Some(true), ..FUSED },
            ConsumerChoice::Iree => Form { fixed: Some(true), ..PLAIN },
            ConsumerChoice::Mnn => Form { opset: 23, ..PLAIN },
            ConsumerChoice::Pnnx => Form { fixed: Some(false), inside: true, ..PLAIN },
            ConsumerChoice::OrtWeb => Form { contrib: true, half: true, inside: true, ..FUSED },
            ConsumerChoice::Quantization => Form { inside: true, finite_masks: true, ..PLAIN },
        }
    }

    /// Refuses the first argument that contradicts what it takes.
    pub(crate) fn check(self, args: &TraceArgs) -> Result<(), Failure> {
        let form = self.form();
        let fixes = args.sizes.height.is_some();
        let flavor = name(args.flavor);
        let refusals = [
            (
                args.checkpoint.attention == Some(AttentionPolicy::Fused) && !form.fused,
                "--attention fused".into(),
            ),
            (
                args.opset.is_some_and(|opset| opset > form.opset),
                format!("--opset {}", args.opset.unwrap_or(0)),
            ),
            (args.weights == Some(WeightsChoice::Beside) && form.inside, "--weights beside".into()),
            (args.flavor == FlavorChoice::Onnxruntime && !form.contrib, format!("--flavor {flavor}")),
            (args.flavor == FlavorChoice::OnnxruntimeCuda, format!("--flavor {flavor}")),
            (args.precision != ElementType::F32 && !form.half, format!("--precision {}", args.precision)),
            (
                args.storage.is_some_and(|storage| storage != ElementType::F32) && !form.half,
                format!("--storage {}", args.storage.unwrap_or(args.precision)),
            ),
            (fixes && form.fixed == Some(false), "--height and --width".into()),
        ];
        match refusals.into_iter().find(|(contradicts, _)| *contradicts) {
            Some((_, option)) => Err(Failure::usage(format!("for: {} does not take {option}", name(self)))
                .with_hint(
                    "kiln trace without --for writes what is asked for; docs/consumers.md says who takes what",
                )),
            None => Ok(()),
        }
    }
}

fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
