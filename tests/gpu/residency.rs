//! What is on the GPU, and when.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET, VAE_DECODER};
use serde_json::Value;

use super::{OnGpu, kiln_with_gpu};
use crate::cli::{fail, succeed};

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().expect("a number")
}

#[test]
fn offload_takes_less_and_draws_the_same_picture() {
    let gpu = OnGpu::new(true);
    let run = |offload: &str| {
        let out = format!("{offload}.png");
        let report = gpu.generate(&out, &["--offload", offload]);
        (number(&report, "peak"), std::fs::read(gpu.folder().join(out)).expect("a picture"), report)
    };
    let (none, picture, _) = run("none");
    let (model, same, report) = run("model");
    assert!(same == picture, "model offload draws another picture");
    assert!(model < none, "model offload takes {model}, none {none}");
    assert!(number(&report, "pinned_peak") > 0, "weights are copied from pinned memory");
    let (sequential, same, _) = run("sequential");
    assert!(same == picture, "sequential offload draws another picture");
    assert!(2 * sequential < model, "sequential offload takes {sequential}, model offload {model}");
}

#[test]
fn all_memory_is_given_back() {
    let gpu = OnGpu::new(true);
    for offload in ["none", "model", "sequential"] {
        let report = gpu.generate("a.png", &["--offload", offload]);
        assert_eq!((number(&report, "used"), number(&report, "pinned")), (0, 0), "{offload}: {report}");
    }
}

#[test]
fn memory_that_is_not_there_is_an_error_that_says_what_would_fit() {
    let gpu = OnGpu::new(false);
    let weights: u64 = [TEXT_ENCODER, UNET, VAE_DECODER]
        .iter()
        .map(|role| gpu.bundle.component(*role).expect("a component").weight_bytes)
        .sum();
    let limited = |offload: &str| {
        let mut command = kiln_with_gpu(&gpu.draw("b.png", &["--offload", offload]), gpu.folder());
        command.env("FAKE_CUDA_MEMORY", weights.to_string());
        command
    };
    let output = fail(&mut limited("none"), 7, "memory");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: --offload model"), "{said}");
    succeed(&mut limited("model"));
}

#[test]
fn a_budget_is_one_of_the_gpus_memory() {
    let gpu = OnGpu::new(true);
    let bundle = gpu.bundle.root().display().to_string();
    succeed(&mut kiln_with_gpu(&["measure", &bundle], gpu.folder()));
    let plan = |more: &[&str]| -> Value {
        let args = [&["plan", &bundle, "--steps", "4", "--json"], more].concat();
        serde_json::from_str(&succeed(&mut kiln_with_gpu(&args, gpu.folder()))).expect("JSON")
    };
    for choice in plan(&[])["choices"].as_array().expect("choices") {
        let offload = choice["offload"].as_str().expect("a name").to_owned();
        let tile = choice["vae_tile"].as_u64().map(|tile| tile.to_string());
        let tile: Vec<&str> = tile.iter().flat_map(|tile| ["--vae-tile", tile]).collect();
        let found = gpu.generate("a.png", &[&["--offload", offload.as_str()], &tile[..]].concat());
        let (found, predicted) = (number(&found, "peak") as f64, number(choice, "peak_bytes") as f64);
        assert!((found / predicted - 1.0).abs() < 0.1, "{choice}: {found} were taken");
    }
    let least = plan(&[])["choices"].as_array().expect("choices").iter().map(|c| number(c, "peak_bytes")).min();
    let least = least.expect("a choice");
    let chosen = plan(&["--memory-budget", &format!("{}", least + least / 10)]);
    let chosen = chosen["choices"].as_array().expect("choices").iter().find(|c| c["chosen"] == true);
    assert_eq!(chosen.expect("a choice")["offload"], "sequential");
    let args = gpu.draw("b.png", &["--memory-budget", "1MiB"]);
    fail(&mut kiln_with_gpu(&args, gpu.folder()), 7, "this request takes at least");
    succeed(&mut kiln_with_gpu(&gpu.draw("b.png", &["--memory-budget", "auto"]), gpu.folder()));
}

#[test]
fn every_way_to_spend_a_gpus_memory_is_measured() {
    let gpu = OnGpu::new(true);
    let bundle = gpu.bundle.root().display().to_string();
    succeed(&mut kiln_with_gpu(&["measure", &bundle], gpu.folder()));
    let args = ["bench", "memory", &bundle, "--steps", "2", "--out", "bench", "--json"];
    let report = succeed(&mut kiln_with_gpu(&args, gpu.folder()));
    let report: Value = serde_json::from_str(&report).expect("JSON");
    for row in report["rows"].as_array().expect("rows") {
        let [peak, predicted] = ["peak_bytes", "predicted_bytes"].map(|key| number(row, key) as f64);
        assert!((0.8..1.2).contains(&(predicted / peak)), "{row}");
        assert!(row["psnr"].as_f64().is_none_or(|psnr| psnr > 30.0), "{row}");
    }
}

#[test]
fn kernels_are_compiled_once_for_a_device() {
    let gpu = OnGpu::new(false);
    let compiled = |more: &[&str]| number(&gpu.generate("a.png", more), "compiled");
    assert_eq!(compiled(&[]), 3, "text encoder, UNet and decoder");
    assert_eq!(compiled(&[]), 0);
    assert_eq!(compiled(&["--width", "80"]), 2, "UNet and decoder for another size");
    assert_eq!(compiled(&["--offload", "model"]), 0);
    let kernels = std::fs::read_dir(gpu.folder().join("kernels")).expect("a folder");
    let files: Vec<_> = kernels.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        std::fs::write(file, format!("{:0>64}[]", 0)).expect("a file");
    }
    assert_eq!(compiled(&[]), 3, "what bears no seal is not used");
}
