//! What calls draw.

use std::io::BufReader;

use serde_json::{Value, json};

use super::{Drawn, call, infotext, read, sent, txt2img};
use crate::cli::{kiln, succeed, text_chunk};
use crate::fixtures::scratch;
use crate::server::{Server, answer, eventually, send};
use crate::support::references;

#[test]
fn a_call_draws_what_the_command_draws_and_says_so() {
    let (server, work) = (Server::start(&[]), scratch());
    let model = references().ancestors().nth(2).expect("the workspace").join("models/shapes");
    let args = ["generate", "a red circle", "--negative-prompt", "blue, dark", "--seed", "7", "--steps", "3"];
    let args = [&args[..], &["--model", model.to_str().expect("a path")]].concat();
    let rest =
        ["--scheduler", "dpm++2m:karras", "--guidance-scale", "5.5", "--clip-skip", "1", "--out", "a.png"];
    succeed(&mut kiln(&[&args[..], &rest].concat(), work.path()));
    let found = txt2img(
        &server,
        json!({
            "prompt": "a red circle", "negative_prompt": "blue, dark", "seed": 7, "steps": 3, "cfg_scale": 5.5,
            "sampler_name": "dpm++ 2m", "scheduler": "Automatic",
            "override_settings": { "CLIP_stop_at_last_layers": 2 },
        }),
    );
    let path = work.path().join("a.png");
    let expected = kiln_runtime::image::RgbImage::open(&path).expect("a picture");
    assert!(found.images == [expected]);
    let text = text_chunk(&path, "parameters");
    assert!(text.contains("Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, Seed: 7, "), "{text}");
    assert_eq!(infotext(&found.files[0]), text);
    assert_eq!(found.info["infotexts"], json!([text]));
    let is = |key: &str, value: Value| assert_eq!(found.info[key], value, "{key}");
    is("sampler_name", json!("DPM++ 2M"));
    is("cfg_scale", json!(5.5));
    is("steps", json!(3));
    is("seed", json!(7));
    is("all_seeds", json!([7]));
    is("clip_skip", json!(2));
    is("sd_model_name", json!("shapes"));
    is("width", json!(found.images[0].width()));
    is("extra_generation_params", json!({ "Schedule type": "Karras" }));
    assert_eq!(found.info["job_timestamp"].as_str().map(str::len), Some(14));

    let image = format!("data:image/png;base64,{}", base64(&found.files[0]));
    let read = server.post("/sdapi/v1/png-info", &json!({ "image": image })).expect(200).json();
    assert_eq!(read["info"], text);
    assert_eq!(read["items"]["parameters"], text);
    for (key, value) in [
        ("Prompt", "a red circle"),
        ("Negative prompt", "blue, dark"),
        ("Sampler", "DPM++ 2M"),
        ("Schedule type", "Karras"),
        ("Seed", "7"),
        ("Size-1", &found.images[0].width().to_string()),
    ] {
        assert_eq!(read["parameters"][key], value, "{read}");
    }
    let plain = server.post("/sdapi/v1/png-info", &json!({ "image": sent(8, 8, |_, _| [0; 3]).1 }));
    assert_eq!(plain.expect(200).json()["info"], "");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

#[test]
fn iterations_batches_variations_and_second_passes_are_drawn() {
    let server = Server::start(&["--batch", "2"]);
    let all = txt2img(&server, call(json!({ "n_iter": 2, "batch_size": 2 })));
    assert_eq!(all.info["all_seeds"], json!([7, 8, 9, 10]));
    assert_eq!(all.info["all_prompts"].as_array().map(Vec::len), Some(4));
    let third = txt2img(&server, call(json!({ "seed": 9 })));
    let worst = third.images[0].data().iter().zip(all.images[2].data()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst.expect("pixels") <= 1, "{worst:?}");

    let varied = txt2img(&server, call(json!({ "subseed": 3, "subseed_strength": 0.4, "batch_size": 2 })));
    assert_eq!((&varied.info["all_seeds"], &varied.info["all_subseeds"]), (&json!([7, 7]), &json!([3, 4])));
    let text = infotext(&varied.files[1]);
    assert!(
        text.contains("Seed: 7, ") && text.contains("Variation seed: 4, Variation seed strength: 0.4"),
        "{text}"
    );
    assert!(varied.images[0] != varied.images[1] && varied.images[0] != all.images[0]);

    let hires =
        json!({ "enable_hr": true, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.5 });
    let large = txt2img(&server, call(hires));
    assert_eq!(2 * large.images[0].width(), 3 * all.images[0].width());
    assert_eq!(large.info["width"], large.images[0].width());
    let text = infotext(&large.files[0]);
    assert!(
        text.contains("Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Latent"),
        "{text}"
    );
    let side = 2 * all.images[0].width();
    let pixels =
        json!({ "enable_hr": true, "hr_resize_x": side, "hr_upscaler": "Lanczos", "hr_second_pass_steps": 3 });
    assert_eq!(txt2img(&server, call(pixels)).images[0].width(), side);

    let random = [0, 1].map(|_| txt2img(&server, json!({ "prompt": "x", "steps": 1 })).info["seed"].clone());
    assert_ne!(random[0], random[1]);
    let quiet = txt2img(&server, call(json!({ "send_images": false })));
    assert_eq!((quiet.files.len(), quiet.info["seed"].clone()), (0, json!(7)));
    let jpeg = txt2img(&server, call(json!({ "override_settings": { "samples_format": "jpg" } })));
    assert_eq!(jpeg.files[0][..2], [0xff, 0xd8]);
    let of_gpu = txt2img(&server, call(json!({ "override_settings": { "randn_source": "NV" } })));
    assert!(of_gpu.images[0] != all.images[0]);
    assert!(!infotext(&of_gpu.files[0]).contains("RNG"));
}

#[test]
fn ddim_stays_without_noise_whatever_clients_send() {
    let server = Server::start(&[]);
    let ddim = |changes: Value| {
        let mut all = call(changes);
        all["sampler_name"] = "DDIM".into();
        txt2img(&server, all)
    };
    let plain = ddim(json!({}));
    let sent = ddim(json!({ "eta": 1.0, "sampler_index": "Euler a", "scheduler": "automatic", "s_tmax": 0 }));
    assert_eq!(sent.info["sampler_name"], "DDIM");
    assert!(sent.images == plain.images);
    assert!(!infotext(&sent.files[0]).contains("Eta"));
    for noisy in [json!({ "eta": 0.5 }), json!({ "override_settings": { "eta_ddim": 1.0 } })] {
        let noisy = ddim(noisy);
        assert!(noisy.images != plain.images);
        assert!(infotext(&noisy.files[0]).contains("Eta DDIM: "));
    }
}

#[test]
fn progress_shows_the_callers_own_picture_which_interrupt_and_skip_end() {
    let work = scratch();
    let new = |name: &str| {
        let output = kiln(&["serve", "--new-key", name], work.path()).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let key = said.trim().rsplit(' ').next().expect("a key").to_owned();
        (
            format!("Basic {}", base64(format!("x:{key}").as_bytes())),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let ((ann, line_of_ann), (bob, line_of_bob)) = (new("ann"), new("bob"));
    let keys = work.path().join("keys");
    std::fs::write(&keys, line_of_ann + &line_of_bob).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string(), "--batch", "1"]);
    let ask = |who: &str, method: &str, path: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("/sdapi/v1/{path}");
        server.request(method, &path, &[("authorization", who)], body.as_bytes())
    };
    assert_eq!(server.request("GET", "/sdapi/v1/options", &[("authorization", "Basic ")], b"").status, 401);
    // The model's first picture gives previews their colours.
    ask(&ann, "POST", "txt2img", &call(json!({ "steps": 1 }))).expect(200);
    let idle = ask(&ann, "GET", "progress", &Value::Null).json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));

    let long = |n_iter: usize, steps: usize| {
        call(json!({ "steps": steps, "n_iter": n_iter, "width": 256, "height": 256 }))
    };
    let begin = |body: Value| {
        let mut stream = server.connect();
        send(&mut stream, "POST", "/sdapi/v1/txt2img", &[("authorization", &ann)], body.to_string().as_bytes());
        BufReader::new(stream)
    };
    let mut waiting = begin(long(1, 150));
    let seen = eventually(|| {
        let seen = ask(&ann, "GET", "progress?skip_current_image=false", &Value::Null).json();
        seen["current_image"].is_string().then_some(seen)
    });
    let share = seen["progress"].as_f64().expect("a number");
    assert!(0.0 < share && share <= 1.0, "{seen}");
    assert_eq!((&seen["state"]["job_count"], &seen["state"]["sampling_steps"]), (&json!(1), &json!(150)));
    assert!(seen["eta_relative"].is_number());
    let picture = read_picture(&seen["current_image"]);
    assert!(picture.width() > 0);
    let small = ask(&ann, "GET", "progress?skip_current_image=true", &Value::Null).json();
    assert!(small["current_image"].is_null());

    // Bob sees nothing of it, and stops nothing.
    assert_eq!(ask(&bob, "GET", "progress", &Value::Null).json()["state"]["job_count"], 0);
    for stop in ["interrupt", "skip"] {
        assert!(
            ask(&bob, "POST", stop, &Value::Null).expect(200).json().as_object().is_none_or(|o| o.is_empty())
        );
    }
    assert_eq!(ask(&ann, "GET", "progress", &Value::Null).json()["state"]["interrupted"], false);
    ask(&ann, "POST", "interrupt", &Value::Null).expect(200).json();
    let ended = answer(&mut waiting).expect(409).json();
    assert_eq!(ended["error"], "cancelled");

    let mut waiting = begin(long(2, 12));
    eventually(|| {
        let state = ask(&ann, "GET", "progress", &Value::Null).json()["state"].take();
        (state["job_count"] == 2 && state["sampling_step"] != 0).then_some(())
    });
    assert!(ask(&ann, "POST", "skip", &Value::Null).expect(200).json().is_null());
    let Drawn { images, info, .. } = read(&answer(&mut waiting).expect(200).json());
    assert_eq!((images.len(), &info["all_seeds"]), (1, &json!([8])));

    // Whoever leaves takes the job along.
    let waiting = begin(long(1, 150));
    let depth = || server.get("/readyz").json();
    eventually(|| (depth()["drawing"] == 1).then_some(()));
    drop(waiting);
    eventually(|| (depth()["drawing"] == 0 && depth()["queued"] == 0).then_some(()));
}

pub(super) fn read_picture(text: &Value) -> kiln_runtime::image::RgbImage {
    use base64::Engine;
    let bytes = base64::prelude::BASE64_STANDARD.decode(text.as_str().expect("a text")).expect("plain base64");
    kiln_runtime::image::RgbImage::from_bytes(&bytes).expect("a picture")
}

#[test]
fn prompts_name_loras_and_clients_choose_models() {
    let case = crate::lora::Case::new("kohya");
    let work = scratch();
    let yaml = format!(
        "models:\n  - {{name: plain, bundle: {model}}}\n  - {{name: inked, bundle: {model}, loras: {{ink: {lora}}}}}\n",
        model = case.checkpoint.display(),
        lora = case.path().display(),
    );
    let file = work.path().join("models.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let server = Server::start(&[&file.display().to_string()]);
    let small = |changes: Value| {
        let mut all = call(changes);
        (all["width"], all["height"]) = (64.into(), 64.into());
        all
    };
    let models = server.get("/sdapi/v1/sd-models").expect(200).json();
    let titles: Vec<&str> =
        models.as_array().expect("a list").iter().filter_map(|m| m["title"].as_str()).collect();
    assert!(titles[0].starts_with("plain [") && titles[1].starts_with("inked ["), "{titles:?}");
    assert_eq!(server.get("/sdapi/v1/loras").json(), json!([]));
    server.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": titles[1] })).expect(200);
    assert_eq!(server.get("/sdapi/v1/options").json()["sd_model_checkpoint"], titles[1]);
    assert_eq!(server.get("/sdapi/v1/loras").json()[0]["name"], "ink");

    let plain = txt2img(&server, small(json!({})));
    assert_eq!(plain.info["sd_model_name"], "inked");
    let prompt = "a red circle <lora:Ink:0.5>";
    let inked = txt2img(&server, small(json!({ "prompt": prompt })));
    assert!(inked.images != plain.images);
    assert_eq!(inked.info["prompt"], prompt);
    let text = infotext(&inked.files[0]);
    assert!(
        text.starts_with("a red circle <lora:ink:0.5>\n") && text.contains("Lora hashes: \"ink: "),
        "{text}"
    );
    let zero = txt2img(&server, small(json!({ "prompt": "a red circle <lora:ink:0>" })));
    assert!(zero.images == plain.images);
    let off = txt2img(&server, small(json!({ "prompt": prompt, "disable_extra_networks": true })));
    assert!(off.images == plain.images);
    let unknown = txt2img(&server, small(json!({ "prompt": "a red circle <lora:other:1>" })));
    assert!(unknown.images == plain.images);
    assert_eq!(unknown.info["comments"], json!(["Networks not found: other"]));

    for key in [
        json!({ "override_settings": { "sd_model_checkpoint": "PLAIN" } }),
        json!({ "override_settings": { "sd_model_checkpoint": "plain.safetensors", "sd_vae": "x.pt" } }),
        json!({ "model": "plain" }),
    ] {
        let other = txt2img(&server, small(key));
        assert_eq!(other.info["sd_model_name"], "plain");
    }
    assert_eq!(server.get("/sdapi/v1/options").json()["sd_model_checkpoint"], titles[1]);
    let kept = json!({
        "override_settings": { "sd_model_checkpoint": "plain" }, "override_settings_restore_afterwards": false,
    });
    txt2img(&server, small(kept));
    assert_eq!(server.get("/sdapi/v1/options").json()["sd_model_checkpoint"], titles[0]);
    let none =
        server.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": "nothing" })).expect(404).json();
    assert_eq!(none["detail"], "model: 'nothing' is not served here");
}
