//! Calls as the clients make them that were recorded.

use serde_json::{Value, json};

use super::{infotext, read, sent};
use crate::server::Server;

/// What webuiapi 0.9.17 always sends.
const WEBUIAPI: &str = r#"{
    "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
    "hr_resize_y": 0, "hr_checkpoint_name": null, "hr_sampler_name": null, "hr_scheduler": null, "hr_prompt": "",
    "hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0,
    "prompt": "a red circle", "styles": [], "seed": 5, "subseed": -1, "subseed_strength": 0.0,
    "seed_resize_from_h": 0, "seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1, "steps": 3, "cfg_scale": 7.0,
    "width": 64, "height": 64, "restore_faces": false, "tiling": false, "do_not_save_samples": false,
    "do_not_save_grid": false, "negative_prompt": "", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
    "s_noise": 1, "override_settings": {}, "override_settings_restore_afterwards": true, "sampler_name": "Euler a",
    "scheduler": "automatic", "sampler_index": "Euler a", "script_name": null, "script_args": [],
    "send_images": true, "save_images": false, "alwayson_scripts": {} }"#;

fn webuiapi() -> Value {
    serde_json::from_str(WEBUIAPI).expect("JSON")
}

#[test]
fn webuiapi_finds_what_it_reads() {
    let server = Server::start(&[]);
    let drawn = read(&server.post("/sdapi/v1/txt2img", &webuiapi()).expect(200).json());
    assert_eq!(drawn.info["sampler_name"], "Euler a");
    assert_eq!(drawn.parameters["sampler_index"], "Euler a");
    let mut call = webuiapi();
    let (_, image) = sent(64, 64, |x, _| [x as u8 * 3, 0, 90]);
    let own = json!({
        "init_images": [image], "resize_mode": 0, "inpainting_fill": 0, "inpaint_full_res": true,
        "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1, "mask_blur": 4,
        "image_cfg_scale": 1.5, "include_init_images": false,
    });
    call.as_object_mut().expect("an object").extend(own.as_object().expect("an object").clone());
    let changed = read(&server.post("/sdapi/v1/img2img", &call).expect(200).json());
    assert!(changed.parameters.get("init_images").is_none());
    assert!(infotext(&changed.files[0]).contains("Denoising strength: 0.7"));

    for (path, keys) in [
        ("sd-models", &["title", "model_name", "hash", "sha256", "filename", "config"][..]),
        ("samplers", &["name", "aliases", "options"]),
        ("schedulers", &["name", "label"]),
        ("upscalers", &["name", "model_name", "model_path", "model_url", "scale"]),
        ("latent-upscale-modes", &["name"]),
    ] {
        let list = server.get(&format!("/sdapi/v1/{path}")).expect(200).json();
        let list = list.as_array().filter(|list| !list.is_empty()).expect("a list").clone();
        assert!(list.iter().all(|one| keys.iter().all(|key| one.get(key).is_some())), "{path}: {list:?}");
    }
    for path in ["sd-vae", "sd-modules", "loras", "hypernetworks", "face-restorers", "realesrgan-models"] {
        assert_eq!(server.get(&format!("/sdapi/v1/{path}")).expect(200).json(), json!([]), "{path}");
    }
    for path in ["prompt-styles", "script-info"] {
        assert_eq!(server.get(&format!("/sdapi/v1/{path}")).expect(200).json(), json!([]), "{path}");
    }
    for path in ["cmd-flags", "memory", "embeddings", "scripts", "progress", "options"] {
        assert!(server.get(&format!("/sdapi/v1/{path}")).expect(200).json().is_object(), "{path}");
    }
    let memory = server.get("/sdapi/v1/memory").json();
    assert!(memory["ram"]["used"].as_u64().is_none_or(|used| used > 0));
    assert_eq!(server.get("/sdapi/v1/scripts").json()["txt2img"], json!([]));
    let refreshed =
        ["refresh-checkpoints", "refresh-loras", "refresh-vae", "unload-checkpoint", "reload-checkpoint"];
    for path in ["interrupt", "skip"].into_iter().chain(refreshed) {
        let answer = server.request("POST", &format!("/sdapi/v1/{path}"), &[], b"").expect(200);
        assert!(answer.json().is_null() || answer.json() == json!({}), "{path}");
    }
    // Every name that a list has is one that a call takes.
    for sampler in server.get("/sdapi/v1/samplers").json().as_array().expect("a list") {
        let mut call = webuiapi();
        call["sampler_name"] = sampler["name"].clone();
        call["steps"] = 4.into();
        let drawn = read(&server.post("/sdapi/v1/txt2img", &call).expect(200).json());
        assert_eq!(drawn.info["sampler_name"], sampler["name"]);
    }
    for schedule in server.get("/sdapi/v1/schedulers").json().as_array().expect("a list") {
        let mut call = webuiapi();
        (call["sampler_name"], call["scheduler"]) = ("DPM++ 2M".into(), schedule["name"].clone());
        server.post("/sdapi/v1/txt2img", &call).expect(200);
    }
}

#[test]
fn silly_tavern_draws_with_keys_of_its_own() {
    let server = Server::start(&[]);
    let basic = [("authorization", "Basic "), ("content-type", "application/json")];
    let ask = |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        server.request(method, &format!("/sdapi/v1/{path}"), &basic, body.as_bytes()).expect(200).json()
    };
    assert!(ask("GET", "options", Value::Null).get("forge_preset").is_none());
    let models = ask("GET", "sd-models", Value::Null);
    for list in ["samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae", "sd-modules"] {
        assert!(ask("GET", list, Value::Null).is_array());
    }
    assert!(ask("POST", "options", json!({ "sd_model_checkpoint": models[0]["title"] })).is_null());
    let progress = ask("GET", "progress", Value::Null);
    assert_eq!((&progress["progress"], &progress["state"]["job_count"]), (&json!(0.0), &json!(0)));
    let call = json!({
        "url": "http://127.0.0.1:7860", "auth": "secret-password", "prompt": "a red circle", "negative_prompt": "",
        "sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64,
        "restore_faces": false, "enable_hr": false, "hr_upscaler": "Latent", "hr_scale": 1, "denoising_strength": 0.7,
        "hr_second_pass_steps": 0, "hr_additional_modules": [], "clip_skip": 1, "save_images": true,
        "send_images": true, "do_not_save_grid": false, "do_not_save_samples": false,
        "override_settings": { "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic" },
        "override_settings_restore_afterwards": true,
    });
    let answer = ask("POST", "txt2img", call.clone());
    assert!(!answer.to_string().contains("secret-password"));
    assert_eq!(read(&answer).images[0].width(), 64);
    assert_eq!(ask("POST", "interrupt", Value::Null), json!({}));
    // As "stable-diffusion.cpp" it names the model beside the prompt.
    let mut other = call;
    (other["model"], other["clip_skip"]) = (models[0]["model_name"].clone(), 2.into());
    assert!(infotext(&read(&ask("POST", "txt2img", other)).files[0]).contains("Clip skip: 2"));
}

#[test]
fn open_web_ui_sends_all_options_back() {
    let server = Server::start(&[]);
    let mut options = server.get("/sdapi/v1/options").expect(200).json();
    let title = server.get("/sdapi/v1/sd-models").json()[0]["title"].take();
    assert_eq!(options["sd_model_checkpoint"], title);
    options["sd_model_checkpoint"] = title;
    server.post("/sdapi/v1/options", &options).expect(200);
    assert_eq!(server.get("/sdapi/v1/options").json(), options);
    let call = json!({ "prompt": "a red circle", "batch_size": 1, "width": 64, "height": 64, "steps": 50 });
    read(&server.post("/sdapi/v1/txt2img", &call).expect(200).json());
    // An assistant's server asks for names of Flux along with its own.
    let call = json!({
        "prompt": "x", "negative_prompt": "", "width": 64, "height": 64, "steps": 2, "cfg_scale": 7.0,
        "sampler_name": "DPM++ 2M", "scheduler": "Karras", "distilled_cfg_scale": 3.5,
        "override_settings": { "sd_model_checkpoint": options["sd_model_checkpoint"] },
    });
    read(&server.post("/sdapi/v1/txt2img", &call).expect(200).json());
    // What one chooses stays until one chooses again.
    server.post("/sdapi/v1/options", &json!({ "CLIP_stop_at_last_layers": 2 })).expect(200);
    let skipped =
        read(&server.post("/sdapi/v1/txt2img", &json!({ "prompt": "x", "steps": 1 })).expect(200).json());
    assert_eq!(skipped.info["clip_skip"], 2);
}
