//! The OpenAPI document: what it says is what the server does.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::openai::GENERATIONS;
use super::operation::new_key;
use super::{Answer, Server};
use crate::fixtures::scratch;

/// An operation with a JSON object as body.
struct Operation {
    path: String,
    /// What it needs, and what lets it draw quickly.
    body: Value,
    schema: Value,
}

fn document(server: &Server) -> Value {
    server.get("/openapi.json").expect(200).json()
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths").iter();
    paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").iter();
        methods.map(move |(method, about)| (path.as_str(), method.as_str(), about))
    })
}

fn with_bodies(document: &Value) -> Vec<Operation> {
    let found = operations(document).filter(|(path, ..)| !path.starts_with("/v2"));
    let found = found.filter_map(|(path, _, about)| {
        let schema = &about["requestBody"]["content"]["application/json"]["schema"];
        let schema = schema.is_object().then(|| schema.clone())?;
        Some(Operation { path: path.replace("{model}", "shapes"), body: least(path, &schema), schema })
    });
    found.collect()
}

/// A small body.
fn least(path: &str, schema: &Value) -> Value {
    let quick = match path {
        "/hf" | "/hf/{model}" | "/v1" => json!({ "parameters": { "num_inference_steps": 2 } }),
        _ if schema["properties"]["steps"].is_object() => json!({ "steps": 2 }),
        _ => json!({}),
    };
    let mut body = quick.as_object().expect("an object").clone();
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let value = right(&schema["properties"][name]).into_iter().next().expect("a value");
        body.entry(name).or_insert(value);
    }
    body.into()
}

fn picture() -> String {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&[255; 3 * 64 * 64]).expect("pixels");
    drop(writer);
    BASE64_STANDARD.encode(file)
}

/// Values that a schema allows, those at its ends.
fn right(schema: &Value) -> Vec<Value> {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().flat_map(right).collect();
    }
    if let Some(all) = schema["enum"].as_array() {
        let inner = all.len().saturating_sub(2);
        return all.iter().take(1).chain(all.iter().skip(1).skip(inner)).cloned().collect();
    }
    let number = |bound: &str| schema.get(bound).cloned();
    let kinds = kinds(schema);
    let mut values = Vec::new();
    for kind in &kinds {
        match kind.as_str() {
            "string" if schema["format"] == "picture" => values.push(json!(picture())),
            "string" => values.extend(texts(schema["pattern"].as_str())),
            "integer" | "number" => values.extend(number("minimum").into_iter().chain(number("maximum"))),
            "boolean" => values.extend([json!(true), json!(false)]),
            "array" => values.extend(right(&schema["items"]).into_iter().take(1).map(|one| json!([one]))),
            "object" => values.push(least("", schema)),
            _ => values.push(Value::Null),
        }
    }
    if kinds.is_empty() {
        values.extend([json!("anything"), json!({ "a": [1] })]);
    }
    values
}

/// Texts that the document's patterns allow.
fn texts(pattern: Option<&str>) -> Vec<Value> {
    let Some(pattern) = pattern else { return vec![json!("red")] };
    let pattern = Regex::new(pattern).expect("a pattern");
    let all = ["auto", "64x64", "0", "1", "-1", "0.5", "", "None", "True", "false"];
    all.into_iter().filter(|text| pattern.is_match(text)).map(|text| json!(text)).collect()
}

fn kinds(schema: &Value) -> Vec<String> {
    let one = schema["type"].as_str().map(str::to_owned);
    let list = schema["type"].as_array().into_iter().flatten();
    one.into_iter().chain(list.filter_map(Value::as_str).map(str::to_owned)).collect()
}

/// Whether a schema allows a value, as far as those of [`wrong`] go.
fn allows(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| allows(schema, value));
    }
    if let Some(all) = schema["enum"].as_array() {
        return all.contains(value);
    }
    let kinds = kinds(schema);
    let is = |kind: &str| kinds.is_empty() || kinds.iter().any(|own| own == kind);
    let bounds = |x: f64| {
        schema["minimum"].as_f64().is_none_or(|least| x >= least)
            && schema["maximum"].as_f64().is_none_or(|most| x <= most)
    };
    match value {
        Value::Null => is("null"),
        Value::Bool(_) => is("boolean"),
        Value::String(_) => is("string") && schema["pattern"].is_null(),
        Value::Number(x) => {
            let x = x.as_f64().expect("a number");
            (is("number") || (is("integer") && x.fract() == 0.0)) && bounds(x)
        }
        Value::Array(list) => is("array") && list.iter().all(|one| allows(&schema["items"], one)),
        Value::Object(_) => is("object") && schema["required"].is_null(),
    }
}

/// Values that a schema does not allow.
fn wrong(schema: &Value) -> Vec<Value> {
    let mut values =
        vec![json!("no such thing"), json!(1.5), json!(true), json!([{}]), json!({}), json!(-2), json!(1e300)];
    values.extend(schema["maximum"].as_u64().and_then(|most| most.checked_add(1)).map(Value::from));
    values.extend(schema["minimum"].as_i64().map(|least| json!(least - 1)));
    values.into_iter().filter(|value| !allows(schema, value)).collect()
}

/// The fields of an object and of objects within it: where they are, and their schemas.
fn fields(schema: &Value) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        found.push((vec![name.clone()], field.clone()));
        let inner = fields(field).into_iter();
        found.extend(inner.map(|(path, field)| ([vec![name.clone()], path].concat(), field)));
    }
    found
}

/// A body with another value.
fn with(body: &Value, schema: &Value, path: &[String], value: Value) -> Value {
    let mut body = body.as_object().cloned().unwrap_or_default();
    let (first, rest) = path.split_first().expect("a name");
    let value = match rest {
        [] => value,
        rest => {
            let schema = &schema["properties"][first];
            let own = body.get(first).filter(|own| own.is_object()).cloned();
            with(&own.unwrap_or_else(|| least("", schema)), schema, rest, value)
        }
    };
    body.insert(first.clone(), value);
    // What a field needs to mean anything.
    for (name, other) in [
        ("partial_images", json!({ "stream": true })),
        ("output_compression", json!({ "output_format": "jpeg" })),
    ] {
        if first == name {
            body.extend(other.as_object().cloned().unwrap_or_default());
        }
    }
    body.into()
}

/// Sends a body. A job that is taken is dropped, so that the queue stays open.
fn ask(server: &Server, path: &str, body: &Value) -> Answer {
    let answer = server.post(path, body);
    if let Some(job) = answer.header("location") {
        server.request("DELETE", job, &[], b"").expect(204);
    }
    answer
}

/// What the server says of a field.
fn said(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let texts = [&body["error"]["message"], &body["detail"], &body["error"]];
    texts.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
}

#[test]
fn documented_fields_are_taken_and_others_are_refused() {
    // Where nobody asks for steps, few are enough.
    let work = scratch();
    let models = work.path().join("models.yaml");
    let bundle = crate::support::references().join("../../models/shapes");
    let text = format!("models: [{{name: shapes, bundle: '{}', steps: 2}}]", bundle.display());
    std::fs::write(&models, text).expect("a file");
    let server = Server::start(&[&models.display().to_string()]);
    let operations = with_bodies(&document(&server));
    assert!(operations.len() > 10);
    for Operation { path, body, schema } in &operations {
        ask(&server, path, body).expect(if path == "/v1/jobs" { 202 } else { 200 });
        for (field, of_field) in fields(schema) {
            let name = field.last().expect("a name");
            for value in right(&of_field) {
                let answer = ask(&server, path, &with(body, schema, &field, value.clone()));
                let said = said(&answer);
                // Which sizes a model draws is its own affair.
                let is_refused = said.starts_with(&format!("{name}: "))
                    && said.contains(" is not a")
                    && !said.contains("is not a multiple")
                    && !said.contains("there are none to choose from");
                assert!(answer.status < 500 && !is_refused, "{path}: {field:?} {value}: {said}");
                assert!(!said.ends_with("is missing"), "{path}: {field:?} {value}: {said}");
            }
            for value in wrong(&of_field) {
                let answer = server.post(path, &with(body, schema, &field, value.clone()));
                assert_eq!(answer.status, 400, "{path}: {field:?} {value}");
                let said = said(&answer);
                // What an object lacks is named instead of the object.
                assert!(
                    said.contains(name) || said.ends_with(": is missing"),
                    "{path}: {field:?} {value}: {said}"
                );
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut body = body.clone();
            body.as_object_mut().and_then(|body| body.remove(name));
            let answer = server.post(path, &body).expect(400);
            assert_eq!(said(&answer), format!("{name}: is missing"), "{path}");
        }
    }
}

#[test]
fn fields_that_are_not_documented_are_refused_where_the_document_says_so() {
    let server = Server::start(&[]);
    let operations = with_bodies(&document(&server));
    let names: Map<String, Value> = operations
        .iter()
        .flat_map(|one| fields(&one.schema))
        .map(|(path, _)| (path.concat(), json!(1)))
        .collect();
    let exact = operations.iter().filter(|one| one.schema["additionalProperties"] == false);
    for Operation { path, body, schema } in exact {
        for name in names.keys().filter(|name| schema["properties"][name.as_str()].is_null()) {
            let mut body = body.clone();
            body[name] = json!(1);
            let answer = server.post(path, &body).expect(400);
            assert!(said(&answer).contains(name.as_str()), "{path}: {name}: {}", said(&answer));
        }
    }
}

#[test]
fn doors_are_as_the_document_says() {
    let work = scratch();
    let (key, line) = new_key("me", work.path());
    let keys = work.path().join("keys");
    std::fs::write(&keys, line).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    let header = format!("Bearer {key}");
    server.get("/openapi.json").expect(401);
    let document =
        server.request("GET", "/openapi.json", &[("authorization", &header)], b"").expect(200).json();
    for (path, method, about) in operations(&document) {
        let method = method.to_uppercase();
        let asked: String = path
            .split('/')
            .map(|part| if part.starts_with('{') { "x" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        let is_open = about["security"] == json!([]);
        let status = server.request(&method, &asked, &[], b"").status;
        assert_eq!(status == 401, !is_open, "{method} {path}: {status}");
        assert_eq!(is_open, about["responses"]["401"].is_null(), "{method} {path}");
        let status = server.request(&method, &asked, &[("authorization", &header)], b"").status;
        assert!(about["responses"][status.to_string()].is_object(), "{method} {path}: {status}");
        assert_ne!(status, 405, "{method} {path}");
    }
}

#[test]
fn errors_and_answers_are_as_documented() {
    let server = Server::start(&[]);
    let document = document(&server);
    assert_eq!(document["openapi"], "3.1.0");
    for (path, body, status) in [
        (GENERATIONS, json!({ "n": 0 }), 400),
        ("/sdapi/v1/txt2img", json!({ "steps": 0 }), 400),
        ("/hf", json!({}), 400),
        (GENERATIONS, json!({ "prompt": "x", "steps": 1 }), 200),
        ("/sdapi/v1/txt2img", json!({ "steps": 2 }), 200),
        ("/v1/jobs", json!({ "prompt": "x", "steps": 1 }), 202),
    ] {
        let answer = server.post(path, &body).expect(status).json();
        let schema = &document["paths"][path]["post"]["responses"][status.to_string()]["content"]["application/json"]
            ["schema"];
        let name = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next());
        let schema = name.map_or(schema, |name| &document["components"]["schemas"][name]);
        check(schema, &answer, path);
    }
}

/// Fails unless an answer has what its schema requires, and nothing else but what it knows.
#[track_caller]
fn check(schema: &Value, answer: &Value, place: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let fields = answer.as_object().unwrap_or_else(|| panic!("{place}: {answer}"));
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(fields.contains_key(name), "{place}: {name} is missing");
    }
    for (name, value) in fields {
        let schema = properties.get(name).unwrap_or_else(|| panic!("{place}: {name} is not documented"));
        check(schema, value, &format!("{place} {name}"));
    }
}

#[test]
fn the_page_of_the_document_asks_nobody_else() {
    let server = Server::start(&[]);
    let html = server.get("/docs").expect(200);
    assert!(html.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
    for name in html.text().split('"').filter(|text| text.starts_with("/page/")) {
        server.get(name).expect(200);
    }
}
