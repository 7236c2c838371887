//! What the OpenAPI document says of the protocol's bodies.

use super::asked::MAX_ID;
use crate::http::openapi::shape::{
    Shape, any, any_object, closed, either, flag, integer, list, number, object, of, one_of, or_null, partly,
    text, whole,
};
use crate::inference::{INPUTS, OUTPUT_NAMES};
use utoipa::openapi::schema::Type;

/// A request to draw.
pub(super) fn request() -> Shape {
    let id = of(Type::String).max_length(Some(MAX_ID)).into();
    closed(partly(
        [("inputs", list(input()))],
        [
            ("id", or_null(id)),
            ("model_name", or_null(text())),
            ("model_version", or_null(one_of(&["", crate::inference::VERSION]))),
            ("parameters", or_null(parameters())),
            ("outputs", or_null(list(output()))),
        ],
    ))
}

/// An input.
pub(super) fn input() -> Shape {
    let names: Vec<&str> = INPUTS.iter().map(|input| input.name).collect();
    let datatypes = INPUTS.iter().flat_map(|input| input.datatypes).map(|datatype| datatype.name());
    let mut datatypes: Vec<&str> = datatypes.collect();
    datatypes.sort_unstable();
    datatypes.dedup();
    closed(partly(
        [("name", one_of(&names)), ("datatype", one_of(&datatypes)), ("shape", list(integer()))],
        [("parameters", or_null(closed(partly([], [("binary_data_size", whole())])))), ("data", any())],
    ))
}

/// An output that is asked for.
pub(super) fn output() -> Shape {
    let parameters = closed(partly([], [("binary_data", flag())]));
    closed(partly([("name", one_of(&OUTPUT_NAMES))], [("parameters", or_null(parameters))]))
}

/// Inputs of one element, and how to answer.
fn parameters() -> Shape {
    let value = || either([text(), number(), flag()]);
    let inputs = INPUTS.iter().map(|input| (input.name, value()));
    let others =
        [("timeout", of(Type::Integer).minimum(Some(1)).into()), ("binary_data_output", or_null(flag()))];
    closed(
        inputs
            .chain(others)
            .fold(of(Type::Object), |object, (name, shape): (&str, Shape)| object.property(name, shape))
            .into(),
    )
}

/// The pictures.
pub(super) fn answer() -> Shape {
    let tensor = partly(
        [("name", text()), ("datatype", text()), ("shape", list(whole()))],
        [("data", list(any())), ("parameters", object([("binary_data_size", whole())]))],
    );
    partly([("model_name", text()), ("model_version", text()), ("outputs", list(tensor))], [("id", text())])
}

/// A server.
pub(super) fn server() -> Shape {
    object([("name", text()), ("version", text()), ("extensions", list(text()))])
}

/// A model.
pub(super) fn metadata() -> Shape {
    let tensor = || object([("name", text()), ("datatype", text()), ("shape", list(integer()))]);
    object([
        ("name", text()),
        ("versions", list(text())),
        ("platform", text()),
        ("inputs", list(tensor())),
        ("outputs", list(tensor())),
    ])
}

/// A model, as Triton configures it.
pub(super) fn config() -> Shape {
    let tensor =
        || partly([("name", text()), ("data_type", text()), ("dims", list(integer()))], [("optional", flag())]);
    object([
        ("name", text()),
        ("platform", text()),
        ("backend", text()),
        ("version_policy", any_object()),
        ("max_batch_size", whole()),
        ("input", list(tensor())),
        ("output", list(tensor())),
        ("parameters", any_object()),
    ])
}

/// What models have done.
pub(super) fn statistics() -> Shape {
    let span = || object([("count", whole()), ("ns", whole())]);
    let spans = [
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    ];
    let model = object([
        ("name", text()),
        ("version", text()),
        ("last_inference", whole()),
        ("inference_count", whole()),
        ("execution_count", whole()),
        ("inference_stats", object(spans.map(|name| (name, span())))),
        ("batch_stats", list(any())),
        ("memory_usage", list(any())),
    ]);
    object([("model_stats", list(model))])
}

/// All models.
pub(super) fn index() -> Shape {
    list(object([("name", text()), ("version", text()), ("state", text()), ("reason", text())]))
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::super::asked::{Input, Message, Output};
    use super::*;
    use crate::inference::OUTPUTS;

    /// Names of the fields that a type is read from.
    fn read<T: DeserializeOwned>() -> Vec<String> {
        let refusal = serde_json::from_str::<T>("{\"?\": 0}").err().expect("a refusal").to_string();
        let names = refusal.split('`').skip(3).step_by(2);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    /// Names of the fields that a schema has.
    fn documented(shape: Shape) -> Vec<String> {
        let schema = serde_json::to_value(shape).expect("JSON");
        let mut names: Vec<String> =
            schema["properties"].as_object().expect("fields").keys().cloned().collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_read_is_documented() {
        assert!(read::<Message>().contains(&"model_version".to_owned()));
        assert_eq!(read::<Message>(), documented(request()));
        assert_eq!(read::<Input>(), documented(input()));
        assert_eq!(read::<Output>(), documented(output()));
    }

    #[test]
    fn outputs_are_those_that_models_name_and_a_short_name() {
        let named: Vec<&str> = OUTPUT_NAMES.into_iter().filter(|name| *name != "png").collect();
        assert_eq!(named, OUTPUTS.iter().map(|given| given.name).collect::<Vec<_>>());
    }
}
