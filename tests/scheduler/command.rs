//! What the command says of models' schedulers.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::pictures::model;
use crate::cli::{fail, kiln, picture_settings, succeed};
use crate::fixtures::{edit_json, onnxruntime, scratch};

fn generate(model: &str, work: &TempDir, extra: &[&str]) -> Command {
    let args = [
        "generate", "a cat", "--model", model, "--steps", "2", "--seed", "1", "--width", "64", "--height", "64",
    ];
    kiln(&[&args[..], &["--out", "a.png"], extra].concat(), work.path())
}

fn path(model: &TempDir) -> String {
    model.path().display().to_string()
}

fn stderr(command: &mut Command) -> String {
    let output = command.output().expect("kiln runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).expect("UTF-8")
}

const HINT: &str = "hint: kiln generate --scheduler draws with another one";

#[test]
fn another_scheduler_runs_a_model_whose_class_does_not_run() {
    onnxruntime();
    let (model, work) = (model(json!(["diffusers", "IPNDMScheduler"]), &json!({})), scratch());
    let path = path(&model);
    let index = model.path().join("model_index.json").display().to_string();
    let message =
        format!("error: {index}: scheduler: 'IPNDMScheduler' is for Dance Diffusion; supported: DDIMScheduler");
    let output = fail(&mut generate(&path, &work, &[]), 3, &message);
    assert!(String::from_utf8_lossy(&output.stderr).contains(HINT));
    assert!(!work.path().join("engines").exists(), "it is refused before anything is compiled");

    succeed(&mut generate(&path, &work, &["--scheduler", "dpm++2m"]));
    assert_eq!(picture_settings(&work.path().join("a.png"))["scheduler"], "dpm++2m");
    // Also where its bundle is there by now.
    fail(&mut generate(&path, &work, &[]), 3, &message);
}

/// It is the file that says what the named scheduler does not know.
#[test]
fn such_a_model_is_planned_and_measured_with_another_scheduler() {
    onnxruntime();
    let (model, work) = (model(json!(["diffusers", "IPNDMScheduler"]), &json!({})), scratch());
    let path = path(&model);
    let few = ["--steps", "1", "--width", "64", "--height", "64"];
    let plan = [&["plan", &path][..], &few].concat();
    fail(&mut kiln(&plan, work.path()), 3, "'IPNDMScheduler' is for Dance Diffusion");
    succeed(&mut kiln(&[&plan[..], &["--scheduler", "heun"]].concat(), work.path()));
    let unknown = [&plan[..], &["--scheduler", "huen"]].concat();
    fail(&mut kiln(&unknown, work.path()), 2, "scheduler: 'huen' is not supported; supported: ddim");
    let ladder = ["bench", "ladder", &path, "--steps", "1", "--speed-only", "--out", "ladder"];
    fail(&mut kiln(&ladder, work.path()), 3, "'IPNDMScheduler' is for Dance Diffusion");
    succeed(&mut kiln(&[&ladder[..], &["--scheduler", "ddim"]].concat(), work.path()));
    let bundle = succeed(&mut kiln(&["compile", &path, "--no-reference"], work.path()));
    let bench = [&["bench", "memory", bundle.trim(), "--out", "memory"][..], &few].concat();
    fail(&mut kiln(&bench, work.path()), 3, "'IPNDMScheduler' is for Dance Diffusion");
    succeed(&mut kiln(&[&bench[..], &["--scheduler", "ddim"]].concat(), work.path()));
}

#[test]
fn settings_that_the_named_scheduler_does_not_know_are_refused_by_file_and_key() {
    let file = json!({ "beta_schedule": "odd" });
    let (model, work) = (model(json!(["diffusers", "DDIMScheduler"]), &file), scratch());
    let file = model.path().join("scheduler/scheduler_config.json").display().to_string();
    let message = format!("error: {file}: beta_schedule: 'odd' is not supported");
    fail(&mut generate(&path(&model), &work, &["--scheduler", "euler"]), 3, &message);
    fail(
        &mut generate(&path(&model), &work, &["--scheduler", "dpm++3m"]),
        2,
        "scheduler: 'dpm++3m' is not supported",
    );
}

#[test]
fn a_bundle_of_such_a_model_is_compiled_and_carries_the_class() {
    onnxruntime();
    let (model, work) = (model(json!(["own_code", "DDIMScheduler"]), &json!({})), scratch());
    let compile = kiln(&["compile", &path(&model)], work.path()).output().expect("kiln runs");
    let told = String::from_utf8_lossy(&compile.stderr).into_owned();
    assert!(compile.status.success(), "{told}");
    assert!(told.contains("scheduler: 'own_code.DDIMScheduler' is not supported"), "{told}");
    assert!(told.contains("kiln generate --scheduler"), "{told}");

    let bundle = String::from_utf8(compile.stdout).expect("UTF-8").trim().to_owned();
    let message = "bundle.yaml: scheduler_class: 'own_code.DDIMScheduler' is not supported";
    let output = fail(&mut generate(&bundle, &work, &[]), 3, message);
    assert!(String::from_utf8_lossy(&output.stderr).contains(HINT));
    succeed(&mut generate(&bundle, &work, &["--scheduler", "ddim"]));
    succeed(&mut kiln(&["verify", &bundle], work.path()));
}

#[test]
fn a_class_that_does_not_run_matters_only_where_it_would() {
    onnxruntime();
    let file = json!({ "_class_name": "UnCLIPScheduler" });
    let (model, work) = (model(json!(["diffusers", "EulerDiscreteScheduler"]), &file), scratch());
    assert_eq!(stderr(&mut generate(&path(&model), &work, &[])), "");
    assert_eq!(picture_settings(&work.path().join("a.png"))["scheduler"], "EulerDiscreteScheduler");
}

#[test]
fn keys_that_are_ignored_are_told_in_one_line() {
    onnxruntime();
    let old = json!({ "tensor_format": "pt", "predict_epsilon": true });
    let (model, work) = (model(json!(["diffusers", "DDIMScheduler"]), &old), scratch());
    let file = model.path().join("scheduler/scheduler_config.json");
    let line = |file: &str| format!("{file}: no scheduler reads predict_epsilon, tensor_format: ignored\n");
    let expected = line(&file.display().to_string());
    assert_eq!(stderr(&mut generate(&path(&model), &work, &[])), expected);
    assert_eq!(stderr(&mut generate(&path(&model), &work, &["--scheduler", "euler"])), expected);

    let bundle = succeed(&mut kiln(&["compile", &path(&model)], work.path())).trim().to_owned();
    assert_eq!(stderr(&mut generate(&bundle, &work, &[])), line(&format!("{bundle}/scheduler_config.json")));
}

#[test]
fn the_line_of_ignored_keys_stays_one_line() {
    onnxruntime();
    let mut old = json!({ "a\nb\u{1b}[2J": 1, "b".repeat(1000): 2 });
    (0..100).for_each(|i| old[format!("key_{i:02}")] = 0.into());
    let (model, work) = (model(json!(["diffusers", "DDIMScheduler"]), &old), scratch());
    let told = stderr(&mut generate(&path(&model), &work, &[]));
    let keys = format!(r"a\nb\u{{1b}}[2J, {}, key_00", "b".repeat(40));
    assert!(told.contains(&keys) && told.ends_with("key_05 and more: ignored\n"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn an_entry_of_the_index_that_is_no_class_is_refused() {
    let work = scratch();
    for entry in
        [json!("DDIMScheduler"), json!(["diffusers"]), json!(["diffusers", 3]), json!([null, "DDIMScheduler"])]
    {
        let model = model(entry.clone(), &Value::Null);
        let message = format!("model_index.json: scheduler: {entry} is not a library and a class");
        fail(&mut generate(&path(&model), &work, &[]), 3, &message);
    }
}

/// What averaging weights leaves behind in a network's configuration changes no picture.
#[test]
fn keys_of_averaged_weights_change_nothing() {
    onnxruntime();
    let (model, work) = (model(json!(["diffusers", "DDIMScheduler"]), &json!({})), scratch());
    let draw = || {
        succeed(&mut generate(&path(&model), &work, &[]));
        std::fs::read(work.path().join("a.png")).expect("a picture")
    };
    let plain = draw();
    for network in ["unet", "vae"] {
        edit_json(&model.path().join(network).join("config.json"), |config| {
            for (key, value) in [("decay", json!(0.9999)), ("inv_gamma", json!(1.0)), ("min_decay", json!(0.5))]
            {
                config[key] = value;
            }
            for (key, value) in [("optimization_step", json!(37000)), ("power", json!(0.6667))] {
                config[key] = value;
            }
            for (key, value) in [("update_after_step", json!(100)), ("use_ema_warmup", json!(true))] {
                config[key] = value;
            }
        });
    }
    let pixels = |png: Vec<u8>| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        pixels
    };
    assert_eq!(pixels(plain), pixels(draw()));
    edit_json(&model.path().join("unet/config.json"), |config| {
        config["use_image_cross_attention"] = true.into()
    });
    let told = "UNet2DConditionModel has no decay, inv_gamma, min_decay, optimization_step, power and 3 more, passed over";
    let output = generate(&path(&model), &work, &[]).output().expect("kiln runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains(told) && output.status.success(), "{output:?}");
    edit_json(&model.path().join("unet/config.json"), |config| config["dual_cross_attention"] = true.into());
    fail(&mut generate(&path(&model), &work, &[]), 3, "dual_cross_attention: true is not supported");
}
