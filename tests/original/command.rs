//! Single files as the `kiln` command takes them.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use super::weights::fixture;
use super::{Draft, hollow};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::lora::{Tensors, write_tensors};

#[test]
fn a_file_is_a_model_to_draw_with() {
    onnxruntime();
    let ((folder, file), work) = (fixture(true), scratch());
    let (folder, file) = (folder.path().display().to_string(), file.display().to_string());
    let draw_with = |model: &str, out: &str, options: &[&str]| {
        let args = ["generate", "a cat", "--model", model, "--steps", "2", "--seed", "1", "--json"];
        let size = ["--width", "64", "--height", "64", "--out", out];
        let json = succeed(&mut kiln(&[&args[..], &size, options].concat(), work.path()));
        let json: Value = serde_json::from_str(&json).expect("JSON");
        json["model"].as_str().expect("a name").to_owned()
    };
    let draw = |model: &str, out: &str| draw_with(model, out, &[]);
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

    let lora = work.path().join("lora.safetensors");
    write_lora(&lora, Path::new(&folder));
    let lora = lora.display().to_string();
    draw_with(&file, "swapped.png", &["--lora", &lora]);
    assert!(pixels("file.png") != pixels("swapped.png"));
    let compiled = succeed(&mut kiln(&["compile", &file, "--lora", &lora, "--no-reference"], work.path()));
    draw(compiled.trim(), "fused.png");
    assert!(pixels("swapped.png") == pixels("fused.png"));

    let refuse = |args: &[&str], message| drop(fail(&mut kiln(args, work.path()), 2, message));
    refuse(&["compile", &file, "--variant", "fp16"], "--variant chooses between the files of a folder");
    refuse(
        &["compile", &folder, "--prediction-type", "epsilon"],
        "--prediction-type is for single-file checkpoints",
    );
    let asked = ["compile", &file, "--prediction-type", "v_prediction"];
    let bundle = succeed(&mut kiln(&asked, work.path()));
    let scheduler = fs::read(Path::new(bundle.trim()).join("scheduler_config.json")).expect("a scheduler");
    let scheduler: Value = serde_json::from_slice(&scheduler).expect("JSON");
    assert_eq!(scheduler["prediction_type"], "v_prediction");
}

/// A LoRA of rank 1 that adds to the first convolution of the folder's UNet.
fn write_lora(path: &Path, folder: &Path) {
    let config = fs::read(folder.join("unet/config.json")).expect("a configuration");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let n_channels = config["block_out_channels"][0].as_u64().expect("channels") as usize;
    let tensors: Tensors = [("down", vec![1, 4, 3, 3]), ("up", vec![n_channels, 1, 1, 1])]
        .map(|(part, shape)| {
            let bytes = 0.1_f32.to_le_bytes().repeat(shape.iter().product());
            (format!("lora_unet_conv_in.lora_{part}.weight"), (Dtype::F32, shape, bytes))
        })
        .into();
    write_tensors(path, &tensors, None);
}

#[test]
fn inspect_tells_the_family_of_files_that_cannot_be_run_too() {
    let (_folder, path) = hollow(&Draft::of("sdxl"));
    let (path, work) = (path.display().to_string(), scratch());
    let text = succeed(&mut kiln(&["inspect", &path], work.path()));
    assert!(text.contains("in one file (Stable Diffusion XL base, StableDiffusionXLPipeline)"), "{text}");
    let parameters = text.lines().find(|line| line.trim_start().starts_with("unet ")).expect("the UNet's line");
    assert!(parameters.contains(" 2567.46 M parameters"), "{text}");
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
