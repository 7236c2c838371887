//! OpenAI's streams of events.

use std::io::BufReader;

use serde_json::{Value, json};

use super::openai::{GENERATIONS, begin, check_settings, check_usage, file, wait_for, with};
use super::{Server, chunk, head};
use crate::fixtures::scratch;
use crate::support::references;

/// The data of events as JSON, but for the last, which says that there are no more; comments are skipped.
#[track_caller]
pub(super) fn events(text: &str) -> Vec<Value> {
    let text = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {text}"));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
    let data = lines.map(|line| line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line}")));
    data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

fn stream(server: &Server, more: Value) -> Vec<Value> {
    let mut body = with(more);
    body["stream"] = json!(true);
    let answer = server.post(GENERATIONS, &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    events(&String::from_utf8(answer.body).expect("UTF-8"))
}

/// Fails unless the event has all that the strictest client wants; its picture.
#[track_caller]
pub(super) fn check_event(event: &Value, kind: &str, format: &str) -> Vec<u8> {
    assert_eq!(event["type"], kind);
    assert!(event["created_at"].is_u64(), "{event}");
    check_settings(event, format, "64x64");
    file(&json!({ "data": [event] }), 0)
}

#[test]
fn previews_come_before_the_picture() {
    let server = Server::start(&[]);
    let asked = json!({ "seed": 3, "steps": 16 });
    for n in 0..=3 {
        let mut more = asked.clone();
        more["partial_images"] = n.into();
        let events = stream(&server, more);
        let (last, partial) = events.split_last().expect("events");
        // Where steps are missed there are fewer.
        assert!(partial.len() <= n && (n == 0 || !partial.is_empty()), "{} of {n}", partial.len());
        let picture = check_event(last, "image_generation.completed", "png");
        check_usage(&last["usage"]);
        for (i, event) in partial.iter().enumerate() {
            assert_eq!(event["partial_image_index"], i);
            let preview = check_event(event, "image_generation.partial_image", "png");
            assert!(preview.starts_with(b"\x89PNG") && preview != picture);
        }
        let whole = server.post(GENERATIONS, &with(asked.clone())).expect(200).json();
        assert!(file(&whole, 0) == picture);
    }
}

#[test]
fn every_picture_of_a_stream_is_completed() {
    let server = Server::start(&[]);
    let events = stream(&server, json!({ "n": 2, "seed": 1, "output_format": "jpeg", "partial_images": null }));
    let files: Vec<_> =
        events.iter().map(|event| check_event(event, "image_generation.completed", "jpeg")).collect();
    assert!(files.len() == 2 && files[0] != files[1]);
}

#[test]
fn a_stream_that_cannot_begin_is_an_answer_with_an_error() {
    let server = Server::start(&[]);
    let answer = server.post(GENERATIONS, &with(json!({ "stream": true, "steps": 0 })));
    assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/json")));
    assert_eq!(answer.json()["error"]["param"], "steps");
}

#[test]
fn a_failure_is_an_event_and_the_end() {
    let folder = scratch();
    let models = folder.path().join("models.yaml");
    std::fs::write(folder.path().join("bad.safetensors"), "no tensors").expect("a file");
    let shapes = references().join("../../models/shapes").canonicalize().expect("the small model");
    let text = format!("models: [{{name: a, bundle: {shapes:?}, loras: {{bad: bad.safetensors}}}}]");
    std::fs::write(&models, text).expect("a file");
    let server = Server::start(&[&models.display().to_string()]);
    let events = stream(&server, json!({ "loras": { "bad": 1 } }));
    assert_eq!(events.len(), 1);
    let error = &events[0]["error"];
    assert_eq!(error["type"], "server_error");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("the model cannot be used") && !message.contains("bad.safetensors"), "{message}");
    let whole = server.post(GENERATIONS, &with(json!({ "loras": [{ "name": "bad", "weight": 0.5 }] })));
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (500, &json!("model_error")));
    server.post(GENERATIONS, &with(json!({}))).expect(200).json();
}

#[test]
fn a_connection_that_is_dropped_stops_the_drawing() {
    let server = Server::start(&[]);
    for stream in [false, true] {
        let body = with(json!({ "stream": stream, "steps": 150, "size": "512x512", "n": 4 }));
        let mut connection = BufReader::new(begin(&server, &body));
        wait_for(&server, 1, 0);
        if stream {
            assert_eq!(head(&mut connection).status, 200);
            assert_eq!(chunk(&mut connection).as_deref(), Some(&b": \n\n"[..]), "a comment comes at once");
        }
        drop(connection);
        wait_for(&server, 0, 0);
    }
}
