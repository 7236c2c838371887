//! LoRAs on the command line.

use std::fs;

use serde_json::Value;
use sha2::Digest;

use super::Case;
use crate::cli::{fail, kiln, picture_settings, succeed, text_chunk};
use crate::fixtures::{onnxruntime, scratch};

const DRAW: [&str; 7] = ["generate", "a red circle", "--seed", "3", "--steps", "2", "--json"];

#[test]
fn a_lora_is_swapped_in_or_fused_with_the_same_picture() {
    onnxruntime();
    let (case, work) = (Case::new("kohya"), scratch());
    // The colon is part of the name.
    fs::copy(case.path(), work.path().join("a:1.safetensors")).expect("a copy");
    let model = case.checkpoint.display().to_string();
    let draw = |model: &str, out: &str, loras: &[&str]| {
        let size = ["--height", "64", "--width", "64", "--model", model, "--out", out];
        let printed = succeed(&mut kiln(&[&DRAW[..], &size, loras].concat(), work.path()));
        let report: Value = serde_json::from_str(&printed).expect("JSON");
        (report, fs::read(work.path().join(out)).expect("a picture"))
    };
    let pixels = |png: &[u8]| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("a frame");
        pixels
    };
    let (_, plain) = draw(&model, "plain.png", &[]);
    let (report, swapped) = draw(&model, "swapped.png", &["--lora", "a:1.safetensors:0.5"]);
    assert_eq!(report["lora"], serde_json::json!(["a:1.safetensors:0.5"]));
    let swapped_file = work.path().join("swapped.png");
    assert_eq!(picture_settings(&swapped_file)["lora"], report["lora"]);
    let bytes = fs::read(work.path().join("a:1.safetensors")).expect("a LoRA");
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let hash = sha2::Sha256::digest(&bytes[8 + n_header..]);
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let said = text_chunk(&swapped_file, "parameters");
    assert!(said.contains(" <lora:a:1:0.5>\n"), "{said}");
    assert!(said.contains(&format!(", Lora hashes: \"a:1: {hash}\", RNG: CPU, ")), "{said}");
    assert_ne!(pixels(&plain), pixels(&swapped));
    let (_, nothing) = draw(&model, "nothing.png", &["--lora", "a:1.safetensors:0"]);
    assert_eq!(pixels(&plain), pixels(&nothing));
    let (_, twice) =
        draw(&model, "twice.png", &["--lora=a:1.safetensors:-0.25", "--lora", "a:1.safetensors:0.75"]);
    assert_ne!(pixels(&plain), pixels(&twice));

    let compile = ["compile", &model, "--lora", "a:1.safetensors:0.5", "--no-reference"];
    let bundle = succeed(&mut kiln(&compile, work.path()));
    let (_, fused) = draw(bundle.trim(), "fused.png", &[]);
    assert_eq!(pixels(&fused), pixels(&swapped));
    assert_eq!(succeed(&mut kiln(&compile, work.path())), bundle, "cached");
    let described = succeed(&mut kiln(&["inspect", bundle.trim()], work.path()));
    assert!(described.contains("with LoRA a:1.safetensors times 0.5"), "{described}");
}

#[test]
fn inspect_tells_what_is_in_a_lora() {
    let (case, work) = (Case::new("kohya"), scratch());
    let path = case.path().display().to_string();
    let described = succeed(&mut kiln(&["inspect", &path], work.path()));
    assert!(described.contains("named as by kohya, in f16"), "{described}");
    assert!(
        described.contains("unet              9 modules (0 with a kernel), LoRA, rank 3, 4"),
        "{described}"
    );
    let json = succeed(&mut kiln(&["inspect", &path, "--json"], work.path()));
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["kind"], "lora");
    assert_eq!(json["components"][1]["name"], "text_encoder");
    assert_eq!(json["components"][1]["modules"].as_array().map(Vec::len), Some(4));
}

#[test]
fn loras_that_cannot_be_used_are_input_errors() {
    onnxruntime();
    let (case, foreign, work) = (Case::new("kohya"), Case::new("original"), scratch());
    let model = case.checkpoint.display().to_string();
    let with = |lora: &str| ["generate", "x", "--model", &model, "--lora", lora].map(str::to_owned);
    let run = |lora: &str, code, message: &str| {
        let args = with(lora);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        fail(&mut kiln(&args, work.path()), code, message);
    };
    run("none.safetensors", 3, "none.safetensors: no such file");
    run("none.safetensors:0.5", 3, "none.safetensors: no such file");
    run("C:none.safetensors", 3, "C:none.safetensors: no such file");
    run(&format!("{}:inf", case.path().display()), 2, "weight inf");
    run(&foreign.path().display().to_string(), 3, "a LoRA for Stable Diffusion XL");
    let args = ["compile", &model, "--lora", &foreign.path().display().to_string()].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    fail(&mut kiln(&args, work.path()), 3, "which this model does not have");
}
