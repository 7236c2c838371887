//! AUTOMATIC1111's API, as its clients use it.

mod call;
mod clients;
mod img2img;
mod refusals;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::image::{RgbImage, png_texts};
use serde_json::{Value, json};

use super::Server;

/// Every key of `info` that clients may read.
const INFO: [&str; 24] = [
    "prompt",
    "all_prompts",
    "negative_prompt",
    "all_negative_prompts",
    "seed",
    "all_seeds",
    "subseed",
    "all_subseeds",
    "subseed_strength",
    "width",
    "height",
    "sampler_name",
    "cfg_scale",
    "steps",
    "batch_size",
    "sd_model_name",
    "sd_model_hash",
    "denoising_strength",
    "extra_generation_params",
    "index_of_first_image",
    "infotexts",
    "styles",
    "job_timestamp",
    "clip_skip",
];

/// What a call gave.
struct Drawn {
    files: Vec<Vec<u8>>,
    images: Vec<RgbImage>,
    info: Value,
    parameters: Value,
}

/// Reads what `txt2img` and `img2img` answer.
#[track_caller]
fn read(answer: &Value) -> Drawn {
    let info: Value = serde_json::from_str(answer["info"].as_str().expect("a text")).expect("JSON");
    INFO.iter().for_each(|key| assert!(info.get(key).is_some(), "{key}: {info}"));
    let file = |image: &Value| BASE64_STANDARD.decode(image.as_str().expect("a text")).expect("plain base64");
    let files: Vec<Vec<u8>> = answer["images"].as_array().expect("a list").iter().map(file).collect();
    let images = files.iter().map(|file| RgbImage::from_bytes(file).expect("a picture")).collect();
    Drawn { files, images, info, parameters: answer["parameters"].clone() }
}

#[track_caller]
fn txt2img(server: &Server, call: Value) -> Drawn {
    read(&server.post("/sdapi/v1/txt2img", &call).expect(200).json())
}

#[track_caller]
fn img2img(server: &Server, call: Value) -> Drawn {
    read(&server.post("/sdapi/v1/img2img", &call).expect(200).json())
}

/// The `parameters` of a PNG file.
#[track_caller]
fn infotext(file: &[u8]) -> String {
    let texts = png_texts(file).expect("a PNG file");
    texts.into_iter().find(|(key, _)| key == "parameters").expect("parameters").1
}

/// A picture as clients send it, of colours that `of` gives for column and row.
fn sent(width: u32, height: u32, of: impl Fn(u32, u32) -> [u8; 3]) -> (RgbImage, String) {
    let data = (0..width * height).flat_map(|i| of(i % width, i / width)).collect();
    let image = RgbImage::from_raw(width, height, data).expect("a picture");
    let mut file = Vec::new();
    image.write_png(&mut file, &[]).expect("a file");
    (image, format!("data:image/png;base64,{}", BASE64_STANDARD.encode(file)))
}

/// A call of few steps with keys changed.
fn call(changes: Value) -> Value {
    let mut call = json!({ "prompt": "a red circle", "seed": 7, "steps": 2, "sampler_name": "Euler" });
    let changes = changes.as_object().expect("an object").clone();
    call.as_object_mut().expect("an object").extend(changes);
    call
}
