//! `ModelInfer` and `ModelStreamInfer`.

use std::time::Duration;

use prost::Message;
use tokio::task::spawn_blocking;

use super::frame::Room;
use super::messages::{
    InferInputTensor, InferOutputTensor, InferParameter, ModelInferRequest, ModelInferResponse,
    ModelStreamInferResponse, ParameterChoice,
};
use super::{Code, Status};
use crate::ClientId;
use crate::fault::shown;
use crate::http::error::ApiError;
use crate::http::{Turn, check_rate, internal};
use crate::inference::{Asked, Inference, Output, Parameter, Reader, Results, Source, VERSION, unknown};

/// What Triton's client asks for in a stream: whether each answer says that it is the last one of its request.
const WANTS_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

/// Answers one request, which is read at its turn, within a time.
pub(super) async fn infer(
    inference: &Inference,
    client: ClientId,
    mut request: ModelInferRequest,
    time: Option<Duration>,
    turn: Turn,
) -> Result<ModelInferResponse, ApiError> {
    let card = inference.model(&request.model_name, &request.model_version)?;
    let wants_final = request.parameters.remove(WANTS_FINAL).is_some_and(|wants| is_true(&wants));
    let mut response = ModelInferResponse {
        model_name: card.name.clone(),
        model_version: VERSION.into(),
        id: std::mem::take(&mut request.id),
        ..Default::default()
    };
    if wants_final {
        let choice = Some(ParameterChoice::Bool(true));
        response.parameters.insert(IS_FINAL.into(), InferParameter { choice });
    }
    let asked = turn.read((card, time, request), |(card, time, request)| {
        let mut reader = Reader::new(card);
        if let Some(time) = time {
            reader.limit_time(time);
        }
        read(reader, request)
    });
    let asked = asked.await?;
    let results = inference.draw(asked.spec, client, asked.time).await?;
    let written = spawn_blocking(move || write(response, results, &asked.outputs));
    written.await.map_err(|_| internal())?
}

/// Answers one request of a stream, whose other requests go on whatever becomes of this one.
pub(super) async fn answer(
    inference: &Inference,
    client: ClientId,
    request: ModelInferRequest,
    room: Room,
) -> ModelStreamInferResponse {
    let (id, model_name) = (request.id.clone(), request.model_name.clone());
    let turn = match check_rate(&inference.app, &client) {
        Ok(()) => Turn::of(request.encoded_len()).await,
        Err(error) => Err(error),
    };
    // Where there is a place, it bounds what is held from here on.
    let _room = room.filter(|_| turn.as_ref().is_ok_and(|turn| !turn.has_place()));
    let answered = match turn {
        Ok(turn) => infer(inference, client, request, None, turn).await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(response) => {
            ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
        }
        Err(error) => ModelStreamInferResponse {
            error_message: error.message,
            infer_response: Some(ModelInferResponse { id, model_name, ..Default::default() }),
        },
    }
}

/// The time that `grpc-timeout` gives a call: up to eight digits and a unit.
pub(super) fn timeout(value: &str) -> Result<Duration, Status> {
    let refuse = || Status::new(Code::InvalidArgument, "grpc-timeout: is not a time");
    let unit = value.chars().last().filter(char::is_ascii).ok_or_else(refuse)?;
    let digits = &value[..value.len() - 1];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(refuse());
    }
    let n: u64 = digits.parse().map_err(|_| refuse())?;
    match unit {
        'H' => Ok(Duration::from_secs(n * 3600)),
        'M' => Ok(Duration::from_secs(n * 60)),
        'S' => Ok(Duration::from_secs(n)),
        'm' => Ok(Duration::from_millis(n)),
        'u' => Ok(Duration::from_micros(n)),
        'n' => Ok(Duration::from_nanos(n)),
        _ => Err(refuse()),
    }
}

fn is_true(parameter: &InferParameter) -> bool {
    parameter.choice == Some(ParameterChoice::Bool(true))
}

fn read(mut reader: Reader, request: ModelInferRequest) -> Result<Asked, ApiError> {
    let ModelInferRequest { parameters, inputs, outputs, raw_input_contents, .. } = request;
    for (name, parameter) in parameters {
        reader.parameter(&name, parameter_of(&name, parameter)?)?;
    }
    let (n_raw, n_inputs) = (raw_input_contents.len(), inputs.len());
    if n_raw != 0 && n_raw != n_inputs {
        let message = format!("raw_input_contents: {n_raw} for {n_inputs} inputs");
        return Err(ApiError::invalid("raw_input_contents", message));
    }
    let mut raw = raw_input_contents.into_iter();
    for InferInputTensor { name, datatype, shape, parameters, contents } in inputs {
        if let Some(parameter) = parameters.keys().next() {
            return Err(ApiError::invalid(&name, unknown(&name, parameter)));
        }
        let source = match (raw.next(), contents) {
            (Some(_), Some(contents)) if contents.len() > 0 => {
                let message = format!("{}: has contents beside raw_input_contents", shown(&name));
                return Err(ApiError::invalid(&name, message));
            }
            (Some(raw), _) => Source::Raw(raw),
            (None, contents) => Source::Typed(contents.unwrap_or_default()),
        };
        reader.input(&name, &datatype, &shape, source)?;
    }
    for output in outputs {
        if let Some(parameter) = output.parameters.keys().next() {
            return Err(ApiError::invalid(&output.name, unknown(&output.name, parameter)));
        }
        reader.output(&output.name, true)?;
    }
    reader.finish(true)
}

fn parameter_of(name: &str, parameter: InferParameter) -> Result<Parameter, ApiError> {
    match parameter.choice {
        Some(ParameterChoice::Bool(truth)) => Ok(Parameter::Truth(truth)),
        Some(ParameterChoice::Int64(x)) => Ok(Parameter::Integer(x.into())),
        Some(ParameterChoice::Uint64(x)) => Ok(Parameter::Integer(x.into())),
        Some(ParameterChoice::Double(x)) => Ok(Parameter::Float(x)),
        Some(ParameterChoice::String(text)) => Ok(Parameter::Text(text)),
        None => Err(ApiError::invalid(name, format!("{}: has no value", shown(name)))),
    }
}

fn write(
    mut response: ModelInferResponse,
    mut results: Results,
    outputs: &[Output],
) -> Result<ModelInferResponse, ApiError> {
    results.encode(outputs).map_err(|_| internal())?;
    response.outputs = outputs
        .iter()
        .map(|output| InferOutputTensor {
            name: output.name.into(),
            datatype: output.kind.datatype().into(),
            shape: results.shape(output.kind),
        })
        .collect();
    response.raw_output_contents = outputs.iter().map(|output| results.raw(output.kind)).collect();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        assert_eq!(timeout("99999999H").ok(), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("20m").ok(), Some(Duration::from_millis(20)));
        for wrong in ["", "m", "1", "-1S", "100000000S", "1d", "1é", "+1S"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }
}
