//! Hugging Face's API for text to image.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::Server;
use super::edits::png;
use super::openai::{GENERATIONS, file, with};

#[test]
fn a_post_to_the_very_address_gives_the_bytes_of_a_picture() {
    let server = Server::start(&[]);
    let parameters =
        json!({ "num_inference_steps": 2, "width": 64, "height": 64, "seed": 4, "guidance_scale": 3 });
    let body = json!({ "inputs": "a red circle", "parameters": parameters });
    let drawn = server.post("/hf", &body);
    assert_eq!((drawn.status, drawn.header("content-type")), (200, Some("image/png")));
    let same = server.post(GENERATIONS, &with(json!({ "seed": 4, "guidance_scale": 3 }))).expect(200).json();
    assert!(drawn.body == file(&same, 0));
    for path in ["/hf/shapes", "/v1"] {
        assert!(server.post(path, &body).body == drawn.body, "{path}");
    }
    for (accept, begin) in
        [("image/jpeg", &b"\xff\xd8"[..]), ("text/html, image/webp;q=0.9", b"RIFF"), ("*/*", b"\x89PNG")]
    {
        let answer = server.request("POST", "/hf", &[("Accept", accept)], body.to_string().as_bytes());
        assert!(answer.body.starts_with(begin), "{accept}");
    }
    let image = BASE64_STANDARD.encode(png(80, 48, |x, y| [x as u8, y as u8, 9]));
    let changed =
        json!({ "inputs": image, "parameters": { "prompt": "x", "num_inference_steps": 4, "strength": 0.5 } });
    let changed = server.post("/hf", &changed);
    assert_eq!(&changed.body[16..24], [0, 0, 0, 80, 0, 0, 0, 48]);
}

#[test]
fn errors_are_texts() {
    let server = Server::start(&[]);
    for (path, body, status, words) in [
        ("/hf", json!({}), 400, "inputs: is missing"),
        ("/hf", json!({ "inputs": "x", "parameters": { "steps": 2 } }), 400, "steps: is not a parameter"),
        ("/hf", json!({ "inputs": "x", "parameters": { "width": 0 } }), 400, "width: 0"),
        ("/hf", json!({ "inputs": "x", "parameters": [] }), 400, "parameters: [] is not an object"),
        ("/hf", json!({ "inputs": "x", "more": 1 }), 400, "more: is not a parameter"),
        ("/hf", json!({ "inputs": "x", "parameters": { "prompt": "y" } }), 400, "inputs: "),
        ("/v1", json!({}), 400, "inputs: is missing"),
        ("/hf/none", json!({ "inputs": "x" }), 404, "'none' is not served here"),
    ] {
        let answer = server.post(path, &body);
        let error = answer.json()["error"].as_str().expect("a text").to_owned();
        assert!(answer.status == status && error.contains(words), "{body}: {} {error}", answer.status);
    }
    assert!(server.get("/hf").json()["error"].is_string());
}
