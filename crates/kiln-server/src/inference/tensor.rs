//! Tensors as requests hold them: checked against their names, datatypes and shapes before anything is allocated.

use axum::body::Bytes;
use serde_json::value::RawValue;

use super::describe::Input;
use super::{flat, raw};
use crate::fault::shown;
use crate::grpc::messages::InferTensorContents;
use crate::http::error::ApiError;

/// Most sides of a shape.
const MAX_SIDES: usize = 8;

/// What the elements of a tensor are, of the protocol's datatypes those that some input takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datatype {
    Uint8,
    Uint32,
    Uint64,
    Int32,
    Int64,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// The protocol's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Datatype::Uint8 => "UINT8",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }

    /// Whether elements are numbers with fractions.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Datatype::Fp32 | Datatype::Fp64)
    }

    /// Smallest and largest number; none where elements are no integers.
    pub(crate) fn bounds(self) -> Option<(i128, i128)> {
        match self {
            Datatype::Uint8 => Some((0, u8::MAX.into())),
            Datatype::Uint32 => Some((0, u32::MAX.into())),
            Datatype::Uint64 => Some((0, u64::MAX.into())),
            Datatype::Int32 => Some((i32::MIN.into(), i32::MAX.into())),
            Datatype::Int64 => Some((i64::MIN.into(), i64::MAX.into())),
            Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes => None,
        }
    }
}

/// Where the elements of a tensor stand.
pub(crate) enum Source {
    /// One after another, little-endian, behind the message.
    Raw(Bytes),
    /// As JSON, flat or nested.
    Json(Box<RawValue>),
    /// In a field of the gRPC message.
    Typed(InferTensorContents),
}

/// The elements of a tensor, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Octets(Bytes),
    Integers(Vec<i128>),
    /// Those of 32 bits as the shortest decimal number that means them.
    Floats(Vec<f64>),
    Texts(Vec<Bytes>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::Octets(octets) => octets.len(),
            Values::Integers(integers) => integers.len(),
            Values::Floats(floats) => floats.len(),
            Values::Texts(texts) => texts.len(),
        }
    }
}

/// An input of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<u64>,
    pub(crate) values: Values,
}

impl Tensor {
    /// Reads the tensor of an input. Messages name it.
    pub(crate) fn read(
        input: &Input,
        datatype: &str,
        shape: &[i64],
        source: Source,
    ) -> Result<Tensor, ApiError> {
        let refuse = |reason: String| ApiError::invalid(input.name, format!("{}: {reason}", input.name));
        let datatype = datatype_of(input, datatype).map_err(refuse)?;
        let shape = sides(shape).map_err(refuse)?;
        let n = elements(&shape, input.max_elements(datatype)).map_err(refuse)?;
        let values = match source {
            Source::Raw(data) => raw::read(datatype, n, data),
            Source::Json(data) => flat::read(datatype, n, &data),
            Source::Typed(contents) => typed(datatype, n, contents),
        };
        let values = values.map_err(refuse)?;
        match values.len() == n {
            true => Ok(Tensor { shape, values }),
            false => Err(refuse(format!("{} elements, its shape {shape:?} has {n}", values.len()))),
        }
    }
}

/// The decimal number that a float of 32 bits means.
pub(crate) fn widened(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The refusal of a tensor's parameter.
pub(crate) fn unknown(tensor: &str, parameter: &str) -> String {
    format!("{}: parameter '{}' is none of a tensor's here", shown(tensor), shown(parameter))
}

fn datatype_of(input: &Input, name: &str) -> Result<Datatype, String> {
    let found = input.datatypes.iter().find(|datatype| datatype.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = input.datatypes.iter().map(|datatype| datatype.name()).collect();
        format!("datatype '{}' is not {}", shown(name), names.join(" or "))
    })
}

fn sides(shape: &[i64]) -> Result<Vec<u64>, String> {
    if shape.len() > MAX_SIDES {
        return Err(format!("a shape of {} sides, the limit is {MAX_SIDES}", shape.len()));
    }
    let side = |side: &i64| u64::try_from(*side).ok().filter(|side| *side > 0);
    let sides = shape.iter().map(side).collect::<Option<_>>();
    sides.ok_or_else(|| format!("shape {shape:?} has a side that is not positive"))
}

fn elements(shape: &[u64], limit: u64) -> Result<usize, String> {
    let n = shape.iter().try_fold(1u64, |n, side| n.checked_mul(*side));
    match n.filter(|n| *n <= limit) {
        Some(n) => usize::try_from(n).map_err(|_| format!("shape {shape:?} is too large")),
        None => Err(format!("shape {shape:?} has more than {limit} elements")),
    }
}

fn typed(datatype: Datatype, n: usize, contents: InferTensorContents) -> Result<Values, String> {
    if contents.len() != n {
        return Err(format!("{} elements, its shape has {n}", contents.len()));
    }
    let values = match datatype {
        Datatype::Uint8 => {
            let octets = contents.uint_contents.into_iter().map(u8::try_from).collect::<Result<Vec<_>, _>>();
            Values::Octets(octets.map_err(|_| "a number is no UINT8")?.into())
        }
        Datatype::Uint32 => Values::Integers(contents.uint_contents.into_iter().map(i128::from).collect()),
        Datatype::Uint64 => Values::Integers(contents.uint64_contents.into_iter().map(i128::from).collect()),
        Datatype::Int32 => Values::Integers(contents.int_contents.into_iter().map(i128::from).collect()),
        Datatype::Int64 => Values::Integers(contents.int64_contents.into_iter().map(i128::from).collect()),
        Datatype::Fp32 => Values::Floats(contents.fp32_contents.into_iter().map(widened).collect()),
        Datatype::Fp64 => Values::Floats(contents.fp64_contents),
        Datatype::Bytes => Values::Texts(contents.bytes_contents),
    };
    match values.len() == n {
        true => Ok(values),
        false => Err(format!("its contents are not {}", datatype.name())),
    }
}
