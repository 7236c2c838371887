//! Bodies of inference requests: JSON, and behind it the tensors that it says are binary.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::HEADER_LENGTH;
use crate::ModelCard;
use crate::fault::shown;
use crate::http::error::ApiError;
use crate::inference::{Asked, Parameter, Reader, Source, VERSION, unknown};

/// Most bytes of a request's own name.
pub(super) const MAX_ID: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    id: Option<String>,
    model_name: Option<String>,
    model_version: Option<String>,
    #[serde(default)]
    parameters: Option<BTreeMap<String, Value>>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Option<Vec<Output>>,
}

/// Its fields are read once its name is known, so that refusals can name it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    name: String,
    datatype: Option<Box<RawValue>>,
    shape: Option<Box<RawValue>>,
    parameters: Option<BTreeMap<String, Value>>,
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Output {
    name: String,
    parameters: Option<BTreeMap<String, Value>>,
}

/// The request's own name, if it has one, and what it asks for.
pub(super) fn read(
    card: ModelCard,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(Option<String>, Asked), ApiError> {
    let (message, mut tensors) = split(headers, body)?;
    check_model(&card, &message)?;
    let mut reader = Reader::new(card);
    let mut parameters = message.parameters.unwrap_or_default();
    let is_binary = truth("binary_data_output", parameters.remove("binary_data_output"))?;
    for (name, value) in parameters {
        reader.parameter(&name, parameter(&name, value)?)?;
    }
    for input in message.inputs {
        add(&mut reader, input, &mut tensors)?;
    }
    if !tensors.is_empty() {
        return Err(invalid("body", format!("{} bytes behind the last tensor", tensors.len())));
    }
    for Output { name, parameters } in message.outputs.into_iter().flatten() {
        let mut parameters = parameters.unwrap_or_default();
        let is_own = parameters.remove("binary_data").map(|own| truth(&name, Some(own))).transpose()?;
        check_empty(&name, &parameters)?;
        reader.output(&name, is_own.unwrap_or(is_binary))?;
    }
    Ok((message.id, reader.finish(is_binary)?))
}

/// The JSON of a body, and the bytes behind it.
fn split(headers: &HeaderMap, mut body: Bytes) -> Result<(Message, Bytes), ApiError> {
    let claimed = headers.get(HEADER_LENGTH).map(|length| length.to_str().unwrap_or_default());
    let Some(claimed) = claimed else {
        return Ok((message(&body, "body")?, Bytes::new()));
    };
    let is_number = !claimed.is_empty() && claimed.bytes().all(|digit| digit.is_ascii_digit());
    let length = is_number.then(|| claimed.parse::<usize>().unwrap_or(usize::MAX));
    let length = length.ok_or_else(|| invalid(HEADER_LENGTH, "is not a number of bytes"))?;
    if length > body.len() {
        let reason = format!("claims {} bytes of JSON, the body has {}", shown(claimed), body.len());
        return Err(invalid(HEADER_LENGTH, reason));
    }
    let json = body.split_to(length);
    Ok((message(&json, &format!("{HEADER_LENGTH}: the first {length} bytes of the body"))?, body))
}

fn message(json: &[u8], what: &str) -> Result<Message, ApiError> {
    serde_json::from_slice(json).map_err(|e| {
        let reason: String = e.to_string().chars().take(200).collect();
        ApiError::invalid("body", format!("{what}: {reason}"))
    })
}

/// Names of the model in the body agree with the path.
fn check_model(card: &ModelCard, message: &Message) -> Result<(), ApiError> {
    if let Some(name) = message.model_name.as_ref().filter(|name| **name != card.name) {
        return Err(invalid("model_name", format!("'{}' is not the path's, '{}'", shown(name), card.name)));
    }
    if let Some(version) =
        message.model_version.as_ref().filter(|version| !["", VERSION].contains(&version.as_str()))
    {
        return Err(invalid("model_version", format!("'{}' is not there", shown(version))));
    }
    match message.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
        true => Err(invalid("id", format!("more than {MAX_ID} bytes"))),
        false => Ok(()),
    }
}

fn add(reader: &mut Reader, input: Input, tensors: &mut Bytes) -> Result<(), ApiError> {
    let Input { name, datatype, shape, parameters, data } = input;
    let field = |field: &str, reason: &str| invalid(&name, format!("{field} {reason}"));
    let datatype: String = parsed(datatype).ok_or_else(|| field("datatype", "is not a text"))?;
    let shape: Vec<i64> = parsed(shape).ok_or_else(|| field("shape", "is not a list of numbers of 64 bits"))?;
    let mut parameters = parameters.unwrap_or_default();
    let source = match (data, parameters.remove("binary_data_size")) {
        (Some(data), None) => Source::Json(data),
        (None, Some(size)) => {
            let size = size.as_u64().ok_or_else(|| field("binary_data_size", "is not a number of bytes"))?;
            let size = usize::try_from(size).ok().filter(|size| *size <= tensors.len());
            let left = format!("claims more bytes than are left, {}", tensors.len());
            Source::Raw(tensors.split_to(size.ok_or_else(|| field("binary_data_size", &left))?))
        }
        (Some(_), Some(_)) => return Err(invalid(&name, "has data and binary_data_size")),
        (None, None) => return Err(invalid(&name, "has neither data nor binary_data_size")),
    };
    check_empty(&name, &parameters)?;
    reader.input(&name, &datatype, &shape, source)
}

fn parsed<T: for<'de> Deserialize<'de>>(value: Option<Box<RawValue>>) -> Option<T> {
    serde_json::from_str(value?.get()).ok()
}

fn check_empty(tensor: &str, parameters: &BTreeMap<String, Value>) -> Result<(), ApiError> {
    match parameters.keys().next() {
        Some(parameter) => Err(ApiError::invalid(&shown(tensor), unknown(tensor, parameter))),
        None => Ok(()),
    }
}

fn truth(name: &str, value: Option<Value>) -> Result<bool, ApiError> {
    match value {
        None => Ok(false),
        Some(Value::Bool(truth)) => Ok(truth),
        Some(_) => Err(invalid(name, "what says whether it is binary is neither true nor false")),
    }
}

fn parameter(name: &str, value: Value) -> Result<Parameter, ApiError> {
    let refuse = || invalid(name, "is not a text, a number or a truth value");
    match value {
        Value::Bool(truth) => Ok(Parameter::Truth(truth)),
        Value::String(text) => Ok(Parameter::Text(text)),
        Value::Number(number) => match number.as_i128() {
            Some(integer) => Ok(Parameter::Integer(integer)),
            None => number.as_f64().map(Parameter::Float).ok_or_else(refuse),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Err(refuse()),
    }
}

fn invalid(name: &str, reason: impl std::fmt::Display) -> ApiError {
    let name = shown(name);
    ApiError::invalid(&name, format!("{name}: {reason}"))
}
