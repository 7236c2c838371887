//! What is refused, by name and in the web UIs' words.

use serde_json::{Value, json};

use super::{call, sent};
use crate::server::{Answer, Server};

#[track_caller]
fn refused(answer: Answer, status: u16, param: &str) {
    assert_eq!(answer.status, status, "{param}: {}", answer.text());
    let error = answer.json();
    assert!(error["error"].is_string() && error["body"].is_string() && error["errors"].is_string(), "{error}");
    assert!(error["detail"].as_str().is_some_and(|detail| detail.contains(param)), "{param}: {error}");
}

#[test]
fn what_would_change_the_picture_and_is_not_done_is_named() {
    let server = Server::start(&[]);
    let (_, image) = sent(64, 64, |x, _| [x as u8; 3]);
    for (key, value) in [
        ("restore_faces", json!(true)),
        ("tiling", json!(true)),
        ("s_churn", json!(0.5)),
        ("s_min_uncond", json!(1)),
        ("s_noise", json!(0.9)),
        ("seed_resize_from_w", json!(512)),
        ("refiner_checkpoint", json!("sd_xl_refiner")),
        ("script_name", json!("X/Y/Z plot")),
        ("infotext", json!("a\nSteps: 20")),
        ("styles", json!(["Anime"])),
        ("sampler_name", json!("DPM++ SDE")),
        ("scheduler", json!("Align Your Steps")),
        ("alwayson_scripts", json!({ "ADetailer": { "args": [true, {}] } })),
        ("controlnet", json!({ "ControlNet": { "args": [{ "image": image }] } })),
        ("prompt", json!("<hypernet:x:1>")),
        ("override_settings", json!("x")),
        ("eta_noise_seed_delta", json!(31337)),
        ("face_restoration", json!(true)),
        ("hr_upscaler", json!("R-ESRGAN 4x+")),
        ("hr_prompt", json!("something else")),
        ("hr_sampler_name", json!("DDIM")),
        ("hr_checkpoint_name", json!("other")),
        ("firstphase_width", json!(64)),
    ] {
        let field = match key {
            "controlnet" => "alwayson_scripts",
            "eta_noise_seed_delta" | "face_restoration" => "override_settings",
            key => key,
        };
        let value = if field == "override_settings" && key != field { json!({ key: value }) } else { value };
        let enables = key.starts_with("hr_") || key.starts_with("firstphase");
        refused(
            server.post("/sdapi/v1/txt2img", &call(json!({ field: value, "enable_hr": enables }))),
            400,
            key,
        );
    }
    let euler_a = |eta: f64| call(json!({ "sampler_name": "Euler a", "eta": eta }));
    refused(server.post("/sdapi/v1/txt2img", &euler_a(0.5)), 400, "eta");
    let karras = call(json!({ "sampler_name": "Euler a", "scheduler": "Karras" }));
    refused(server.post("/sdapi/v1/txt2img", &karras), 400, "scheduler");
    for (key, value) in [
        ("inpainting_fill", json!(4)),
        ("resize_mode", json!(3)),
        ("mask_round", json!(false)),
        ("initial_noise_multiplier", json!(1.1)),
        ("latent_mask", json!(image)),
        ("init_images", json!([])),
        ("init_images", json!([image, image])),
        ("init_images", json!(["!"])),
        ("mask", json!("bm9wZQ==")),
        ("mask", json!(sent(64, 64, |_, _| [0; 3]).1)),
    ] {
        let (_, light) = sent(64, 64, |_, _| [255; 3]);
        let mut all = call(json!({ "init_images": [image], "mask": light }));
        all[key] = value;
        refused(server.post("/sdapi/v1/img2img", &all), 400, key);
    }
    // What is sent along and switched off is no hindrance.
    let off = json!({
        "ADetailer": { "args": [false] }, "x": { "args": [] },
        "controlnet": { "args": [{ "enabled": false, "image": image }] },
    });
    server.post("/sdapi/v1/txt2img", &call(json!({ "alwayson_scripts": off }))).expect(200);

    refused(
        server.post("/sdapi/v1/interrogate", &json!({ "image": image, "model": "clip" })),
        400,
        "interrogate",
    );
    refused(server.post("/controlnet/detect", &json!({})), 400, "preprocessors");
    for (path, key) in [("model_list", "model_list"), ("module_list", "module_list"), ("version", "version")] {
        assert!(server.get(&format!("/controlnet/{path}")).expect(200).json().get(key).is_some());
    }
    let face = json!({ "image": image, "gfpgan_visibility": 0.5 });
    refused(server.post("/sdapi/v1/extra-single-image", &face), 400, "gfpgan_visibility");
    let other = json!({ "image": image, "upscaler_1": "R-ESRGAN 4x+" });
    refused(server.post("/sdapi/v1/extra-single-image", &other), 400, "upscaler_1");
    let large = json!({ "image": image, "upscaler_1": "Lanczos", "upscaling_resize": 4096 });
    refused(server.post("/sdapi/v1/extra-single-image", &large), 400, "upscaling_resize");
    refused(server.get("/sdapi/v1/nothing"), 404, "nothing at this path");
    refused(server.get("/sdapi/v1/txt2img"), 405, "method");
}

#[test]
fn values_out_of_range_are_refused_and_the_server_lives_on() {
    let server = Server::start(&[]);
    let wrong = [
        json!(-2),
        json!(0),
        json!(4_294_967_296_u64),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!("x"),
        json!([1]),
        json!({}),
        json!(true),
    ];
    for key in ["width", "height", "steps", "batch_size", "n_iter"] {
        for value in &wrong {
            refused(server.post("/sdapi/v1/txt2img", &call(json!({ key: value }))), 400, key);
        }
    }
    for (key, value) in [
        ("seed", json!(-2)),
        ("seed", json!(1.5)),
        ("subseed", json!("x")),
        ("subseed_strength", json!(1.1)),
        ("cfg_scale", json!("warm")),
        ("prompt", json!(7)),
        ("prompt", json!("x".repeat(10 << 20))),
        ("negative_prompt", json!(["x"])),
        ("sampler_name", json!("\u{0}")),
        ("clip_skip", json!(1e9)),
        ("eta", json!(-0.1)),
        ("steps", json!(151)),
        ("width", json!(2056)),
        ("width", json!(65)),
        ("batch_size", json!(11)),
        ("alwayson_scripts", json!([1])),
        ("override_settings", json!({ "randn_source": "X" })),
    ] {
        let shown = if key == "override_settings" { "randn_source" } else { key };
        let shown = if key == "negative_prompt" { "negative_prompt" } else { shown };
        refused(server.post("/sdapi/v1/txt2img", &call(json!({ key: value }))), 400, shown);
    }
    for body in ["", "null", "[]", "{", "{\"steps\": 1e400}", "\u{0}", "{\"prompt\": \"\\ud800\"}"] {
        let answer = server.request("POST", "/sdapi/v1/img2img", &[], body.as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert!(answer.json()["detail"].is_string());
    }
    refused(server.post("/sdapi/v1/txt2img", &call(json!({ "prompt": "a\u{0}b" }))), 400, "prompt");
    let text: Value = json!({ "seed": "7", "steps": "2", "width": 64.0, "prompt": "a", "batch_size": null });
    server.post("/sdapi/v1/txt2img", &text).expect(200);
    for strength in [json!(1e300), json!(-1), json!(f64::from(u32::MAX))] {
        let (_, image) = sent(64, 64, |x, _| [x as u8; 3]);
        let all = call(json!({ "init_images": [image], "denoising_strength": strength }));
        refused(server.post("/sdapi/v1/img2img", &all), 400, "denoising_strength");
    }
}
