//! Files that are not what they should be.

use std::fs;
use std::path::Path;

use super::{UNET, model};
use crate::cli::{fail, kiln};
use crate::fixtures::{edit_json, scratch};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438167540\n";

#[test]
fn what_lies_in_place_of_a_file_is_named() {
    let work = scratch();
    let check = |file: &str, text: &str, message: &str| {
        let model = model();
        fs::write(model.path().join(file), text).expect("a file");
        fail(&mut kiln(&["compile", &model.path().display().to_string()], work.path()), 3, message);
    };
    for file in [UNET, "unet/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"] {
        check(file, POINTER, "is a Git LFS pointer, not the file itself, which `git lfs pull` fetches");
        check(
            file,
            "<!DOCTYPE html><html><body>404</body></html>",
            "is a web page, saved in place of the file itself",
        );
    }
    fs::write(work.path().join("a.safetensors"), POINTER).expect("a file");
    fail(&mut kiln(&["generate", "x", "--model", "a.safetensors"], work.path()), 3, "is a Git LFS pointer");
    fs::write(work.path().join("b.json"), "{\n  \"_class_name\": \"StableDiffusionPipeline\"}")
        .expect("a file");
    fail(
        &mut kiln(&["generate", "x", "--model", "b.json"], work.path()),
        3,
        "is JSON where a safetensors file is expected",
    );
}

#[cfg(unix)]
#[test]
fn pipes_and_endless_files_are_refused_at_once() {
    let work = scratch();
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
    };
    for file in [UNET, "unet/config.json", "model_index.json", "tokenizer/tokenizer_config.json"] {
        let model = model();
        pipe(&model.path().join(file));
        fail(
            &mut kiln(&["compile", &model.path().display().to_string()], work.path()),
            3,
            "is not a regular file",
        );
        fs::remove_file(model.path().join(file)).expect("gone");
        std::os::unix::fs::symlink("/dev/zero", model.path().join(file)).expect("a link");
        fail(
            &mut kiln(&["compile", &model.path().display().to_string()], work.path()),
            3,
            "is not a regular file",
        );
    }
    let model = model().path().display().to_string();
    for name in ["spec.yaml", "e.safetensors", "l.safetensors", "i.png"] {
        pipe(&work.path().join(name));
    }
    for args in [
        &["compile", "spec.yaml"][..],
        &["convert", "e.safetensors", "--out", "folder"],
        &["generate", "x", "--model", &model, "--embedding", "e.safetensors"],
    ] {
        fail(&mut kiln(args, work.path()), 3, "");
    }
}

#[test]
fn no_model_has_so_many_tensors() {
    let work = scratch();
    let entries: Vec<String> =
        (0..100_001).map(|i| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let header = format!("{{{}}}", entries.join(","));
    let file = work.path().join("many.safetensors");
    fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).expect("a file");
    let message = "holds 100001 tensors, more than any model";
    fail(&mut kiln(&["inspect", "many.safetensors"], work.path()), 3, message);
    let long = [&(40u64 << 20).to_le_bytes()[..], &vec![b' '; 41 << 20]].concat();
    fs::write(&file, long).expect("a file");
    fail(
        &mut kiln(&["inspect", "many.safetensors"], work.path()),
        3,
        "has a header of 41943040 bytes, more than any model",
    );
}

#[test]
fn messages_are_one_short_line_without_control_characters() {
    let (model, work) = (model(), scratch());
    let act_fn = format!("\u{1b}[31m{}", "x".repeat(1 << 20));
    edit_json(&model.path().join("unet/config.json"), |config| config["act_fn"] = act_fn.into());
    let output = fail(&mut kiln(&["inspect", &model.path().display().to_string()], work.path()), 3, "act_fn");
    assert!(output.stderr.len() < 1000 && !output.stderr.contains(&0x1b), "{} bytes", output.stderr.len());
    assert_eq!(output.stderr.iter().filter(|&&b| b == b'\n').count(), 1);
}

#[test]
fn a_network_of_another_class_is_no_controlnet() {
    let model = model();
    let unet = model.path().join("unet");
    edit_json(&unet.join("config.json"), |config| config["_class_name"] = "UNet2DConditionModel".into());
    let error = kiln_compile::ControlNetCheckpoint::open(&unet, None).expect_err("a UNet").to_string();
    assert!(error.ends_with("'UNet2DConditionModel' where a ControlNetModel is expected"), "{error}");
}

#[test]
fn keys_that_stand_twice_are_refused() {
    let (model, work) = (model(), scratch());
    let spec = format!("checkpoint: {}\ntargets:\n  cpu: {{}}\n  cpu: {{}}\n", model.path().display());
    fs::write(work.path().join("spec.yaml"), spec).expect("a file");
    fail(&mut kiln(&["compile", "spec.yaml", "--dry-run"], work.path()), 3, "'cpu' stands twice");
}

#[test]
fn pictures_that_do_not_fit_into_memory_are_refused_before_the_first_step() {
    let (model, work) = (crate::fixtures::tiny(), scratch());
    let path = model.path().display().to_string();
    let huge = [
        "generate",
        "x",
        "--model",
        &path,
        "--backend",
        "rten",
        "--steps",
        "1",
        "--width",
        "8192",
        "--height",
        "8192",
    ];
    let output = fail(
        &mut kiln(&[&huge[..], &["--batch-size", "256"]].concat(), work.path()),
        7,
        "is predicted to take ",
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains(" are free"));
}
