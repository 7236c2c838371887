//! OpenAI's images API: what clients send, and what they need to find in the answers.

use std::net::TcpStream;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Answer, Server, eventually, send};

pub(super) const GENERATIONS: &str = "/v1/images/generations";

/// The file in base64 in an answer's entry.
#[track_caller]
pub(super) fn file(answer: &Value, index: usize) -> Vec<u8> {
    let text = answer["data"][index]["b64_json"].as_str().unwrap_or_else(|| panic!("{answer}"));
    BASE64_STANDARD.decode(text).expect("base64")
}

/// Fails unless the answer is an error as OpenAI's clients read it.
#[track_caller]
pub(super) fn check_error(answer: &Answer, status: u16, param: Option<&str>, words: &str) {
    let body = answer.json();
    let error = &body["error"];
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(error["param"].as_str(), param, "{body}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{words}: {body}");
    assert!(error["type"].is_string() && error["code"].is_string(), "{body}");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
}

/// Fails unless async-openai, the strictest client, takes the numbers.
#[track_caller]
pub(super) fn check_usage(usage: &Value) {
    let counts = ["input_tokens", "output_tokens", "total_tokens"].map(|key| &usage[key]);
    let details = ["image_tokens", "text_tokens"].map(|key| &usage["input_tokens_details"][key]);
    assert!(counts.into_iter().chain(details).all(Value::is_u64), "{usage}");
}

#[track_caller]
pub(super) fn check_settings(answer: &Value, format: &str, size: &str) {
    let found = ["background", "output_format", "quality", "size"].map(|key| answer[key].as_str());
    assert_eq!(found, ["opaque", format, "auto", size].map(Some), "{answer}");
}

fn draw(server: &Server, more: Value) -> Value {
    server.post(GENERATIONS, &with(more)).expect(200).json()
}

/// Sends the request for a drawing, and does not wait for the answer.
pub(super) fn begin(server: &Server, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    send(&mut stream, "POST", GENERATIONS, &[], body.to_string().as_bytes());
    stream
}

/// Waits until so many jobs are drawn and wait.
#[track_caller]
pub(super) fn wait_for(server: &Server, drawing: u64, queued: u64) {
    eventually(|| {
        let state = server.get("/readyz").json();
        (state["drawing"] == drawing && state["queued"] == queued).then_some(())
    });
}

/// A small drawing with more fields.
pub(super) fn with(more: Value) -> Value {
    let mut body = json!({ "prompt": "a red circle", "steps": 2, "size": "64x64" });
    more.as_object().expect("fields").iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

#[test]
fn answers_hold_links_and_base64_unless_one_is_asked_for() {
    let server = Server::start(&[]);
    let both = draw(&server, json!({ "n": 2 }));
    assert!(both["created"].as_u64().is_some_and(|time| u32::try_from(time).is_ok_and(|time| time > 1 << 30)));
    check_usage(&both["usage"]);
    check_settings(&both, "png", "64x64");
    assert_eq!(both["data"].as_array().map(Vec::len), Some(2));
    for i in 0..2 {
        let link = both["data"][i]["url"].as_str().expect("a link");
        let path = link.strip_prefix("http://kiln.localhost").expect("this server's");
        let answer = server.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
        assert!(answer.body == file(&both, i) && answer.body.starts_with(b"\x89PNG"));
    }
    assert!(file(&both, 0) != file(&both, 1));
    let base64 = draw(&server, json!({ "response_format": "b64_json" }));
    assert!(base64["data"][0]["url"].is_null() && base64["data"][0]["b64_json"].is_string());
    let link = draw(&server, json!({ "response_format": "url" }));
    assert!(link["data"][0]["b64_json"].is_null() && link["data"][0]["url"].is_string());
}

#[test]
fn pictures_without_a_seed_differ_and_those_with_one_do_not() {
    let server = Server::start(&[]);
    let one = draw(&server, json!({ "seed": 5, "n": 2 }));
    let next = draw(&server, json!({ "seed": 6 }));
    assert!(file(&one, 1) == file(&next, 0), "seeds follow the first one");
    assert_eq!(one["data"][1]["seed"], 6);
    // Clients that want several pictures send the same request several times at once.
    let several: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| draw(&server, json!({})))).collect();
        asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    for (i, a) in several.iter().enumerate() {
        assert!(several[..i].iter().all(|b| file(a, 0) != file(b, 0)));
        let again = draw(&server, json!({ "seed": a["data"][0]["seed"] }));
        assert_eq!(again["data"][0]["seed"], a["data"][0]["seed"]);
    }
}

#[test]
fn files_have_the_format_that_is_asked_for() {
    let server = Server::start(&[]);
    let jpeg = |compression: u64| {
        let asked = json!({ "output_format": "jpeg", "output_compression": compression, "seed": 1 });
        let answer = draw(&server, asked);
        check_settings(&answer, "jpeg", "64x64");
        file(&answer, 0)
    };
    let (small, large) = (jpeg(10), jpeg(95));
    assert!(small.starts_with(b"\xff\xd8\xff") && small.len() < large.len());
    assert!(jpeg(0).starts_with(b"\xff\xd8\xff"));
    let webp = draw(&server, json!({ "output_format": "webp" }));
    assert_eq!(&file(&webp, 0)[8..12], b"WEBP");
    assert!(webp["data"][0]["url"].as_str().is_some_and(|url| url.ends_with(".webp")));
}

#[test]
fn sizes_and_settings_are_those_asked_for() {
    let server = Server::start(&[]);
    let answer = draw(&server, json!({ "size": "24x40" }));
    check_settings(&answer, "png", "24x40");
    let header = file(&answer, 0);
    assert_eq!(&header[16..24], [0, 0, 0, 24, 0, 0, 0, 40]);
    let size = draw(&server, json!({ "size": "auto" }))["size"].clone();
    assert_eq!(draw(&server, json!({ "size": null }))["size"], size, "null says nothing");
    let plain = file(&draw(&server, json!({ "seed": 1, "steps": 3 })), 0);
    for (key, value) in [
        ("prompt", json!("another one")),
        ("negative_prompt", json!("blue")),
        ("guidance_scale", json!(2)),
        ("scheduler", json!("euler-a")),
        ("steps", json!(4)),
        ("seed", json!(u64::MAX)),
    ] {
        let answer = draw(&server, with(json!({ "seed": 1, "steps": 3, key: value })));
        assert!(file(&answer, 0) != plain, "{key}");
    }
}

#[test]
fn what_only_openai_knows_changes_nothing() {
    let server = Server::start(&[]);
    let plain = file(&draw(&server, json!({ "seed": 1 })), 0);
    for (key, value) in [
        ("user", "somebody"),
        ("moderation", "low"),
        ("style", "vivid"),
        ("quality", "hd"),
        ("quality", "xhigh"),
        ("background", "auto"),
        ("background", "opaque"),
    ] {
        let answer = draw(&server, json!({ "seed": 1, key: value }));
        assert!(file(&answer, 0) == plain, "{key}");
        check_settings(&answer, "png", "64x64");
    }
}

#[test]
fn wrong_values_are_named() {
    let server = Server::start(&[]);
    let long = "x".repeat(10 << 20);
    for (key, value) in [
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!(-1)),
        ("n", json!(1u64 << 32)),
        ("n", json!(1.5)),
        ("n", json!("2")),
        ("size", json!("7")),
        ("size", json!("0x64")),
        ("size", json!("65x64")),
        ("size", json!("4294967296x64")),
        ("size", json!("+64x64")),
        ("size", json!("64x64x64")),
        ("size", json!("65536x65536")),
        ("size", json!("2056x64")),
        ("size", json!([64, 64])),
        ("steps", json!(0)),
        ("steps", json!(-1)),
        ("steps", json!(151)),
        ("steps", json!(u64::MAX)),
        ("seed", json!(-1)),
        ("seed", json!(1.5)),
        ("guidance_scale", json!("7")),
        ("guidance_scale", json!(1e300)),
        ("scheduler", json!("none")),
        ("scheduler", json!(7)),
        ("loras", json!({ "none": 1 })),
        ("loras", json!({ "none": "x" })),
        ("loras", json!(["none"])),
        ("negative_prompt", json!(["x"])),
        ("clip_skip", json!(99)),
        ("deep_every", json!(0)),
        ("deep_every", json!(65)),
        ("deep_every", json!(1.5)),
        ("guidance_start", json!(-0.1)),
        ("guidance_start", json!(1)),
        ("guidance_end", json!("1")),
        ("response_format", json!("gif")),
        ("output_format", json!("gif")),
        ("output_compression", json!(101)),
        ("output_compression", json!(50)),
        ("background", json!("transparent")),
        ("quality", json!("best")),
        ("style", json!(1)),
        ("stream", json!("true")),
        ("partial_images", json!(4)),
        ("partial_images", json!(1)),
        ("prompt", json!(null)),
        ("prompt", json!(["x"])),
        ("prompt", json!("a\0b")),
        ("prompt", json!(long)),
        ("model", json!(1)),
        // What would change the picture, and is not done, is no less wrong.
        ("strength", json!(0.5)),
        ("image", json!("AAAA")),
        ("input_fidelity", json!("high")),
        ("hires", json!({})),
        ("tiling", json!(true)),
    ] {
        let name = if value == json!(long) { "a long text".into() } else { value.to_string() };
        let answer = server.post(GENERATIONS, &with(json!({ key: value })));
        assert_eq!(answer.status, 400, "{key}: {name}");
        check_error(&answer, 400, Some(key), "");
    }
    let unknown = server.post(GENERATIONS, &with(json!({ "model": "dall-e-2" })));
    check_error(&unknown, 404, Some("model"), "'dall-e-2' is not served here");
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    server.post(GENERATIONS, &with(json!({ "model": "shapes" }))).expect(200).json();
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = Server::start(&["--max-body", "64KiB"]);
    for body in ["", "[]", "7", "{", "{\"prompt\": \"x\", \"n\": 1e400}", "prompt=x", "{\"prompt\": \"\u{1}\"}"]
    {
        let answer = server.request("POST", GENERATIONS, &[], body.as_bytes());
        check_error(&answer, 400, None, "body: ");
    }
    check_error(&server.post(GENERATIONS, &json!({})), 400, Some("prompt"), "is missing");
    // The answer can be read although all of the body was sent before it.
    let large = server.post(GENERATIONS, &with(json!({ "user": "x".repeat(4 << 20) })));
    check_error(&large, 413, None, "too large");
    check_error(&server.get(GENERATIONS), 405, None, "method");
    check_error(&server.get("/v1/images"), 404, None, "");
    assert_eq!(server.request("OPTIONS", GENERATIONS, &[], b"").status, 200);
    let any_type = [("Content-Type", "text/plain")];
    let body = with(json!({})).to_string();
    assert_eq!(server.request("POST", GENERATIONS, &any_type, body.as_bytes()).status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(&["--queue", "1", "--batch", "1"]);
    let drawn = begin(&server, &with(json!({ "steps": 150, "size": "512x512", "n": 8 })));
    wait_for(&server, 1, 0);
    let waiting = begin(&server, &with(json!({ "steps": 150, "n": 8 })));
    wait_for(&server, 1, 1);
    let refused = server.post(GENERATIONS, &with(json!({})));
    check_error(&refused, 429, None, "full");
    let seconds = refused.header("retry-after").and_then(|text| text.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| (1..=59).contains(&seconds)), "{seconds:?}");
    // Clients that leave make room.
    drop((drawn, waiting));
    wait_for(&server, 0, 0);
    draw(&server, json!({}));
}

#[test]
fn models_are_listed() {
    let server = Server::start(&[]);
    let list = server.get("/v1/models").expect(200).json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("shapes")));
    let model = server.get("/v1/models/sh%61pes").expect(200).json();
    assert_eq!(model, list["data"][0]);
    assert_eq!((&model["object"], &model["owned_by"]), (&json!("model"), &json!("kiln")));
    assert!(model["created"].is_u64());
    check_error(&server.get("/v1/models/sd%2F..%2Fx"), 404, Some("model"), "'sd/../x' is not served here");
}
