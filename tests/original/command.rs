//! Single files as the `kiln` command takes them.

use std::fs;

use serde_json::Value;

use super::weights::fixture;
use super::{Draft, hollow};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch};

#[test]
fn a_file_is_a_model_to_draw_with() {
    onnxruntime();
    let ((folder, file), work) = (fixture(true), scratch());
    let (folder, file) = (folder.path().display().to_string(), file.display().to_string());
    let draw = |model: &str, out: &str| {
        let args = ["generate", "a cat", "--model", model, "--steps", "2", "--seed", "1", "--json"];
        let size = ["--width", "64", "--height", "64", "--out", out];
        let json = succeed(&mut kiln(&[&args[..], &size].concat(), work.path()));
        let json: Value = serde_json::from_str(&json).expect("JSON");
        json["model"].as_str().expect("a name").to_owned()
    };
    assert_eq!(draw(&file, "file.png"), "single");
    let converted = work.path().join("converted").display().to_string();
    assert_eq!(succeed(&mut kiln(&["convert", &file, "--out", &converted], work.path())).trim(), converted);
    draw(&converted, "folder.png");
    let pixels = |name: &str| {
        let file = std::io::BufReader::new(fs::File::open(work.path().join(name)).expect("a picture"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        pixels
    };
    assert!(pixels("file.png") == pixels("folder.png"));
    fail(&mut kiln(&["convert", &file, "--out", &converted], work.path()), 2, "exists and is not empty");

    let refuse = |args: &[&str], message| drop(fail(&mut kiln(args, work.path()), 2, message));
    refuse(&["compile", &file, "--variant", "fp16"], "--variant chooses between the files of a folder");
    refuse(
        &["compile", &folder, "--prediction-type", "epsilon"],
        "--prediction-type is for single-file checkpoints",
    );
    let asked = ["compile", &file, "--prediction-type", "v_prediction"];
    let bundle = succeed(&mut kiln(&asked, work.path()));
    let scheduler =
        fs::read(std::path::Path::new(bundle.trim()).join("scheduler_config.json")).expect("a scheduler");
    let scheduler: Value = serde_json::from_slice(&scheduler).expect("JSON");
    assert_eq!(scheduler["prediction_type"], "v_prediction");
}

#[test]
fn inspect_tells_the_family_of_files_that_can_not_be_run_too() {
    let (_folder, path) = hollow(&Draft::of("sdxl"));
    let (path, work) = (path.display().to_string(), scratch());
    let text = succeed(&mut kiln(&["inspect", &path], work.path()));
    assert!(text.contains("in one file (Stable Diffusion XL base, StableDiffusionXLPipeline)"), "{text}");
    assert!(text.contains("unet            2567.46 M parameters"), "{text}");
    let json: Value =
        serde_json::from_str(&succeed(&mut kiln(&["inspect", &path, "--json"], work.path()))).expect("JSON");
    assert_eq!(json["family"], "Stable Diffusion XL base");
    assert_eq!(json["configs"]["unet"]["cross_attention_dim"], 2048);

    let (_folder, path) = hollow(&Draft::of("controlnet"));
    let path = path.display().to_string();
    let text = succeed(&mut kiln(&["inspect", &path], work.path()));
    assert!(text.contains("in one file (ControlNet, ControlNetModel)"), "{text}");
    let pickled = work.path().join("model.ckpt");
    fs::write(&pickled, b"PK\x03\x04").expect("a file");
    fail(
        &mut kiln(&["inspect", &pickled.display().to_string()], work.path()),
        3,
        "pickled weights can run code",
    );
}
