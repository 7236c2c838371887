//! Names, datatypes and shapes of the tensors that every model takes and gives.

use kiln_runtime::limits::{MAX_BATCH, MAX_INPUT_PIXELS};

use super::tensor::Datatype;
use super::tensor::Datatype::{Bytes, Fp32, Fp64, Int32, Int64, Uint8, Uint32, Uint64};

/// What the server is called.
pub(crate) const SERVER: &str = "kiln";

/// The one version of a model; in a repository of Triton, the name of its folder.
pub const VERSION: &str = "1";

/// What the server can do beyond the protocol's core.
pub(crate) const EXTENSIONS: [&str; 4] =
    ["binary_tensor_data", "parameters", "model_configuration", "statistics"];

/// A tensor that a model takes.
#[derive(Debug, PartialEq)]
pub(crate) struct Input {
    pub(crate) name: &'static str,
    /// What its elements may be; the first is the one that metadata names.
    pub(crate) datatypes: &'static [Datatype],
    /// -1 where a side is free.
    pub(crate) shape: &'static [i64],
    pub(crate) is_optional: bool,
}

/// A tensor that a model gives.
#[derive(Debug, PartialEq)]
pub(crate) struct Given {
    pub(crate) name: &'static str,
    pub(crate) datatype: &'static str,
    pub(crate) shape: &'static [i64],
}

const INTEGERS: &[Datatype] = &[Int32, Int64, Uint32, Uint64];
const SEEDS: &[Datatype] = &[Int64, Uint64, Int32, Uint32];
const FLOATS: &[Datatype] = &[Fp32, Fp64];
const TEXTS: &[Datatype] = &[Bytes];
const PICTURE: &[Datatype] = &[Uint8, Bytes];

/// What every model takes.
pub(crate) const INPUTS: [Input; 11] = [
    Input { is_optional: false, ..optional("prompt", TEXTS, &[-1]) },
    optional("negative_prompt", TEXTS, &[-1]),
    optional("seed", SEEDS, &[-1]),
    optional("steps", INTEGERS, &[1]),
    optional("guidance_scale", FLOATS, &[1]),
    optional("width", INTEGERS, &[1]),
    optional("height", INTEGERS, &[1]),
    optional("scheduler", TEXTS, &[1]),
    optional("strength", FLOATS, &[1]),
    optional("init_image", PICTURE, &[-1, -1, 3]),
    optional("mask", PICTURE, &[-1, -1, 3]),
];

/// What every model gives.
pub(crate) const OUTPUTS: [Given; 4] = [
    Given { name: "images", datatype: "UINT8", shape: &[-1, -1, -1, 3] },
    Given { name: "encoded_image", datatype: "BYTES", shape: &[-1] },
    Given { name: "seed", datatype: "INT64", shape: &[-1] },
    Given { name: "info", datatype: "BYTES", shape: &[-1] },
];

const fn optional(name: &'static str, datatypes: &'static [Datatype], shape: &'static [i64]) -> Input {
    Input { name, datatypes, shape, is_optional: true }
}

/// Triton's configuration (`config.pbtxt`) of a model whose backend is kiln, with parameters of the backend.
pub fn configuration(name: &str, parameters: &[(&str, String)]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let tensor = |name: &str, datatype: &str, shape: &[i64], more: &str| {
        let shape: Vec<String> = shape.iter().map(i64::to_string).collect();
        let (datatype, shape) = (data_type(datatype), shape.join(", "));
        format!("  {{ name: {}, data_type: {datatype}, dims: [ {shape} ]{more} }}", quoted(name))
    };
    let inputs: Vec<String> = INPUTS
        .iter()
        .map(|input| {
            let optional = if input.is_optional { ", optional: true" } else { "" };
            tensor(input.name, input.datatype().name(), input.shape, optional)
        })
        .collect();
    let outputs: Vec<String> =
        OUTPUTS.iter().map(|given| tensor(given.name, given.datatype, given.shape, "")).collect();
    let parameters: String = parameters
        .iter()
        .map(|(key, value)| {
            let (key, value) = (quoted(key), quoted(value));
            format!("parameters {{ key: {key}, value: {{ string_value: {value} }} }}\n")
        })
        .collect();
    format!(
        "name: {}\nbackend: \"{SERVER}\"\nmax_batch_size: 0\ninput [\n{}\n]\noutput [\n{}\n]\n\
         instance_group [ {{ kind: KIND_CPU, count: 1 }} ]\n{parameters}",
        quoted(name),
        inputs.join(",\n"),
        outputs.join(",\n"),
    )
}

/// The model configuration's name of a datatype.
pub(crate) fn data_type(datatype: &str) -> String {
    match datatype {
        "BYTES" => "TYPE_STRING".into(),
        other => format!("TYPE_{other}"),
    }
}

impl Input {
    /// The input of a name.
    pub(crate) fn named(name: &str) -> Option<&'static Input> {
        INPUTS.iter().find(|input| input.name == name)
    }

    /// The datatype that metadata names.
    pub(crate) fn datatype(&self) -> Datatype {
        self.datatypes[0]
    }

    /// Most elements of a tensor of it.
    pub(crate) fn max_elements(&self, datatype: Datatype) -> u64 {
        match (datatype, self.shape) {
            (Uint8, _) => 3 * MAX_INPUT_PIXELS,
            (_, [-1]) => MAX_BATCH as u64,
            _ => 1,
        }
    }
}
